//! bind(2) that is granted: every transport, family and option, and what was asked for.

use std::net::SocketAddr;

use portwatch_tests::expect::{bind, inet, release, socket, with};
use portwatch_tests::socket::{
    BIND_ADDRESS_NO_PORT, FREEBIND, REUSEADDR, REUSEPORT, TRANSPARENT, V6ONLY, sockaddr_un,
};
use portwatch_tests::{Scenario, Socket};
use serde_json::{Value, json};

/// Binds a socket, closes it, and expects a bind and a release of this socket.
fn binds_and_releases(open: impl FnOnce() -> Socket + Send, local: &str, expected: Value) {
    let mut scenario = Scenario::new();
    scenario.run(|| drop(open().bound(local)));
    scenario.expect(&[bind(expected.clone(), "$self"), release(expected, "$self")]);
}

#[test]
fn tcp_over_ipv4() {
    let local = "127.0.0.1:8080";
    binds_and_releases(Socket::tcp4, local, socket("tcp", local, &[]));
}

#[test]
fn tcp_over_ipv4_on_the_wildcard() {
    let local = "0.0.0.0:8080";
    binds_and_releases(Socket::tcp4, local, socket("tcp", local, &[]));
}

/// What is bound to one address of IPv6 is IPV6_V6ONLY from then on (`__inet6_bind`,
/// net/ipv6/af_inet6.c).
#[test]
fn tcp_over_ipv6() {
    let local = "[::1]:8080";
    binds_and_releases(Socket::tcp6, local, socket("tcp", local, &["v6only"]));
}

#[test]
fn tcp_over_ipv6_on_the_wildcard() {
    let local = "[::]:8080";
    binds_and_releases(Socket::tcp6, local, socket("tcp", local, &[]));
}

#[test]
fn a_v4_mapped_address_is_one_of_ipv6() {
    let local = "[::ffff:127.0.0.1]:8080";
    binds_and_releases(Socket::tcp6, local, socket("tcp", local, &[]));
}

#[test]
fn udp_over_ipv4() {
    let local = "127.0.0.1:5353";
    binds_and_releases(Socket::udp4, local, socket("udp", local, &[]));
}

#[test]
fn udp_over_ipv6() {
    let local = "[::1]:5353";
    binds_and_releases(Socket::udp6, local, socket("udp", local, &["v6only"]));
}

#[test]
fn mptcp_if_the_kernel_has_it() {
    if !Socket::has_mptcp() {
        return;
    }
    let local = "127.0.0.1:8080";
    binds_and_releases(Socket::mptcp4, local, socket("mptcp", local, &[]));
}

#[test]
fn sctp_if_the_kernel_has_it() {
    let sctp = Socket::open(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_SCTP);
    match sctp {
        Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EPROTONOSUPPORT)),
        Ok(_) => {
            let local = "127.0.0.1:8080";
            let sctp =
                || Socket::open(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_SCTP).unwrap();
            binds_and_releases(sctp, local, socket("sctp", local, &[]));
        }
    }
}

/// The kernel keeps the protocol where other sockets have their port, whatever port is asked for,
/// and sets SO_REUSEADDR by itself (`inet_create`, net/ipv4/af_inet.c).
#[test]
fn a_raw_socket_has_its_protocol_as_port() {
    let icmp = || Socket::open(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP).unwrap();
    let expected = socket("raw", "127.0.0.1:1", &["reuseaddr"]);
    binds_and_releases(icmp, "127.0.0.1:0", expected);
}

#[test]
fn a_ping_socket_has_its_identifier_as_port() {
    let mut scenario = Scenario::new();
    scenario
        .netns
        .sysctl("ipv4/ping_group_range", "0 2147483647");
    scenario.run(|| {
        let ping = Socket::open(libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_ICMP).unwrap();
        drop(ping.bound("127.0.0.1:77"));
    });
    let expected = socket("icmp", "127.0.0.1:77", &["reuseaddr"]);
    scenario.expect(&[bind(expected.clone(), "$self"), release(expected, "$self")]);
}

fn port_0(transport: &str, open: fn() -> Socket, asked: &str, options: &[&str]) {
    let mut scenario = Scenario::new();
    let got: SocketAddr = scenario.run(|| open().bound(asked).local());
    assert_ne!(got.port(), 0);
    let expected = socket(transport, &got.to_string(), options);
    let bind = bind(expected.clone(), "$self");
    let bind = with(bind, "/requested", inet(asked));
    scenario.expect(&[bind, release(expected, "$self")]);
}

#[test]
fn port_0_stands_beside_the_port_that_was_given() {
    port_0("tcp", Socket::tcp4, "127.0.0.1:0", &[]);
    port_0("tcp", Socket::tcp6, "[::1]:0", &["v6only"]);
    port_0("udp", Socket::udp4, "0.0.0.0:0", &[]);
    port_0("udp", Socket::udp6, "[::]:0", &[]);
    if Socket::has_mptcp() {
        port_0("mptcp", Socket::mptcp4, "127.0.0.1:0", &[]);
    }
}

/// A link-local address binds its socket to its interface (`__inet6_bind`, net/ipv6/af_inet6.c),
/// which is told as such.
#[test]
fn a_link_local_address_comes_with_its_device() {
    let mut scenario = Scenario::new();
    scenario.netns.ip("address add fe80::77/64 dev lo");
    scenario
        .netns
        .wait_for_address("fe800000000000000000000000000077");
    scenario.run(|| drop(Socket::tcp6().bound("[fe80::77%1]:8080")));
    let expected = socket("tcp", "[fe80::77]:8080", &["v6only"]);
    let expected = with(expected, "/bound_device", json!("lo"));
    scenario.expect(&[bind(expected.clone(), "$self"), release(expected, "$self")]);
}

