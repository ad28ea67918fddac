//! What it withstands: readers that go or do not read, full disks, signals, floods.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::process::{ChildStderr, ChildStdout, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use portwatch_tests::trace::{check, read_lines};
use portwatch_tests::{
    Actor, LIMIT, Netns, Printed, Program, Scenario, Socket, Trace, ended, portwatch_command,
    signal, start, wait,
};
use serde_json::{Value, json};

/// Any port: a trace that begins looks at every open file, and while it holds one its port is taken.
const LOCAL: &str = "127.0.0.1:0";

/// Floods come one after the other: what is lost in one must not be another's doing.
static FLOOD: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    FLOOD.lock().unwrap_or_else(|lock| lock.into_inner())
}

fn bind_times(netns: &Netns, times: u32) {
    netns.run(|| {
        for _ in 0..times {
            drop(Socket::udp4().bound(LOCAL));
        }
    });
}

/// A trace of one namespace of which nobody reads more than the first line.
fn unread(netns: &Netns, options: &[&str]) -> (Program, BufReader<ChildStdout>, ChildStderr) {
    let mut command = portwatch_command("trace");
    let inode = netns.inode().to_string();
    command
        .args(["--json", "--netns", &inode])
        .args(options)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = start(&mut command);
    let told = child.stderr.take().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert!(line.contains(r#""event":"start""#), "{line}");
    (child, output, told)
}

#[test]
fn a_reader_that_goes_ends_it_with_the_next_event() {
    let netns = Netns::new();
    let (mut child, output, mut told) = unread(&netns, &[]);
    drop(output);
    bind_times(&netns, 1);
    let status = wait(&mut child, *LIMIT);
    let mut text = String::new();
    told.read_to_string(&mut text).unwrap();
    assert!(status.success(), "{}: {text}", ended(status));
    assert_eq!(text, "");
}

#[test]
fn a_reader_that_goes_ends_it_without_an_event() {
    let netns = Netns::new();
    let (mut child, output, mut told) = unread(&netns, &[]);
    drop(output);
    let status = wait(&mut child, *LIMIT);
    let mut text = String::new();
    told.read_to_string(&mut text).unwrap();
    assert!(status.success(), "{}: {text}", ended(status));
    assert_eq!(text, "");
}

#[test]
fn a_reader_that_never_reads_does_not_keep_it() {
    let netns = Netns::new();
    let (mut child, output, mut told) = unread(&netns, &[]);
    // Much more than fits a pipe.
    bind_times(&netns, 2000);
    signal(&child, Signal::SIGINT);
    let status = wait(&mut child, *LIMIT);
    let mut text = String::new();
    told.read_to_string(&mut text).unwrap();
    assert_eq!(status.code(), Some(1), "{text}");
    assert!(text.contains("standard output is not being read"), "{text}");
    drop(output);
}

/// A second SIGINT ends it at once.
#[test]
fn a_second_sigint_does_not_wait_for_the_reader() {
    let netns = Netns::new();
    let (mut child, output, _told) = unread(&netns, &[]);
    bind_times(&netns, 2000);
    let begin = Instant::now();
    signal(&child, Signal::SIGINT);
    // The first must have been taken: two that wait are one.
    while pending(child.id(), Signal::SIGINT) {
        std::thread::yield_now();
    }
    signal(&child, Signal::SIGINT);
    let status = wait(&mut child, *LIMIT);
    println!("ended after {:?}: {}", begin.elapsed(), ended(status));
    assert!(!status.success());
    drop(output);
}

/// Whether a signal has been sent to a process that it has not taken yet.
fn pending(pid: u32, signal: Signal) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = status.lines().find_map(|line| line.strip_prefix("ShdPnd:"));
    let pending = field.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
    pending.is_some_and(|bits| bits & 1 << (signal as u32 - 1) != 0)
}

/// Acts with a file system of 64 KiB at this place, which nobody else sees.
fn with_small_disk<T: Send>(place: &Path, act: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let acting = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            let none = None::<&str>;
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(none, "/", none, private, none).unwrap();
            let flags = MsFlags::empty();
            mount(Some("tmpfs"), place, Some("tmpfs"), flags, Some("size=64k")).unwrap();
            act()
        });
        acting.join().unwrap()
    })
}

