//! What a report tells of a job, and where to.

use std::fs;
use std::process::Stdio;

use portwatch_tests::{Actor, Printed, Socket, spawn};
use serde_json::{Value, json};

use crate::{PYTHON, Place};

/// Two servers of one script on the same port, each without SO_REUSEADDR. Where the job's events are
/// written, the first one stays until it has been looked up who it is.
const TWO: &str = "
import os, socket, time
one = socket.socket(); one.bind(('127.0.0.1', 7101)); one.listen()
two = socket.socket()
for _ in range(3):
    try: two.bind(('127.0.0.1', 7101))
    except OSError: pass
while os.path.exists('events.json') and 'EADDRINUSE' not in open('events.json').read(): time.sleep(0.01)
one.close()
";

#[test]
fn a_job_that_fails_for_a_conflict() {
    let place = Place::new();
    for (options, status) in [
        (&[][..], 0),
        (&["--fail-on", "conflict"], 99),
        (&["--fail-on", "leak,flake-risk"], 0),
        (&["--fail-on", "leak,conflict"], 99),
    ] {
        let options = [&["--write", "events.json"], options].concat();
        let ran = place.python(&options, TWO);
        assert_eq!(ran.status.code(), Some(status), "{options:?}: {ran:?}");
        let refusal = &ran.report["refusals"][0];
        assert_eq!(refusal["count"], 3);
        assert_eq!(refusal["conflict"]["cause"], "listener", "{refusal:#}");
        assert_eq!(ran.report["refusals"].as_array().unwrap().len(), 1);
    }
    // A job that failed by itself keeps its status.
    let ran = place.python(&["--fail-on", "conflict"], &format!("{TWO}\nexit(3)"));
    assert_eq!(ran.status.code(), Some(3));
}

#[test]
fn a_holder_that_is_not_of_the_job_is_named() {
    let place = Place::new();
    let mut outsider = Actor::start(
        &place.netns,
        &[
            "socket=tcp4",
            "bind=127.0.0.1:7102",
            "listen",
            "say=listens",
            "wait",
        ],
    );
    outsider.go();
    outsider.says("listens");
    let ran = place.python(
        &[],
        "import socket; s = socket.socket()\ntry: s.bind(('127.0.0.1', 7102))\nexcept OSError as e: print(e.errno)",
    );
    assert_eq!(ran.stdout, "98\n");
    let holder = &ran.report["refusals"][0]["conflict"]["holders"][0];
    assert_eq!(holder["processes"][0]["pid"], outsider.pid(), "{ran:?}");
    assert!(
        holder["processes"][0].get("job").is_none(),
        "it is not of the job"
    );
    assert_eq!(ran.report["refusals"][0]["process"]["job"], "descendant");
    // It was there before, so its port is none that the job used.
    assert_eq!(ran.report["ports"], json!([]));
}

#[test]
fn whoever_the_job_keeps_out_is_told_if_both_sides_are_wanted() {
    let place = Place::new();
    let script = "
import socket
s = socket.socket(); s.bind(('127.0.0.1', 7103)); s.listen()
print('listens', flush=True); input()";
    let outsider = |options: &[&str]| {
        let mut command = place.command(options, &[PYTHON, "-c", script]);
        command.stdin(Stdio::piped());
        let mut child = spawn(&mut command);
        let printed = Printed::of(child.stdout.take().unwrap());
        assert_eq!(printed.next().as_deref(), Some("listens"));
        place.netns.run(|| {
            let error = Socket::tcp4().bind("127.0.0.1:7103").unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
        });
        let mut input = child.stdin.take().unwrap();
        std::io::Write::write_all(&mut input, b"\n").unwrap();
        drop(input);
        place.end(child)
    };
    assert_eq!(outsider(&[]).report["refusals"], json!([]));
    let ran = outsider(&["--both", "--fail-on", "conflict"]);
    let refusal = &ran.report["refusals"][0];
    assert_eq!(refusal["process"]["pid"], std::process::id(), "{ran:?}");
    assert!(refusal["process"].get("job").is_none());
    let holder = &refusal["conflict"]["holders"][0]["processes"][0];
    assert_eq!(holder["job"], "descendant");
    assert_eq!(ran.status.code(), Some(99));
}

