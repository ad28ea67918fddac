//! What not every backend can see, and the choice of one.

use std::fs;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use portwatch_tests::expect::{bind, bind_failed, inet, listen, release, socket, with};
use portwatch_tests::rewrite::{Rewrite, bpf};
use portwatch_tests::socket::{address, sockaddr};
use portwatch_tests::uring::{self, Ring};
use portwatch_tests::{
    Actor, Identity, LIMIT, Netns, Scenario, Socket, Trace, look_again_soon, portwatch,
};
use serde_json::{Value, json};

/// Whether a part of the work is done by one of these backends in the scenario's trace.
fn done_by(scenario: &Scenario, part: &str, backends: &[&str]) -> bool {
    let start = scenario.trace.lines(0)[0].clone();
    let backend = start["parts"][part].as_str();
    backend.is_some_and(|backend| backends.contains(&backend))
}

const FUNCTIONS: [&str; 2] = ["fentry", "kprobe"];

/// The ports that the kernel may choose from in the scenario's namespace.
fn local_ports(scenario: &Scenario, first: u16, last: u16) {
    let range = format!("{first} {last}");
    scenario.netns.sysctl("ipv4/ip_local_port_range", &range);
}

#[test]
fn connect_without_a_port_left() {
    let mut scenario = Scenario::new();
    local_ports(&scenario, 40_000, 40_000);
    let error = scenario.run(|| {
        let listener = Socket::tcp4().bound("127.0.0.1:8080");
        listener.listen(5).unwrap();
        let first = Socket::tcp4();
        first.connect(address("127.0.0.1:8080")).unwrap();
        let error = Socket::tcp4()
            .connect(address("127.0.0.1:8080"))
            .unwrap_err();
        // No TIME_WAIT is wanted here.
        first.linger_not();
        error
    });
    assert_eq!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL));
    let listener = socket("tcp", "127.0.0.1:8080", &[]);
    let mut expected = vec![
        bind(listener.clone(), "$self"),
        listen(listener.clone(), 5, "$self"),
    ];
    if done_by(&scenario, "autobind", &FUNCTIONS) {
        let client = with(
            socket("tcp", "127.0.0.1:0", &[]),
            "/remote",
            inet("127.0.0.1:8080"),
        );
        let refused = bind_failed(client, "EADDRNOTAVAIL", libc::EADDRNOTAVAIL, "$self");
        expected.push(with(refused, "/autobind", json!(true)));
    }
    expected.push(release(listener, "$self"));
    scenario.expect(&expected);
}

#[test]
fn send_without_a_port_left() {
    for (open, any, own, to, family) in [
        (
            Socket::udp4 as fn() -> Socket,
            "0.0.0.0:0",
            "0.0.0.0:40000",
            "127.0.0.1:9",
            vec![],
        ),
        (Socket::udp6, "[::]:0", "[::]:40000", "[::1]:9", vec![]),
    ] {
        let mut scenario = Scenario::new();
        local_ports(&scenario, 40_000, 40_000);
        let error = scenario.run(|| {
            let _holder = open().bound(own);
            open().connect(address(to)).unwrap_err()
        });
        assert_eq!(error.raw_os_error(), Some(libc::EAGAIN));
        let holder = socket("udp", own, &family);
        let mut expected = vec![bind(holder.clone(), "$self")];
        if done_by(&scenario, "autobind", &FUNCTIONS) {
            let refused = bind_failed(socket("udp", any, &family), "EAGAIN", libc::EAGAIN, "$self");
            expected.push(with(refused, "/autobind", json!(true)));
        }
        expected.push(release(holder, "$self"));
        scenario.expect(&expected);
    }
}

/// A bind to port 0 that fails is the bind's own failure, and told once.
#[test]
fn bind_without_a_port_left() {
    let mut scenario = Scenario::new();
    local_ports(&scenario, 40_000, 40_000);
    scenario.run(|| {
        let _holder = Socket::udp4().bound("0.0.0.0:40000");
        let error = Socket::udp4().bind("0.0.0.0:0").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EADDRINUSE));
    });
    let holder = socket("udp", "0.0.0.0:40000", &[]);
    scenario.expect(&[
        bind(holder.clone(), "$self"),
        bind_failed(
            socket("udp", "0.0.0.0:0", &[]),
            "EADDRINUSE",
            libc::EADDRINUSE,
            "$self",
        ),
        release(holder, "$self"),
    ]);
}