#[test]
fn a_full_disk_leaves_whole_lines() {
    let directory = tempfile::tempdir().unwrap();
    let netns = Netns::new();
    with_small_disk(directory.path(), || {
        let path = directory.path().join("events");
        let (mut child, output, told) = unread(&netns, &["--write", path.to_str().unwrap()]);
        let printed = Printed::of(output);
        let told = Printed::of(told);
        // More than fits, and as long as it takes.
        let status = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| wait(&mut child, *LIMIT));
            while !waiting.is_finished() {
                bind_times(&netns, 50);
            }
            waiting.join().unwrap()
        });
        let told = told.rest().join("\n");
        assert_eq!(status.code(), Some(1), "{told}");
        assert!(told.contains("cannot write to"), "{told}");
        assert!(told.contains(path.to_str().unwrap()), "{told}");
        assert!(told.contains("No space left"), "{told}");
        let lines = read_lines(&path);
        assert!(!lines.is_empty());
        let seq: Vec<_> = lines
            .iter()
            .map(|line| line["seq"].as_u64().unwrap())
            .collect();
        assert!(seq.iter().copied().eq(0..seq.len() as u64), "{seq:?}");
        drop(printed);
    });
}

#[test]
fn the_file_holds_what_is_printed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("events");
    let netns = Netns::new();
    let inode = netns.inode().to_string();
    let options = ["--netns", &inode, "--write", path.to_str().unwrap()];
    let trace = Trace::start(&options);
    bind_times(&netns, 10);
    let printed = trace.stop().lines;
    assert_eq!(printed.len(), 22);
    assert_eq!(read_lines(&path), printed);
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
}

/// With text on standard output as well.
#[test]
fn the_file_is_json_beside_text() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("events");
    let netns = Netns::new();
    let mut command = portwatch_command("trace");
    let inode = netns.inode().to_string();
    command
        .args(["--netns", &inode, "-n", "4", "--write"])
        .arg(&path)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = start(&mut command);
    let printed = Printed::of(child.stdout.take().unwrap());
    let told = Printed::of(child.stderr.take().unwrap());
    told.next().unwrap();
    bind_times(&netns, 2);
    let status = wait(&mut child, *LIMIT);
    assert!(status.success(), "{}: {:?}", ended(status), told.rest());
    assert_eq!(printed.rest().len(), 4);
    let lines = read_lines(&path);
    check(&lines, false);
    assert_eq!(lines.len(), 6);
}

#[test]
fn a_path_that_cannot_be_written_to_is_told_at_once() {
    for path in ["/nonexistent/events", "/proc/version", "/"] {
        let mut command = portwatch_command("trace");
        command
            .args(["--json", "--write", path])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = start(&mut command);
        let (printed, told) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let status = wait(&mut child, *LIMIT);
        let told = std::io::read_to_string(told).unwrap();
        assert_eq!(status.code(), Some(1), "{path}: {told}");
        assert!(told.contains(&format!("cannot write to {path}")), "{told}");
        assert_eq!(std::io::read_to_string(printed).unwrap(), "", "{path}");
    }
}

/// Does something while four threads bind as fast as they can.
fn in_a_flood<T>(netns: &Netns, act: impl FnOnce() -> T) -> T {
    let done = AtomicBool::new(false);
    let result = std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                netns.run_while_forking(|| {
                    while !done.load(Ordering::Relaxed) {
                        let _ = Socket::udp4().bind(LOCAL);
                    }
                });
            });
        }
        let result = catch_unwind(AssertUnwindSafe(act));
        done.store(true, Ordering::Relaxed);
        result
    });
    result.unwrap_or_else(|panic| resume_unwind(panic))
}

