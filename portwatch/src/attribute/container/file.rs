//! Reading a record: up to a limit, and without ever waiting for it.

use std::cell::Cell;
use std::fs::{File, Metadata, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileExt as _, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Largest record that is read, in bytes.
const MAX_RECORD: u64 = 4 << 20;
/// How much of a database is read to answer one question, in bytes.
const MAX_PAGES: usize = 32 << 20;

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
#[derive(Debug, Clone, PartialEq, Eq)]
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

/// Opens a file without waiting for anybody.
fn open(path: &Path) -> Option<File> {
    // Opening a FIFO would wait for its writer.
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path);
    opened.ok()
}

/// Reads a plain file that is not too large.
pub(super) fn read(path: &Path) -> Content {
    let Some(file) = open(path) else {
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

/// A database file, of which only the pages that are needed are read, and not more than a limit.
#[derive(Debug)]
pub(super) struct Pages {
    file: File,
    left: Cell<usize>,
}

impl Pages {
    /// Opens a plain file.
    pub(super) fn open(path: &Path) -> Option<(Self, Stamp)> {
        let file = open(path)?;
        let metadata = file.metadata().ok()?;
        let pages = Self {
            file,
            left: Cell::new(MAX_PAGES),
        };
        metadata.is_file().then(|| (pages, Stamp::from(&metadata)))
    }

    /// The bytes at a place, if they are all there.
    pub(super) fn read(&self, at: u64, len: usize) -> Option<Vec<u8>> {
        self.left.set(self.left.get().checked_sub(len)?);
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, at).ok()?;
        Some(bytes)
    }
}

/// A number of little-endian bytes at a place.
pub(super) fn le<const N: usize>(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes: [u8; N] = bytes.get(at..)?.get(..N)?.try_into().ok()?;
    Some((bytes.iter().rev()).fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

/// A number of big-endian bytes at a place.
pub(super) fn be<const N: usize>(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes: [u8; N] = bytes.get(at..)?.get(..N)?.try_into().ok()?;
    Some((bytes.iter()).fold(0, |number, byte| number << 8 | u64::from(*byte)))
}
