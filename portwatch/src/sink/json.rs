//! JSON: one [`Line`](crate::event::Line) a line (NDJSON).
//!
//! The bytes are those that `serde_json` makes of a `Line`, which the tests
//! hold them against. Objects whose keys serde would have to gather from
//! several structs are put together by hand, and what is the same from event
//! to event is kept: what is known of a process, and the second of a time.

use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;
use serde::Serialize;
use serde_json::to_writer;

use crate::event::{Actor, Address, Body, Event, Listed, Result, SCHEMA, Socket, Time};

/// A comma and a key.
macro_rules! key {
    ($name:literal) => {
        concat!(",\"", $name, "\":").as_bytes()
    };
}

/// How many processes' JSON is kept. Arguments of 4096 bytes are the most of one.
const KEPT: NonZeroUsize = NonZeroUsize::new(256).unwrap();

/// How many bytes what is known of a process usually has as JSON.
const USUAL_LEN: usize = 768;

/// How many bytes its keys before those usually have.
const USUAL_HEAD_LEN: usize = 128;

/// Renders events as JSON, and numbers them.
pub struct Json {
    seq: u64,
    times: Times,
    kept: LruCache<usize, Kept>,
}

/// What is known of a process, as JSON: keys and values without braces, each after a comma.
struct Kept {
    /// Keeps the address of its process, which is the key, from becoming another's.
    actor: Actor,
    /// What may change from event to event.
    head: Vec<u8>,
    /// What does not.
    process: Vec<u8>,
}

impl Kept {
    fn of(actor: &Actor, times: &mut Times) -> serde_json::Result<Self> {
        let mut process = Vec::with_capacity(USUAL_LEN);
        pairs(&mut process, &*actor.process)?;
        Ok(Self {
            actor: actor.clone(),
            head: head(actor, times)?,
            process,
        })
    }

    /// Whether it was made of one that says the same of the same process.
    fn is_of(&self, actor: &Actor) -> bool {
        let kept = &self.actor;
        (kept.pid, kept.tid, kept.uid, kept.gid) == (actor.pid, actor.tid, actor.uid, actor.gid)
            && kept.job == actor.job
            && kept.start_time == actor.start_time
            && kept.comm == actor.comm
            && kept.comm_hex == actor.comm_hex
    }
}

/// The keys of an actor before those of its process.
fn head(actor: &Actor, times: &mut Times) -> serde_json::Result<Vec<u8>> {
    let mut out = Vec::with_capacity(USUAL_HEAD_LEN);
    pair(&mut out, key!("pid"), &actor.pid)?;
    optional(&mut out, key!("tid"), actor.tid.as_ref())?;
    pair(&mut out, key!("comm"), &*actor.comm)?;
    optional(&mut out, key!("comm_hex"), actor.comm_hex.as_ref())?;
    pair(&mut out, key!("uid"), &actor.uid)?;
    out.extend_from_slice(key!("start_time"));
    times.put(actor.start_time, &mut out);
    pair(&mut out, key!("gid"), &actor.gid)?;
    optional(&mut out, key!("job"), actor.job.as_ref())?;
    Ok(out)
}

impl Default for Json {
    fn default() -> Self {
        Self {
            seq: 0,
            times: Times::default(),
            kept: LruCache::new(KEPT),
        }
    }
}

impl Json {
    /// Appends the event as a line.
    pub fn render(&mut self, event: &Event, out: &mut Vec<u8>) {
        let begin = out.len();
        match self.line(event, out) {
            Ok(()) => self.seq += 1,
            // Cannot happen: a Vec takes all, and every key of the event types is a string.
            Err(_) => out.truncate(begin),
        }
    }

    fn line(&mut self, event: &Event, out: &mut Vec<u8>) -> serde_json::Result<()> {
        object(out, |out| {
            word(out, key!("schema"), SCHEMA);
            pair(out, key!("seq"), &self.seq)?;
            out.extend_from_slice(key!("time"));
            self.times.put(event.time, out);
            self.body(&event.body, out)
        })?;
        out.push(b'\n');
        Ok(())
    }

