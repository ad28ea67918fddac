//! bind(2) that is refused: the errno, its name, and the address that was asked for.

use portwatch_tests::expect::{bind, bind_failed, release, socket, with};
use portwatch_tests::socket::{bind as bind_any, bind_unreadable, sockaddr};
use portwatch_tests::{Scenario, Socket};
use serde_json::{Value, json};

fn errno(result: std::io::Result<()>) -> i32 {
    result.unwrap_err().raw_os_error().unwrap()
}

#[test]
fn eaddrinuse_keeps_the_address_asked_for() {
    let mut scenario = Scenario::new();
    let local = "127.0.0.1:8080";
    scenario.run(|| {
        let holder = Socket::tcp4().bound(local);
        let newcomer = Socket::tcp4();
        assert_eq!(errno(newcomer.bind(local)), libc::EADDRINUSE);
        drop(newcomer);
        drop(holder);
    });
    let holder = socket("tcp", local, &[]);
    scenario.expect(&[
        bind(holder.clone(), "$self"),
        bind_failed(holder.clone(), "EADDRINUSE", 98, "$self"),
        release(holder, "$self"),
    ]);
}

#[test]
fn eaddrinuse_of_udp_over_ipv6() {
    let mut scenario = Scenario::new();
    let local = "[::]:5353";
    scenario.run(|| {
        let holder = Socket::udp6().bound(local);
        assert_eq!(errno(Socket::udp6().bind(local)), libc::EADDRINUSE);
        drop(holder);
    });
    let holder = socket("udp", local, &[]);
    scenario.expect(&[
        bind(holder.clone(), "$self"),
        bind_failed(holder.clone(), "EADDRINUSE", 98, "$self"),
        release(holder, "$self"),
    ]);
}

#[test]
fn a_failure_for_port_0_asked_for_port_0() {
    let mut scenario = Scenario::new();
    scenario
        .netns
        .sysctl("ipv4/ip_local_port_range", "40000 40000");
    let given = "127.0.0.1:40000";
    scenario.run(|| {
        let holder = Socket::udp4().bound("127.0.0.1:0");
        assert_eq!(errno(Socket::udp4().bind("127.0.0.1:0")), libc::EADDRINUSE);
        drop(holder);
    });
    let holder = socket("udp", given, &[]);
    let asked = socket("udp", "127.0.0.1:0", &[]);
    let bound = bind(holder.clone(), "$self");
    scenario.expect(&[
        with(bound, "/requested", asked["local"].clone()),
        bind_failed(asked, "EADDRINUSE", 98, "$self"),
        release(holder, "$self"),
    ]);
}

#[test]
fn eaddrnotavail() {
    let mut scenario = Scenario::new();
    scenario.run(|| {
        let newcomer = Socket::tcp4();
        assert_eq!(errno(newcomer.bind("192.0.2.1:8080")), libc::EADDRNOTAVAIL);
        let newcomer = Socket::tcp6();
        let result = newcomer.bind("[2001:db8::1]:8080");
        assert_eq!(errno(result), libc::EADDRNOTAVAIL);
    });
    scenario.expect(&[
        bind_failed(
            socket("tcp", "192.0.2.1:8080", &[]),
            "EADDRNOTAVAIL",
            99,
            "$self",
        ),
        bind_failed(
            socket("tcp", "[2001:db8::1]:8080", &[]),
            "EADDRNOTAVAIL",
            99,
            "$self",
        ),
    ]);
}

#[test]
fn a_link_local_address_keeps_its_scope() {
    let mut scenario = Scenario::new();
    scenario.run(|| {
        let result = Socket::tcp6().bind("[fe80::77%1]:8080");
        assert_eq!(errno(result), libc::EADDRNOTAVAIL);
    });
    let asked = socket("tcp", "[fe80::77]:8080", &[]);
    let asked = with(asked, "/local/scope", json!(1));
    let failed = bind_failed(asked, "EADDRNOTAVAIL", 99, "$self");
    // The device is set before the address is looked for, and stays.
    scenario.expect(&[with(failed, "/socket/bound_device", json!("lo"))]);
}

#[test]
fn eacces_of_a_privileged_port() {
    let mut scenario = Scenario::new();
    let steps = ["gid=65534", "uid=65534", "socket=tcp4", "bind?=0.0.0.0:80"];
    let mut actor = scenario.actor("$root", &steps);
    let nobody = actor.identity().with("uid", json!(65534));
    scenario.know("$nobody", nobody.with("gid", json!(65534)));
    actor.finish();
    scenario.expect(&[bind_failed(
        socket("tcp", "0.0.0.0:80", &[]),
        "EACCES",
        13,
        "$nobody",
    )]);
}

