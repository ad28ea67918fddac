//! Causes that lie in more than one event, or beside the sockets: what the processes have to do with
//! each other, what came before, who else answers. Whole `conflict` objects.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::PathBuf;

use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use portwatch::attribute::looker::{Looker, OpenFiles};
use portwatch::attribute::lookup::{Finding, Place, Question, Subject};
use portwatch::attribute::process::Key;
use portwatch_tests::expect::inet;
use portwatch_tests::{Actor, Netns, Scenario, Socket, actor, unforked};
use serde_json::{Value, json};

const AT: &str = "127.0.0.1:8080";

/// The conflict of the scenario's failed bind of this port, with names for what varies.
fn conflict(scenario: &Scenario, port: u16) -> Value {
    let failed = scenario.wait(&format!("the failed bind of port {port}"), |seen| {
        seen["event"] == "bind"
            && seen["outcome"] == "failure"
            && seen["socket"]["local"]["port"] == port
    });
    named(scenario, failed["conflict"].clone())
}

fn named(scenario: &Scenario, mut conflict: Value) -> Value {
    let holders = conflict.get_mut("holders").and_then(Value::as_array_mut);
    for holder in holders.into_iter().flatten() {
        if let Some(bound_at) = holder.get_mut("bound_at") {
            assert!(bound_at.is_string());
            *bound_at = json!("$time");
        }
        let socket = holder["socket"].as_object_mut().unwrap();
        socket.remove("cookie");
        assert!(socket.get("inode").is_none_or(Value::is_u64), "{socket:?}");
        socket.remove("inode");
        assert_eq!(socket["netns"], scenario.netns.inode());
        socket.remove("netns");
        let processes = holder.get_mut("processes").and_then(Value::as_array_mut);
        for process in processes.into_iter().flatten() {
            *process = process["pid"].clone();
        }
    }
    conflict
}

/// A TCP socket of root's that a holder listens with.
fn listening(local: &str, evidence: &str, pid: u32) -> Value {
    json!({
        "evidence": evidence,
        "holders": [{
            "socket": {
                "transport": "tcp",
                "family": "ipv4",
                "local": inet(local),
                "state": "listen",
                "options": [],
                "uid": 0,
            },
            "ownership": "verified",
            "bound_at": "$time",
            "processes": [pid],
        }],
    })
}

/// What a scenario's trace can know of a holder.
fn evidence(scenario: &Scenario) -> &'static str {
    if scenario.trace.lines(0)[0]["parts"]["conflict"].is_string() {
        "locked"
    } else {
        "walked"
    }
}

/// These with what is said of them.
fn said(mut conflict: Value, cause: &str, summary: &str, advice: &str) -> Value {
    conflict["cause"] = cause.into();
    conflict["summary"] = summary.into();
    conflict["advice"] = advice.into();
    conflict
}

const SIBLINGS: &str = "give each worker a port of its own, or let each bind port 0";

#[test]
fn two_workers_of_one_program() {
    let mut scenario = Scenario::new();
    let worker = [
        "fork",
        "socket=tcp4",
        "bind=127.0.0.1:8080",
        "listen",
        "pid",
        "stay",
        "end",
    ];
    let late = [
        "wait",
        "fork",
        "socket=tcp4",
        "bind?=127.0.0.1:8080",
        "pid",
        "stay",
        "end",
    ];
    let mut parent = scenario.actor("$parent", &[&worker[..], &late, &["stay"]].concat());
    let first: u32 = parent.number();
    parent.go();
    let second: u32 = parent.number();
    let expected = said(
        listening(AT, evidence(&scenario), first),
        "sibling",
        &format!("actor[{first}] and actor[{second}] are of one job and both want {AT}"),
        SIBLINGS,
    );
    assert_eq!(conflict(&scenario, 8080), expected);
}

#[test]
fn a_parent_and_its_child() {
    let mut scenario = Scenario::new();
    let steps = [
        "fork",
        "socket=tcp4",
        "bind=127.0.0.1:8080",
        "listen",
        "pid",
        "stay",
        "end",
        "wait",
        "socket=tcp4",
        "bind?=127.0.0.1:8080",
        "stay",
    ];
    let mut parent = scenario.actor("$parent", &steps);
    let child: u32 = parent.number();
    parent.go();
    let own = parent.pid();
    let expected = said(
        listening(AT, evidence(&scenario), child),
        "sibling",
        &format!("actor[{child}] and actor[{own}] are of one job and both want {AT}"),
        SIBLINGS,
    );
    assert_eq!(conflict(&scenario, 8080), expected);
}

