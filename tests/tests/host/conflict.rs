//! The holder of a refused port: which socket, whose, why, and how that is known.

use portwatch_tests::expect::inet;
use portwatch_tests::socket::{self, REUSEADDR, REUSEPORT, V6ONLY, address};
use portwatch_tests::{Actor, Netns, Scenario, Socket, Trace, many};
use serde_json::{Value, json};

use crate::connection::{Connection, SERVER};

/// What a trace can know of a holder: where the kernel's check can be hooked the socket it met, else what
/// a walk finds.
fn evidence_of(start: &Value) -> &'static str {
    if start["parts"]["conflict"].is_string() {
        "locked"
    } else {
        "walked"
    }
}

/// The same of a scenario's trace.
fn evidence(scenario: &Scenario) -> &'static str {
    evidence_of(&scenario.trace.lines(0)[0])
}

/// The conflict of the scenario's failed bind, or listen, of this local port.
fn conflict(scenario: &Scenario, event: &str, port: u16) -> Value {
    let failed = scenario.wait(&format!("the failed {event} of port {port}"), |seen| {
        seen["event"] == event
            && seen["outcome"] == "failure"
            && seen["socket"]["local"]["port"] == port
    });
    failed["conflict"].clone()
}

/// Asserts the cause, and that the first holder is this socket in this state.
fn assert_held(conflict: &Value, cause: &str, local: &str, state: &str) {
    assert_eq!(conflict["cause"], cause, "{conflict}");
    let holder = &conflict["holders"][0];
    assert_eq!(holder["socket"]["local"], inet(local), "{conflict}");
    assert_eq!(holder["socket"]["state"], state, "{conflict}");
}

fn refused(open: impl FnOnce() -> Socket, local: &str) {
    let error = open().bind(local).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EADDRINUSE));
}

#[test]
fn a_listener_of_another_process() {
    let mut scenario = Scenario::new();
    let steps = [
        "socket=tcp4",
        "bind=127.0.0.1:8080",
        "listen",
        "say=listening",
        "wait",
    ];
    let mut holder = scenario.actor("$holder", &steps);
    holder.says("listening");
    scenario.run(|| refused(Socket::tcp4, "127.0.0.1:8080"));
    let conflict = conflict(&scenario, "bind", 8080);
    assert_held(&conflict, "listener", "127.0.0.1:8080", "listen");
    assert_eq!(conflict["evidence"], evidence(&scenario));
    assert_eq!(conflict["holders"].as_array().map(Vec::len), Some(1));
    let told = &conflict["holders"][0];
    assert_eq!(told["ownership"], "verified");
    assert_eq!(told["processes"][0]["pid"], holder.pid());
    assert_eq!(told["processes"][0]["comm"], "actor");
    assert!(told["bound_at"].is_string());
    assert_eq!(told["socket"]["uid"], 0);
    let advice = conflict["advice"].as_str().unwrap();
    assert!(
        advice.contains(&format!("kill {}", holder.pid())),
        "{advice}"
    );
    holder.go();
    holder.finish();
}

/// Who has it is who has its descriptor, not who bound it.
#[test]
fn a_listener_that_a_child_inherited() {
    let mut scenario = Scenario::new();
    let steps = [
        "socket=tcp4",
        "bind=127.0.0.1:8080",
        "listen",
        "fork",
        "pid",
        "wait",
        "end",
    ];
    let mut binder = scenario.actor("$binder", &steps);
    let child: u32 = binder.number();
    binder.finish();
    scenario.run(|| refused(Socket::tcp4, "127.0.0.1:8080"));
    let conflict = conflict(&scenario, "bind", 8080);
    assert_held(&conflict, "inherited-listener", "127.0.0.1:8080", "listen");
    let told = &conflict["holders"][0];
    assert_eq!(told["ownership"], "verified");
    assert_eq!(told["processes"].as_array().map(Vec::len), Some(1));
    assert_eq!(told["processes"][0]["pid"], child);
    binder.go();
}

