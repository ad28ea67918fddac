//! `portwatch why`: who has a port, and what a bind to it would get, against binds that are tried.

use std::process::{Command, Output};
use std::time::Instant;

use portwatch_tests::expect::inet;
use portwatch_tests::socket::{REUSEADDR, REUSEPORT};
use portwatch_tests::trace::VALIDATOR;
use portwatch_tests::{Actor, Netns, Socket, output_alone, portwatch, socket as sockets};
use serde_json::{Value, json};

fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(portwatch());
    command.arg("why").args(arguments);
    output_alone(&mut command)
}

/// What is told of a port in the namespace, and whether it is held.
fn why(netns: &Netns, port: &str, arguments: &[&str]) -> Value {
    let inode = netns.inode().to_string();
    let output = run(&[&[port, "--json", "--netns", &inode], arguments].concat());
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    let errors: Vec<_> = VALIDATOR
        .iter_errors(&told)
        .map(|e| e.to_string())
        .collect();
    assert!(errors.is_empty(), "{errors:#?}: {told}");
    let status = if told["held"] == true { 1 } else { 0 };
    assert_eq!(output.status.code(), Some(status), "{output:?}");
    told
}

/// The only place that is told of.
fn place(told: &Value) -> &Value {
    let places = told["places"].as_array().unwrap();
    assert_eq!(places.len(), 1, "{told}");
    &places[0]
}

/// Tries each bind that is told of, and compares. TCP's listens as well.
fn compare_with_the_kernel(netns: &Netns, told: &Value, udp: bool) {
    let newcomers = place(told)["newcomers"].as_array().unwrap();
    assert_eq!(newcomers.len() % 3, 0, "{told}");
    for newcomer in newcomers {
        let address = newcomer["address"].as_str().unwrap();
        let v6 = address.contains(':');
        let has = |name: &str| {
            newcomer["options"]
                .as_array()
                .unwrap()
                .contains(&json!(name))
        };
        let got = netns.run(|| {
            let socket = match (udp, v6) {
                (false, false) => Socket::tcp4(),
                (false, true) => Socket::tcp6(),
                (true, false) => Socket::udp4(),
                (true, true) => Socket::udp6(),
            };
            let socket = if has("reuseaddr") {
                socket.with(REUSEADDR)
            } else {
                socket
            };
            let socket = if has("reuseport") {
                socket.with(REUSEPORT)
            } else {
                socket
            };
            let port = told["port"].as_u64().unwrap();
            let address = if v6 {
                format!("[{address}]:{port}")
            } else {
                format!("{address}:{port}")
            };
            socket.bind(&address).map_err(|error| error.raw_os_error())
        });
        let errno = newcomer["errno"].as_i64().map(|errno| Some(errno as i32));
        assert_eq!(got.err(), errno, "{newcomer} of {told}");
    }
}

#[test]
fn what_newcomers_would_get_is_what_they_get() {
    let netns = Netns::new();
    netns.wait_for_address("00000000000000000000000000000001");
    let _inhabitant = Actor::start(&netns, &[]);
    type Hold = fn() -> Vec<Socket>;
    let holds: [(bool, Hold); 7] = [
        (false, || listen(Socket::tcp4().bound("127.0.0.1:3000"))),
        (false, || {
            listen(Socket::tcp4().with(REUSEADDR).bound("0.0.0.0:3000"))
        }),
        (false, || listen(Socket::tcp6().bound("[::]:3000"))),
        (false, || {
            vec![Socket::tcp4().with(REUSEADDR).bound("127.0.0.2:3000")]
        }),
        (false, || {
            listen(Socket::tcp4().with(REUSEPORT).bound("127.0.0.1:3000"))
        }),
        (true, || {
            vec![Socket::udp4().with(REUSEADDR).bound("127.0.0.1:3000")]
        }),
        (true, || vec![Socket::udp6().bound("[::1]:3000")]),
    ];
    for (udp, hold) in holds {
        let held = netns.run(hold);
        let told = why(&netns, "3000", &["--uid", "0"]);
        assert_eq!(place(&told)["transport"], if udp { "udp" } else { "tcp" });
        compare_with_the_kernel(&netns, &told, udp);
        netns.run(|| drop(held));
    }
}

