//! listen(2), and the end of what is bound: who closed it last, and who had bound it.

use portwatch_tests::expect::{bind, inet, listen, listen_failed, release, socket, with};
use portwatch_tests::socket::{self, REUSEADDR, REUSEPORT};
use portwatch_tests::{Identity, Scenario, Socket};
use serde_json::{Value, json};

const LOCAL: &str = "127.0.0.1:8080";

fn errno(result: std::io::Result<()>) -> i32 {
    result.unwrap_err().raw_os_error().unwrap()
}

#[test]
fn a_listener_from_bind_to_close() {
    let mut scenario = Scenario::new();
    scenario.run(|| Socket::tcp4().bound(LOCAL).listen(5).unwrap());
    let listener = socket("tcp", LOCAL, &[]);
    scenario.expect(&[
        bind(listener.clone(), "$self"),
        listen(listener.clone(), 5, "$self"),
        release(listener, "$self"),
    ]);
}

#[test]
fn a_listener_over_ipv6() {
    let mut scenario = Scenario::new();
    scenario.run(|| Socket::tcp6().bound("[::]:8080").listen(5).unwrap());
    let listener = socket("tcp", "[::]:8080", &[]);
    scenario.expect(&[
        bind(listener.clone(), "$self"),
        listen(listener.clone(), 5, "$self"),
        release(listener, "$self"),
    ]);
}

#[test]
fn a_listener_of_mptcp_if_the_kernel_has_it() {
    if !Socket::has_mptcp() {
        return;
    }
    let mut scenario = Scenario::new();
    scenario.run(|| Socket::mptcp4().bound(LOCAL).listen(5).unwrap());
    let listener = socket("mptcp", LOCAL, &[]);
    scenario.expect(&[
        bind(listener.clone(), "$self"),
        listen(listener.clone(), 5, "$self"),
        release(listener, "$self"),
    ]);
}

#[test]
fn listen_without_bind_gets_a_port() {
    let mut scenario = Scenario::new();
    let local = scenario.run(|| {
        let listener = Socket::tcp4();
        listener.listen(5).unwrap();
        listener.local()
    });
    assert_ne!(local.port(), 0);
    let listener = socket("tcp", &local.to_string(), &[]);
    scenario.expect(&[
        listen(listener.clone(), 5, "$self"),
        release(listener, "$self"),
    ]);
}

#[test]
fn listen_again_with_another_backlog() {
    let mut scenario = Scenario::new();
    scenario.run(|| {
        let listener = Socket::tcp4().bound(LOCAL);
        listener.listen(5).unwrap();
        listener.listen(-1).unwrap();
    });
    let listener = socket("tcp", LOCAL, &[]);
    scenario.expect(&[
        bind(listener.clone(), "$self"),
        listen(listener.clone(), 5, "$self"),
        listen(listener.clone(), -1, "$self"),
        release(listener, "$self"),
    ]);
}

#[test]
fn eaddrinuse_where_both_were_bound() {
    let mut scenario = Scenario::new();
    scenario.run(|| {
        let first = Socket::tcp4().with(REUSEADDR).bound(LOCAL);
        let second = Socket::tcp4().with(REUSEADDR).bound(LOCAL);
        first.listen(5).unwrap();
        assert_eq!(errno(second.listen(6)), libc::EADDRINUSE);
        drop(second);
        drop(first);
    });
    let either = socket("tcp", LOCAL, &["reuseaddr"]);
    scenario.expect(&[
        bind(either.clone(), "$self"),
        bind(either.clone(), "$self"),
        listen(either.clone(), 5, "$self"),
        listen_failed(either.clone(), 6, "EADDRINUSE", 98, "$self"),
        release(either.clone(), "$self"),
        release(either, "$self"),
    ]);
}

#[test]
fn udp_cannot_listen() {
    let mut scenario = Scenario::new();
    scenario.run(|| {
        assert_eq!(errno(Socket::udp4().listen(5)), libc::EOPNOTSUPP);
        let bound = Socket::udp4().bound(LOCAL);
        assert_eq!(errno(bound.listen(5)), libc::EOPNOTSUPP);
    });
    let bound = socket("udp", LOCAL, &[]);
    let unbound = socket("udp", "0.0.0.0:0", &[]);
    scenario.expect(&[
        listen_failed(unbound, 5, "EOPNOTSUPP", 95, "$self"),
        bind(bound.clone(), "$self"),
        listen_failed(bound.clone(), 5, "EOPNOTSUPP", 95, "$self"),
        release(bound, "$self"),
    ]);
}

