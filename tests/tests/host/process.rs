//! Who did it: whole, however short its life and whatever it calls itself.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};

use portwatch_tests::expect::{Order, bind, bind_failed, compare, release, socket};
use portwatch_tests::identity::children;
use portwatch_tests::{Actor, Identity, Scenario, Socket, actor, many};
use serde_json::{Value, json};

const LOCAL: &str = "127.0.0.1:5353";
const BIND: [&str; 2] = ["socket=udp4", "bind=127.0.0.1:5353"];

/// The bind and the release of a UDP socket by one process.
fn bound_by(process: &str, local: &str) -> [Value; 2] {
    let socket = socket("udp", local, &[]);
    [bind(socket.clone(), process), release(socket, process)]
}

#[test]
fn one_that_fails_and_exits_at_once() {
    let mut scenario = Scenario::new();
    let holder = scenario.run(|| Socket::udp4().bound(LOCAL));
    let mut actor = scenario.actor("$actor", &["socket=udp4", "bind?=127.0.0.1:5353"]);
    actor.finish();
    let socket = socket("udp", LOCAL, &[]);
    scenario.expect(&[
        bind(socket.clone(), "$self"),
        bind_failed(socket, "EADDRINUSE", 98, "$actor"),
    ]);
    drop(holder);
}

#[test]
fn many_at_once() {
    let mut scenario = Scenario::new();
    let holder = scenario.run(|| Socket::udp4().bound(LOCAL));
    let socket = socket("udp", LOCAL, &[]);
    let mut expected = vec![bind(socket.clone(), "$self")];
    let mut actors = Vec::new();
    for number in 0..many(100) {
        let (name, mark) = (format!("$actor{number}"), format!("number {number}"));
        let steps = ["socket=udp4", "bind?=127.0.0.1:5353", "--", &mark];
        let actor = Actor::start(&scenario.netns, &steps);
        scenario.know(&name, actor.identity());
        actors.push(actor);
        expected.push(bind_failed(socket.clone(), "EADDRINUSE", 98, &name));
    }
    for actor in &mut actors {
        actor.go();
    }
    for actor in &mut actors {
        actor.finish();
    }
    scenario.expect_in_any_order(&expected);
    drop(holder);
}

/// What a bind's entry keeps for its exit lies in one of two places that a thread's id leads to: here the
/// first one is another's, who is in bind(2) already.
#[test]
fn two_tasks_whose_ids_lead_to_one_seat() {
    let mut scenario = Scenario::new();
    let other = ["pid", "wait", "socket=udp4", "bind=127.0.0.1:5354", "close"];
    let steps = [
        &["socket=udp4", "held=127.0.0.1:5353", "alike"][..],
        &other,
        &["end", "reap", "say=reaped", "wait", "end", "close"],
    ]
    .concat();
    let mut actor = scenario.actor("$held", &steps);
    scenario.know("$other", Identity::of(actor.number()));
    actor.go();
    actor.says("reaped");
    actor.go();
    actor.finish();
    let of_both = [
        bound_by("$other", "127.0.0.1:5354"),
        bound_by("$held", LOCAL),
    ];
    scenario.expect(&of_both.concat());
}

#[test]
fn more_arguments_than_fit() {
    let mut scenario = Scenario::new();
    let long = OsString::from("x".repeat(1500));
    let ignored = [&*long, &long, &long, &long];
    let mut actor = Actor::disguised(&scenario.netns, "long".as_ref(), &BIND, &ignored);
    let identity = actor.identity();
    assert_eq!(identity.whole["args_truncated"], true);
    scenario.know("$long", identity);
    actor.go();
    actor.finish();
    scenario.expect(&bound_by("$long", LOCAL));
}

#[test]
fn empty_arguments() {
    let mut scenario = Scenario::new();
    let ignored = [OsStr::new(""), OsStr::new(""), OsStr::new("last")];
    let mut actor = Actor::disguised(&scenario.netns, "".as_ref(), &BIND, &ignored);
    let args = json!(["", BIND[0], BIND[1], "--", "", "", "last"]);
    assert_eq!(actor.identity().whole["args"], args);
    scenario.know("$empty", actor.identity());
    actor.go();
    actor.finish();
    scenario.expect(&bound_by("$empty", LOCAL));
}

const HOSTILE: &[u8] = b"\x1b[2J\r\n\t\"'\\ \xe2\x80\xae \xff\xfe";

#[test]
fn hostile_arguments_are_exact() {
    let mut scenario = Scenario::new();
    let hostile = OsStr::from_bytes(HOSTILE);
    let mut actor = Actor::disguised(&scenario.netns, hostile, &BIND, &[hostile]);
    let args = actor.identity().whole["args_hex"].clone();
    assert_eq!(args[0], "1b5b324a0d0a0922275c20e280ae20fffe");
    scenario.know("$hostile", actor.identity());
    actor.go();
    actor.finish();
    scenario.expect(&bound_by("$hostile", LOCAL));
}

