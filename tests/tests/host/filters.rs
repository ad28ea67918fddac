//! The filters of `trace`: what passes each of them and what does not, and what is no filter.

use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use portwatch_tests::expect::{bind, bind_failed, enter, listen, release, socket, waiting, with};
use portwatch_tests::socket::{self, sockaddr_un};
use portwatch_tests::{LIMIT, Netns, Scenario, Socket, Trace, portwatch, spawn, start, wait};
use serde_json::{Value, json};

use crate::connection::Connection;

const FIRST: &str = "127.0.0.1:8080";
const SECOND: &str = "127.0.0.1:8090";

fn udp(local: &str) -> Value {
    socket("udp", local, &[])
}

/// The bind and the release of a UDP socket by one process.
fn bound_by(process: &str, local: &str) -> [Value; 2] {
    [bind(udp(local), process), release(udp(local), process)]
}

/// Ends the trace, and asserts what came and that the stream began with these filters.
fn end(scenario: Scenario, filters: &Value, expected: &[Value]) -> Vec<Value> {
    let stream = scenario.end(expected);
    assert_eq!(stream.lines[0]["filters"], *filters);
    stream.lines
}

/// Ends a trace whose filters leave nothing but the scenario's events.
fn end_alone(scenario: Scenario, filters: &Value, expected: &[Value]) {
    let lines = end(scenario, filters, expected);
    assert_eq!(lines.len(), expected.len() + 2, "others came: {lines:?}");
}

fn binds(scenario: &Scenario, open: fn() -> Socket, local: &str) {
    scenario.run(|| drop(open().bound(local)));
}

/// Two processes of which one is wanted.
struct Two {
    netns: Netns,
    unwanted: portwatch_tests::Actor,
    wanted: portwatch_tests::Actor,
}

impl Two {
    fn new(unwanted: &[&str], wanted: &[&str]) -> Self {
        let netns = Netns::new();
        let start = |before: &[&str], address: &str| {
            let bind = format!("bind={address}");
            let bind = ["say=ready", "wait", "socket=udp4", &*bind, "close"];
            let steps = [before, &bind].concat();
            let mut actor = portwatch_tests::Actor::start(&netns, &steps);
            actor.go();
            actor.says("ready");
            actor
        };
        let unwanted = start(unwanted, FIRST);
        let wanted = start(wanted, SECOND);
        Self {
            netns,
            unwanted,
            wanted,
        }
    }

    /// Traces both with these options, and expects the wanted one only.
    fn traced(mut self, options: &[&str], filters: &Value) {
        let trace = Arc::new(Trace::start(options));
        let mut scenario = Scenario::within(trace, self.netns);
        for (name, actor) in [("$unwanted", &self.unwanted), ("$wanted", &self.wanted)] {
            scenario.know(name, portwatch_tests::Identity::of(actor.pid()));
        }
        for actor in [&mut self.unwanted, &mut self.wanted] {
            actor.go();
            actor.finish();
        }
        end_alone(scenario, filters, &bound_by("$wanted", SECOND));
    }
}

#[test]
fn by_pid() {
    let two = Two::new(&[], &[]);
    let pid = two.wanted.pid().to_string();
    let pids = format!("{pid},1");
    two.traced(&["-p", &pids], &json!({"pid": ["1", pid]}));
}

#[test]
fn by_uid() {
    // No other scenario has these.
    let two = Two::new(&["uid=54400"], &["uid=54401"]);
    two.traced(&["-u", "54401"], &json!({"uid": ["54401"]}));
}

#[test]
fn by_the_name_of_a_user() {
    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
    let uid = nobody.uid.to_string();
    let become_nobody = format!("uid={uid}");
    let two = Two::new(&["uid=54320"], &[&become_nobody]);
    two.traced(&["--uid", "nobody"], &json!({"uid": [uid]}));
}

#[test]
fn by_comm() {
    let two = Two::new(&["comm=unwanted-name"], &["comm=wanted-name"]);
    let filters = json!({"comm": ["wanted-name"]});
    two.traced(&["--comm", "wanted-name"], &filters);
}

#[test]
fn by_port_and_range() {
    let scenario = Scenario::traced(&["-P", "8090,9000-9010"]);
    for local in [FIRST, "127.0.0.1:8999", "127.0.0.1:9011"] {
        binds(&scenario, Socket::udp4, local);
    }
    let wanted = [SECOND, "127.0.0.1:9000", "127.0.0.1:9005", "127.0.0.1:9010"];
    for local in wanted {
        binds(&scenario, Socket::udp4, local);
    }
    let expected: Vec<_> = wanted
        .iter()
        .flat_map(|local| bound_by("$self", local))
        .collect();
    end(scenario, &json!({"port": ["8090", "9000-9010"]}), &expected);
}

