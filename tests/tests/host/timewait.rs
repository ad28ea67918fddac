//! TIME_WAIT: who brought it about, how it begins, and each way in which it ends.

use std::net::{SocketAddr, SocketAddrV4};

use portwatch_tests::expect::{
    Order, bind, compare, enter, enter_after, exit, listen, release, socket, waiting, with,
};
use portwatch_tests::netns::FinWait2;
use portwatch_tests::socket::{REUSEADDR, send_stray_segment};
use portwatch_tests::{Actor, Identity, Scenario, Socket};
use serde_json::{Value, json};

use crate::connection::{
    CLIENT, Connection, SERVER, client_released, connection_made, waiting_with_reuseaddr,
};

fn exited(scenario: &Scenario) -> Value {
    scenario.wait("the end of the TIME_WAIT", |event| event["phase"] == "exit")
}

/// Two processes with a connection between them: the server's accepted socket is on top of its
/// stack, and each waits before it closes.
struct Pair {
    scenario: Scenario,
    server: Actor,
    client: Actor,
    local: String,
    remote: String,
}

impl Pair {
    fn new(kinds: (&str, &str), listen_on: &str, connect_to: &str, then: &[&str]) -> Self {
        Self::ending(kinds, listen_on, connect_to, (then, "close"))
    }

    /// One whose ends do these steps: the server's, and the client's one.
    fn ending(
        kinds: (&str, &str),
        listen_on: &str,
        connect_to: &str,
        (then, client_then): (&[&str], &str),
    ) -> Self {
        let mut scenario = Scenario::new();
        let kind = [format!("socket={}", kinds.0), format!("bind={listen_on}")];
        let serve = ["listen", "say=listening", "accept", "say=accepted", "wait"];
        let steps = [&[&*kind[0], &*kind[1]], &serve[..], then].concat();
        let server = scenario.actor("$server", &steps);
        server.says("listening");
        let kind = [
            format!("socket={}", kinds.1),
            format!("connect={connect_to}"),
        ];
        let steps = [
            &kind[0],
            &kind[1],
            "port",
            "wait",
            client_then,
            "say=closed",
            "wait",
        ];
        let client = scenario.actor("$client", &steps);
        let port: u16 = client.number();
        server.says("accepted");
        let mut remote: SocketAddr = connect_to.parse().unwrap();
        remote.set_port(port);
        Self {
            scenario,
            server,
            client,
            local: connect_to.to_owned(),
            remote: remote.to_string(),
        }
    }

    fn ports(&self) -> (u16, u16) {
        let port = |address: &str| address.parse::<SocketAddr>().unwrap().port();
        (port(&self.local), port(&self.remote))
    }

    /// The server goes on and its peer gets to know of the close; then the client closes. Tells as what
    /// the server's end waited for that.
    fn server_first(&mut self, table: &str) -> FinWait2 {
        self.server.go();
        let waited = self.scenario.netns.wait_for_fin_wait2(table, self.ports());
        self.client.go();
        self.client.says("closed");
        waited
    }

    /// Asserts what was seen besides the server's bind and listen.
    fn expect(&mut self, listener: &Value, behind: &[Value]) {
        let mut expected = vec![
            bind(listener.clone(), "$server"),
            listen(listener.clone(), 16, "$server"),
        ];
        expected.extend_from_slice(behind);
        self.scenario.expect(&expected);
    }
}

#[test]
fn the_server_closes_first() {
    let mut pair = Pair::new(("tcp4", "tcp4"), SERVER, SERVER, &["close", "wait"]);
    let waited = pair.server_first("tcp");
    let connection = waiting(&pair.local, &pair.remote);
    let listener = socket("tcp", SERVER, &[]);
    pair.expect(&listener, &[enter_after(waited, connection, "$server")]);
}

#[test]
fn the_client_closes_first() {
    let mut pair = Pair::new(
        ("tcp4", "tcp4"),
        SERVER,
        SERVER,
        &["close", "say=x", "wait"],
    );
    pair.client.go();
    pair.client.says("closed");
    let (server, client) = pair.ports();
    let netns = &pair.scenario.netns;
    let waited = netns.wait_for_fin_wait2("tcp", (client, server));
    pair.server.go();
    pair.server.says("x");
    let connection = waiting(&pair.remote, &pair.local);
    let listener = socket("tcp", SERVER, &[]);
    pair.expect(&listener, &[enter_after(waited, connection, "$client")]);
}

/// shutdown(2) keeps the socket, which then goes into TIME_WAIT without waiting in another form.
#[test]
fn a_half_closed_socket_does_not_wait_in_fin_wait2() {
    let mut pair = Pair::new(("tcp4", "tcp4"), SERVER, SERVER, &["shutdown", "wait"]);
    pair.server_first("tcp");
    let connection = waiting(&pair.local, &pair.remote);
    let listener = socket("tcp", SERVER, &[]);
    pair.expect(&listener, &[enter(connection, "$server")]);
}