#[test]
fn a_hostile_name_is_exact() {
    let mut scenario = Scenario::new();
    // 15 bytes are kept.
    let name = b"\x1b[2J\n) \"'\\\xff\xfe 56789";
    let mut command = scenario.netns.command(actor::program());
    command.arg(OsString::from_vec([&b"comm="[..], name].concat()));
    command.args(["say=named", "wait"]).args(BIND);
    let mut actor = Actor::of(command);
    actor.go();
    actor.says("named");
    let identity = Identity::of(actor.pid());
    assert_eq!(identity.whole["comm_hex"], "1b5b324a0a292022275cfffe203536");
    scenario.know("$hostile", identity);
    actor.go();
    actor.finish();
    scenario.expect(&bound_by("$hostile", LOCAL));
}

/// A copy of the actor's program with another name.
fn copy(directory: &Path, name: &OsStr) -> PathBuf {
    let copy = directory.join(name);
    std::fs::copy(actor::program(), &copy).unwrap();
    copy
}

#[test]
fn a_hostile_path_is_exact() {
    let mut scenario = Scenario::new();
    let directory = tempfile::tempdir().unwrap();
    let program = copy(directory.path(), OsStr::from_bytes(b"\x1b]0;x\x07\n\"\xff"));
    let mut command = scenario.netns.command(program);
    command.arg0("actor").args(BIND);
    let mut actor = Actor::of(command);
    let exe = actor.identity().whole["exe_hex"].clone();
    assert!(
        exe.as_str().unwrap().ends_with("2f1b5d303b78070a22ff"),
        "{exe}"
    );
    scenario.know("$hostile", actor.identity());
    actor.go();
    actor.finish();
    scenario.expect(&bound_by("$hostile", LOCAL));
}

#[test]
fn a_title_written_over_the_arguments() {
    let mut scenario = Scenario::new();
    let steps = [&["title=actor: idle", "say=titled", "wait"], &BIND[..]].concat();
    let mut actor = scenario.actor("$before", &steps);
    actor.says("titled");
    let identity = Identity::of(actor.pid());
    assert_eq!(identity.whole["args"], json!(["actor: idle"]));
    scenario.forget("$before");
    scenario.know("$titled", identity);
    actor.go();
    actor.finish();
    scenario.expect(&bound_by("$titled", LOCAL));
}

#[test]
fn a_thread_has_its_own_name() {
    let mut scenario = Scenario::new();
    let steps = [
        "thread",
        "comm=worker",
        "socket=udp4",
        "bind=127.0.0.1:5353",
        "close",
        "end",
    ];
    let mut actor = Actor::start(&scenario.netns, &steps);
    let mut worker = actor.identity().with("comm", json!("worker"));
    worker.threads.clear();
    scenario.know("$worker", worker);
    actor.go();
    actor.finish();
    scenario.expect(&bound_by("$worker", LOCAL));
    for event in scenario.raw_events() {
        let process = &event["process"];
        assert_ne!(process["tid"], process["pid"], "{event}");
    }
}

#[test]
fn another_program_has_other_arguments() {
    let mut scenario = Scenario::new();
    let directory = tempfile::tempdir().unwrap();
    let other = copy(directory.path(), "other".as_ref());
    let exec = format!("exec={}", other.display());
    let steps = [
        "socket=udp4",
        "bind=127.0.0.1:5353",
        "close",
        "wait",
        &exec,
        "other-name",
        "socket=udp4",
        "bind=127.0.0.1:5354",
    ];
    let mut actor = scenario.actor("$first", &steps);
    actor.go();
    actor.says("started");
    let identity = Identity::of(actor.pid());
    assert_eq!(identity.whole["args"][0], "other-name");
    assert_eq!(identity.whole["comm"], "other");
    scenario.know("$second", identity);
    actor.go();
    actor.finish();
    let first = bound_by("$first", LOCAL);
    let second = bound_by("$second", "127.0.0.1:5354");
    scenario.expect(&[first, second].concat());
}

#[test]
fn a_child_keeps_the_arguments() {
    let mut scenario = Scenario::new();
    let first = ["socket=udp4", "bind=127.0.0.1:5353", "close"];
    let child = [
        "fork",
        "pid",
        "wait",
        "socket=udp4",
        "bind=127.0.0.1:5354",
        "close",
        "wait",
        "end",
        "reap",
    ];
    let steps = [&first[..], &child].concat();
    let mut actor = scenario.actor("$parent", &steps);
    let child: u32 = actor.number();
    scenario.know("$child", Identity::of(child));
    actor.go();
    scenario.released(5354);
    actor.go();
    actor.finish();
    let parent = bound_by("$parent", LOCAL);
    let child = bound_by("$child", "127.0.0.1:5354");
    scenario.expect(&[parent, child].concat());
}

