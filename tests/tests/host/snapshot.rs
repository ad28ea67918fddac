//! What was there before the trace: sockets that processes hold, and connections.

use std::sync::Arc;

use portwatch_tests::expect::{enter_after, release, socket, waiting, with};
use portwatch_tests::{Actor, Netns, Scenario, Trace};
use serde_json::Value;

const LISTENER: &str = "127.0.0.1:8080";
const BOUND: &str = "127.0.0.1:8081";
const UDP: &str = "127.0.0.1:5353";

const HOLD: [&str; 10] = [
    "socket=tcp4",
    "bind=127.0.0.1:8080",
    "listen",
    "socket=tcp4",
    "bind=127.0.0.1:8081",
    "socket=udp4",
    "bind=127.0.0.1:5353",
    "say=ready",
    "wait",
    "close",
];

/// The release of what was bound before: neither when nor by whom is known.
fn release_of_before(transport: &str, local: &str) -> Value {
    let release = release(socket(transport, local, &[]), "$holder");
    let release = with(release, "/bound_at", Value::Null);
    with(release, "/held_ms", Value::Null)
}

fn holder(steps: &[&str]) -> (Netns, Actor) {
    let netns = Netns::new();
    let mut actor = Actor::start(&netns, steps);
    actor.go();
    actor.says("ready");
    (netns, actor)
}

/// A connection in a namespace of its own, the steps of whose server's end are given.
struct Connection {
    netns: Netns,
    server: Actor,
    client: Actor,
    port: u16,
}

impl Connection {
    fn new(steps: &[&str]) -> Self {
        let serve = [
            "socket=tcp4",
            "bind=127.0.0.1:8080",
            "listen",
            "say=ready",
            "accept",
            "say=accepted",
            "wait",
        ];
        let (netns, server) = holder(&[&serve[..], steps].concat());
        let steps = [
            "socket=tcp4",
            "connect=127.0.0.1:8080",
            "port",
            "wait",
            "close",
            "say=closed",
            "wait",
        ];
        let mut client = Actor::start(&netns, &steps);
        client.go();
        let port = client.number();
        server.says("accepted");
        Self {
            netns,
            server,
            client,
            port,
        }
    }

    /// The server's end is ended, then the client's, and how its TIME_WAIT begins is all that is seen.
    fn end(self, trace: &Arc<Trace>) {
        let Self {
            netns,
            mut server,
            mut client,
            port,
        } = self;
        let mut scenario = Scenario::within(Arc::clone(trace), netns);
        scenario.know("$server", server.identity());
        scenario.know("$client", client.identity());
        server.go();
        let waited = scenario.netns.wait_for_fin_wait2("tcp", (8080, port));
        client.go();
        client.says("closed");
        scenario.netns.wait_for_timewait("tcp", (8080, port));
        // What it still has of the connection it gives back now.
        server.go();
        server.says("done");
        let connection = waiting(LISTENER, &format!("127.0.0.1:{port}"));
        scenario.expect(&[enter_after(waited, connection, "$server")]);
    }
}

/// One trace for all of it: starting one takes long. First whoever is killed as it begins, and holders in
/// several namespaces; then a connection that is closed, one that is half closed, and one whose socket is
/// closed after that. An accepted one got its port from its listener, and gives none back.
#[test]
fn sockets_that_are_older_than_the_trace() {
    let (netns_of_killed, mut killed) = holder(&HOLD);
    let steps = [&HOLD[..], &["close", "close", "say=closed", "wait"]].concat();
    let holders: Vec<_> = (0..3).map(|_| holder(&steps)).collect();
    let closed = Connection::new(&["close", "wait", "say=done", "wait"]);
    let half_closed = Connection::new(&["shutdown", "wait", "say=done", "wait"]);
    let then_closed = Connection::new(&["shutdown", "wait", "close", "say=done", "wait"]);
    let released = [
        release_of_before("udp", UDP),
        release_of_before("tcp", BOUND),
        release_of_before("tcp", LISTENER),
    ];

    let trace = Arc::new(Trace::start(&[]));
    let mut scenario = Scenario::within(Arc::clone(&trace), netns_of_killed);
    killed.kill();
    scenario.know("$holder", killed.identity());
    scenario.expect_in_any_order(&released);
    for (netns, mut actor) in holders {
        let mut scenario = Scenario::within(Arc::clone(&trace), netns);
        scenario.know("$holder", actor.identity());
        actor.go();
        actor.says("closed");
        scenario.expect(&released);
    }
    for connection in [closed, half_closed, then_closed] {
        connection.end(&trace);
    }
}