/// Of what is no socket there is nothing to tell.
#[test]
fn ebadf_and_enotsock() {
    use std::os::fd::AsRawFd as _;
    let mut scenario = Scenario::new();
    scenario.run(|| {
        assert_eq!(errno(socket::listen(-1, 5)), libc::EBADF);
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(errno(socket::listen(file.as_raw_fd(), 6)), libc::ENOTSOCK);
    });
    let none = json!({"options": []});
    scenario.expect(&[
        listen_failed(none.clone(), 5, "EBADF", 9, "$self"),
        listen_failed(none, 6, "ENOTSOCK", 88, "$self"),
    ]);
}

#[test]
fn a_connected_udp_socket() {
    let mut scenario = Scenario::new();
    let local = "127.0.0.1:5353";
    scenario.run(|| {
        let bound = Socket::udp4().bound(local);
        bound.connect(socket::address("127.0.0.1:9")).unwrap();
    });
    let bound = socket("udp", local, &[]);
    scenario.expect(&[bind(bound.clone(), "$self"), release(bound, "$self")]);
}

#[test]
fn what_connect_binds_is_not_told() {
    let mut scenario = Scenario::new();
    scenario.run(|| {
        let unbound = Socket::udp4();
        unbound.connect(socket::address("127.0.0.1:9")).unwrap();
        let refused = Socket::tcp4().connect(socket::address("127.0.0.1:9"));
        assert_eq!(errno(refused), libc::ECONNREFUSED);
    });
    scenario.expect(&[]);
}

#[test]
fn a_duplicate_keeps_it() {
    let mut scenario = Scenario::new();
    scenario.run(|| {
        let bound = Socket::tcp4().bound(LOCAL);
        let second = bound.duplicate();
        drop(bound);
        let between = Socket::udp4().bound(LOCAL);
        drop(second);
        drop(between);
    });
    let bound = socket("tcp", LOCAL, &[]);
    let between = socket("udp", LOCAL, &[]);
    scenario.expect(&[
        bind(bound.clone(), "$self"),
        bind(between.clone(), "$self"),
        release(bound, "$self"),
        release(between, "$self"),
    ]);
}

#[test]
fn each_of_a_reuseport_group_is_released() {
    let mut scenario = Scenario::new();
    let inodes = scenario.run(|| {
        let group: Vec<_> = (0..3)
            .map(|_| {
                let member = Socket::tcp4().with(REUSEPORT).bound(LOCAL);
                member.listen(5).unwrap();
                member
            })
            .collect();
        group.iter().map(Socket::inode).collect::<Vec<_>>()
    });
    let member = socket("tcp", LOCAL, &["reuseport"]);
    let mut expected = Vec::new();
    for _ in 0..3 {
        expected.push(bind(member.clone(), "$self"));
        expected.push(listen(member.clone(), 5, "$self"));
    }
    for _ in 0..3 {
        expected.push(release(member.clone(), "$self"));
    }
    scenario.expect(&expected);
    let released: Vec<_> = scenario.raw_events()[6..]
        .iter()
        .map(|event| event["socket"]["inode"].as_u64().unwrap())
        .collect();
    assert_eq!(released, inodes);
}

#[test]
fn a_child_that_inherited_it_is_the_one_that_closes_it() {
    let mut scenario = Scenario::new();
    let bind_and_listen = ["socket=tcp4", "bind=127.0.0.1:8080", "listen"];
    let child = ["fork", "pid", "wait", "end"];
    let parent = ["close", "say=closed", "reap"];
    let steps = [&bind_and_listen[..], &child, &parent].concat();
    let mut actor = scenario.actor("$parent", &steps);
    let said = [actor.said(), actor.said()];
    let child = said.iter().find_map(|line| line.parse().ok()).unwrap();
    scenario.know("$child", Identity::of(child));
    let listener = socket("tcp", LOCAL, &[]);
    let bind = bind(listener.clone(), "$parent");
    let listen = listen(listener.clone(), 16, "$parent");
    scenario.expect(&[bind.clone(), listen.clone()]);
    actor.go();
    actor.finish();
    let release = with(release(listener, "$child"), "/binder", json!("$parent"));
    scenario.expect(&[bind, listen, release]);
}