#[test]
fn a_port_of_outgoing_connections_is_a_risk() {
    let place = Place::new();
    place
        .netns
        .sysctl("ipv4/ip_local_port_range", "40000 50000");
    place.netns.sysctl("ipv4/ip_local_reserved_ports", "40001");
    let script = "
import socket
for port in (40000, 40001, 39999, 0):
    s = socket.socket(); s.bind(('127.0.0.1', port)); s.close()";
    let ran = place.python(&["--fail-on", "flake-risk"], script);
    assert_eq!(ran.status.code(), Some(99), "{ran:?}");
    let risks: Vec<_> = ran.report["risks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|risk| (risk["port"].clone(), risk["range"].clone()))
        .collect();
    assert_eq!(risks, [(json!(40000), json!([40000, 50000]))]);
}

#[test]
fn the_range_of_another_namespace_is_that_namespaces() {
    let place = Place::new();
    let other = portwatch_tests::Netns::new();
    other.sysctl("ipv4/ip_local_port_range", "20000 20100");
    let script = "import socket; s = socket.socket(); s.bind(('127.0.0.1', 20050))";
    // Somebody is in it still when the job has ended.
    let actor = Actor::start(&other, &["wait"]);
    let file = format!("/proc/{}/ns/net", actor.pid());
    let ran = place.run(
        &[],
        &["nsenter", &format!("--net={file}"), PYTHON, "-c", script],
    );
    assert_eq!(ran.status.code(), Some(0), "{ran:?}");
    assert_eq!(ran.report["risks"][0]["port"], 20050, "{ran:?}");
    assert_eq!(ran.report["risks"][0]["range"], json!([20000, 20100]));
}

/// A server that closes its connection first, and so has the TIME_WAIT; with or without SO_REUSEADDR.
fn closes_first(reuse: bool) -> String {
    format!(
        "
import socket
server = socket.socket()
if {}: server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind(('127.0.0.1', 7104)); server.listen()
client = socket.create_connection(('127.0.0.1', 7104))
connection, _ = server.accept()
connection.close(); client.recv(1); client.close(); server.close()
again = socket.socket()
if {}: again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
try: again.bind(('127.0.0.1', 7104)); print('ok')
except OSError as error: print(error.errno)
",
        if reuse { "True" } else { "False" },
        if reuse { "True" } else { "False" }
    )
}

#[test]
fn a_timewait_that_blocks_a_restart_is_left_behind() {
    let place = Place::new();
    let ran = place.python(&[], &closes_first(false));
    assert_eq!(ran.stdout, "98\n");
    let left = &ran.report["left_behind"]["timewaits"];
    assert_eq!(left[0]["port"], 7104, "{ran:?}");
    assert_eq!(left[0]["count"], 1);
    let seconds = left[0]["expires_in_ms"].as_u64().unwrap();
    assert!((1000..=60_100).contains(&seconds), "{seconds}");
    assert_eq!(left.as_array().unwrap().len(), 1);
    assert_eq!(
        ran.report["refusals"][0]["conflict"]["cause"],
        "time-wait-no-reuse"
    );
    let told = "\nkept by TIME_WAIT\n  1 TIME_WAIT on port 7104/tcp: a bind to it fails for another LONG, \
                unless both the old and the new socket set SO_REUSEADDR\n";
    assert!(ran.text().contains(told), "{}", ran.text());
}

#[test]
fn one_that_blocks_nothing_is_not() {
    let place = Place::new();
    let ran = place.python(&[], &closes_first(true));
    assert_eq!(ran.stdout, "ok\n");
    assert_eq!(ran.report["left_behind"]["timewaits"], json!([]), "{ran:?}");
}

#[test]
fn github_gets_annotations_and_a_summary() {
    let place = Place::new();
    let summary = place.path().join("summary.md");
    fs::write(&summary, "before\n").unwrap();
    let mut command = place.command(&[], &[PYTHON, "-c", TWO]);
    command
        .env("GITHUB_ACTIONS", "true")
        .env("GITHUB_STEP_SUMMARY", &summary);
    let ran = place.finish(command);
    let annotation = ran.stderr.lines().find(|line| line.starts_with("::error "));
    assert!(
        annotation
            .unwrap()
            .starts_with("::error title=EADDRINUSE on tcp4 127.0.0.1%3A7101::python3["),
        "{ran:?}"
    );
    let summary = fs::read_to_string(summary).unwrap();
    assert!(summary.starts_with("before\n### portwatch\n"), "{summary}");
    assert!(summary.contains("| 3 | python3"), "{summary}");
    // Not asked for.
    let mut command = place.command(&["--ci", "none"], &[PYTHON, "-c", TWO]);
    command.env("GITHUB_ACTIONS", "true");
    assert!(!place.finish(command).stderr.contains("::error"));
}

#[test]
fn gitlab_gets_a_section() {
    let place = Place::new();
    let mut command = place.command(&[], &[PYTHON, "-c", TWO]);
    command.env("GITLAB_CI", "true");
    let ran = place.finish(command);
    assert!(ran.stderr.starts_with("\x1b[0Ksection_start:"), "{ran:?}");
    assert!(
        ran.stderr
            .contains(":portwatch\r\x1b[0Kportwatch\nportwatch: `/usr/bin/python3"),
        "{ran:?}"
    );
    let mut command = place.command(&[], &["true"]);
    command.env("GITLAB_CI", "true");
    assert!(
        place
            .finish(command)
            .stderr
            .contains(":portwatch[collapsed=true]\r")
    );
}

#[test]
fn what_was_written_makes_the_same_report() {
    let place = Place::new();
    let events = place.path().join("events.json");
    let junit = place.path().join("junit.xml");
    let options = [
        "--write",
        events.to_str().unwrap(),
        "--junit",
        junit.to_str().unwrap(),
    ];
    let ran = place.python(&options, TWO);
    let output = std::process::Command::new(portwatch_tests::portwatch())
        .args(["report", "--json"])
        .arg(&events)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let recorded: Value = serde_json::from_slice(&output.stdout).unwrap();
    for same in [
        "refusals",
        "causes",
        "contested",
        "collisions",
        "ports",
        "timeline",
        "hosts",
        "risks",
    ] {
        assert_eq!(recorded[same], ran.report[same], "{same}");
    }
    let junit = fs::read_to_string(junit).unwrap();
    assert!(
        junit.contains("<failure message=\"EADDRINUSE on tcp4 127.0.0.1:7101\">"),
        "{junit}"
    );
}

#[test]
fn the_report_on_standard_error_can_be_json() {
    let place = Place::new();
    let ran = place.python(&["--json"], TWO);
    let shown: Value = serde_json::from_str(&ran.stderr).unwrap();
    assert_eq!(shown, ran.report);
}

#[test]
fn misuse_is_told_before_the_job_starts() {
    let place = Place::new();
    for (options, why) in [
        (&["--fail-on", "nonsense"][..], "invalid value 'nonsense'"),
        (&["--grace", "5s"], "--kill-leftovers"),
        (&["--grace", "x", "--kill-leftovers"], "invalid value 'x'"),
        (&["--ci", "jenkins"], "invalid value 'jenkins'"),
        (&["-P", "99999"], "99999"),
        (&["--json", "--output", "text"], "cannot be used with"),
    ] {
        let ran = place.run(options, &["touch", "started"]);
        assert_eq!(ran.status.code(), Some(2), "{options:?}: {ran:?}");
        assert!(ran.stderr.contains(why), "{options:?}: {ran:?}");
    }
    assert!(!place.path().join("started").exists());
}
