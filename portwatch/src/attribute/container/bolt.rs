//! Databases of bbolt, which podman (before 4.8) and containerd keep their records in.
//!
//! Read as its writer leaves it between transactions: pages are copied and never
//! written over while a transaction that can be seen has them, and which one is the last one stands in
//! the two meta pages. A reader without a lock so has to see that they are the same before and after.

use std::path::Path;

use super::file::{Pages, Stamp, le};

/// Of the meta pages: bbolt's `magic`.
const MAGIC: u64 = 0xED0C_DAED;
/// Length of a page's header.
const HEADER: usize = 16;
/// Length of a meta page without its checksum.
const META: usize = 56;
/// Where meta data lie in the first page, checksum and header included.
const FIRST: usize = HEADER + META + 8;
const BRANCH: u64 = 1;
const LEAF: u64 = 2;
/// Of an element: it is a bucket.
const BUCKET: u64 = 1;
/// How deep a tree may be.
const DEPTH: u32 = 16;
/// How often it is read again because it was written meanwhile.
const ATTEMPTS: u32 = 4;
/// Largest page, with what overflows.
const MAX_PAGE: usize = 8 << 20;

/// A database, as of one transaction.
pub(super) struct Bolt {
    pages: Pages,
    page_size: usize,
    root: u64,
    transaction: u64,
}

/// A bucket: its pages' root, or itself in its parent's page.
#[derive(Clone)]
pub(super) enum Bucket {
    Root(u64),
    Inline(Vec<u8>),
}

/// A value or a bucket.
enum Element {
    Value(Vec<u8>),
    Bucket(Bucket),
}

/// What `ask` is answered by the database at a path, and when it was written. None if it is not there or
/// cannot be understood.
pub(super) fn ask<T>(
    path: &Path,
    ask: impl Fn(&Bolt, &Bucket) -> Option<T>,
) -> Option<(Option<T>, Stamp)> {
    for _ in 0..ATTEMPTS {
        let (pages, stamp) = Pages::open(path)?;
        let bolt = Bolt::new(pages)?;
        let answer = ask(&bolt, &Bucket::Root(bolt.root));
        if bolt.is_current() {
            return Some((answer, stamp));
        }
    }
    None
}

impl Bolt {
    fn new(pages: Pages) -> Option<Self> {
        let (page_size, root, transaction) = meta(&pages)?;
        Some(Self {
            pages,
            page_size,
            root,
            transaction,
        })
    }

    fn is_current(&self) -> bool {
        meta(&self.pages).is_some_and(|(_, _, transaction)| transaction == self.transaction)
    }

    /// A value of a bucket.
    pub(super) fn value(&self, bucket: &Bucket, key: &[u8]) -> Option<Vec<u8>> {
        match self.find(bucket, key)? {
            Element::Value(value) => Some(value),
            Element::Bucket(_) => None,
        }
    }

    /// A bucket in a bucket.
    pub(super) fn bucket(&self, bucket: &Bucket, key: &[u8]) -> Option<Bucket> {
        match self.find(bucket, key)? {
            Element::Bucket(bucket) => Some(bucket),
            Element::Value(_) => None,
        }
    }

    /// The keys of a bucket.
    pub(super) fn keys(&self, bucket: &Bucket) -> Option<Vec<Vec<u8>>> {
        let mut keys = Vec::new();
        self.walk(&self.page_of(bucket)?, None, DEPTH, &mut |key, _| {
            keys.push(key.to_owned());
            None::<()>
        });
        Some(keys)
    }

    fn find(&self, bucket: &Bucket, wanted: &[u8]) -> Option<Element> {
        self.walk(
            &self.page_of(bucket)?,
            Some(wanted),
            DEPTH,
            &mut |key, element| (key == wanted).then_some(element),
        )?
    }

    fn page_of(&self, bucket: &Bucket) -> Option<Vec<u8>> {
        match bucket {
            Bucket::Root(id) => self.page(*id),
            Bucket::Inline(page) => Some(page.clone()),
        }
    }