/// Of one shell, but each a job of its own.
#[test]
fn two_jobs_are_no_siblings() {
    let mut scenario = Scenario::new();
    let steps = [
        "socket=tcp4",
        "bind=127.0.0.1:8080",
        "listen",
        "say=listening",
        "stay",
    ];
    let first = scenario.actor("$first", &steps);
    first.says("listening");
    let _second = scenario.actor("$second", &["socket=tcp4", "bind?=127.0.0.1:8080", "stay"]);
    let pid = first.pid();
    let expected = said(
        listening(AT, evidence(&scenario), pid),
        "listener",
        &format!("actor[{pid}] listens on {AT}"),
        &format!("stop actor[{pid}] (kill {pid}), or use another port"),
    );
    assert_eq!(conflict(&scenario, 8080), expected);
}

/// Waits until what is started is younger than a process, as far as `/proc` tells.
fn wait_for_the_next_tick(pid: u32) {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let started: i64 = fields.split(' ').nth(20).unwrap().parse().unwrap();
    let now = || nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).unwrap();
    while now().tv_sec() * 100 + now().tv_nsec() / 10_000_000 <= started {
        std::thread::yield_now();
    }
}

/// A session that ended but for one process of it.
#[test]
fn what_an_earlier_job_left() {
    let mut scenario = Scenario::new();
    let steps = [
        "fork",
        "session",
        "fork",
        "group",
        "socket=tcp4",
        "bind=127.0.0.1:8080",
        "listen",
        "pid",
        "stay",
        "end",
        "wait",
        "end",
        "reap",
        "say=over",
        "stay",
    ];
    let mut job = scenario.actor("$job", &steps);
    let left: u32 = job.number();
    job.go();
    job.says("over");
    wait_for_the_next_tick(left);
    let later = [
        "fork",
        "socket=tcp4",
        "bind?=127.0.0.1:8080",
        "stay",
        "end",
        "stay",
    ];
    let _later = scenario.actor("$later", &later);
    let seen = conflict(&scenario, 8080);
    let summary = seen["summary"].as_str().unwrap();
    let who = format!("actor[{left}], which has {AT}, was started ");
    assert!(summary.starts_with(&who), "{seen}");
    assert!(
        summary.ends_with(" before this job and has lost its parent"),
        "{seen}"
    );
    let advice = format!(
        "stop actor[{left}] (kill {left}); end what a job leaves over before the next one starts"
    );
    let holder = listening(AT, evidence(&scenario), left);
    assert_eq!(seen, said(holder, "stale-job", summary, &advice));
}

/// Somebody looks for a free port, gives it back, and finds it taken.
#[test]
fn a_port_that_was_free_a_moment_before() {
    let mut scenario = Scenario::new();
    let steps = [
        "socket=tcp4",
        "bind=127.0.0.1:0",
        "port",
        "close",
        "wait",
        "fork",
        "socket=tcp4",
        "bind?=127.0.0.1:$port",
        "stay",
        "end",
        "stay",
    ];
    let mut finder = scenario.actor("$finder", &steps);
    let port: u16 = finder.number();
    let at = format!("127.0.0.1:{port}");
    scenario.released(port);
    let bind = format!("bind={at}");
    let steps = ["socket=tcp4", &bind, "listen", "say=taken", "stay"];
    let other = scenario.actor("$other", &steps);
    other.says("taken");
    finder.go();
    let seen = conflict(&scenario, port);
    let summary = seen["summary"].as_str().unwrap();
    let own = finder.pid();
    let found = format!("actor[{own}] had found port {port} free and given it back ");
    assert!(summary.starts_with(&found), "{seen}");
    let taken = format!(" before; actor[{}] took it in between", other.pid());
    assert!(summary.ends_with(&taken), "{seen}");
    let advice =
        "keep the socket that found the port and pass it on, or let the server itself bind port 0";
    let holder = listening(&at, evidence(&scenario), other.pid());
    assert_eq!(seen, said(holder, "lost-race", summary, advice));
}