#[test]
fn einval_of_a_second_bind() {
    let mut scenario = Scenario::new();
    let (first, second) = ("127.0.0.1:8080", "127.0.0.1:8081");
    scenario.run(|| {
        let bound = Socket::tcp4().bound(first);
        assert_eq!(errno(bound.bind(second)), libc::EINVAL);
    });
    scenario.expect(&[
        bind(socket("tcp", first, &[]), "$self"),
        bind_failed(socket("tcp", second, &[]), "EINVAL", 22, "$self"),
        release(socket("tcp", first, &[]), "$self"),
    ]);
}

/// What could be read of the address that is too short: nothing but its family.
#[test]
fn einval_of_a_short_address() {
    let mut scenario = Scenario::new();
    scenario.run(|| {
        let full = sockaddr("127.0.0.1:8080".parse().unwrap());
        assert_eq!(errno(Socket::tcp4().bind_bytes(&full[..7])), libc::EINVAL);
        let full = sockaddr("[::1]:8080".parse().unwrap());
        assert_eq!(errno(Socket::tcp6().bind_bytes(&full[..23])), libc::EINVAL);
        assert_eq!(errno(Socket::tcp4().bind_bytes(&[])), libc::EINVAL);
    });
    let without_address = |of: &str| {
        let socket = with(socket("tcp", of, &[]), "/local", Value::Null);
        bind_failed(socket, "EINVAL", 22, "$self")
    };
    scenario.expect(&[
        without_address("127.0.0.1:8080"),
        without_address("[::1]:8080"),
        without_address("127.0.0.1:8080"),
    ]);
}

#[test]
fn efault() {
    let mut scenario = Scenario::new();
    scenario.run(|| {
        assert_eq!(errno(bind_unreadable(&Socket::tcp4())), libc::EFAULT);
    });
    let socket = with(socket("tcp", "127.0.0.1:0", &[]), "/local", Value::Null);
    scenario.expect(&[bind_failed(socket, "EFAULT", 14, "$self")]);
}

/// The socket is one of IPv4, whatever the address is.
#[test]
fn an_address_of_another_family() {
    let mut scenario = Scenario::new();
    let (v4, v6) = ("127.0.0.1:8080", "[::1]:8080");
    scenario.run(|| {
        assert_eq!(errno(Socket::tcp4().bind(v6)), libc::EAFNOSUPPORT);
        assert_eq!(errno(Socket::udp6().bind(v4)), libc::EINVAL);
    });
    let of_v4 = with(socket("tcp", v6, &[]), "/family", json!("ipv4"));
    let of_v6 = with(socket("udp", v4, &[]), "/family", json!("ipv6"));
    scenario.expect(&[
        bind_failed(of_v4, "EAFNOSUPPORT", 97, "$self"),
        bind_failed(of_v6, "EINVAL", 22, "$self"),
    ]);
}

/// What is no socket has no transport and no namespace; its family is that of the address.
fn no_socket(address: &str) -> Value {
    let socket = socket("tcp", address, &[]);
    ["/transport", "/netns", "/inode"]
        .into_iter()
        .fold(socket, |socket, key| with(socket, key, Value::Null))
}

#[test]
fn ebadf() {
    let mut scenario = Scenario::new();
    let address = sockaddr("127.0.0.1:8080".parse().unwrap());
    scenario.run(|| {
        assert_eq!(errno(bind_any(-1, &address)), libc::EBADF);
        assert_eq!(errno(bind_any(1 << 20, &address)), libc::EBADF);
    });
    let expected = bind_failed(no_socket("127.0.0.1:8080"), "EBADF", 9, "$self");
    scenario.expect(&[expected.clone(), expected]);
}

#[test]
fn enotsock() {
    use std::os::fd::AsRawFd as _;
    let mut scenario = Scenario::new();
    let address = sockaddr("[::1]:8080".parse().unwrap());
    scenario.run(|| {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(errno(bind_any(file.as_raw_fd(), &address)), libc::ENOTSOCK);
    });
    let expected = bind_failed(no_socket("[::1]:8080"), "ENOTSOCK", 88, "$self");
    scenario.expect(&[expected]);
}