#[test]
fn another_user_and_group() {
    let mut scenario = Scenario::new();
    let steps = [&["gid=12345", "uid=54321"], &BIND[..]].concat();
    let mut actor = scenario.actor("$root", &steps);
    let user = actor.identity().with("uid", json!(54321));
    scenario.know("$user", user.with("gid", json!(12345)));
    actor.finish();
    scenario.expect(&bound_by("$user", LOCAL));
}

/// A server that binds as root and then becomes somebody else.
#[test]
fn user_and_group_are_those_of_the_moment() {
    let mut scenario = Scenario::new();
    let first = ["socket=udp4", "bind=127.0.0.1:5353", "close"];
    let then = [
        "gid=12345",
        "uid=54321",
        "socket=udp4",
        "bind=127.0.0.1:5354",
    ];
    let steps = [&first[..], &then].concat();
    let mut actor = scenario.actor("$root", &steps);
    let user = actor.identity().with("uid", json!(54321));
    scenario.know("$user", user.with("gid", json!(12345)));
    actor.finish();
    let root = bound_by("$root", LOCAL);
    let user = bound_by("$user", "127.0.0.1:5354");
    scenario.expect(&[root, user].concat());
}

/// Lets a forked process end, and those that wait for it, once it is told: where the processor does not
/// note by itself that a page was used (arm64 before 8.1), what it has not looked at since it was forked,
/// as its arguments, is only found while it or its parent is there.
fn end_told(scenario: &Scenario, actor: &mut Actor) {
    scenario.released(5353);
    actor.go();
    actor.finish();
}

#[test]
fn in_a_pid_namespace_of_its_own() {
    let mut scenario = Scenario::new();
    let steps = [
        "unshare=pid",
        "fork",
        "pid",
        "wait",
        "socket=udp4",
        "bind=127.0.0.1:5353",
        "close",
        "wait",
        "end",
        "reap",
    ];
    let mut actor = scenario.actor("$outside", &steps);
    // Its pid where it is.
    actor.says("1");
    let [child] = children(actor.pid())[..] else {
        panic!("the actor has not one child");
    };
    let identity = Identity::of(child);
    assert_eq!(identity.whole["namespace_pid"], 1);
    scenario.know("$inside", identity);
    actor.go();
    end_told(&scenario, &mut actor);
    scenario.expect(&bound_by("$inside", LOCAL));
}

#[test]
fn sixteen_ancestors_at_most() {
    let mut scenario = Scenario::new();
    let depth = 18;
    let mut steps = vec!["fork"; depth];
    steps.extend(["pid", "wait"]);
    steps.extend(BIND);
    steps.extend(["close", "wait"]);
    for _ in 0..depth {
        steps.extend(["end", "reap"]);
    }
    let mut actor = scenario.actor("$first", &steps);
    let last = Identity::of(actor.number());
    assert_eq!(last.whole["ancestors"].as_array().unwrap().len(), 16);
    scenario.know("$last", last);
    actor.go();
    end_told(&scenario, &mut actor);
    scenario.expect(&bound_by("$last", LOCAL));
}

/// Where cgroups of version 2 are mounted.
fn cgroup2() -> PathBuf {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mount = mounts.lines().find(|line| line.contains(" - cgroup2 "));
    let mount = mount.expect("cgroup2 is not mounted");
    PathBuf::from(mount.split(' ').nth(4).unwrap())
}

#[test]
fn in_a_cgroup_of_its_own() {
    let mut scenario = Scenario::new();
    let cgroup = cgroup2().join(format!("portwatch-test-{}", std::process::id()));
    std::fs::create_dir(&cgroup).unwrap();
    let mut actor = Actor::start(&scenario.netns, &BIND);
    std::fs::write(cgroup.join("cgroup.procs"), actor.pid().to_string()).unwrap();
    let identity = Identity::of(actor.pid());
    let name = Path::new("/").join(cgroup.file_name().unwrap());
    assert_eq!(identity.whole["cgroup"], json!(name));
    scenario.know("$actor", identity);
    actor.go();
    actor.finish();
    std::fs::remove_dir(&cgroup).unwrap();
    scenario.expect(&bound_by("$actor", LOCAL));
}

#[test]
fn the_start_of_a_process_never_changes() {
    let mut scenario = Scenario::new();
    let steps = [
        "repeat=20",
        "socket=udp4",
        "bind=127.0.0.1:5353",
        "close",
        "end",
    ];
    let mut actor = scenario.actor("$actor", &steps);
    actor.finish();
    let expected: Vec<_> = (0..20).flat_map(|_| bound_by("$actor", LOCAL)).collect();
    let events = scenario.events();
    compare(&events, &expected, Order::Same);
    let starts: std::collections::BTreeSet<_> = scenario
        .raw_events()
        .iter()
        .map(|event| event["process"]["start_time"].to_string())
        .collect();
    assert_eq!(starts.len(), 1, "{starts:?}");
}