fn ended_by(which: Signal) {
    let _alone = alone();
    let netns = Netns::new();
    let inode = netns.inode().to_string();
    let mut trace = Trace::start(&["--netns", &inode]).expecting_losses();
    in_a_flood(&netns, || {
        trace.wait_for(1000, *LIMIT, |_| true).unwrap();
        trace.signal(which);
        assert_eq!(trace.finish().told, "");
    });
}

/// Its self-test finds the ring buffer full.
#[test]
fn a_flood_does_not_keep_it_from_beginning() {
    let _alone = alone();
    let netns = Netns::new();
    in_a_flood(&netns, || {
        Trace::start(&["--buffer", "64K", "-p", "1"])
            .expecting_losses()
            .stop();
    });
}

#[test]
fn sigint_in_a_flood() {
    ended_by(Signal::SIGINT);
}

#[test]
fn sigterm_in_a_flood() {
    ended_by(Signal::SIGTERM);
}

fn sum(lines: &[Value], what: impl Fn(&Value) -> Option<u64>) -> u64 {
    lines.iter().filter_map(what).sum()
}

/// What does not fit into the ring buffer is counted to the last bind.
#[test]
fn the_overflow_of_the_ring_is_counted_exactly() {
    const BINDS: u64 = 5000;
    let _alone = alone();
    let netns = Netns::new();
    let inode = netns.inode().to_string();
    let options = ["--buffer", "64K", "--netns", &inode];
    let trace = Trace::start(&options).expecting_losses();
    trace.signal(Signal::SIGSTOP);
    wait_until_stopped(trace.pid());
    bind_times(&netns, u32::try_from(BINDS).unwrap());
    trace.signal(Signal::SIGCONT);
    let lines = trace.stop().lines;
    for kind in ["bind", "release"] {
        let told = sum(&lines, |line| (line["event"] == kind).then_some(1));
        let lost = sum(&lines, |line| line["of"][kind].as_u64());
        assert!(lost > 0, "nothing was lost of {told} {kind}s");
        assert_eq!(told + lost, BINDS, "{told} {kind}s told, {lost} lost");
    }
    for line in lines.iter().filter(|line| line["event"] == "lost") {
        assert_eq!(line["where"], "ring", "{line}");
        let of = line["of"].as_object().unwrap();
        let of: u64 = of.values().filter_map(Value::as_u64).sum();
        assert_eq!(line["count"], of, "{line}");
    }
}

fn wait_until_stopped(pid: u32) {
    let begin = Instant::now();
    loop {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        let stopped = tasks.map_while(Result::ok).all(|task| {
            let stat = std::fs::read_to_string(task.path().join("stat")).unwrap();
            stat.rsplit(") ")
                .next()
                .is_some_and(|rest| rest.starts_with('T'))
        });
        if stopped {
            return;
        }
        assert!(begin.elapsed() < *LIMIT, "process {pid} does not stop");
        std::thread::yield_now();
    }
}

/// The most memory it ever had, in KiB.
fn peak_memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let field = field.unwrap().split_ascii_whitespace().next().unwrap();
    field.parse().unwrap()
}

/// Traces a namespace into a file while something happens in it; its last line, and the most memory
/// that the trace had.
fn into_a_file(path: &Path, netns: &Netns, act: impl FnOnce()) -> (Value, u64) {
    let mut command = portwatch_command("trace");
    let inode = netns.inode().to_string();
    command
        .args(["--json", "--netns", &inode])
        .stdin(Stdio::null())
        .stdout(File::create(path).unwrap());
    let mut child = start(&mut command);
    let begin = Instant::now();
    while std::fs::metadata(path).unwrap().len() == 0 {
        assert!(begin.elapsed() < *LIMIT, "no start event");
        std::thread::yield_now();
    }
    act();
    let memory = peak_memory(child.id());
    signal(&child, Signal::SIGINT);
    signal(&child, Signal::SIGCONT);
    let status = wait(&mut child, *LIMIT);
    assert!(status.success(), "{}", ended(status));
    let text = std::fs::read(path).unwrap();
    let lines = text
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty());
    let end: Value = serde_json::from_slice(lines.clone().next_back().unwrap()).unwrap();
    assert_eq!(end["seq"], lines.count() as u64 - 1, "{end}");
    (end, memory)
}