/// It is on its way out, held up where it has its sockets still.
#[test]
fn a_holder_that_is_exiting() {
    let mut scenario = Scenario::new();
    let steps = [
        "socket=tcp4",
        "bind=127.0.0.1:8080",
        "listen",
        "say=listening",
        "stay",
    ];
    let mut holder = scenario.actor("$holder", &steps);
    holder.says("listening");
    let pid = Pid::from_raw(holder.pid().cast_signed());
    ptrace::seize(pid, Options::PTRACE_O_TRACEEXIT).unwrap();
    kill(pid, Signal::SIGTERM).unwrap();
    let stopped = waitpid(pid, None).unwrap();
    assert_eq!(stopped, WaitStatus::Stopped(pid, Signal::SIGTERM));
    ptrace::cont(pid, Signal::SIGTERM).unwrap();
    let exiting = waitpid(pid, None).unwrap();
    assert!(
        matches!(exiting, WaitStatus::PtraceEvent(..)),
        "{exiting:?}"
    );
    scenario.run(|| Socket::tcp4().bind(AT).unwrap_err());
    let seen = conflict(&scenario, 8080);
    ptrace::detach(pid, None).unwrap();
    holder.kill();
    let expected = said(
        listening(AT, evidence(&scenario), holder.pid()),
        "exiting-holder",
        &format!("actor[{pid}], which has {AT}, is about to end"),
        &format!("wait for its end, then try again: tail --pid={pid} -f /dev/null"),
    );
    assert_eq!(seen, expected);
}

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A program of systemd's name with units where a user's systemd has them: no systemd runs in tests.
#[test]
fn a_socket_of_systemds() {
    const UID: &str = "61234";
    let units = Folder(format!("/run/user/{UID}").into());
    let transient = units.0.join("systemd/transient");
    std::fs::create_dir_all(&transient).unwrap();
    let unit = "[Socket]\nListenStream=127.0.0.1:8080\n";
    std::fs::write(transient.join("web.socket"), unit).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let systemd = directory.path().join("systemd");
    std::fs::copy(actor::program(), &systemd).unwrap();
    std::fs::set_permissions(
        directory.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();

    let scenario = Scenario::new();
    let mut command = scenario.netns.command(&systemd);
    let uid = format!("uid={UID}");
    command.args([
        &*uid,
        "socket=tcp4",
        "bind=127.0.0.1:8080",
        "listen",
        "say=listening",
        "stay",
    ]);
    let mut manager = Actor::of(command);
    manager.go();
    manager.says("listening");
    scenario.run(|| Socket::tcp4().bind(AT).unwrap_err());
    let mut expected = said(
        listening(AT, evidence(&scenario), manager.pid()),
        "socket-activation",
        &format!("systemd has {AT} for web.socket"),
        "systemctl stop web.socket, or take the socket that it passes on (LISTEN_FDS)",
    );
    expected["holders"][0]["socket"]["uid"] = json!(61_234);
    assert_eq!(conflict(&scenario, 8080), expected);
}

/// Whether what else may refuse a bind can be told here: where securityfs is mounted, or from 6.8 on
/// unless TOMOYO is in force, whose policy is told there alone.
fn modules_are_told() -> bool {
    const TOMOYO: u64 = 103;
    let mut ids = [0_u64; 32];
    let mut size = size_of_val(&ids) as u32;
    // SAFETY: lsm_list_modules(2) writes at most `size` bytes to the ids, and how many into `size`.
    let count = unsafe { libc::syscall(461, ids.as_mut_ptr(), &raw mut size, 0) };
    let listed = count >= 0 && !ids.contains(&TOMOYO);
    listed || std::fs::exists("/sys/kernel/security/lsm").unwrap()
}

/// A bind that a filter answers never comes to where the other backends look.
fn sees_filtered(scenario: &Scenario) -> bool {
    scenario.trace.lines(0)[0]["parts"]["bind"] == "tracepoint"
}

#[test]
fn a_seccomp_filter_that_refuses() {
    let mut scenario = Scenario::new();
    let steps = [
        "refuse=1",
        "socket=tcp4",
        "bind?=127.0.0.1:8080",
        "say=refused",
        "stay",
    ];
    let filtered = scenario.actor("$filtered", &steps);
    filtered.says("refused");
    if !sees_filtered(&scenario) {
        scenario.expect(&[]);
        return;
    }
    let expected = if modules_are_told() {
        said(
            json!({}),
            "syscall-filtered",
            "the call returned EPERM without the kernel's own bind having run: the seccomp filter \
             that the process is under answered",
            "allow bind in the filter: SystemCallFilter= of its unit, --security-opt seccomp=FILE \
             of its container, or the program's own sandbox",
        )
    } else {
        said(
            json!({}),
            "security-policy",
            "neither the table of ports nor the rule on low ports refused 127.0.0.1:8080: a \
             security module or a program of the cgroup did",
            "look for the denial: ausearch -m avc -ts recent (SELinux), journalctl -k -g \
             apparmor, bpftool cgroup tree",
        )
    };
    assert_eq!(conflict(&scenario, 8080), expected);
}

/// As under WSL: the port is in use, but not in this kernel.
#[test]
fn a_seccomp_filter_that_says_in_use() {
    let mut scenario = Scenario::new();
    let steps = [
        "refuse=98",
        "socket=tcp4",
        "bind?=127.0.0.1:8080",
        "say=refused",
        "stay",
    ];
    let filtered = scenario.actor("$filtered", &steps);
    filtered.says("refused");
    if !sees_filtered(&scenario) {
        scenario.expect(&[]);
        return;
    }
    let expected = said(
        json!({}),
        "syscall-filtered",
        "the call returned EADDRINUSE without the kernel's own bind having run: a seccomp \
         supervisor in front of it answered",
        "look for the port outside of this kernel: under WSL with mirrored networking, on \
         Windows (netstat -ano)",
    );
    assert_eq!(conflict(&scenario, 8080), expected);
}

/// A scenario with AF_UNIX, and somebody through whom its namespace can be reached.
fn unix_scenario() -> (Scenario, Actor) {
    let mut scenario = Scenario::sharing(&["--unix"]);
    let inhabitant = scenario.actor("$inhabitant", &["stay"]);
    (scenario, inhabitant)
}

fn unix_conflict(scenario: &Scenario) -> Value {
    let failed = scenario.wait("the failed bind", |seen| {
        seen["event"] == "bind" && seen["outcome"] == "failure"
    });
    named(scenario, failed["conflict"].clone())
}

/// The conflict with a socket that this process, and nobody else, has until it is explained.
fn unix_conflict_here(act: impl FnOnce() -> UnixListener + Send) -> Value {
    let (scenario, _inhabitant) = unix_scenario();
    unforked(|| {
        let _listener = scenario.run(act);
        unix_conflict(&scenario)
    })
}

/// What this process holds by a name.
fn held_here(local: Value) -> Value {
    json!({
        "evidence": "userspace",
        "holders": [{
            "socket": {
                "transport": "stream",
                "family": "unix",
                "local": local,
                "state": "listen",
                "options": [],
            },
            "ownership": "verified",
            "processes": [std::process::id()],
        }],
    })
}

fn own() -> String {
    let comm = std::fs::read_to_string("/proc/self/comm").unwrap();
    format!("{}[{}]", comm.trim(), std::process::id())
}

#[test]
fn a_path_that_somebody_listens_on() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("app.sock");
    let conflict = unix_conflict_here(|| {
        let listener = UnixListener::bind(&path).unwrap();
        UnixListener::bind(&path).unwrap_err();
        listener
    });
    let (own, path) = (own(), path.to_str().unwrap());
    let pid = std::process::id();
    let expected = said(
        held_here(json!({"path": path})),
        "unix-path",
        &format!("{own} has {path}"),
        &format!("stop {own} (kill {pid}), or use another name"),
    );
    assert_eq!(conflict, expected);
}