#[test]
fn over_ipv6() {
    let local = "[::1]:8080";
    let mut pair = Pair::new(("tcp6", "tcp6"), local, local, &["shutdown", "wait"]);
    pair.server_first("tcp6");
    let connection = waiting(&pair.local, &pair.remote);
    let connection = with(connection, "/options", json!(["v6only"]));
    let listener = socket("tcp", local, &["v6only"]);
    pair.expect(&listener, &[enter(connection, "$server")]);
}

/// A client of IPv4 of a server of IPv6: the server's end is a socket of IPv6.
#[test]
fn over_a_v4_mapped_address() {
    let mut pair = Pair::new(("tcp6", "tcp4"), "[::]:8080", SERVER, &["shutdown", "wait"]);
    pair.server_first("tcp6");
    let mapped = |address: &str| {
        let address: SocketAddrV4 = address.parse().unwrap();
        format!("[::ffff:{}]:{}", address.ip(), address.port())
    };
    let connection = waiting(&mapped(&pair.local), &mapped(&pair.remote));
    let listener = socket("tcp", "[::]:8080", &[]);
    pair.expect(&listener, &[enter(connection, "$server")]);
}

#[test]
fn a_killed_process_closed_it() {
    let mut pair = Pair::new(("tcp4", "tcp4"), SERVER, SERVER, &[]);
    pair.server.kill();
    let waited = pair.scenario.netns.wait_for_fin_wait2("tcp", pair.ports());
    pair.client.go();
    pair.client.says("closed");
    let connection = waiting(&pair.local, &pair.remote);
    let listener = socket("tcp", SERVER, &[]);
    let gone = release(listener.clone(), "$server");
    pair.expect(
        &listener,
        &[gone, enter_after(waited, connection, "$server")],
    );
}

#[test]
fn a_child_that_inherited_it_closed_it() {
    let steps = [
        "fork",
        "pid",
        "wait",
        "close",
        "wait",
        "end",
        "close",
        "say=closed",
        "reap",
    ];
    let mut pair = Pair::new(("tcp4", "tcp4"), SERVER, SERVER, &steps);
    pair.server.go();
    let said = [pair.server.said(), pair.server.said()];
    let child = said.iter().find_map(|line| line.parse().ok()).unwrap();
    pair.scenario.know("$child", Identity::of(child));
    let waited = pair.server_first("tcp");
    let connection = waiting(&pair.local, &pair.remote);
    let listener = socket("tcp", SERVER, &[]);
    pair.expect(&listener, &[enter_after(waited, connection, "$child")]);
}

#[test]
fn a_reset_leaves_none() {
    let mut scenario = Scenario::new();
    let connection = Connection::new(&scenario);
    let listener = scenario.run(|| {
        connection.server.linger_not();
        drop(connection.server);
        drop(connection.client);
        connection.listener
    });
    // The reset may arrive after the client's own close: its socket is done with then.
    scenario.released(5000);
    let mut expected = connection_made();
    expected.push(client_released());
    scenario.expect(&expected);
    drop(listener);
}

/// FIN_WAIT2 ends after tcp_fin_timeout if the peer never closes: that is no TIME_WAIT.
#[test]
fn fin_wait2_alone_is_none() {
    let mut scenario = Scenario::new();
    scenario.netns.sysctl("ipv4/tcp_fin_timeout", "1");
    let connection = Connection::new(&scenario);
    scenario.run(|| drop(connection.server));
    scenario.netns.wait_for_fin_wait2("tcp", (8080, 5000));
    scenario.netns.wait_for_none("tcp", (8080, 5000));
    scenario.expect(&connection_made());
    drop(connection.client);
    drop(connection.listener);
}

/// Both are done before either hears of the other: the loopback is down meanwhile.
#[test]
fn both_end_it_at_once() {
    let steps = ["shutdown", "say=closed", "wait"];
    let ends = (&steps[..], "shutdown");
    let mut pair = Pair::ending(("tcp4", "tcp4"), SERVER, SERVER, ends);
    pair.scenario.netns.loopback(false);
    for actor in [&mut pair.server, &mut pair.client] {
        actor.go();
        actor.says("closed");
    }
    pair.scenario.netns.loopback(true);
    let (server, client) = pair.ports();
    for port in [server, client] {
        pair.scenario.wait("a TIME_WAIT", |event| {
            event["event"] == "timewait" && event["socket"]["local"]["port"] == port
        });
    }
    let listener = socket("tcp", SERVER, &[]);
    pair.scenario.expect_in_any_order(&[
        bind(listener.clone(), "$server"),
        listen(listener, 16, "$server"),
        enter(waiting(&pair.local, &pair.remote), "$server"),
        enter(waiting(&pair.remote, &pair.local), "$client"),
    ]);
}

#[test]
fn reused_by_a_connect_from_the_same_port() {
    let scenario = &mut Scenario::new();
    let listener = Connection::new(scenario).ended_by_client(scenario);
    // Without it, it is a second.
    scenario
        .netns
        .sysctl_if_there("ipv4/tcp_tw_reuse_delay", "1");
    let again = scenario.run(|| {
        let again = Socket::tcp4().with(REUSEADDR).bound(CLIENT);
        // It is only free for reuse that long after.
        while let Err(error) = again.connect(listener.local()) {
            assert_eq!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL));
        }
        again
    });
    let socket = waiting_with_reuseaddr(CLIENT, SERVER);
    let mut expected = connection_made();
    expected.extend([
        enter(socket.clone(), "$self"),
        client_released(),
        expected[2].clone(),
        exit(socket, "reused", "$self"),
    ]);
    scenario.expect(&expected);
    drop((again, listener));
}