#[test]
fn reuseaddr_is_told() {
    let local = "127.0.0.1:8080";
    let open = || Socket::tcp4().with(REUSEADDR);
    binds_and_releases(open, local, socket("tcp", local, &["reuseaddr"]));
}

#[test]
fn reuseport_is_told() {
    let local = "127.0.0.1:5353";
    let open = || Socket::udp4().with(REUSEPORT);
    binds_and_releases(open, local, socket("udp", local, &["reuseport"]));
}

#[test]
fn both_reuses_are_told() {
    let local = "[::1]:8080";
    let open = || Socket::tcp6().with(REUSEPORT).with(REUSEADDR);
    let expected = socket("tcp", local, &["reuseaddr", "reuseport", "v6only"]);
    binds_and_releases(open, local, expected);
}

#[test]
fn v6only_is_told() {
    let local = "[::]:8080";
    let open = || Socket::tcp6().with(V6ONLY);
    binds_and_releases(open, local, socket("tcp", local, &["v6only"]));
}

#[test]
fn freebind_to_an_address_that_is_not_local() {
    let local = "192.0.2.1:8080";
    let open = || Socket::tcp4().with(FREEBIND);
    binds_and_releases(open, local, socket("tcp", local, &["freebind"]));
}

#[test]
fn transparent_to_an_address_that_is_not_local() {
    let local = "192.0.2.1:8080";
    let open = || Socket::tcp4().with(TRANSPARENT);
    binds_and_releases(open, local, socket("tcp", local, &["transparent"]));
}

/// The port is given by connect(2) only, so the socket is bound to an address and port 0.
#[test]
fn bind_address_no_port_gets_none() {
    let local = "127.0.0.1:0";
    let open = || Socket::tcp4().with(BIND_ADDRESS_NO_PORT);
    let expected = socket("tcp", local, &["bind-address-no-port"]);
    binds_and_releases(open, local, expected);
}

#[test]
fn the_device_is_told() {
    let local = "0.0.0.0:8080";
    let open = || Socket::tcp4().on_device("lo");
    let expected = with(socket("tcp", local, &[]), "/bound_device", json!("lo"));
    binds_and_releases(open, local, expected);
}

#[test]
fn inode_and_cookie_are_the_sockets() {
    let scenario = Scenario::new();
    let (cookie, inode) = scenario.run(|| {
        let socket = Socket::tcp4();
        let cookie = socket.cookie();
        let socket = socket.bound("127.0.0.1:8080");
        (cookie, socket.inode())
    });
    scenario.fence();
    let events = scenario.raw_events();
    assert_eq!(events.len(), 2, "{events:?}");
    for event in events {
        assert_eq!(event["socket"]["cookie"], cookie, "{event}");
        assert_eq!(event["socket"]["inode"], inode, "{event}");
    }
}

#[test]
fn a_release_tells_when_and_how_long_it_was_bound() {
    let scenario = Scenario::new();
    scenario.run(|| drop(Socket::tcp4().bound("127.0.0.1:8080")));
    scenario.fence();
    let events = scenario.raw_events();
    let [bind, release] = &events[..] else {
        panic!("{events:?}");
    };
    let time = |event: &Value, key: &str| {
        portwatch_tests::identity::nanoseconds(event[key].as_str().unwrap()).unwrap()
    };
    // Both clocks are read apart: the tracer's realtime may have been stepped a little.
    let apart = (time(bind, "time") - time(release, "bound_at")).abs();
    assert!(apart < 5_000_000, "bound_at is {apart} ns off: {events:?}");
    let held = (time(release, "time") - time(release, "bound_at")) / 1_000_000;
    assert_eq!(release["held_ms"], held, "{events:?}");
}

fn unix(kind: libc::c_int, name: &[u8]) {
    let socket = Socket::open(libc::AF_UNIX, kind, 0).unwrap();
    socket.bind_bytes(&sockaddr_un(name)).unwrap();
}

/// A socket of AF_UNIX. It gives no port back, so its end is not told.
fn unix_bind(transport: &str, local: &Value) -> Value {
    let socket = json!({
        "transport": transport,
        "family": "unix",
        "local": local,
        "options": [],
        "netns": "$netns",
        "inode": "$inode",
    });
    bind(socket, "$self")
}

#[test]
fn unix_sockets_if_asked_for() {
    let mut scenario = Scenario::sharing(&["--unix"]);
    let directory = tempfile::tempdir().unwrap();
    let path = directory
        .path()
        .join("socket")
        .into_os_string()
        .into_encoded_bytes();
    let abstract_name = b"\0portwatch-\xff\0test";
    scenario.run(|| {
        unix(libc::SOCK_STREAM, &path);
        unix(libc::SOCK_SEQPACKET, abstract_name);
        // Autobind: the kernel chooses a name.
        unix(libc::SOCK_DGRAM, b"");
    });
    let path = String::from_utf8(path).unwrap();
    scenario.expect(&[
        unix_bind("stream", &json!({"path": path})),
        unix_bind(
            "seqpacket",
            &json!({
                "abstract": "portwatch-\u{fffd}\0test",
                "abstract_hex": "706f727477617463682dff0074657374",
            }),
        ),
        unix_bind("dgram", &json!({"unnamed": true})),
    ]);
}

#[test]
fn no_unix_sockets_unless_asked_for() {
    let mut scenario = Scenario::new();
    scenario.run(|| unix(libc::SOCK_STREAM, b"\0portwatch-test"));
    scenario.expect(&[]);
}