    fn body(&mut self, body: &Body, out: &mut Vec<u8>) -> serde_json::Result<()> {
        if matches!(
            body,
            Body::Start(_)
                | Body::Lost(_)
                | Body::End(_)
                | Body::Timewaits(_)
                | Body::Published(_)
                | Body::Why(_)
        ) {
            return pairs(out, body);
        }
        word(out, key!("event"), body.name());
        match body {
            Body::Bind(bind) => {
                result(out, &bind.result)?;
                socket(out, &bind.socket)?;
                optional(out, key!("requested"), bind.requested.as_ref())?;
                flag(out, key!("autobind"), bind.autobind)?;
                optional(out, key!("conflict"), bind.conflict.as_ref())?;
                self.actor(out, key!("process"), bind.process.as_ref())
            }
            Body::Listen(listen) => {
                result(out, &listen.result)?;
                socket(out, &listen.socket)?;
                pair(out, key!("backlog"), &listen.backlog)?;
                optional(out, key!("conflict"), listen.conflict.as_ref())?;
                self.actor(out, key!("process"), listen.process.as_ref())
            }
            Body::Release(release) => {
                socket(out, &release.socket)?;
                if let Some(bound_at) = release.bound_at {
                    out.extend_from_slice(key!("bound_at"));
                    self.times.put(bound_at, out);
                }
                optional(out, key!("held_ms"), release.held_ms.as_ref())?;
                self.actor(out, key!("binder"), release.binder.as_ref())?;
                self.actor(out, key!("process"), release.process.as_ref())
            }
            Body::Timewait(timewait) => {
                pair(out, key!("phase"), &timewait.phase)?;
                socket(out, &timewait.socket)?;
                optional(out, key!("expires_in_ms"), timewait.expires_in_ms.as_ref())?;
                optional(out, key!("fin_wait2_ms"), timewait.fin_wait2_ms.as_ref())?;
                optional(out, key!("reason"), timewait.reason.as_ref())?;
                optional(out, key!("lasted_ms"), timewait.lasted_ms.as_ref())?;
                self.actor(out, key!("process"), timewait.process.as_ref())
            }
            Body::Socket(listed) => self.listed(out, listed),
            Body::Start(_)
            | Body::Lost(_)
            | Body::End(_)
            | Body::Timewaits(_)
            | Body::Published(_)
            | Body::Why(_) => Ok(()),
        }
    }

    fn listed(&mut self, out: &mut Vec<u8>, listed: &Listed) -> serde_json::Result<()> {
        out.extend_from_slice(key!("socket"));
        object(out, |out| {
            socket_pairs(out, &listed.socket.socket)?;
            optional(out, key!("uid"), listed.socket.uid.as_ref())
        })?;
        optional(out, key!("ownership"), listed.ownership.as_ref())?;
        optional(out, key!("expires_in_ms"), listed.expires_in_ms.as_ref())?;
        if !listed.processes.is_empty() {
            out.extend_from_slice(key!("processes"));
            let begin = out.len();
            for actor in &listed.processes {
                self.actor(out, b",", Some(actor))?;
            }
            out[begin] = b'[';
            out.push(b']');
        }
        optional(out, key!("publishes"), listed.publishes.as_ref())?;
        optional(out, key!("netns_name"), listed.netns_name.as_ref())
    }

    fn actor(
        &mut self,
        out: &mut Vec<u8>,
        key: &[u8],
        actor: Option<&Actor>,
    ) -> serde_json::Result<()> {
        let Some(actor) = actor else { return Ok(()) };
        let address = Arc::as_ptr(&actor.process).addr();
        let times = &mut self.times;
        let kept = (self.kept).try_get_or_insert_mut(address, || Kept::of(actor, times))?;
        if !kept.is_of(actor) {
            kept.head = head(actor, times)?;
            kept.actor = actor.clone();
        }
        out.extend_from_slice(key);
        object(out, |out| {
            out.extend_from_slice(&kept.head);
            out.extend_from_slice(&kept.process);
            Ok(())
        })
    }
}

/// Times as JSON strings. Those of the same second differ in the nanoseconds alone.
#[derive(Default)]
struct Times {
    /// The second, and a time in it.
    kept: [Option<(i64, [u8; 30])>; Self::KEPT],
}

impl Times {
    /// In a line stand times of a few seconds: that of the event, that at which its process was
    /// started, and that at which its socket was bound.
    const KEPT: usize = 8;

    fn put(&mut self, time: Time, out: &mut Vec<u8>) {
        let second = time.0.div_euclid(1_000_000_000);
        let kept = &mut self.kept[second.rem_euclid(Self::KEPT as i64) as usize];
        let text = match kept {
            Some((of, text)) if *of == second => {
                time.put_nanoseconds(text);
                text
            }
            _ => &mut kept.insert((second, time.rfc3339())).1,
        };
        out.push(b'"');
        out.extend_from_slice(text);
        out.push(b'"');
    }
}