#[test]
fn reused_by_a_syn_to_the_listener() {
    let scenario = &mut Scenario::new();
    let listener = Connection::new(scenario).ended_by_server(scenario);
    let again = scenario.run(|| {
        let again = Socket::tcp4().with(REUSEADDR).bound(CLIENT);
        again.connect(listener.local()).unwrap();
        again
    });
    exited(scenario);
    let socket = waiting_with_reuseaddr(SERVER, CLIENT);
    let mut expected = connection_made();
    expected.extend([
        client_released(),
        enter(socket.clone(), "$self"),
        expected[2].clone(),
        exit(socket, "reused", "$self"),
    ]);
    scenario.expect_in_any_order(&expected);
    drop((again, listener));
}

/// A stray segment is answered with an acknowledgement, which the peer's host answers with RST
/// because it knows of no such connection any more (RFC 1337).
fn provoke_a_reset(scenario: &mut Scenario) {
    let listener = Connection::new(scenario).ended_by_server(scenario);
    scenario.run(|| {
        drop(listener);
        let address = |text: &str| text.parse::<SocketAddrV4>().unwrap();
        send_stray_segment(address(CLIENT), address(SERVER));
    });
}

#[test]
fn reset_by_the_host_of_the_peer() {
    let scenario = &mut Scenario::new();
    scenario.netns.sysctl("ipv4/tcp_rfc1337", "0");
    provoke_a_reset(scenario);
    exited(scenario);
    let socket = waiting_with_reuseaddr(SERVER, CLIENT);
    let listener = portwatch_tests::expect::socket("tcp", SERVER, &["reuseaddr"]);
    let mut expected = connection_made();
    expected.extend([
        client_released(),
        enter(socket.clone(), "$self"),
        release(listener, "$self"),
        exit(socket, "reset", "$self"),
    ]);
    scenario.expect_in_any_order(&expected);
}

/// In a namespace where the reset is not heeded.
#[test]
fn not_reset_where_rfc_1337_is_followed() {
    let scenario = &mut Scenario::new();
    provoke_a_reset(scenario);
    scenario.netns.wait_for_timewait("tcp", (8080, 5000));
    let mut expected = connection_made();
    expected.extend([
        client_released(),
        enter(waiting_with_reuseaddr(SERVER, CLIENT), "$self"),
        release(socket("tcp", SERVER, &["reuseaddr"]), "$self"),
    ]);
    scenario.expect_in_any_order(&expected);
}

#[test]
fn purged_with_its_namespace() {
    let scenario = &mut Scenario::new();
    let listener = Connection::new(scenario).ended_by_server(scenario);
    scenario.run(|| drop(listener));
    scenario.fence();
    scenario.netns.let_go();
    exited(scenario);
    let socket = waiting_with_reuseaddr(SERVER, CLIENT);
    let listener = portwatch_tests::expect::socket("tcp", SERVER, &["reuseaddr"]);
    let mut expected = connection_made();
    expected.extend([
        client_released(),
        enter(socket.clone(), "$self"),
        release(listener, "$self"),
        exit(socket, "purged", "$self"),
    ]);
    let mut events = scenario.events_seen();
    // The namespace's number may be another's since.
    let last = events.iter().position(|event| event["phase"] == "exit");
    events.truncate(last.unwrap() + 1);
    compare(&events, &expected, Order::Any);
}

/// The subflows are closed by a worker of the kernel once both ends are done; which end is first is
/// open. Who closed is still the process whose connection it was.
#[test]
fn of_mptcp_if_the_kernel_has_it() {
    if !Socket::has_mptcp() {
        return;
    }
    let steps = ["close", "say=closed", "wait"];
    let mut pair = Pair::new(("mptcp4", "mptcp4"), SERVER, SERVER, &steps);
    pair.server.go();
    pair.server.says("closed");
    pair.client.go();
    pair.client.says("closed");
    pair.scenario
        .wait("a TIME_WAIT", |event| event["phase"] == "enter");
    let events = pair.scenario.events();
    let (server, _) = pair.ports();
    for event in events.iter().skip(2) {
        let expected = if event["socket"]["local"]["port"] == server {
            enter(waiting(&pair.local, &pair.remote), "$server")
        } else {
            enter(waiting(&pair.remote, &pair.local), "$client")
        };
        let event = with(event.clone(), "/fin_wait2_ms", Value::Null);
        compare(&[event], &[expected], Order::Same);
    }
    let listener = socket("mptcp", SERVER, &[]);
    let made = [
        bind(listener.clone(), "$server"),
        listen(listener, 16, "$server"),
    ];
    compare(&events[..2], &made, Order::Same);
}
