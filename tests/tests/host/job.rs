//! The tree of a job, on whatever this kernel is: the rest of `portwatch run` is told of by the tests
//! of the program `run`, which need no other kernel.

use std::process::Stdio;
use std::time::Instant;

use portwatch_tests::{LIMIT, Netns, actor, portwatch, spawn, wait};
use serde_json::Value;

#[test]
fn daemons_are_of_the_job_and_others_are_not() {
    let netns = Netns::new();
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.json");
    let mut command = netns.command(portwatch());
    command.arg("run");
    if let Some(backend) = std::env::var_os("PORTWATCH_TEST_BACKEND") {
        command.arg("--backend").arg(backend);
    }
    command
        .args([
            "--quiet",
            "--user",
            "0",
            "--kill-leftovers",
            "--grace",
            "100ms",
            "--report",
        ])
        .arg(&report)
        .arg("--")
        .arg(actor::program())
        // A child binds and ends; another is left behind with its port, and its parent is not the job.
        .args(["fork", "socket=tcp4", "bind=127.0.0.1:7201", "end", "reap"])
        .args([
            "fork",
            "fork",
            "socket=tcp4",
            "bind=127.0.0.1:7202",
            "listen",
        ])
        .args(["pid", "stop", "end", "end", "reap", "wait"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = spawn(&mut command);
    let printed = portwatch_tests::Printed::of(child.stdout.take().unwrap());
    let mut input = child.stdin.take().unwrap();
    let mut tell = |line: &[u8]| std::io::Write::write_all(&mut input, line).unwrap();
    assert_eq!(printed.next().as_deref(), Some("started"));
    tell(b"\n");
    let daemon: u32 = printed.next().unwrap().parse().unwrap();
    let begin = Instant::now();
    while !std::fs::read_to_string(format!("/proc/{daemon}/stat"))
        .is_ok_and(|stat| stat.contains(") T "))
    {
        assert!(begin.elapsed() < *LIMIT, "{daemon} does not stop");
        std::thread::yield_now();
    }
    // Not of the job.
    netns.run(|| drop(portwatch_tests::Socket::tcp4().bound("127.0.0.1:7203")));
    tell(b"\n");
    let status = wait(&mut child, *LIMIT * 3);
    assert!(status.success(), "{status}");
    let report: Value = serde_json::from_slice(&std::fs::read(&report).unwrap()).unwrap();
    let ports: Vec<_> = report["ports"]
        .as_array()
        .unwrap()
        .iter()
        .map(|port| (port["port"].as_u64(), port["process"]["job"].as_str()))
        .collect();
    assert_eq!(
        ports,
        [
            (Some(7201), Some("descendant")),
            (Some(7202), Some("descendant"))
        ],
        "{report:#}"
    );
    let left = &report["left_behind"]["processes"];
    assert_eq!(left[0]["sockets"][0]["local"]["port"], 7202, "{report:#}");
    // It is stopped, and so heeds no SIGTERM.
    assert_eq!(left[0]["killed"], "SIGKILL");
    assert_eq!(left.as_array().map(Vec::len), Some(1));
    assert_eq!(report["lost"], serde_json::json!({}));
}