/// Writes an object of whatever pairs `write` appends, at least one.
#[inline(always)]
fn object(
    out: &mut Vec<u8>,
    write: impl FnOnce(&mut Vec<u8>) -> serde_json::Result<()>,
) -> serde_json::Result<()> {
    let begin = out.len();
    write(out)?;
    // Every pair stands after a comma: the first one's is the brace.
    if let Some(brace) = out.get_mut(begin) {
        *brace = b'{';
    }
    out.push(b'}');
    Ok(())
}

/// Writes the pairs of a struct without its braces.
fn pairs(out: &mut Vec<u8>, object: &impl Serialize) -> serde_json::Result<()> {
    let begin = out.len();
    to_writer(&mut *out, object)?;
    out.pop();
    match out.get_mut(begin + 1) {
        Some(_) => out[begin] = b',',
        None => out.truncate(begin),
    }
    Ok(())
}

#[inline(always)]
fn pair(
    out: &mut Vec<u8>,
    key: &[u8],
    value: &(impl Serialize + ?Sized),
) -> serde_json::Result<()> {
    out.extend_from_slice(key);
    to_writer(out, value)
}

/// A value that is one of our own words: nothing in it needs escaping.
#[inline(always)]
fn word(out: &mut Vec<u8>, key: &[u8], word: &str) {
    out.extend_from_slice(key);
    out.push(b'"');
    out.extend_from_slice(word.as_bytes());
    out.push(b'"');
}

#[inline(always)]
fn optional(
    out: &mut Vec<u8>,
    key: &[u8],
    value: Option<&(impl Serialize + ?Sized)>,
) -> serde_json::Result<()> {
    match value {
        Some(value) => pair(out, key, value),
        None => Ok(()),
    }
}

/// An array of such words.
fn words(out: &mut Vec<u8>, key: &[u8], words: impl Iterator<Item = &'static str>) {
    out.extend_from_slice(key);
    out.push(b'[');
    for (place, word) in words.enumerate() {
        out.extend_from_slice(if place == 0 { b"\"" } else { b",\"" });
        out.extend_from_slice(word.as_bytes());
        out.push(b'"');
    }
    out.push(b']');
}

/// What is told only where it is so.
fn flag(out: &mut Vec<u8>, key: &[u8], is: bool) -> serde_json::Result<()> {
    optional(out, key, is.then_some(&is))
}

fn result(out: &mut Vec<u8>, result: &Result) -> serde_json::Result<()> {
    word(out, key!("outcome"), result.outcome.name());
    optional(out, key!("error"), result.error.as_ref())?;
    optional(out, key!("errno"), result.errno.as_ref())
}

fn socket(out: &mut Vec<u8>, socket: &Socket) -> serde_json::Result<()> {
    out.extend_from_slice(key!("socket"));
    object(out, |out| socket_pairs(out, socket))
}

fn socket_pairs(out: &mut Vec<u8>, socket: &Socket) -> serde_json::Result<()> {
    match socket
        .transport
        .as_ref()
        .map(|transport| (transport, transport.name()))
    {
        Some((_, Some(name))) => word(out, key!("transport"), name),
        Some((other, None)) => pair(out, key!("transport"), other)?,
        None => {}
    }
    if let Some(family) = socket.family {
        word(out, key!("family"), family.name());
    }
    address(out, key!("local"), socket.local.as_ref())?;
    address(out, key!("remote"), socket.remote.as_ref())?;
    if let Some(state) = socket.state {
        word(out, key!("state"), state.name());
    }
    words(out, key!("options"), socket.options.names());
    optional(out, key!("bound_device"), socket.bound_device.as_ref())?;
    optional(out, key!("netns"), socket.netns.as_ref())?;
    optional(out, key!("cookie"), socket.cookie.as_ref())?;
    optional(out, key!("inode"), socket.inode.as_ref())?;
    flag(out, key!("kernel"), socket.kernel)
}

fn address(out: &mut Vec<u8>, key: &[u8], address: Option<&Address>) -> serde_json::Result<()> {
    match address {
        Some(Address::Inet {
            address,
            port,
            scope,
        }) => {
            out.extend_from_slice(key);
            object(out, |out| {
                pair(out, key!("address"), address)?;
                pair(out, key!("port"), port)?;
                optional(out, key!("scope"), scope.as_ref())
            })
        }
        address => optional(out, key, address),
    }
}
