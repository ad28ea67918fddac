//! An archive in cpio's "newc" format, as the kernel unpacks it into its first
//! file system (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeSet;

/// Mode bits of a directory, a file and a character device.
const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const DEVICE: u32 = 0o020_000;

/// An archive being made. Everything belongs to root.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    inode: u32,
    folders: BTreeSet<String>,
}

impl Archive {
    /// Adds a file with the folders it lies in. The path is absolute.
    pub fn file(&mut self, path: &str, executable: bool, content: &[u8]) {
        self.folders_of(path);
        let mode = if executable { 0o755 } else { 0o644 };
        self.entry(path, FILE | mode, content, (0, 0));
    }

    /// Adds a character device with the folders it lies in.
    pub fn device(&mut self, path: &str, major: u32, minor: u32) {
        self.folders_of(path);
        self.entry(path, DEVICE | 0o600, &[], (major, minor));
    }

    /// The whole archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[], (0, 0));
        self.bytes
    }

    fn folders_of(&mut self, path: &str) {
        for (at, _) in path.match_indices('/').skip(1) {
            let folder = &path[..at];
            if self.folders.insert(folder.to_owned()) {
                self.entry(folder, DIRECTORY | 0o755, &[], (0, 0));
            }
        }
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8], device: (u32, u32)) {
        self.inode += 1;
        let name = path.trim_start_matches('/');
        let size = u32::try_from(content.len()).unwrap_or(u32::MAX);
        let name_size = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
        self.bytes.extend(b"070701");
        // inode, mode, uid, gid, links, mtime, size, its device, this device, name's size, sum
        for field in [
            self.inode, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name_size, 0,
        ] {
            self.bytes.extend(format!("{field:08X}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::Archive;

    #[test]
    fn an_archive_is_as_the_kernel_wants_it() {
        let mut archive = Archive::default();
        archive.file("/a/b", true, b"hello");
        archive.device("/null", 1, 3);
        let bytes = archive.finish();
        let zeros = |count: usize| "0".repeat(count * 8);
        let expected = [
            "070701",
            "00000001",
            "000041ED",
            &*zeros(2),
            "00000001",
            &zeros(6),
            "00000002",
            &zeros(1),
            "a\0",
            // The header has 110 bytes: the name ends at a multiple of four.
            "070701",
            "00000002",
            "000081ED",
            &zeros(2),
            "00000001",
            &zeros(1),
            "00000005",
            &zeros(4),
            "00000004",
            &zeros(1),
            "a/b\0\0\0",
            "hello\0\0\0",
            "070701",
            "00000003",
            "00002180",
            &zeros(2),
            "00000001",
            &zeros(4),
            "00000001",
            "00000003",
            "00000005",
            &zeros(1),
            "null\0\0",
        ]
        .concat();
        let text = String::from_utf8(bytes).unwrap();
        let (seen, rest) = text.split_at(expected.len());
        assert_eq!(seen, expected);
        assert!(rest.starts_with("07070100000004"));
        assert!(rest.contains("TRAILER!!!\0"));
        assert_eq!(text.len() % 4, 0);
    }
}