#[test]
fn an_outgoing_connection() {
    let scenario = Scenario::new();
    let (_open, port) = scenario.run(|| {
        let listener = Socket::tcp4().bound("127.0.0.1:8080");
        listener.listen(5).unwrap();
        let client = Socket::tcp4();
        client.connect(address("127.0.0.1:8080")).unwrap();
        let port = client.local().port();
        refused(Socket::tcp4, &format!("127.0.0.1:{port}"));
        client.linger_not();
        ((listener, client), port)
    });
    let conflict = conflict(&scenario, "bind", port);
    let local = format!("127.0.0.1:{port}");
    assert_held(&conflict, "ephemeral-collision", &local, "established");
    let told = &conflict["holders"][0];
    assert_eq!(told["socket"]["remote"], inet("127.0.0.1:8080"));
    assert_eq!(told["ownership"], "verified");
    assert_eq!(told["processes"][0]["pid"], std::process::id());
}

#[test]
fn bound_and_not_listening() {
    let scenario = Scenario::new();
    let _holder = scenario.run(|| {
        let holder = Socket::tcp4().bound("127.0.0.1:8080");
        refused(Socket::tcp4, "127.0.0.1:8080");
        holder
    });
    let conflict = conflict(&scenario, "bind", 8080);
    assert_held(&conflict, "bound-not-listening", "127.0.0.1:8080", "bound");
}

#[test]
fn a_time_wait_of_a_socket_with_reuse() {
    let scenario = Scenario::new();
    let listener = Connection::new(&scenario).ended_by_server(&scenario);
    scenario.wait("the TIME_WAIT", |event| event["event"] == "timewait");
    scenario.run(|| {
        drop(listener);
        refused(Socket::tcp4, SERVER);
    });
    let conflict = conflict(&scenario, "bind", 8080);
    assert_held(&conflict, "time-wait", SERVER, "time-wait");
    let told = &conflict["holders"][0];
    let left = told["expires_in_ms"].as_u64().unwrap();
    assert!((1..=60_000).contains(&left), "{conflict}");
    assert_eq!(told["ownership"], "last-known");
    assert_eq!(told["processes"][0]["pid"], std::process::id());
    let advice = conflict["advice"].as_str().unwrap();
    assert!(advice.contains("SO_REUSEADDR"), "{advice}");
}

#[test]
fn dual_stack_both_ways() {
    let scenario = Scenario::new();
    scenario.run(|| {
        let six = Socket::tcp6().bound("[::]:8080");
        six.listen(5).unwrap();
        refused(Socket::tcp4, "0.0.0.0:8080");
        let four = Socket::tcp4().bound("127.0.0.1:8081");
        four.listen(5).unwrap();
        refused(Socket::tcp6, "[::]:8081");
        drop(Socket::tcp6().with(V6ONLY).bound("[::]:8081"));
    });
    assert_held(
        &conflict(&scenario, "bind", 8080),
        "dual-stack",
        "[::]:8080",
        "listen",
    );
    let other = conflict(&scenario, "bind", 8081);
    assert_held(&other, "dual-stack", "127.0.0.1:8081", "listen");
}

#[test]
fn a_wildcard_over_a_specific_address() {
    let scenario = Scenario::new();
    scenario.run(|| {
        let specific = Socket::tcp4().bound("127.0.0.2:8080");
        specific.listen(5).unwrap();
        refused(Socket::tcp4, "0.0.0.0:8080");
    });
    let conflict = conflict(&scenario, "bind", 8080);
    assert_held(&conflict, "wildcard-overlap", "127.0.0.2:8080", "listen");
}

#[test]
fn reuseport_on_one_side_only() {
    let scenario = Scenario::new();
    scenario.run(|| {
        let holder = Socket::udp4().with(REUSEPORT).bound("127.0.0.1:5353");
        refused(Socket::udp4, "127.0.0.1:5353");
        drop(holder);
    });
    let conflict = conflict(&scenario, "bind", 5353);
    assert_held(&conflict, "reuseport-one-sided", "127.0.0.1:5353", "bound");
}

#[test]
fn udp_of_both_families() {
    for (open, local) in [
        (Socket::udp4 as fn() -> Socket, "127.0.0.1:5353"),
        (Socket::udp6, "[::1]:5353"),
    ] {
        let scenario = Scenario::new();
        let _holder = scenario.run(|| {
            let holder = open().bound(local);
            refused(open, local);
            holder
        });
        let conflict = conflict(&scenario, "bind", 5353);
        assert_held(&conflict, "listener", local, "bound");
        assert_eq!(conflict["evidence"], evidence(&scenario));
        assert_eq!(conflict["holders"][0]["ownership"], "verified");
    }
}

