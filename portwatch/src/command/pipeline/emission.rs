//! From events to bytes: chooses, counts and renders in the task that makes the events.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{mpsc, watch};

use super::{Screen, Watcher};
use crate::event::{Body, Cause, End, Event, Outcome};
use crate::filter::Filter;
use crate::kernel::clock::{self, Clock};
use crate::sink::json::Json;
use crate::sink::text;

/// How many bytes of what was written are kept as room for the next.
const KEPT: usize = 256 << 10;

/// Chooses, counts, renders and hands on.
pub(super) struct Emission {
    pub(super) filter: Filter,
    /// How many events may still come.
    pub(super) left: Option<u64>,
    pub(super) renderer: Renderer,
    pub(super) watcher: Option<Watcher>,
    pub(super) rendered: Output,
    pub(super) output: mpsc::Sender<Output>,
    pub(super) spare: mpsc::Receiver<Output>,
    pub(super) unwritten: Arc<AtomicU64>,
    pub(super) stop: Arc<watch::Sender<bool>>,
    pub(super) counts: BTreeMap<Cow<'static, str>, u64>,
    pub(super) failed: u64,
    pub(super) without_holder: u64,
    pub(super) lost: BTreeMap<Cow<'static, str>, u64>,
    /// When the stream begins (CLOCK_MONOTONIC, ns).
    pub(super) begin: u64,
}

impl Emission {
    /// Renders an event if it passes.
    pub(super) fn take(&mut self, event: &Event) {
        if self.keep(&event.body) {
            self.render(event);
        }
    }

    pub(super) fn render(&mut self, event: &Event) {
        if let Some(watcher) = &mut self.watcher {
            watcher(event);
        }
        self.renderer.render(event, &mut self.rendered);
    }

    fn keep(&mut self, body: &Body) -> bool {
        if !self.filter.passes(body) {
            return false;
        }
        if let Body::Lost(lost) = body {
            *self.lost.entry(lost.place.clone()).or_default() += lost.count;
            return true;
        }
        match &mut self.left {
            Some(0) => return false,
            Some(left) => {
                *left -= 1;
                if *left == 0 {
                    let _ = self.stop.send(true);
                }
            }
            None => {}
        }
        *self.counts.entry(body.name().into()).or_default() += 1;
        let failed = match body {
            Body::Bind(bind) => Some((&bind.result, bind.conflict.as_deref())),
            Body::Listen(listen) => Some((&listen.result, listen.conflict.as_deref())),
            _ => None,
        };
        if let Some((result, conflict)) =
            failed.filter(|(result, _)| result.outcome == Outcome::Failure)
        {
            self.failed += 1;
            let unknown = conflict.is_some_and(|conflict| conflict.cause == Cause::Unknown);
            let in_use = result.errno == Some(libc::EADDRINUSE);
            self.without_holder += u64::from(unknown && in_use);
        }
        true
    }

    /// Hands on what was rendered, if anything.
    pub(super) async fn send(&mut self) {
        if self.rendered.events == 0 {
            return;
        }
        self.unwritten
            .fetch_add(self.rendered.events, Ordering::Relaxed);
        let empty = self.spare.try_recv().unwrap_or_default();
        let rendered = std::mem::replace(&mut self.rendered, empty);
        // The writing stage ends early only when nobody reads; then everything ends.
        let _ = self.output.send(rendered).await;
    }

    pub(super) async fn end(mut self) {
        let now = clock::monotonic();
        let end = Event {
            time: Clock::now().at_monotonic(now),
            body: Body::End(End {
                counts: self.counts.clone(),
                failed: self.failed,
                without_holder: self.without_holder,
                lost: self.lost.clone(),
                duration_ms: (now - self.begin) / 1_000_000,
            }),
        };
        self.render(&end);
        self.send().await;
    }
}

/// What some events have become.
#[derive(Default)]
pub(super) struct Output {
    /// How many events.
    pub(super) events: u64,
    /// For standard output.
    pub(super) screen: Vec<u8>,
    /// For the file.
    pub(super) file: Vec<u8>,
    /// For standard error.
    pub(super) told: String,
}

impl Output {
    /// Keeps the memory, as the next batch is about as long; but not that of many events which waited
    /// for one.
    pub(super) fn clear(&mut self) {
        self.events = 0;
        self.screen.clear();
        self.screen.shrink_to(KEPT);
        self.file.clear();
        self.file.shrink_to(KEPT);
        self.told.clear();
    }
}

/// Makes of events what is written.
pub(super) struct Renderer {
    pub(super) screen: Screen,
    pub(super) json: Json,
    /// JSON into a file as well.
    pub(super) file: bool,
    /// Nothing on standard error but losses.
    pub(super) quiet: bool,
}

impl Renderer {
    fn render(&mut self, event: &Event, output: &mut Output) {
        output.events += 1;
        let json = match &self.screen {
            Screen::Json => Some(&mut output.screen),
            _ if self.file => Some(&mut output.file),
            _ => None,
        };
        if let Some(json) = json {
            let begin = json.len();
            self.json.render(event, json);
            if self.file && matches!(self.screen, Screen::Json) {
                output.file.extend_from_slice(&output.screen[begin..]);
            }
        }
        let Screen::Text { text, header } = &mut self.screen else {
            return;
        };
        match &event.body {
            Body::Start(start) => {
                if !self.quiet {
                    output.told.push_str(&text::start_lines(start));
                }
                if *header {
                    output.screen.extend(text.header().as_bytes());
                }
            }
            Body::Lost(lost) => output.told.push_str(&text::lost_line(lost)),
            Body::End(end) => {
                if !self.quiet {
                    output.told.push_str(&text::end_line(end));
                }
            }
            _ => text.render(event, &mut output.screen),
        }
    }
}
