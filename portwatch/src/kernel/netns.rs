//! The network namespaces of this host: where they can be found, and a look from within each.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};

/// Where namespaces are kept by name: by `ip netns`, and by Docker.
const KEPT: [&str; 2] = ["run/netns", "run/docker/netns"];

/// A network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// A file that leads to it.
    pub path: PathBuf,
    /// Its name as of `ip netns`, or that of the file Docker keeps it by.
    pub name: Option<String>,
}

/// All network namespaces that a process is in or that are kept by name, by inode number. `root` is
/// `/`, but for tests. One that only a descriptor keeps is not found.
#[must_use]
pub fn all(root: &Path) -> BTreeMap<u32, Namespace> {
    let mut found = BTreeMap::new();
    for folder in KEPT {
        for entry in entries(&root.join(folder)) {
            let path = entry.path();
            if let Some(inode) = fs::metadata(&path).ok().and_then(|file| inode(&file)) {
                found.entry(inode).or_insert_with(|| Namespace {
                    path,
                    name: Some(entry.file_name().to_string_lossy().into_owned()),
                });
            }
        }
    }
    let proc = root.join("proc");
    let processes = entries(&proc).filter(|entry| {
        entry
            .file_name()
            .as_encoded_bytes()
            .first()
            .is_some_and(u8::is_ascii_digit)
    });
    for process in processes {
        let path = process.path().join("ns/net");
        // Reading the link takes half the time of following it.
        let inode = fs::read_link(&path).ok().and_then(|link| number(&link));
        if let Some(inode) = inode {
            found
                .entry(inode)
                .or_insert_with(|| Namespace { path, name: None });
        }
    }
    found
}

fn entries(folder: &Path) -> impl Iterator<Item = fs::DirEntry> {
    fs::read_dir(folder).into_iter().flatten().flatten()
}

fn inode(file: &fs::Metadata) -> Option<u32> {
    u32::try_from(file.ino()).ok()
}

/// The number in `net:[4026531840]`.
fn number(link: &Path) -> Option<u32> {
    let text = link.to_str()?.strip_prefix("net:[")?;
    text.strip_suffix(']')?.parse().ok()
}

/// The network namespace of a process (a name below `proc`, as `1` or `thread-self`), by inode
/// number.
#[must_use]
pub fn of(proc: &Path, process: &str) -> Option<u32> {
    let link = fs::read_link(proc.join(process).join("ns/net")).ok()?;
    number(&link)
}

/// That of the calling thread.
#[must_use]
pub fn own() -> Option<u32> {
    of(Path::new("/proc"), "thread-self")
}

/// The one that is called the host's: that of pid 1, or where that may not be looked at, that of the
/// kernel's own threads (`init_net`). Who may look at neither is told the own.
#[must_use]
pub fn host() -> Option<u32> {
    host_by(Path::new("/proc"))
}

fn host_by(proc: &Path) -> Option<u32> {
    let of_kernel = || is_kthreadd(proc).then(|| of(proc, "2"))?;
    of(proc, "1")
        .or_else(of_kernel)
        .or_else(|| of(proc, "thread-self"))
}

/// Whether pid 2 is the parent of the kernel's threads, as in the host's pid namespace.
fn is_kthreadd(proc: &Path) -> bool {
    let stat = fs::read_to_string(proc.join("2/stat")).unwrap_or_default();
    // PID (COMM) STATE PARENT: whoever else calls itself so has a parent.
    let rest = stat.strip_prefix("2 (kthreadd) ");
    rest.and_then(|rest| rest.split(' ').nth(1)) == Some("0")
}

/// Takes the calling thread into a namespace, for good.
///
/// # Errors
///
/// If it is gone by now, or this is not permitted (CAP_SYS_ADMIN).
pub fn enter(namespace: &Namespace) -> io::Result<()> {
    let file = File::open(&namespace.path)?;
    Ok(setns(file, CloneFlags::CLONE_NEWNET)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn namespaces_are_found_by_name_and_by_process() {
        let root = tempfile::tempdir().unwrap();
        let folder = |path: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(&path).unwrap();
            path
        };
        let kept = folder("run/netns").join("blue");
        fs::write(&kept, "").unwrap();
        let blue = inode(&fs::metadata(&kept).unwrap()).unwrap();
        for (pid, net) in [(1, 4_026_531_840), (7, blue), (9, 4_026_531_840)] {
            let link = folder(&format!("proc/{pid}/ns")).join("net");
            symlink(format!("net:[{net}]"), link).unwrap();
        }
        folder("proc/self");
        let found = all(root.path());
        let namespace = |inode: u32| found[&inode].clone();
        assert_eq!(found.len(), 2);
        assert_eq!(
            namespace(blue),
            Namespace {
                path: kept,
                name: Some("blue".to_owned())
            }
        );
        let host = namespace(4_026_531_840);
        assert_eq!(host.name, None);
        assert!(host.path.ends_with("ns/net"), "{host:?}");
    }

    #[test]
    fn which_is_the_hosts() {
        let kthreadd = "2 (kthreadd) S 0 0 0 0 -1 2129984";
        let cases = [
            (Some(1), kthreadd, 1),
            (None, kthreadd, 2),
            (None, "2 (kthreadd) S 1 1 1 0 -1 4194560", 3),
            (None, "2 (sh) S 0 0 0 0 -1 4194560", 3),
            (None, "", 3),
        ];
        for (of_first, stat, expected) in cases {
            let proc = tempfile::tempdir().unwrap();
            let namespaces = [("1", of_first), ("2", Some(2)), ("thread-self", Some(3))];
            for (process, namespace) in namespaces {
                let folder = proc.path().join(process).join("ns");
                fs::create_dir_all(&folder).unwrap();
                if let Some(inode) = namespace {
                    symlink(format!("net:[{inode}]"), folder.join("net")).unwrap();
                }
            }
            fs::write(proc.path().join("2/stat"), stat).unwrap();
            assert_eq!(host_by(proc.path()), Some(expected), "{of_first:?} {stat}");
        }
    }

    #[test]
    fn a_host_without_anything_has_none() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(all(root.path()), BTreeMap::new());
    }

    #[test]
    fn the_own_one_is_among_them() {
        assert!(all(Path::new("/")).contains_key(&own().unwrap()));
    }
}
