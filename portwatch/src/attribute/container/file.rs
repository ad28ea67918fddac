//! Reading a record: up to a limit, and without ever waiting for it.

use std::fs::{File, Metadata, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Largest record that is read, in bytes.
const MAX_RECORD: u64 = 4 << 20;

/// What a file is.
pub(super) enum Content {
    Absent,
    Broken,
    Read(Vec<u8>, Stamp),
}

/// A file at a moment.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) path: PathBuf,
    pub(super) stamp: Stamp,
}

impl Source {
    /// Whether the file is still what it was.
    pub(super) fn is_current(&self) -> bool {
        std::fs::metadata(&self.path).is_ok_and(|metadata| Stamp::from(&metadata) == self.stamp)
    }
}

/// What changes when a file is written or replaced.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    inode: u64,
    len: u64,
    seconds: i64,
    nanoseconds: i64,
}

impl From<&Metadata> for Stamp {
    fn from(metadata: &Metadata) -> Self {
        Self {
            inode: metadata.ino(),
            len: metadata.len(),
            seconds: metadata.mtime(),
            nanoseconds: metadata.mtime_nsec(),
        }
    }
}

/// Reads a plain file that is not too large.
pub(super) fn read(path: &Path) -> Content {
    // Opening a FIFO would wait for its writer.
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path);
    let Ok(file) = opened else {
        return Content::Absent;
    };
    read_open(file).unwrap_or(Content::Broken)
}

fn read_open(file: File) -> Option<Content> {
    let metadata = file.metadata().ok()?;
    if !metadata.is_file() || metadata.len() > MAX_RECORD {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(MAX_RECORD + 1).read_to_end(&mut bytes).ok()?;
    // It may have grown since.
    (bytes.len() as u64 <= MAX_RECORD).then(|| Content::Read(bytes, Stamp::from(&metadata)))
}