/// A bind for port 0 passes by the port it got, and by 0.
#[test]
fn by_the_port_that_was_given() {
    let scenario = Scenario::traced(&["-P", "40000"]);
    scenario
        .netns
        .sysctl("ipv4/ip_local_port_range", "40000 40000");
    binds(&scenario, Socket::udp4, "127.0.0.1:0");
    let [bind, release] = bound_by("$self", "127.0.0.1:40000");
    let requested = json!({"address": "127.0.0.1", "port": 0});
    let expected = [with(bind, "/requested", requested), release];
    end(scenario, &json!({"port": ["40000"]}), &expected);
}

#[test]
fn by_the_inode_of_a_netns() {
    let netns = Netns::new();
    let inode = netns.inode().to_string();
    by_netns(netns, &inode);
}

#[test]
fn by_the_path_of_a_netns() {
    use std::os::fd::AsRawFd as _;
    let netns = Netns::new();
    let descriptor = netns.file().as_raw_fd();
    by_netns(
        netns,
        &format!("/proc/{}/fd/{descriptor}", std::process::id()),
    );
}

/// Traces a namespace and not another.
fn by_netns(netns: Netns, wanted: &str) {
    let other = Netns::new();
    let inode = netns.inode().to_string();
    let trace = Arc::new(Trace::start(&["--netns", wanted]));
    let scenario = Scenario::within(trace, netns);
    other.run(|| drop(Socket::udp4().bound(FIRST)));
    binds(&scenario, Socket::udp4, SECOND);
    let filters = json!({"netns": [inode]});
    end_alone(scenario, &filters, &bound_by("$self", SECOND));
}

#[test]
fn by_the_name_of_a_netns() {
    let name = format!("portwatch-test-{}", std::process::id());
    let ip = |verb: &str| {
        let mut command = Command::new("ip");
        command.args(["netns", verb, &name]);
        let status = spawn(&mut command).wait().unwrap();
        assert!(status.success(), "ip netns {verb}: {status}");
    };
    ip("add");
    let trace = Trace::start(&["--netns", &name]);
    for (netns, local) in [(None, FIRST), (Some(&name), SECOND)] {
        let bind = format!(
            "import socket; socket.socket(2, 2).bind(('127.0.0.1', {}))",
            socket::address(local).port()
        );
        let mut command = match netns {
            None => Command::new("python3"),
            Some(name) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", name, "python3"]);
                command
            }
        };
        command.args(["-c", &bind]);
        let status = spawn(&mut command).wait().unwrap();
        assert!(status.success(), "{command:?}: {status}");
    }
    let inode = std::fs::metadata(format!("/run/netns/{name}")).unwrap();
    let inode = std::os::unix::fs::MetadataExt::ino(&inode);
    let lines = trace.stop().lines;
    ip("delete");
    assert_eq!(lines[0]["filters"], json!({"netns": [inode.to_string()]}));
    let ports: Vec<_> = lines[1..lines.len() - 1]
        .iter()
        .map(|line| {
            (
                line["event"].as_str(),
                line["socket"]["local"]["port"].as_u64(),
            )
        })
        .collect();
    assert_eq!(
        ports,
        [(Some("bind"), Some(8090)), (Some("release"), Some(8090))]
    );
}

#[test]
fn by_ipv4() {
    let scenario = Scenario::traced(&["-4"]);
    binds(&scenario, Socket::udp6, "[::1]:8080");
    binds(&scenario, Socket::udp4, FIRST);
    end(
        scenario,
        &json!({"ipv4": ["true"]}),
        &bound_by("$self", FIRST),
    );
}

#[test]
fn by_ipv6() {
    let scenario = Scenario::traced(&["-6"]);
    let local = "[::1]:8080";
    binds(&scenario, Socket::udp4, FIRST);
    binds(&scenario, Socket::udp6, local);
    let wanted = socket("udp", local, &["v6only"]);
    let expected = [bind(wanted.clone(), "$self"), release(wanted, "$self")];
    end(scenario, &json!({"ipv6": ["true"]}), &expected);
}

#[test]
fn by_tcp() {
    let scenario = Scenario::traced(&["--tcp"]);
    binds(&scenario, Socket::udp4, FIRST);
    binds(&scenario, Socket::mptcp4, FIRST);
    binds(&scenario, Socket::tcp4, SECOND);
    let mptcp = socket("mptcp", FIRST, &[]);
    let tcp = socket("tcp", SECOND, &[]);
    let expected = [
        bind(mptcp.clone(), "$self"),
        release(mptcp, "$self"),
        bind(tcp.clone(), "$self"),
        release(tcp, "$self"),
    ];
    end(scenario, &json!({"tcp": ["true"]}), &expected);
}