/// A daemon: who bound is no more when what it bound is released.
#[test]
fn a_binder_that_is_no_more_is_named() {
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
    let mut actor = scenario.actor("$parent", &steps);
    let child: u32 = actor.number();
    scenario.know("$child", Identity::of(child));
    actor.finish();
    // It has another parent now.
    scenario.know("$child", Identity::of(child));
    actor.go();
    scenario.released(8080);
    let listener = socket("tcp", LOCAL, &[]);
    let release = release(listener.clone(), "$child");
    scenario.expect(&[
        bind(listener.clone(), "$parent"),
        listen(listener, 16, "$parent"),
        with(release, "/binder", json!("$parent")),
    ]);
}

#[test]
fn a_killed_process_is_whole() {
    let mut scenario = Scenario::new();
    let steps = [
        "socket=tcp4",
        "bind=127.0.0.1:8080",
        "listen",
        "socket=udp4",
        "bind=127.0.0.1:5353",
        "say=ready",
        "wait",
    ];
    let mut actor = scenario.actor("$killed", &steps);
    actor.says("ready");
    actor.kill();
    let listener = socket("tcp", LOCAL, &[]);
    let udp = socket("udp", "127.0.0.1:5353", &[]);
    // A process that ends closes its files in no order that is promised.
    scenario.expect_in_any_order(&[
        bind(listener.clone(), "$killed"),
        listen(listener.clone(), 16, "$killed"),
        bind(udp.clone(), "$killed"),
        release(listener, "$killed"),
        release(udp, "$killed"),
    ]);
}

#[test]
fn a_listener_goes_before_its_connections() {
    let mut scenario = Scenario::new();
    let accepted = scenario.run(|| {
        let listener = Socket::tcp4().bound(LOCAL);
        listener.listen(5).unwrap();
        let client = Socket::tcp4();
        let server = socket::connect(&listener, &client);
        (client, server)
    });
    let listener = socket("tcp", LOCAL, &[]);
    scenario.expect(&[
        bind(listener.clone(), "$self"),
        listen(listener.clone(), 5, "$self"),
        release(listener, "$self"),
    ]);
    drop(accepted);
}

/// What is bound and connected keeps its port until the connection is over.
#[test]
fn a_bound_client_is_released_with_its_connection() {
    let mut scenario = Scenario::new();
    let client = "127.0.0.1:5000";
    let listener = scenario.run(|| {
        let listener = Socket::tcp4().bound(LOCAL);
        listener.listen(5).unwrap();
        let client = Socket::tcp4().bound(client);
        let server = socket::connect(&listener, &client);
        server.linger_not();
        // The reset ends the client's socket, which its owner closes later.
        drop(server);
        drop(client);
        listener
    });
    let listening = socket("tcp", LOCAL, &[]);
    let client = socket("tcp", client, &[]);
    scenario.expect(&[
        bind(listening.clone(), "$self"),
        listen(listening, 5, "$self"),
        bind(client.clone(), "$self"),
        release(client, "$self"),
    ]);
    drop(listener);
}

#[test]
fn a_unix_listener_if_asked_for() {
    let mut scenario = Scenario::sharing(&["--unix"]);
    scenario.run(|| {
        let listener = Socket::open(libc::AF_UNIX, libc::SOCK_STREAM, 0).unwrap();
        let name = socket::sockaddr_un(b"\0portwatch-listener");
        listener.bind_bytes(&name).unwrap();
        listener.listen(5).unwrap();
    });
    let socket = json!({
        "transport": "stream",
        "family": "unix",
        "local": {"abstract": "portwatch-listener"},
        "options": [],
        "netns": "$netns",
        "inode": "$inode",
    });
    scenario.expect(&[bind(socket.clone(), "$self"), listen(socket, 5, "$self")]);
}

#[test]
fn port_0_is_released_under_the_port_it_got() {
    let mut scenario = Scenario::new();
    let local = scenario.run(|| {
        let listener = Socket::tcp4().bound("0.0.0.0:0");
        listener.listen(5).unwrap();
        listener.local()
    });
    let listener = socket("tcp", &local.to_string(), &[]);
    let bound = bind(listener.clone(), "$self");
    let requested: Value = inet("0.0.0.0:0");
    scenario.expect(&[
        with(bound, "/requested", requested),
        listen(listener.clone(), 5, "$self"),
        release(listener, "$self"),
    ]);
}