#[test]
fn a_cgroup_program_puts_another_address_in_its_place() {
    let mut scenario = Scenario::new();
    // In it every bind to port 8080 is one to 8081.
    let rewrite = Rewrite::new(8080, 8081);
    let steps = [
        "socket=tcp4",
        "bind=127.0.0.1:8080",
        "port",
        "socket=tcp4",
        "bind?=127.0.0.1:8080",
    ];
    let mut actor = Actor::start(&scenario.netns, &steps);
    rewrite.adopt(actor.pid());
    scenario.know("$actor", Identity::of(actor.pid()));
    actor.go();
    assert_eq!(actor.number::<u16>(), 8081);
    actor.finish();
    let rewritten = socket("tcp", "127.0.0.1:8081", &[]);
    let asked = inet("127.0.0.1:8080");
    let failed = |socket| bind_failed(socket, "EADDRINUSE", libc::EADDRINUSE, "$actor");
    let refused = if done_by(&scenario, "bind", &FUNCTIONS) {
        with(failed(rewritten.clone()), "/requested", asked.clone())
    } else {
        // The system call knows only what it was given.
        failed(socket("tcp", "127.0.0.1:8080", &[]))
    };
    scenario.expect(&[
        with(bind(rewritten.clone(), "$actor"), "/requested", asked),
        refused,
        release(rewritten, "$actor"),
    ]);
}

#[test]
fn io_uring_binds_and_listens() {
    let mut scenario = Scenario::new();
    let local = "127.0.0.1:8080";
    let done = scenario.run(|| {
        let socket = Socket::tcp4();
        let mut ring = Ring::new()?;
        let bound = ring.bind(socket.number(), &sockaddr(address(local)))?;
        assert_eq!(bound, 0);
        assert_eq!(ring.listen(socket.number(), 5)?, 0);
        let second = Socket::tcp4();
        let refused = ring.bind(second.number(), &sockaddr(address(local)))?;
        assert_eq!(refused, -libc::EADDRINUSE);
        Ok::<_, uring::Unsupported>(())
    });
    let seen = done_by(&scenario, "bind", &FUNCTIONS);
    let bound = socket("tcp", local, &[]);
    match done {
        // IORING_OP_BIND came with 6.11.
        Err(uring::Unsupported) => scenario.expect(&[]),
        Ok(()) if !seen => scenario.expect(&[]),
        Ok(()) => scenario.expect(&[
            bind(bound.clone(), "$self"),
            listen(bound.clone(), 5, "$self"),
            bind_failed(bound.clone(), "EADDRINUSE", libc::EADDRINUSE, "$self"),
            release(bound, "$self"),
        ]),
    }
}

/// A VXLAN interface has a UDP socket of the kernel's.
#[test]
fn the_kernel_binds_for_itself() {
    let mut scenario = Scenario::new();
    let mut ip = scenario.netns.command("ip");
    ip.args("link add vx type vxlan id 42 dstport 4789 local 127.0.0.1".split(' '));
    let made = ip
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if made {
        scenario.netns.ip("link set vx up");
    }
    if !made || !done_by(&scenario, "bind", &FUNCTIONS) {
        return scenario.expect(&[]);
    }
    let seen = scenario.wait("the bind of a kernel socket", |event| {
        event["event"] == "bind" && event["socket"]["kernel"] == true
    });
    assert_eq!(seen["socket"]["transport"], "udp");
    assert_eq!(seen["socket"]["local"]["port"], 4789);
    assert_eq!(seen["outcome"], "success");
    assert_eq!(seen["process"]["comm"], "ip");
    scenario.netns.ip("link del vx");
    let released = scenario.released(4789);
    assert_eq!(released["socket"]["kernel"], Value::Null);
}