/// One thread as fast as it can: nothing is lost, and the memory stays small.
#[test]
fn three_hundred_thousand_events() {
    const BINDS: u32 = 150_000;
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let netns = Netns::new();
    let path = directory.path().join("events");
    let begin = Instant::now();
    let (end, memory) = into_a_file(&path, &netns, || bind_times(&netns, BINDS));
    println!("{:?}, {memory} KiB: {end}", begin.elapsed());
    let counts = json!({"bind": BINDS, "release": BINDS});
    assert_eq!(end["counts"], counts, "{end}");
    assert_eq!(end["lost"], json!({}), "{end}");
    assert!(memory < 40 << 10, "{memory} KiB");
}

#[test]
fn two_thousand_short_lived_processes() {
    const PROCESSES: u64 = 2000;
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let netns = Netns::new();
    let path = directory.path().join("events");
    let (end, memory) = into_a_file(&path, &netns, || {
        let repeat = format!("repeat={PROCESSES}");
        let steps = [
            "fork",
            "socket=udp4",
            "bind=127.0.0.1:0",
            "end",
            "reap",
            "end",
        ];
        let mut actor = Actor::start(&netns, &[&[&*repeat], &steps[..]].concat());
        actor.go();
        actor.finish();
    });
    println!("{memory} KiB: {end}");
    let counts = json!({"bind": PROCESSES, "release": PROCESSES});
    assert_eq!(end["counts"], counts, "{end}");
    assert_eq!(end["lost"], json!({}), "{end}");
    assert!(memory < 40 << 10, "{memory} KiB");
    let whole = read_lines(&path);
    let nameless: Vec<_> = whole[1..whole.len() - 1]
        .iter()
        .filter(|line| line["process"]["args"][0].is_null() || line["process"]["exe"].is_null())
        .collect();
    assert!(
        nameless.is_empty(),
        "{} of these: {}",
        nameless.len(),
        nameless[0]
    );
}

#[test]
fn how_long_it_takes_to_be_ready() {
    let begin = Instant::now();
    let trace = Trace::start(&[]);
    println!("ready after {:?}", begin.elapsed());
    trace.stop();
}

/// Two at once see the same.
#[test]
fn two_traces_beside_each_other() {
    let netns = Netns::new();
    let inode = netns.inode().to_string();
    let traces = [(); 2].map(|()| Trace::start(&["--netns", &inode]));
    bind_times(&netns, 5);
    let [first, second] = traces.map(|trace| {
        let lines = trace.stop().lines;
        let events = lines[1..lines.len() - 1].iter().map(|line| {
            let mut line = line.clone();
            let object = line.as_object_mut().unwrap();
            // Each reads the clocks by itself.
            for key in ["time", "bound_at", "held_ms"] {
                object.remove(key);
            }
            object["process"]["start_time"].take();
            line
        });
        events.collect::<Vec<_>>()
    });
    assert_eq!(first.len(), 10);
    assert_eq!(first, second);
}

/// Its own binds, made to prove that the hooks fire, are nobody's business.
#[test]
fn its_self_test_is_not_told() {
    let trace = Trace::start(&["--comm", "portwatch"]);
    let own = trace.pid();
    let lines = trace.stop().lines;
    let of_itself: Vec<_> = lines
        .iter()
        .filter(|line| line["process"]["pid"] == own)
        .collect();
    assert!(of_itself.is_empty(), "{of_itself:?}");
}

/// What is known of bound sockets would fill the map if nobody is to see their end, and be told as
/// lost: more of them than it holds, with a stream that wants listens only.
#[test]
fn binds_whose_release_is_not_wanted_fill_nothing() {
    const MANY: usize = 70_000;
    let _alone = alone();
    let scenario = Scenario::traced(&["-e", "listen"]);
    scenario.run(|| {
        for _ in 0..MANY {
            // Any port: one by number may still be held by the snapshot of another trace that begins.
            drop(Socket::udp4().bound("127.0.0.1:0"));
        }
    });
    // The stream's end is checked: nothing lost.
    scenario.end(&[]);
}