fn listen(socket: Socket) -> Vec<Socket> {
    socket.listen(1).unwrap();
    vec![socket]
}

#[test]
fn who_has_it_and_what_waits() {
    let netns = Netns::new();
    let steps = [
        "socket=tcp4",
        "bind=127.0.0.1:8080",
        "listen",
        "say=listening",
        "wait",
    ];
    let mut holder = Actor::start(&netns, &steps);
    holder.go();
    holder.says("listening");
    let (client, server) = netns.run(|| {
        let listener = Socket::tcp4().bound("127.0.0.2:8080");
        listener.listen(1).unwrap();
        let client = Socket::tcp4();
        let server = sockets::connect(&listener, &client);
        drop(listener);
        (client, server)
    });
    // Who closes first waits.
    let begin = Instant::now();
    netns.close_in_turn(server, client);
    let told = why(&netns, "8080/tcp", &[]);
    let elapsed = u64::try_from(begin.elapsed().as_millis()).unwrap();
    let place = place(&told);
    assert_eq!(place["netns"], netns.inode());
    let holders = place["holders"].as_array().unwrap();
    assert_eq!(holders.len(), 2, "{told}");
    assert_eq!(holders[0]["socket"]["local"], inet("127.0.0.1:8080"));
    assert_eq!(holders[0]["socket"]["state"], "listen");
    assert_eq!(holders[0]["ownership"], "verified");
    assert_eq!(holders[0]["processes"][0]["pid"], holder.pid());
    assert_eq!(holders[1]["socket"]["state"], "time-wait");
    assert_eq!(holders[1]["ownership"], "none");
    let left = holders[1]["expires_in_ms"].as_u64().unwrap();
    // What is told is rounded down to a tick of the kernel's, which may be 10 ms.
    assert!(
        (59_980_u64.saturating_sub(elapsed)..=60_000).contains(&left),
        "{left}"
    );
    let advice = place["conflict"]["advice"].as_str().unwrap();
    assert!(advice.contains(&format!("kill {}", holder.pid())), "{told}");
    holder.go();
    holder.finish();
}

#[test]
fn a_free_port_and_the_settings() {
    let netns = Netns::new();
    let _inhabitant = Actor::start(&netns, &[]);
    let told = why(&netns, "8080", &[]);
    assert_eq!(told["held"], false);
    assert_eq!(told["places"], json!([]));
    netns.sysctl("ipv4/ip_local_port_range", "8000 8999");
    let _held = netns.run(|| Socket::udp4().bound("127.0.0.1:8080"));
    let range = |told: &Value| place(told)["range"].clone();
    assert_eq!(range(&why(&netns, "8080", &[])), json!({"ephemeral": true}));
    netns.sysctl("ipv4/ip_local_reserved_ports", "8080-8081");
    assert_eq!(range(&why(&netns, "8080", &[])), json!({"reserved": true}));
    // The kernel lets the range not reach below.
    netns.sysctl("ipv4/ip_local_port_range", "9000 9999");
    netns.sysctl("ipv4/ip_unprivileged_port_start", "9000");
    let told = why(
        &netns,
        "8080",
        &["--uid", "65534", "--address", "127.0.0.9"],
    );
    assert_eq!(range(&told), json!({"reserved": true, "privileged": true}));
    let newcomers = place(&told)["newcomers"].as_array().unwrap();
    assert_eq!(newcomers.len(), 3);
    for newcomer in newcomers {
        assert_eq!(newcomer["error"], "EACCES", "{newcomer}");
        assert_eq!(newcomer["cause"], "privileged-port", "{newcomer}");
    }
}

#[test]
fn what_makes_no_sense() {
    for (arguments, told) in [
        (&["0"][..], "is no port"),
        (&["65536"], "is no port"),
        (&["80/sctp"], "is no protocol"),
        (
            &["80", "--address", "localhost"],
            "invalid value 'localhost'",
        ),
        (&["80", "--uid", "nobodyatall"], "there is no user"),
        (
            &["80", "--from", "/nonexistent"],
            "cannot read /nonexistent",
        ),
        (&[], "<PORT>"),
    ] {
        let output = run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {errors}");
        assert!(errors.contains(told), "{arguments:?}: {errors}");
        assert_eq!(output.stdout, b"", "{arguments:?}");
    }
}