/// The one that has it is in another network namespace, and calls it otherwise.
#[test]
fn a_path_that_is_a_link_to_a_sockets() {
    let directory = tempfile::tempdir().unwrap();
    let (path, link) = (
        directory.path().join("a.sock"),
        directory.path().join("b.sock"),
    );
    let elsewhere = Netns::new();
    let _there = Actor::start(&elsewhere, &[]);
    let _listener = elsewhere.run(|| UnixListener::bind(&path).unwrap());
    std::fs::hard_link(&path, &link).unwrap();
    let (scenario, _inhabitant) = unix_scenario();
    scenario.run(|| UnixListener::bind(&link).unwrap_err());
    let failed = scenario.wait("the failed bind", |seen| {
        seen["event"] == "bind" && seen["outcome"] == "failure"
    });
    let conflict = &failed["conflict"];
    assert_eq!(conflict["cause"], "unix-path", "{conflict}");
    let holder = &conflict["holders"][0];
    let local = json!({"path": path.to_str().unwrap()});
    assert_eq!(holder["socket"]["local"], local, "{conflict}");
    assert_eq!(holder["socket"]["netns"], elsewhere.inode(), "{conflict}");
    assert_eq!(holder["processes"][0]["pid"], std::process::id());
}

#[test]
fn a_path_that_was_left_over() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("app.sock");
    let (scenario, _inhabitant) = unix_scenario();
    scenario.run(|| {
        drop(UnixListener::bind(&path).unwrap());
        UnixListener::bind(&path).unwrap_err();
    });
    let path = path.to_str().unwrap();
    let expected = said(
        json!({}),
        "unix-path",
        &format!("the file {path} was left over: no open socket has it"),
        "remove the file before bind (unlink), as no bind replaces one",
    );
    assert_eq!(unix_conflict(&scenario), expected);
}

