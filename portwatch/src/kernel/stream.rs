//! Drains the ring buffer: from the kernel's memory to bounded blocks of bytes.
//!
//! Events are lost in one place only, the ring buffer: when the stages behind
//! are slow, the channel fills, the draining stops, and the kernel side counts
//! what does not fit.

use std::time::Duration;

use anyhow::Context as _;
use aya::maps::{MapData, RingBuf};
use bytes::{BufMut as _, Bytes, BytesMut};
use portwatch_common::record::Header;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};
use zerocopy::FromBytes as _;

use super::clock;
use super::decode::{DecodeError, Record};
use super::losses::Losses;
use super::side::{Control, KernelSide};

/// How many bytes a block holds at most; the largest record is smaller.
const BLOCK: usize = 64 << 10;

/// How long records may gather before they are drained: at most two hundred wakeups a second.
const GATHER: Duration = Duration::from_millis(5);

/// How long the reader sleeps at most. A record that is being written while
/// the reader looks for the last time before it sleeps wakes nobody.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// How often what was lost is looked up.
const COUNT_LOSSES: Duration = Duration::from_secs(1);

/// Some records, and up to when the stream is complete.
#[derive(Debug)]
pub struct Batch {
    block: Bytes,
    /// Every record written before this (CLOCK_MONOTONIC, ns) is in this batch or an earlier one,
    /// but for those of the last [`crate::attribute::order::SLACK`].
    pub complete_until: u64,
    /// What was lost since the kernel side was loaded, when it was looked up.
    pub losses: Option<Losses>,
}

impl Batch {
    /// The records, in the ring buffer's order.
    pub fn records(&self) -> impl Iterator<Item = Result<Record, DecodeError>> {
        let mut rest = &self.block[..];
        std::iter::from_fn(move || {
            let (length, behind) = rest.split_first_chunk::<4>()?;
            let length = u32::from_ne_bytes(*length) as usize;
            let (record, behind) = behind.split_at_checked(length)?;
            rest = behind;
            Some(Record::decode(record))
        })
    }

    /// A batch of these records, for tests and what was drained before the stream began.
    #[must_use]
    pub fn of<'a>(records: impl IntoIterator<Item = &'a [u8]>, complete_until: u64) -> Self {
        let mut block = BytesMut::new();
        for record in records {
            put(&mut block, record);
        }
        Self {
            block: block.freeze(),
            complete_until,
            losses: None,
        }
    }
}

fn put(block: &mut BytesMut, record: &[u8]) {
    // A record is never longer than the ring buffer, whose size is a u32.
    block.put_u32_ne(u32::try_from(record.len()).unwrap_or(u32::MAX));
    block.put_slice(record);
}

/// Drains until told to stop, then once more until the ring buffer is empty.
/// The batches go to the next stage as whatever that takes.
///
/// # Errors
///
/// If the ring buffer cannot be waited for.
pub async fn run<T: From<Batch>>(
    ring: RingBuf<MapData>,
    mut control: Control,
    side: &KernelSide,
    batches: mpsc::Sender<T>,
    mut stop: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    // SAFETY: the ring buffer owns its descriptor, which is the same until it is dropped.
    let ring = unsafe { AsyncFd::register(ring) };
    let mut ring = ring.context("waiting for the ring buffer")?;
    let mut counted = Instant::now();
    // What comes later than this is not part of the stream: otherwise it would not end while
    // others write faster than it is read.
    let mut end = None;
    loop {
        if *stop.borrow() {
            end.get_or_insert_with(clock::monotonic);
        }
        let mut drained = drain(ring.get_mut());
        let mut more = drained.block.len() >= BLOCK;
        let stopping = end.is_some();
        if end.is_some_and(|end| drained.complete_until > end) {
            more = false;
        }
        if counted.elapsed() >= COUNT_LOSSES || (stopping && !more) {
            drained.losses = Some(side.losses());
            counted = Instant::now();
        }
        let behind = !drained.block.is_empty();
        // An empty one too: it says that nothing is missing until now.
        if batches.send(drained.into()).await.is_err() {
            // The stages behind have ended.
            return Ok(());
        }
        if more {
            tokio::task::yield_now().await;
        } else if stopping {
            return Ok(());
        } else if behind {
            tokio::select! {
                () = sleep(GATHER) => {}
                _ = stop.changed() => {}
            }
        } else {
            control.sleep().context("writing to the kernel side")?;
            tokio::select! {
                ready = timeout(LOOK_AGAIN, ring.readable_mut()) => {
                    if let Ok(ready) = ready {
                        ready?.clear_ready();
                        tokio::select! {
                            () = sleep(GATHER) => {}
                            _ = stop.changed() => {}
                        }
                    }
                }
                _ = stop.changed() => {}
            }
        }
    }
}

/// Takes at most a block of records out of the ring buffer.
fn drain(ring: &mut RingBuf<MapData>) -> Batch {
    // What is written from here on may come before what is already there is read.
    let mut complete_until = clock::monotonic();
    let mut block = BytesMut::new();
    let mut last = 0;
    while block.len() < BLOCK {
        let Some(record) = ring.next() else {
            break;
        };
        if block.is_empty() {
            block.reserve(BLOCK + (8 << 10));
        }
        put(&mut block, &record);
        last = Header::read_from_prefix(&record).map_or(last, |(header, _)| header.time);
    }
    if block.len() >= BLOCK {
        // There may be more in the ring, but nothing from before what was taken last, but for the
        // little by which the ring's order is off.
        complete_until = last;
    }
    Batch {
        block: block.freeze(),
        complete_until,
        losses: None,
    }
}

#[cfg(test)]
mod tests {
    use portwatch_common::record::{Fork, kind};
    use zerocopy::{FromZeros, IntoBytes};

    use super::*;

    #[test]
    fn a_batch_gives_its_records_back() {
        let mut fork = Fork::new_zeroed();
        fork.header.kind = kind::FORK;
        let records = (1..4).map(|child| {
            fork.child_tgid = child;
            fork.as_bytes().to_vec()
        });
        let records: Vec<_> = records.collect();
        let batch = Batch::of(records.iter().map(Vec::as_slice), 5);
        let children: Vec<_> = batch
            .records()
            .map(|record| match record.unwrap() {
                Record::Fork(fork) => fork.child_tgid,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(children, [1, 2, 3]);
    }

    #[test]
    fn a_record_that_cannot_be_decoded_does_not_hide_the_next() {
        let mut fork = Fork::new_zeroed();
        fork.header.kind = kind::FORK;
        let batch = Batch::of([&[9u8, 9, 9, 9, 9][..], fork.as_bytes()], 5);
        let decoded: Vec<_> = batch.records().map(|record| record.is_ok()).collect();
        assert_eq!(decoded, [false, true]);
    }
}
