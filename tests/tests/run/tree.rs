//! Which processes are of a job.

use serde_json::{Value, json};

use crate::{Place, Ran};

/// Binds a port of this number and holds it until standard input ends, or not at all.
const BIND: &str = "import socket,sys; s=socket.socket(); s.bind(('127.0.0.1', int(sys.argv[1])))";

/// The ports that were used, by number.
fn ports(ran: &Ran) -> Vec<u64> {
    let ports = ran.report["ports"].as_array().unwrap().iter();
    let mut ports: Vec<_> = ports.filter_map(|port| port["port"].as_u64()).collect();
    ports.sort_unstable();
    ports
}

fn left(ran: &Ran) -> &[Value] {
    ran.report["left_behind"]["processes"].as_array().unwrap()
}

#[test]
fn children_and_their_children_are() {
    let place = Place::new();
    let bind = |port: u16| format!("/usr/bin/python3 -c \"{BIND}\" {port}");
    let script = format!(
        "{}; sh -c '(sh -c \"$0\") & wait' '{}'",
        bind(7001),
        bind(7002).replace('\'', r"'\''")
    );
    let ran = place.sh(&[], &script);
    assert_eq!(ran.status.code(), Some(0), "{ran:?}");
    assert_eq!(ports(&ran), [7001, 7002]);
    assert!(
        ran.stderr
            .ends_with(": no conflicts, nothing left behind\n")
            && ran.stderr.lines().count() == 1,
        "{}",
        ran.stderr
    );
}

#[test]
fn others_of_the_host_are_not() {
    let place = Place::new();
    let mut outsider = portwatch_tests::Actor::start(
        &place.netns,
        &["socket=tcp4", "bind=127.0.0.1:7003", "say=bound", "wait"],
    );
    let ran = {
        let mut command = place.command(&[], &["sh", "-c", "echo ready; read line"]);
        command.stdin(std::process::Stdio::piped());
        let mut child = portwatch_tests::spawn(&mut command);
        let printed = portwatch_tests::Printed::of(child.stdout.take().unwrap());
        assert_eq!(printed.next().as_deref(), Some("ready"));
        outsider.go();
        outsider.says("bound");
        drop(child.stdin.take());
        place.end(child)
    };
    assert_eq!(ran.report["events"], json!({}), "{ran:?}");
    assert_eq!(ports(&ran), Vec::<u64>::new());
}

#[test]
fn a_daemon_is_though_nobody_is_its_parent() {
    let place = Place::new();
    let script = "
import os, socket, sys
if os.fork(): os.wait(); print('started', flush=True); sys.exit()
os.setsid()
if os.fork(): os._exit(0)
s = socket.socket(); s.bind(('127.0.0.1', 7004)); s.listen()
os.close(1); os.close(2)
open('ready', 'w').close()
import signal; signal.pause()
";
    // The first process ends once the daemon has its port.
    let wait = format!(
        "/usr/bin/python3 -c \"$0\"; until [ -e ready ]; do sleep 0.01; done # {}",
        1
    );
    let ran = place.run(
        &["--kill-leftovers", "--fail-on", "leak"],
        &["sh", "-c", &wait, script],
    );
    assert_eq!(ran.status.code(), Some(99), "{ran:?}");
    let left = left(&ran);
    assert_eq!(left.len(), 1, "{ran:?}");
    assert_eq!(left[0]["killed"], "SIGTERM");
    assert_eq!(
        left[0]["sockets"][0]["local"],
        json!({"address": "127.0.0.1", "port": 7004})
    );
    assert_eq!(left[0]["sockets"][0]["state"], "listen");
    let pid = left[0]["process"]["pid"].as_u64().unwrap();
    // Whoever is its parent by now may not have waited for it yet.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    assert!(
        stat.is_empty() || stat.contains(") Z "),
        "it still runs: {stat}"
    );
    assert!(
        ran.stderr
            .contains(&format!("\nleft behind\n  python3[{pid}] ")),
        "{}",
        ran.stderr
    );
}

#[test]
fn one_that_does_not_heed_sigterm_is_killed() {
    let place = Place::new();
    let script = "
trap '' TERM
(trap '' TERM; exec >/dev/null 2>&1; : > ready; while :; do sleep 1000; done) &
until [ -e ready ]; do sleep 0.01; done
";
    let ran = place.sh(&["--kill-leftovers", "--grace", "100ms"], script);
    assert_eq!(ran.status.code(), Some(0), "{ran:?}");
    let fates: Vec<_> = left(&ran).iter().map(|left| &left["killed"]).collect();
    // The shell, and its sleep, which inherits what it ignores.
    assert_eq!(fates, ["SIGKILL", "SIGKILL"], "{ran:?}");
}

