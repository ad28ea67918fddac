//! A trace and a network namespace in which a runtime publishes ports.

use std::sync::Arc;

use portwatch_tests::trace::shown;
use portwatch_tests::{LIMIT, Netns, Socket, Trace, netns};
use serde_json::Value;

/// A trace, and the namespace of the scenario.
pub struct Scene {
    trace: Arc<Trace>,
    netns: Arc<Netns>,
    from: usize,
}

impl Scene {
    /// Begins to trace.
    pub fn trace() -> (Arc<Trace>, usize) {
        let trace = Trace::shared(&[]);
        let from = trace.seen();
        (trace, from)
    }

    /// What is traced, of a namespace.
    pub fn new((trace, from): (Arc<Trace>, usize), netns: &Arc<Netns>) -> Self {
        Self {
            trace,
            netns: Arc::clone(netns),
            from,
        }
    }

    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// How many events there were by now.
    pub fn seen(&self) -> usize {
        self.trace.seen()
    }

    /// Waits for an event.
    pub fn wait(&self, wanted: &str, is: impl Fn(&Value) -> bool) -> Value {
        self.wait_from(self.from, wanted, is)
    }

    pub fn wait_from(&self, from: usize, wanted: &str, is: impl Fn(&Value) -> bool) -> Value {
        let seen = self.trace.wait_for(from, *LIMIT, is);
        seen.unwrap_or_else(|why| {
            let lines = shown(&self.trace.lines(from));
            panic!("{wanted} did not come: {why}; seen:\n{lines}")
        })
    }

    /// Waits for the refused bind of a port of the namespace, by a program.
    pub fn refused(&self, from: usize, comm: &str, port: u16) -> Value {
        let netns = self.netns().inode();
        self.wait_from(from, &format!("the failed bind of {port}"), |event| {
            event["event"] == "bind"
                && event["error"] == "EADDRINUSE"
                && event["process"]["comm"] == comm
                && event["socket"]["netns"] == netns
                && event["socket"]["local"]["port"] == port
        })
    }

    /// Waits for a bind that was granted, by a process of a container, to a port.
    pub fn bound(&self, port: u16, id: &str) -> Value {
        self.wait(&format!("the bind of {port} in {id}"), |event| {
            event["event"] == "bind"
                && event["outcome"] == "success"
                && event["socket"]["local"]["port"] == port
                && event["process"]["container"]["id"] == id
        })
    }

    /// Has a process of the host refused a port of all addresses.
    pub fn refuse(&self, port: u16) -> Value {
        let from = self.trace.seen();
        self.netns().run(|| {
            let error = Socket::tcp4().bind(&format!("0.0.0.0:{port}")).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EADDRINUSE));
        });
        self.refused(from, netns::COMM, port)["conflict"].clone()
    }

    /// A listener of the host on a port of all addresses, until it is dropped.
    pub fn listener(&self, port: u16) -> Socket {
        self.netns().run(|| {
            let listener = Socket::tcp4().bound(&format!("0.0.0.0:{port}"));
            listener.listen(1).unwrap();
            listener
        })
    }
}

/// The cgroup of a process: that of version 1 where version 2 has it at its root.
pub fn group(process: &Value) -> &str {
    let of = |key: &str| process[key].as_str();
    of("cgroup_v1").or(of("cgroup")).unwrap()
}
