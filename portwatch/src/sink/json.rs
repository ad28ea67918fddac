//! JSON: one [`Line`](crate::event::Line) a line (NDJSON).
//!
//! The bytes are those that `serde_json` makes of a `Line`, which the tests
//! hold them against. They are made in pieces because the largest, what is
//! known of the process, is the same from event to event: it is kept.

use std::io::Write as _;
use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;

use crate::event::{Actor, Bind, Body, Event, Listen, Process, Release, SCHEMA, Timewait};

/// How many processes' JSON is kept. Arguments of 4096 bytes are the most of one.
const KEPT: NonZeroUsize = NonZeroUsize::new(256).unwrap();

/// How many bytes what is known of a process usually has as JSON.
const USUAL_LEN: usize = 768;

/// Renders events as JSON, and numbers them.
pub struct Json {
    seq: u64,
    nothing: Arc<Process>,
    kept: LruCache<usize, Kept>,
}

/// What is known of a process, as JSON.
struct Kept {
    /// Keeps the address, which is the key, from becoming another process's.
    _process: Arc<Process>,
    /// The keys and values without their braces, after a comma; empty if there are none.
    json: Vec<u8>,
}

impl Default for Json {
    fn default() -> Self {
        Self {
            seq: 0,
            nothing: Arc::default(),
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
        let (seq, time) = (self.seq, event.time);
        write!(out, r#"{{"schema":"{SCHEMA}","seq":{seq},"time":"{time}""#)
            .map_err(serde_json::Error::io)?;
        let brace = out.len();
        // Nothing large is cloned: all strings of a usual event are shared.
        let mut body = event.body.clone();
        match actor(&mut body) {
            None => serde_json::to_writer(&mut *out, &body)?,
            Some(actor) => {
                let process = std::mem::replace(&mut actor.process, Arc::clone(&self.nothing));
                serde_json::to_writer(&mut *out, &body)?;
                // The actor is the last key of its event, and what is known of the process the
                // last of the actor: the braces of both close here.
                out.truncate(out.len() - 2);
                out.extend_from_slice(self.process(process)?);
                out.extend_from_slice(b"}}");
            }
        }
        // The body's keys go on where the line's own end.
        out[brace] = b',';
        out.push(b'\n');
        Ok(())
    }

    fn process(&mut self, process: Arc<Process>) -> serde_json::Result<&[u8]> {
        let address = Arc::as_ptr(&process).addr();
        let kept = self.kept.try_get_or_insert(address, || {
            let mut json = Vec::with_capacity(USUAL_LEN);
            serde_json::to_writer(&mut json, &*process)?;
            json[0] = b',';
            json.pop();
            if json.len() == 1 {
                json.clear();
            }
            serde_json::Result::Ok(Kept {
                _process: process,
                json,
            })
        })?;
        Ok(&kept.json)
    }
}

/// Who did it.
fn actor(body: &mut Body) -> Option<&mut Actor> {
    match body {
        Body::Bind(Bind { process, .. })
        | Body::Listen(Listen { process, .. })
        | Body::Release(Release { process, .. })
        | Body::Timewait(Timewait { process, .. }) => process.as_mut(),
        Body::Start(_) | Body::Lost(_) | Body::End(_) => None,
    }
}