#[test]
fn what_is_started_while_leftovers_are_ended_is_ended_too() {
    let place = Place::new();
    let script = "
(trap 'sleep 1000 & exit' TERM; exec >/dev/null 2>&1; : > ready; while :; do sleep 0.01; done) &
until [ -e ready ]; do sleep 0.01; done
";
    let ran = place.sh(&["--kill-leftovers"], script);
    assert_eq!(ran.status.code(), Some(0), "{ran:?}");
    let ended = |left: &Value| {
        let args = left["process"]["args"].as_array().unwrap();
        let args: Vec<_> = args.iter().map(|arg| arg.as_str().unwrap()).collect();
        (args.join(" "), left["killed"].clone())
    };
    let ended: Vec<_> = left(&ran).iter().map(ended).collect();
    let of = |line: &str| {
        let mut of = ended.iter().filter(|(args, _)| args.starts_with(line));
        let fate = of.next().map(|(_, fate)| fate.clone());
        assert_eq!(of.next(), None, "{line} twice: {ended:?}");
        fate
    };
    assert_eq!(of("sh -c"), Some(json!("SIGTERM")), "{ended:?}");
    assert_eq!(of("sleep 1000"), Some(json!("SIGTERM")), "{ended:?}");
}

/// Without CAP_KILL portwatch may not signal another user's process, which it tells of once.
#[test]
fn one_that_cannot_be_ended_is_told_of_once() {
    let place = Place::new();
    let script = "sleep 1000 >/dev/null 2>&1 & echo $!";
    let options = ["--user", "nobody", "--kill-leftovers", "--grace", "100ms"];
    let inner = place.command(&options, &["sh", "-c", script]);
    let mut command = place.netns.command("setpriv");
    command
        .args(["--bounding-set", "-kill"])
        .arg(inner.get_program())
        .args(inner.get_args())
        .current_dir(place.path())
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    let ran = place.finish(command);
    assert_eq!(ran.status.code(), Some(0), "{ran:?}");
    let pid: i32 = ran.stdout.trim().parse().unwrap();
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pid),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    let left = left(&ran);
    assert_eq!(left.len(), 1, "{left:#?}");
    assert_eq!(left[0]["process"]["pid"], pid);
    assert_eq!(left[0]["process"]["job"], "descendant");
    assert_eq!(left[0]["killed"], "failed");
}

#[test]
fn what_ends_with_the_job_is_not_left_behind() {
    let place = Place::new();
    // It ends when its pipe does, a moment after the job's first process.
    let ran = place.python(
        &["--fail-on", "leak"],
        "import os; r,w=os.pipe(); p=os.fork();\nif not p: os.close(w); os.read(r,1)",
    );
    assert_eq!(ran.status.code(), Some(0), "{ran:?}");
    assert_eq!(left(&ran), [] as [Value; 0]);
}

#[test]
fn one_in_namespaces_of_its_own_is() {
    let place = Place::new();
    let script = format!(
        "ip link set lo up; /usr/bin/python3 -c \"{BIND}\" 7005; readlink /proc/self/ns/net"
    );
    let ran = place.run(
        &[],
        &[
            "unshare",
            "--net",
            "--pid",
            "--fork",
            "--mount-proc",
            "sh",
            "-c",
            &script,
        ],
    );
    assert_eq!(ran.status.code(), Some(0), "{ran:?}");
    assert_eq!(ports(&ran), [7005]);
    let netns = ran.report["ports"][0]["netns"].as_u64().unwrap();
    assert_eq!(ran.stdout, format!("net:[{netns}]\n"));
    assert_ne!(netns, u64::from(place.netns.inode()));
}

#[test]
fn a_storm_of_forks_leaves_nothing_and_loses_nothing() {
    let place = Place::new();
    let script = format!(
        "i=0; while [ $i -lt 3000 ]; do (:) & i=$((i+1)); [ $((i%50)) = 0 ] && wait; done; wait; \
         /usr/bin/python3 -c \"{BIND}\" 7006"
    );
    let ran = place.sh(&[], &script);
    assert_eq!(ran.status.code(), Some(0), "{ran:?}");
    assert_eq!(ports(&ran), [7006]);
    assert_eq!(left(&ran), [] as [Value; 0]);
    assert_eq!(ran.report["lost"], json!({}));
}
