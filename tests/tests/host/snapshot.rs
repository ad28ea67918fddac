//! What was there before the trace: sockets that processes hold, and connections.

use std::sync::Arc;

use portwatch_tests::expect::{enter, enter_late, release, socket, waiting, with};
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

#[test]
fn releases_in_several_namespaces() {
    let steps = [&HOLD[..], &["close", "close", "say=closed", "wait"]].concat();
    let holders: Vec<_> = (0..3).map(|_| holder(&steps)).collect();
    let trace = Arc::new(Trace::start(&[]));
    for (netns, mut actor) in holders {
        let mut scenario = Scenario::within(Arc::clone(&trace), netns);
        scenario.know("$holder", actor.identity());
        actor.go();
        actor.says("closed");
        scenario.expect(&[
            release_of_before("udp", UDP),
            release_of_before("tcp", BOUND),
            release_of_before("tcp", LISTENER),
        ]);
    }
}

#[test]
fn a_process_that_is_killed_as_the_trace_begins() {
    let (netns, mut actor) = holder(&HOLD);
    let mut scenario = Scenario::within(Arc::new(Trace::start(&[])), netns);
    actor.kill();
    scenario.know("$holder", actor.identity());
    scenario.expect_in_any_order(&[
        release_of_before("udp", UDP),
        release_of_before("tcp", BOUND),
        release_of_before("tcp", LISTENER),
    ]);
}

/// A connection that is older than the trace, and then the steps of each of its ends.
fn connection(server: &[&str], check: impl FnOnce(&mut Scenario, &mut Actor, &mut Actor, u16)) {
    let serve = [
        "socket=tcp4",
        "bind=127.0.0.1:8080",
        "listen",
        "say=ready",
        "accept",
        "say=accepted",
        "wait",
    ];
    let (netns, mut server) = holder(&[&serve[..], server].concat());
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
    let port: u16 = client.number();
    server.says("accepted");
    let mut scenario = Scenario::within(Arc::new(Trace::start(&[])), netns);
    scenario.know("$server", server.identity());
    scenario.know("$client", client.identity());
    check(&mut scenario, &mut server, &mut client, port);
}

#[test]
fn a_connection_that_is_closed_during_the_trace() {
    connection(&["close", "wait"], |scenario, server, client, port| {
        server.go();
        scenario.netns.wait_for_fin_wait2("tcp", (8080, port));
        client.go();
        client.says("closed");
        let connection = waiting(LISTENER, &format!("127.0.0.1:{port}"));
        scenario.expect(&[enter_late(connection, "$server")]);
    });
}

#[test]
fn a_connection_that_is_half_closed_during_the_trace() {
    connection(&["shutdown", "wait"], |scenario, server, client, port| {
        server.go();
        scenario.netns.wait_for_fin_wait2("tcp", (8080, port));
        client.go();
        client.says("closed");
        let connection = waiting(LISTENER, &format!("127.0.0.1:{port}"));
        scenario.expect(&[enter(connection, "$server")]);
    });
}

/// It got its port from its listener, and gives none back.
#[test]
fn an_accepted_connection_is_not_released() {
    let steps = ["shutdown", "wait", "close", "say=closed", "wait"];
    connection(&steps, |scenario, server, client, port| {
        server.go();
        scenario.netns.wait_for_fin_wait2("tcp", (8080, port));
        client.go();
        client.says("closed");
        server.go();
        server.says("closed");
        let connection = waiting(LISTENER, &format!("127.0.0.1:{port}"));
        scenario.expect(&[enter(connection, "$server")]);
    });
}