#[test]
fn an_abstract_name() {
    let name = SocketAddr::from_abstract_name("portwatch-test").unwrap();
    let conflict = unix_conflict_here(|| {
        let listener = UnixListener::bind_addr(&name).unwrap();
        UnixListener::bind_addr(&name).unwrap_err();
        listener
    });
    let own = own();
    let pid = std::process::id();
    let expected = said(
        held_here(json!({"abstract": "portwatch-test"})),
        "unix-abstract",
        &format!("{own} has @portwatch-test"),
        &format!("stop {own} (kill {pid}), or use another name"),
    );
    assert_eq!(conflict, expected);
}

#[test]
fn a_range_without_a_free_port() {
    let mut scenario = Scenario::new();
    scenario
        .netns
        .sysctl("ipv4/ip_local_port_range", "40000 40003");
    let one = ["socket=tcp4", "bind=127.0.0.1:0"];
    let last = ["socket=tcp4", "bind?=127.0.0.1:0", "say=refused", "stay"];
    let hoarder = scenario.actor("$hoarder", &[&one[..], &one, &one, &one, &last].concat());
    hoarder.says("refused");
    let pid = hoarder.pid();
    let expected = said(
        json!({}),
        "port-range-exhausted",
        &format!(
            "any port was asked for, and net.ipv4.ip_local_port_range (40000 40003) has none \
             that is free: 4 of 4 are in use, 0 in TIME_WAIT; actor[{pid}] has 4"
        ),
        &format!(
            "widen it: sysctl -w net.ipv4.ip_local_port_range=\"10240 65535\", or see why \
             actor[{pid}] holds so many"
        ),
    );
    assert_eq!(conflict(&scenario, 0), expected);
}

/// The settings of the namespace in which it happened, as they were then.
#[test]
fn settings_of_another_namespace() {
    let mut scenario = Scenario::new();
    scenario
        .netns
        .sysctl("ipv4/ip_local_port_range", "20000 20009");
    scenario
        .netns
        .sysctl("ipv4/ip_local_reserved_ports", "20000-20008");
    let listener = scenario.run(|| {
        let listener = Socket::tcp4().bound(AT);
        listener.listen(5).unwrap();
        listener
    });
    let client = scenario.actor(
        "$client",
        &["socket=tcp4", "connect=127.0.0.1:8080", "port", "stay"],
    );
    let port: u16 = client.number();
    assert_eq!(port, 20_009);
    let bind = format!("bind?=127.0.0.1:{port}");
    let _refused = scenario.actor("$refused", &["socket=tcp4", &bind, "stay"]);
    let seen = conflict(&scenario, port);
    assert_eq!(seen["cause"], "ephemeral-collision");
    let pid = client.pid();
    assert_eq!(
        seen["summary"],
        format!(
            "an outgoing connection of actor[{pid}] to 127.0.0.1:8080 got port 20009 as its source \
             port: it is within net.ipv4.ip_local_port_range (20000 20009)"
        )
    );
    assert_eq!(
        seen["advice"],
        "use a port below 20000, or reserve this one: sysctl -w \
         net.ipv4.ip_local_reserved_ports=20000-20008,20009 (now 20000-20008)"
    );
    drop(listener);
}

#[test]
fn low_ports_of_another_namespace() {
    let mut scenario = Scenario::new();
    scenario
        .netns
        .sysctl("ipv4/ip_unprivileged_port_start", "9000");
    let steps = [
        "uid=65534",
        "socket=tcp4",
        "bind?=127.0.0.1:8080",
        "say=refused",
        "stay",
    ];
    let user = scenario.actor("$user", &steps);
    user.says("refused");
    let seen = conflict(&scenario, 8080);
    assert_eq!(seen["cause"], "privileged-port");
    assert_eq!(
        seen["summary"],
        "port 8080 is below net.ipv4.ip_unprivileged_port_start (9000) and the process lacks \
         CAP_NET_BIND_SERVICE"
    );
}