#[test]
fn by_udp() {
    let scenario = Scenario::traced(&["--udp"]);
    binds(&scenario, Socket::tcp4, FIRST);
    binds(&scenario, Socket::udp4, SECOND);
    end(
        scenario,
        &json!({"udp": ["true"]}),
        &bound_by("$self", SECOND),
    );
}

#[test]
fn by_failure() {
    let scenario = Scenario::traced(&["-x"]);
    scenario.run(|| {
        let holder = Socket::udp4().bound(FIRST);
        Socket::udp4().bind(FIRST).unwrap_err();
        holder.listen(1).unwrap_err();
    });
    let expected = [
        bind_failed(udp(FIRST), "EADDRINUSE", 98, "$self"),
        portwatch_tests::expect::listen_failed(udp(FIRST), 1, "EOPNOTSUPP", 95, "$self"),
    ];
    end(scenario, &json!({"failed": ["true"]}), &expected);
}

/// What is not shown explains what is: who bound a port, and who had found one free.
#[test]
fn refusals_are_explained_by_what_is_left_out() {
    let own = std::process::id().to_string();
    let mut scenario = Scenario::traced(&["-x", "-p", &own]);
    let steps = [
        "socket=tcp4",
        "bind=127.0.0.1:8080",
        "listen",
        "fork",
        "say=forked",
        "wait",
        "end",
    ];
    let mut binder = scenario.actor("$binder", &steps);
    binder.says("forked");
    let pid = binder.pid();
    binder.finish();
    let refused = |scenario: &Scenario, port: u16| {
        let event = scenario.wait(&format!("the refusal of {port}"), |event| {
            event["error"] == "EADDRINUSE" && event["socket"]["local"]["port"] == port
        });
        event["conflict"].clone()
    };
    scenario.run(|| Socket::tcp4().bind(FIRST).unwrap_err());
    let conflict = refused(&scenario, 8080);
    assert_eq!(conflict["cause"], "inherited-listener", "{conflict}");
    let summary = conflict["summary"].as_str().unwrap();
    let bound = format!("actor[{pid}] bound {FIRST} and does not have it any more");
    assert!(summary.starts_with(&bound), "{conflict}");
    assert!(conflict["holders"][0]["bound_at"].is_string(), "{conflict}");
    binder.go();

    let probed = scenario.run(|| Socket::tcp4().bound("127.0.0.1:0").local());
    let bind = format!("bind={probed}");
    let other = scenario.actor("$other", &["socket=tcp4", &bind, "say=taken", "stay"]);
    other.says("taken");
    scenario.run(|| Socket::tcp4().bind(&probed.to_string()).unwrap_err());
    let conflict = refused(&scenario, probed.port());
    assert_eq!(conflict["cause"], "lost-race", "{conflict}");
}

/// A little of everything: what of it passes is the filter's doing.
fn a_little_of_everything(scenario: &Scenario) -> [Value; 5] {
    let listener = Connection::new(scenario).ended_by_server(scenario);
    scenario.run(|| drop(listener));
    let listener = socket("tcp", FIRST, &["reuseaddr"]);
    let client = socket("tcp", "127.0.0.1:5000", &["reuseaddr"]);
    let connection = waiting(FIRST, "127.0.0.1:5000");
    let connection = with(connection, "/options", json!(["reuseaddr"]));
    [
        bind(listener.clone(), "$self"),
        listen(listener.clone(), 5, "$self"),
        bind(client, "$self"),
        enter(connection, "$self"),
        release(listener, "$self"),
    ]
}

fn by_events(names: &str, kinds: &[&str]) {
    let scenario = Scenario::traced(&["-e", names, "-P", "8080"]);
    let everything = a_little_of_everything(&scenario);
    let expected: Vec<_> = everything
        .into_iter()
        .filter(|event| kinds.iter().any(|kind| event["event"] == *kind))
        .filter(|event| event["socket"]["local"]["port"] == 8080)
        .collect();
    assert!(!expected.is_empty());
    let filters = json!({"events": kinds, "port": ["8080"]});
    end(scenario, &filters, &expected);
}

#[test]
fn by_bind_events() {
    by_events("bind", &["bind"]);
}

#[test]
fn by_listen_events() {
    by_events("listen", &["listen"]);
}

#[test]
fn by_release_events() {
    by_events("release", &["release"]);
}