    fn page(&self, id: u64) -> Option<Vec<u8>> {
        let at = id.checked_mul(self.page_size as u64)?;
        let first = self.pages.read(at, self.page_size)?;
        let overflow = usize::try_from(le::<4>(&first, 12)?).ok()?;
        if overflow == 0 {
            return Some(first);
        }
        let len = overflow.checked_add(1)?.checked_mul(self.page_size)?;
        (len <= MAX_PAGE).then(|| self.pages.read(at, len))?
    }

    /// Looks at the elements in the pages below one, all or those where a key must be, until `look` is
    /// done.
    fn walk<T>(
        &self,
        page: &[u8],
        wanted: Option<&[u8]>,
        depth: u32,
        look: &mut impl FnMut(&[u8], Option<Element>) -> Option<T>,
    ) -> Option<T> {
        let depth = depth.checked_sub(1)?;
        let count = usize::try_from(le::<2>(page, 10)?).ok()?;
        match le::<2>(page, 8)? {
            LEAF => (0..count).find_map(|index| {
                let (key, element) = leaf(page, index)?;
                if wanted.is_some_and(|wanted| wanted != key) {
                    return None;
                }
                look(key, element())
            }),
            BRANCH => {
                let mut children = (0..count)
                    .filter_map(|index| branch(page, index))
                    .peekable();
                while let Some((_, id)) = children.next() {
                    let is_before =
                        |wanted| children.peek().is_some_and(|(next, _)| *next <= wanted);
                    if wanted.is_some_and(is_before) {
                        continue;
                    }
                    if let Some(found) = self.walk(&self.page(id)?, wanted, depth, look) {
                        return Some(found);
                    }
                    if wanted.is_some() {
                        break;
                    }
                }
                None
            }
            _ => None,
        }
    }
}

/// The size of pages, the root and the number of the last transaction.
fn meta(pages: &Pages) -> Option<(usize, u64, u64)> {
    let parse = |at: u64| {
        let page = pages.read(at, FIRST)?;
        let meta = &page[HEADER..];
        let is = le::<4>(meta, 0)? == MAGIC && le::<8>(meta, META)? == fnv(&meta[..META]);
        let size = usize::try_from(le::<4>(meta, 8)?).ok()?;
        let usable = is && size.is_power_of_two() && (512..=65_536).contains(&size);
        usable.then_some((size, le::<8>(meta, 16)?, le::<8>(meta, 48)?))
    };
    let first = parse(0);
    // The second is in the second page, whose size the first one tells; where that is broken, it is that
    // of the machine's pages, in nearly all cases.
    let second = parse(first.map_or(4096, |(size, ..)| size as u64));
    [first, second]
        .into_iter()
        .flatten()
        .max_by_key(|(_, _, transaction)| *transaction)
}

/// FNV-1a of 64 bits.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

fn range(page: &[u8], at: usize, len: u64) -> Option<&[u8]> {
    page.get(at..)?.get(..usize::try_from(len).ok()?)
}

/// An element of a leaf: its key, and how its content is made.
fn leaf(page: &[u8], index: usize) -> Option<(&[u8], impl Fn() -> Option<Element>)> {
    let at = HEADER + index * 16;
    let number = |offset| le::<4>(page, at + offset);
    let (flags, key_len, value_len) = (number(0)?, number(8)?, number(12)?);
    let key_at = at.checked_add(usize::try_from(number(4)?).ok()?)?;
    let key = range(page, key_at, key_len)?;
    let value = range(page, key_at + key.len(), value_len)?;
    let element = move || {
        if flags & BUCKET == 0 {
            return Some(Element::Value(value.to_owned()));
        }
        Some(Element::Bucket(match le::<8>(value, 0)? {
            0 => Bucket::Inline(value.get(16..)?.to_owned()),
            root => Bucket::Root(root),
        }))
    };
    Some((key, element))
}

/// An element of a branch: the first key below it, and its page.
fn branch(page: &[u8], index: usize) -> Option<(&[u8], u64)> {
    let at = HEADER + index * 16;
    let key_at = at.checked_add(usize::try_from(le::<4>(page, at)?).ok()?)?;
    Some((
        range(page, key_at, le::<4>(page, at + 4)?)?,
        le::<8>(page, at + 8)?,
    ))
}