/// Whether it is looked at before it has ended or not.
#[test]
fn a_low_port_of_a_process_that_ends_at_once() {
    let mut scenario = Scenario::new();
    // The namespace's settings are read where somebody is in it.
    let _inhabitant = Actor::start(&scenario.netns, &[]);
    let steps = ["uid=65534", "socket=tcp4", "bind?=127.0.0.1:80"];
    scenario.actor("$user", &steps).finish();
    let seen = conflict(&scenario, 80);
    assert_eq!(seen["cause"], "privileged-port", "{seen}");
}

/// TCP never tries the last of an odd number of ports.
#[test]
fn a_range_of_which_one_port_is_left_out() {
    let scenario = Scenario::new();
    scenario
        .netns
        .sysctl("ipv4/ip_local_port_range", "40000 40002");
    let _inhabitant = Actor::start(&scenario.netns, &[]);
    let any = || Socket::tcp4().bind("127.0.0.1:0");
    let _bound = scenario.run(|| {
        let bound = [(); 2].map(|()| Socket::tcp4().bound("127.0.0.1:0"));
        let error = any().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EADDRINUSE));
        bound
    });
    let seen = conflict(&scenario, 0);
    let summary = seen["summary"].as_str().unwrap();
    let said = "2 of 3 are in use, and TCP never tries the last of an odd number";
    assert!(summary.contains(said), "{summary}");
}

/// The kernel's own socket of TCP leads to the user's of MPTCP.
#[test]
fn a_listener_of_mptcp_if_the_kernel_has_it() {
    if !Socket::has_mptcp() {
        return;
    }
    let mut scenario = Scenario::new();
    let steps = [
        "socket=mptcp4",
        "bind=127.0.0.1:8080",
        "listen",
        "say=listening",
        "stay",
    ];
    let holder = scenario.actor("$holder", &steps);
    holder.says("listening");
    scenario.run(|| Socket::tcp4().bind(AT).unwrap_err());
    let pid = holder.pid();
    let mut expected = said(
        listening(AT, evidence(&scenario), pid),
        "listener",
        &format!("actor[{pid}] listens on {AT}"),
        &format!("stop actor[{pid}] (kill {pid}), or use another port"),
    );
    expected["holders"][0]["socket"]["transport"] = "mptcp".into();
    assert_eq!(conflict(&scenario, 8080), expected);
}

struct NoIterators;

impl OpenFiles for NoIterators {}

/// Without any hook, walk or iterator: sock_diag in the right namespace, and `/proc`.
#[test]
fn a_holder_from_user_space_alone() {
    let netns = Netns::new();
    let steps = [
        "socket=tcp4",
        "bind=127.0.0.1:8080",
        "listen",
        "say=listening",
        "stay",
    ];
    let mut holder = Actor::start(&netns, &steps);
    holder.go();
    holder.says("listening");
    let pid = holder.pid();
    let place = Place {
        netns: netns.inode(),
        protocol: 6,
        port: 8080,
    };
    let question = Question {
        subject: Subject::Port(place),
        via: vec![Key {
            tgid: pid,
            start: 0,
        }],
        tid: pid,
        socket: None,
    };
    // It enters namespaces, which a thread does for itself.
    let answers = std::thread::spawn(move || {
        let mut answers = Vec::new();
        let mut looker = Looker::new(Box::new(NoIterators));
        looker.answer(vec![question], |some| answers.extend(some));
        answers
    });
    let answers = answers.join().unwrap();
    let [(_, Finding::Sockets(sockets))] = &answers[..] else {
        panic!("{answers:?}");
    };
    assert_eq!(sockets.len(), 1, "{sockets:?}");
    let socket = &sockets[0];
    assert_eq!((socket.socket.local_port, socket.socket.state), (8080, 10));
    let owners = socket.owners.as_ref().unwrap();
    let pids: Vec<_> = owners.iter().map(|owner| owner.task.tgid).collect();
    assert_eq!(pids, [pid]);
    assert_eq!(owners[0].standing.as_ref().unwrap().line[0].pid, pid);
}
