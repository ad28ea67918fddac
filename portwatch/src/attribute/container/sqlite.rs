//! Databases of SQLite, which podman keeps its records in from 4.8 on: the rows of a table.
//!
//! Podman uses a rollback journal. While a transaction is written back, pages of two states may
//! be seen; the counter of changes in the first page tells.

use std::path::Path;

use super::file::{Pages, Stamp, be};

const MAGIC: &[u8] = b"SQLite format 3\0";
/// Length of the database's header, in its first page.
const HEADER: usize = 100;
const INTERIOR: u8 = 0x05;
const LEAF: u8 = 0x0d;
/// How deep a tree may be.
const DEPTH: u32 = 16;
/// How often it is read again because it was written meanwhile.
const ATTEMPTS: u32 = 4;
/// Longest row that is read.
const MAX_ROW: usize = 4 << 20;

/// A column's content; numbers with a fraction are of no use here.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Value {
    Other,
    Integer(i64),
    /// A text or a blob: podman writes its JSON as blobs into columns of text.
    Bytes(Vec<u8>),
}

impl Value {
    /// The bytes of a text or blob.
    pub(super) fn bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }
}

/// A database.
pub(super) struct Sqlite {
    pages: Pages,
    page_size: usize,
    /// Without what is reserved at the end of each page.
    usable: usize,
    changes: u64,
}

/// What `ask` is answered by the database at a path, and when it was written. None if it is not there or
/// cannot be understood.
pub(super) fn ask<T>(
    path: &Path,
    ask: impl Fn(&Sqlite) -> Option<T>,
) -> Option<(Option<T>, Stamp)> {
    for _ in 0..ATTEMPTS {
        let (pages, stamp) = Pages::open(path)?;
        let sqlite = Sqlite::new(pages)?;
        let answer = ask(&sqlite);
        let changes = sqlite
            .pages
            .read(0, HEADER)
            .and_then(|page| be::<4>(&page, 24));
        if changes == Some(sqlite.changes) {
            return Some((answer, stamp));
        }
    }
    None
}

impl Sqlite {
    fn new(pages: Pages) -> Option<Self> {
        let header = pages.read(0, HEADER)?;
        if !header.starts_with(MAGIC) {
            return None;
        }
        let page_size = match be::<2>(&header, 16)? {
            1 => 65_536,
            size => usize::try_from(size).ok()?,
        };
        let usable = page_size.checked_sub(usize::from(header[20]))?;
        (page_size.is_power_of_two() && usable >= 480).then_some(Self {
            page_size,
            usable,
            changes: be::<4>(&header, 24)?,
            pages,
        })
    }

    /// Looks at the rows of a table, until `look` is done.
    pub(super) fn rows<T>(
        &self,
        table: &str,
        look: &mut impl FnMut(&[Value]) -> Option<T>,
    ) -> Option<T> {
        // sqlite_schema: type, name, tbl_name, rootpage, sql.
        let root = self.walk(1, DEPTH, &mut |row| match row {
            [kind, name, _, Value::Integer(root), ..] => {
                let is = kind.bytes() == Some(b"table") && name.bytes() == Some(table.as_bytes());
                is.then_some(*root)
            }
            _ => None,
        })?;
        self.walk(u64::try_from(root).ok()?, DEPTH, look)
    }

    fn page(&self, number: u64) -> Option<Vec<u8>> {
        let at = number.checked_sub(1)?.checked_mul(self.page_size as u64)?;
        self.pages.read(at, self.page_size)
    }

    fn walk<T>(
        &self,
        number: u64,
        depth: u32,
        look: &mut impl FnMut(&[Value]) -> Option<T>,
    ) -> Option<T> {
        let depth = depth.checked_sub(1)?;
        let page = self.page(number)?;
        let header = if number == 1 { HEADER } else { 0 };
        let cells = usize::try_from(be::<2>(&page, header + 3)?).ok()?;
        match *page.get(header)? {
            LEAF => (0..cells).find_map(|cell| {
                let at = be::<2>(&page, header + 8 + 2 * cell)?;
                let payload = self.payload(&page, usize::try_from(at).ok()?)?;
                look(&record(&payload)?)
            }),
            INTERIOR => {
                let children = (0..cells).map(|cell| {
                    let at = be::<2>(&page, header + 12 + 2 * cell)?;
                    be::<4>(&page, usize::try_from(at).ok()?)
                });
                let children = children.chain([be::<4>(&page, header + 8)]);
                children
                    .flatten()
                    .find_map(|child| self.walk(child, depth, look))
            }
            _ => None,
        }
    }

    /// The row of a cell, which may go on in pages of its own.
    fn payload(&self, page: &[u8], mut at: usize) -> Option<Vec<u8>> {
        let len = usize::try_from(varint(page, &mut at)?).ok()?;
        let _row = varint(page, &mut at)?;
        // "B-tree Cell Format" of SQLite's file format: what is kept in the page itself.
        let most = self.usable - 35;
        if len <= most {
            return Some(page.get(at..)?.get(..len)?.to_owned());
        }
        if len > MAX_ROW {
            return None;
        }
        let least = (self.usable - 12) * 32 / 255 - 23;
        let local = least + (len - least) % (self.usable - 4);
        let local = if local <= most { local } else { least };
        let mut payload = page.get(at..)?.get(..local)?.to_owned();
        let mut next = be::<4>(page, at + local)?;
        while payload.len() < len {
            let page = self.page(next)?;
            next = be::<4>(&page, 0)?;
            let more = (len - payload.len()).min(self.usable - 4);
            payload.extend_from_slice(page.get(4..)?.get(..more)?);
        }
        Some(payload)
    }
}

/// The columns of a row.
fn record(payload: &[u8]) -> Option<Vec<Value>> {
    let mut at = 0;
    let header = usize::try_from(varint(payload, &mut at)?).ok()?;
    let mut body = header;
    let mut values = Vec::new();
    while at < header {
        let kind = varint(payload, &mut at)?;
        let len = match kind {
            0 | 8 | 9 => 0,
            1..=4 => usize::try_from(kind).ok()?,
            5 => 6,
            6 | 7 => 8,
            _ => usize::try_from(kind.checked_sub(12)? / 2).ok()?,
        };
        let bytes = payload.get(body..)?.get(..len)?;
        body += len;
        values.push(match kind {
            8 | 9 => Value::Integer(i64::try_from(kind - 8).ok()?),
            1..=6 => Value::Integer(integer(bytes)),
            12.. => Value::Bytes(bytes.to_owned()),
            _ => Value::Other,
        });
    }
    Some(values)
}

/// Bytes in two's complement, the highest first.
fn integer(bytes: &[u8]) -> i64 {
    let negative = bytes.first().is_some_and(|byte| byte & 0x80 != 0);
    let begin = if negative { -1 } else { 0 };
    (bytes.iter()).fold(begin, |number, byte| number << 8 | i64::from(*byte))
}

/// A number of up to nine bytes, each but the ninth with seven bits of it.
fn varint(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let mut number = 0;
    for index in 0..9 {
        let byte = *bytes.get(*at)?;
        *at += 1;
        if index == 8 {
            return Some(number << 8 | u64::from(byte));
        }
        number = number << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            break;
        }
    }
    Some(number)
}
