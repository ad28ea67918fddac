//! A scenario: a trace, a namespace, and what is expected to be seen of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::expect::{Names, Order, compare};
use crate::trace::{Stream, shown};
use crate::{Actor, Identity, LIMIT, Netns, Socket, Trace, netns};

/// The markers are bound in 127.77.0.0/16, each to an address of its own.
static MARKERS: AtomicU32 = AtomicU32::new(0);
const MARKER: &str = "127.77.";

/// A trace and a namespace.
pub struct Scenario {
    /// The trace.
    pub trace: Arc<Trace>,
    /// The namespace.
    pub netns: Netns,
    names: Names,
    from: usize,
}

impl Default for Scenario {
    fn default() -> Self {
        Self::new()
    }
}

impl Scenario {
    /// One with a trace without options, which others share.
    pub fn new() -> Self {
        Self::sharing(&[])
    }

    /// One with a trace with these arguments, which others share.
    pub fn sharing(arguments: &'static [&'static str]) -> Self {
        let mut scenario = Self::within(Trace::shared(arguments), Netns::new());
        // What came before is of another namespace that had the number.
        scenario.fence();
        scenario.from = scenario.trace.seen();
        scenario
    }

    /// One with a trace of its own.
    pub fn traced(arguments: &[&str]) -> Self {
        let netns = Netns::new();
        Self::within(Arc::new(Trace::start(arguments)), netns)
    }

    /// One with this trace and namespace.
    pub fn within(trace: Arc<Trace>, netns: Netns) -> Self {
        let names = Names {
            processes: Vec::new(),
            namespaces: vec![("$netns".to_owned(), netns.inode())],
        };
        Self {
            from: trace.seen(),
            trace,
            netns,
            names,
        }
    }

    /// Acts in the namespace: see [`Netns::run`].
    pub fn run<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        self.netns.run(act)
    }

    /// Starts an actor in the namespace, known by this name.
    pub fn actor(&mut self, name: &str, steps: &[&str]) -> Actor {
        let mut actor = Actor::start(&self.netns, steps);
        self.know(name, actor.identity());
        actor.go();
        actor
    }

    /// A process known by this name.
    pub fn know(&mut self, name: &str, identity: Identity) {
        self.names.processes.push((name.to_owned(), identity));
    }

    /// Forgets the processes known by this name.
    pub fn forget(&mut self, name: &str) {
        self.names.processes.retain(|(known, _)| known != name);
    }

    fn own(&self, event: &Value) -> bool {
        if let Some(netns) = event["socket"].get("netns") {
            return *netns == self.netns.inode();
        }
        // Without a socket there is no namespace of one.
        let process = &event["process"];
        let threads = self.netns.threads();
        threads.iter().any(|tid| process["tid"] == *tid)
            || (self.names.processes.iter())
                .filter(|(_, known)| known.pid != std::process::id())
                .any(|(_, known)| process["pid"] == known.pid)
    }

    /// Waits for an event of the scenario.
    pub fn wait(&self, wanted: &str, is: impl Fn(&Value) -> bool) -> Value {
        self.wait_for(*LIMIT, wanted, is)
    }

    /// Waits for an event of the scenario that takes its time.
    pub fn wait_for(&self, limit: Duration, wanted: &str, is: impl Fn(&Value) -> bool) -> Value {
        let own = |event: &Value| self.own(event) && is(event);
        match self.trace.wait_for(self.from, limit, own) {
            Ok(event) => event,
            Err(why) => panic!(
                "{wanted} did not come: {why}; seen:\n{}",
                shown(&self.normalised(&self.raw_events()))
            ),
        }
    }

    /// Waits for the release of this local port.
    pub fn released(&self, port: u16) -> Value {
        self.wait(&format!("the release of port {port}"), |event| {
            event["event"] == "release" && event["socket"]["local"]["port"] == port
        })
    }

    /// Waits until all that has happened has been seen: events come in the order of the kernel's
    /// time, so that of a bind made now comes behind all of them.
    pub fn fence(&self) {
        let number = MARKERS.fetch_add(1, Ordering::Relaxed);
        let address = format!("{MARKER}{}.{}", number >> 8 & 0xff, number & 0xff);
        let marker = self.run(|| Socket::udp4().bound(&format!("{address}:7")));
        self.wait("the marker", |event| {
            event["event"] == "bind" && event["socket"]["local"]["address"] == address
        });
        drop(marker);
    }

    /// The scenario's events so far, with names for what varies.
    pub fn events(&mut self) -> Vec<Value> {
        self.fence();
        self.events_seen()
    }

    /// The scenario's events that have been seen, with names for what varies.
    pub fn events_seen(&mut self) -> Vec<Value> {
        self.know_self();
        self.normalised(&self.raw_events())
    }

    fn know_self(&mut self) {
        self.forget("$self");
        let identity = Identity::of_self(self.netns.threads(), netns::COMM);
        self.know("$self", identity);
    }

    fn normalised(&self, events: &[Value]) -> Vec<Value> {
        let events = events.iter().map(|event| self.names.normalise(event));
        events.collect()
    }

    /// The scenario's events that have been seen, as they came.
    pub fn raw_events(&self) -> Vec<Value> {
        self.select(self.trace.lines(self.from))
    }

    fn select(&self, mut events: Vec<Value>) -> Vec<Value> {
        events.retain(|event| {
            let address = event["socket"]["local"]["address"].as_str();
            self.own(event) && !address.is_some_and(|address| address.starts_with(MARKER))
        });
        events
    }

    /// Waits for those of these events that no fence comes behind: TIME_WAIT is brought about by
    /// segments that are on their way, and may be found by asking only.
    fn wait_for_late(&self, expected: &[Value]) {
        let late = expected.iter().filter(|event| event["event"] == "timewait");
        for event in late {
            let (local, remote) = (&event["socket"]["local"], &event["socket"]["remote"]);
            self.wait("a TIME_WAIT", |seen| {
                seen["event"] == "timewait"
                    && seen["phase"] == event["phase"]
                    && &seen["socket"]["local"] == local
                    && &seen["socket"]["remote"] == remote
            });
        }
    }

    /// Asserts that these are all the events so far, in this order.
    pub fn expect(&mut self, expected: &[Value]) {
        self.wait_for_late(expected);
        let events = self.events();
        compare(&events, expected, Order::Same);
    }

    /// Asserts that these are all the events so far, in any order.
    pub fn expect_in_any_order(&mut self, expected: &[Value]) {
        self.wait_for_late(expected);
        let events = self.events();
        compare(&events, expected, Order::Any);
    }

    /// Ends the trace, which nobody else may have, and asserts that these were all the scenario's
    /// events, in this order. For traces with filters, which a fence may not pass. Gives the whole
    /// stream back.
    pub fn end(mut self, expected: &[Value]) -> Stream {
        self.know_self();
        let Some(trace) = Arc::get_mut(&mut self.trace) else {
            panic!("the trace is shared");
        };
        trace.signal(Signal::SIGINT);
        let stream = trace.finish();
        let own = self.select(stream.lines.clone());
        compare(&self.normalised(&own), expected, Order::Same);
        stream
    }
}