/// The links of BPF that a process has open, by their numbers.
fn links_of(pid: u32) -> Vec<u32> {
    let files = fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap();
    // Files of other kinds may be closed meanwhile.
    let told = files.filter_map(|file| fs::read_to_string(file.unwrap().path()).ok());
    let number = |told: String| {
        let line = told.lines().find_map(|line| line.strip_prefix("link_id:"));
        line.map(|number| number.trim().parse().unwrap())
    };
    told.filter_map(number).collect()
}

/// Whether there is a link of this number.
fn is_there(link: u32) -> bool {
    const BPF_LINK_GET_FD_BY_ID: libc::c_long = 30;
    match bpf(BPF_LINK_GET_FD_BY_ID, &mut [u64::from(link), 0]) {
        Ok(opened) => {
            // SAFETY: it was opened just now, and nobody else has it.
            drop(unsafe { OwnedFd::from_raw_fd(opened) });
            true
        }
        Err(error) => {
            assert_eq!(error.raw_os_error(), Some(libc::ENOENT), "{error}");
            false
        }
    }
}

/// Its hooks are put in place one after the other: what is seen by some of them is no loss. And they are
/// gone soon after its end, which does not wait for that.
#[test]
fn a_trace_that_begins_and_ends_among_binds() {
    /// Ends the binding, also where the trace fails.
    struct Until<'a>(&'a AtomicBool);
    impl Drop for Until<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let netns = Netns::new();
    let ended = AtomicBool::new(false);
    let bind = || {
        while !ended.load(Ordering::Relaxed) {
            drop(Socket::udp4().bound("127.0.0.1:5353"));
            look_again_soon();
        }
    };
    let (links, stream) = thread::scope(|scope| {
        let _until = Until(&ended);
        scope.spawn(|| netns.run_while_forking(bind));
        let trace = Trace::start(&[]);
        (links_of(trace.pid()), trace.stop())
    });
    assert_eq!(stream.lines[0]["event"], "start");
    assert!(!links.is_empty(), "it had no links");
    let end = Instant::now() + *LIMIT;
    while let Some(left) = links.iter().find(|link| is_there(**link)) {
        assert!(Instant::now() < end, "link {left} is still there");
        look_again_soon();
    }
}

/// Asserts that a stream is of this backend, and that no other does its part.
fn assert_used(start: &Value, backend: &str) {
    assert_eq!(start["backend"], backend);
    for part in ["bind", "release", "timewait"] {
        assert_eq!(start["parts"][part], backend, "{part}: {start}");
    }
    if backend != "tracepoint" {
        assert_eq!(start["parts"]["conflict"], backend, "{start}");
    }
}

/// A backend that was asked for is used or refused, with the reason, and no other takes its place.
#[test]
fn one_backend_and_no_other() {
    if let Ok(backend) = std::env::var("PORTWATCH_TEST_BACKEND") {
        // All traces are of it.
        assert_used(&Trace::shared(&[]).lines(0)[0], &backend);
        return;
    }
    for backend in ["fentry", "kprobe", "tracepoint"] {
        let mut command = Command::new(portwatch());
        command.args(["trace", "--json", "--duration", "1ms", "--backend", backend]);
        let output = command.output().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        match output.status.code() {
            Some(0) => {
                let line = output.stdout.split(|byte| *byte == b'\n').next().unwrap();
                assert_used(&serde_json::from_slice(line).unwrap(), backend);
            }
            Some(3) => {
                assert_ne!(backend, "tracepoint", "{told}");
                assert!(output.stdout.is_empty());
                let lines: Vec<_> = told.lines().collect();
                assert_eq!(
                    lines[0],
                    "portwatch: cannot trace: no hook for bind and listen works here"
                );
                assert!(
                    lines[1].starts_with(&format!("  why: {backend}: ")),
                    "{told}"
                );
                assert!(lines[2].starts_with("  do:  "), "{told}");
            }
            other => panic!("exit status {other:?}: {told}"),
        }
    }
}