#[test]
fn a_listen_beside_a_listener() {
    let scenario = Scenario::new();
    let _both = scenario.run(|| {
        let first = Socket::tcp4().with(REUSEADDR).bound("127.0.0.1:8080");
        let second = Socket::tcp4().with(REUSEADDR).bound("127.0.0.1:8080");
        first.listen(5).unwrap();
        let error = second.listen(5).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EADDRINUSE));
        (first, second)
    });
    let conflict = conflict(&scenario, "listen", 8080);
    assert_held(&conflict, "listen-conflict", "127.0.0.1:8080", "listen");
}

/// A server has many sockets on its port: its listener is told all the same.
#[test]
fn a_listener_behind_its_connections() {
    let scenario = Scenario::new();
    let _open = scenario.run(|| {
        let listener = Socket::tcp4().with(REUSEADDR).bound("127.0.0.1:8080");
        listener.listen(50).unwrap();
        let open: Vec<_> = (0..20)
            .map(|_| {
                let client = Socket::tcp4();
                (socket::connect(&listener, &client), client)
            })
            .collect();
        refused(|| Socket::tcp4().with(REUSEADDR), "127.0.0.1:8080");
        for (server, _) in &open {
            server.linger_not();
        }
        (listener, open)
    });
    let conflict = conflict(&scenario, "bind", 8080);
    assert_held(&conflict, "listener", "127.0.0.1:8080", "listen");
}

#[test]
fn an_address_that_is_not_local_has_no_holder() {
    let scenario = Scenario::new();
    scenario.run(|| {
        Socket::tcp4().bind("192.0.2.1:8080").unwrap_err();
    });
    let conflict = conflict(&scenario, "bind", 8080);
    assert_eq!(conflict["cause"], "address-not-local");
    assert_eq!(conflict.get("holders"), None);
    assert_eq!(conflict.get("evidence"), None);
}

#[test]
fn a_second_bind_of_one_socket() {
    let scenario = Scenario::new();
    scenario.run(|| {
        let socket = Socket::tcp4().bound("127.0.0.1:8080");
        let error = socket.bind("127.0.0.1:8081").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    });
    assert_eq!(
        conflict(&scenario, "bind", 8081)["cause"],
        json!("already-bound")
    );
}

/// Two processes take ports from each other, and nobody keeps one for long: where the kernel's check can
/// be hooked each refusal names who had it, elsewhere it is told how many do not.
#[test]
fn two_processes_that_fight_for_ports() {
    let netns = Netns::new();
    let trace = Trace::start(&["--netns", &netns.inode().to_string(), "--failed"]);
    let one = ["socket=tcp4", "bind?=127.0.0.1:8080", "yield", "close"];
    let two = ["socket=udp4", "bind?=127.0.0.1:8080", "yield", "close"];
    let rounds = format!("repeat={}", many(500));
    let steps = [&[&*rounds], &one[..], &two, &["end"]].concat();
    let mut fighters = [(); 2].map(|()| Actor::start(&netns, &steps));
    for fighter in &mut fighters {
        fighter.go();
    }
    for fighter in &mut fighters {
        fighter.finish();
    }
    let lines = trace.stop().lines;
    let refused: Vec<_> = (lines.iter())
        .filter(|line| line["error"] == "EADDRINUSE")
        .collect();
    assert!(!refused.is_empty(), "nobody was in anybody's way");
    let (held, without): (Vec<&Value>, Vec<&Value>) = refused
        .iter()
        .copied()
        .partition(|line| line["conflict"]["cause"] != "unknown");
    for line in held {
        let holder = &line["conflict"]["holders"][0];
        assert_eq!(holder["socket"]["local"], inet("127.0.0.1:8080"), "{line}");
    }
    println!(
        "{} refusals, {} without a holder",
        refused.len(),
        without.len()
    );
    let told = lines.last().unwrap()["without_holder"]
        .as_u64()
        .unwrap_or(0);
    assert_eq!(told, without.len() as u64);
    if evidence_of(&lines[0]) == "locked" {
        assert!(without.is_empty(), "{without:?}");
    }
}