#[test]
fn by_timewait_events() {
    by_events("timewait", &["timewait"]);
}

#[test]
fn by_several_events() {
    by_events("timewait,listen", &["listen", "timewait"]);
}

#[test]
fn unix_beside_the_filters_of_ip() {
    let scenario = Scenario::traced(&["--unix", "--tcp", "-4"]);
    binds(&scenario, Socket::udp4, FIRST);
    binds(&scenario, Socket::tcp6, "[::1]:8080");
    scenario.run(|| {
        let unix = Socket::open(libc::AF_UNIX, libc::SOCK_STREAM, 0).unwrap();
        unix.bind_bytes(&sockaddr_un(b"\0portwatch-filter"))
            .unwrap();
    });
    let unix = json!({
        "transport": "stream",
        "family": "unix",
        "local": {"abstract": "portwatch-filter"},
        "options": [],
        "netns": "$netns",
        "inode": "$inode",
    });
    let filters = json!({"unix": ["true"], "tcp": ["true"], "ipv4": ["true"]});
    end(scenario, &filters, &[bind(unix, "$self")]);
}

#[test]
fn a_filter_that_matches_nothing_is_no_error() {
    let options = ["-c", "there-is-none", "--comm", "nor-this", "-p", "4194304"];
    let scenario = Scenario::traced(&options);
    binds(&scenario, Socket::udp4, FIRST);
    let filters = json!({
        "container": ["there-is-none"],
        "comm": ["nor-this"],
        "pid": ["4194304"],
    });
    end_alone(scenario, &filters, &[]);
}

#[test]
fn a_count_ends_it() {
    let netns = Netns::new();
    let inode = netns.inode().to_string();
    let mut trace = Trace::start(&["-n", "3", "--netns", &inode]);
    netns.run(|| {
        for _ in 0..5 {
            drop(Socket::udp4().bound(FIRST));
        }
    });
    let lines = trace.finish().lines;
    let events: Vec<_> = lines.iter().map(|line| &line["event"]).collect();
    assert_eq!(events, ["start", "bind", "release", "bind", "end"]);
}

#[test]
fn a_duration_ends_it() {
    let begin = Instant::now();
    let netns = Netns::new().inode().to_string();
    let lines = Trace::start(&["--duration", "300ms", "--netns", &netns])
        .finish()
        .lines;
    let elapsed = begin.elapsed();
    assert!(elapsed >= Duration::from_millis(300));
    let duration = lines[1]["duration_ms"].as_u64().unwrap();
    assert!(
        (250..=elapsed.as_millis()).contains(&duration.into()),
        "{duration}"
    );
}

/// Runs portwatch as nobody, who may not trace: whatever is told is told before anything is attached.
fn refused(options: &[&str]) -> (Option<i32>, String) {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("portwatch");
    std::fs::copy(portwatch(), &program).unwrap();
    // The directory is private.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(directory.path(), open).unwrap();
    let mut command = Command::new(program);
    command.arg("trace").args(options).uid(65534).gid(65534);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = start(&mut command);
    let (output, errors) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let status = wait(&mut child, *LIMIT);
    let output = std::io::read_to_string(output).unwrap();
    assert_eq!(output, "", "{options:?} prints on standard output");
    (status.code(), std::io::read_to_string(errors).unwrap())
}

#[test]
fn malformed_values_are_named_before_anything_is_attached() {
    for (options, named) in [
        (["-P", "99999"], "99999"),
        (["-P", "a-b"], "\"a\""),
        (["-P", "90-80"], "90-80"),
        (["-u", "nobodyatall"], "nobodyatall"),
        (["-p", "0"], "\"0\""),
        (["--netns", "there-is-none"], "there-is-none"),
        (["-e", "binds"], "binds"),
        (["--duration", "x"], "\"x\""),
        (["-n", "0"], "\"0\""),
        (["--buffer", "3M"], "3M"),
        (["-o", "xml"], "xml"),
        (["--color", "mauve"], "mauve"),
        (["--json", "surplus"], "surplus"),
    ] {
        let (code, told) = refused(&options);
        assert_eq!(code, Some(2), "{options:?}: {told}");
        assert!(told.contains(named), "{options:?} is told as:\n{told}");
    }
}

#[test]
fn who_may_not_trace_is_told_why_and_what_to_do() {
    let (code, told) = refused(&["--json"]);
    assert_eq!(code, Some(3), "{told}");
    assert!(told.starts_with("portwatch: cannot trace"), "{told}");
    assert!(told.contains("CAP_BPF"), "{told}");
    assert!(told.contains("root"), "{told}");
}