/// Two processes take the same ports from each other as fast as they can, and nobody keeps one: each
/// refusal has a holder, or says why not; how many had none is told at the end, and so is what could
/// not be looked up in time.
#[test]
fn two_processes_that_fight_for_ports() {
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let netns = Netns::new();
    let path = directory.path().join("events");
    let (end, memory) = into_a_file(&path, &netns, || {
        let one = ["socket=tcp4", "bind?=127.0.0.1:8080", "close"];
        let two = ["socket=udp4", "bind?=127.0.0.1:8080", "close"];
        let steps = [&["for=5"], &one[..], &two, &["end"]].concat();
        let mut fighters = [(); 2].map(|()| Actor::start(&netns, &steps));
        for fighter in &mut fighters {
            fighter.go();
        }
        for fighter in &mut fighters {
            fighter.finish();
        }
    });
    println!("{memory} KiB: {end}");
    let text = std::fs::read_to_string(&path).unwrap();
    let refused = text
        .lines()
        .filter(|line| line.contains(r#""outcome":"failure""#));
    let (mut refusals, mut without) = (0, 0);
    for line in refused {
        let line: Value = serde_json::from_str(line).unwrap();
        refusals += 1;
        let conflict = &line["conflict"];
        if conflict["cause"] == "unknown" {
            without += 1;
            let summary = conflict["summary"].as_str().unwrap();
            let why = [
                "whoever had it gave it back before it could be looked for",
                "nobody could look for it in time",
                "no socket that was found on port 8080 is in the way",
            ];
            assert!(why.iter().any(|why| summary.contains(why)), "{line}");
        } else {
            assert!(conflict["holders"][0]["socket"].is_object(), "{line}");
        }
    }
    println!("{refusals} refusals, {without} without a holder");
    assert_eq!(end["failed"], refusals, "{end}");
    assert_eq!(
        end["without_holder"].as_u64().unwrap_or(0),
        without,
        "{end}"
    );
    assert!(refusals > 0, "{end}");
    let lost = end["lost"].as_object().unwrap();
    assert!(
        lost.keys()
            .all(|place| place == "lookup" || place == "ring"),
        "{end}"
    );
    // Behind by as much as it may be: five batches of at most the ring buffer's 4 MiB before the stage that
    // makes events, what waits there for a quarter of a second, and six batches as text behind it.
    assert!(memory < 96 << 10, "{memory} KiB");
}

/// A listener that everybody wants: each refusal names its process, and asking for it again and again
/// costs no memory.
#[test]
fn a_storm_of_refusals() {
    const REFUSALS: u32 = 3_000;
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let netns = Netns::new();
    let path = directory.path().join("events");
    let listen = [
        "socket=tcp4",
        "bind=127.0.0.1:8080",
        "listen",
        "say=listening",
        "stay",
    ];
    let mut holder = Actor::start(&netns, &listen);
    let (end, memory) = into_a_file(&path, &netns, || {
        holder.go();
        holder.says("listening");
        netns.run(|| {
            for _ in 0..REFUSALS {
                Socket::tcp4().bind("127.0.0.1:8080").unwrap_err();
            }
        });
    });
    println!("{memory} KiB: {end}");
    assert_eq!(end["failed"], REFUSALS, "{end}");
    let lost = end["lost"].as_object().unwrap();
    assert!(lost.keys().all(|place| place == "lookup"), "{end}");
    assert!(memory < 48 << 10, "{memory} KiB");
    for line in read_lines(&path) {
        if line["outcome"] == "failure" {
            let told = &line["conflict"]["holders"][0];
            assert_eq!(line["conflict"]["cause"], "listener", "{line}");
            // Where nobody else may run, the process was not asked for in time, and that is told.
            let verified = told["ownership"] == "verified";
            assert!(verified || !lost.is_empty(), "{line}");
            assert_eq!(told["processes"][0]["pid"], holder.pid(), "{line}");
        }
    }
}
