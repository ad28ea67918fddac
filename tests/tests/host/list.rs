//! `portwatch list`: what there is, in a namespace of each test's own.

use std::os::fd::AsFd as _;
use std::process::{Command, Output};

use portwatch_tests::expect::{Order, compare, inet, socket, with};
use portwatch_tests::socket::{REUSEADDR, REUSEPORT, V6ONLY};
use portwatch_tests::trace::VALIDATOR;
use portwatch_tests::{
    Actor, Identity, Netns, Socket, look_again_soon, output_alone, patience, portwatch,
    socket as sockets, spawn,
};
use serde_json::{Value, json};

fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(portwatch());
    command.arg("list").args(arguments);
    output_alone(&mut command)
}

/// A process in the namespace: without one, and without a name, nobody can look at it from within.
fn inhabitant(netns: &Netns) -> Actor {
    Actor::start(netns, &[])
}

/// The objects of a list of this namespace, each checked against the schema, with names for what
/// varies.
fn list(netns: &Netns, known: &[(&str, &Identity)], arguments: &[&str]) -> Vec<Value> {
    let inode = netns.inode().to_string();
    let arguments = [&["--json", "--netns", &inode], arguments].concat();
    let output = run(&arguments);
    assert!(output.status.success(), "{output:?}");
    let lines = String::from_utf8(output.stdout).unwrap();
    let lines = lines.lines().zip(0..).map(|(line, seq)| {
        let line: Value = serde_json::from_str(line).unwrap();
        let errors: Vec<_> = VALIDATOR
            .iter_errors(&line)
            .map(|e| e.to_string())
            .collect();
        assert!(errors.is_empty(), "{errors:#?}: {line}");
        assert_eq!(line["seq"], seq);
        normalise(line, netns, known)
    });
    lines.collect()
}

fn normalise(mut line: Value, netns: &Netns, known: &[(&str, &Identity)]) -> Value {
    let object = line.as_object_mut().unwrap();
    for key in ["schema", "seq", "time"] {
        object.remove(key);
    }
    if let Some(left) = object.get_mut("expires_in_ms") {
        let slack = 4_000 * u64::from(patience());
        assert!(
            (60_000 - slack..=60_000).contains(&left.as_u64().unwrap()),
            "{left}"
        );
        *left = json!("$60s");
    }
    if let Some(processes) = object.get_mut("processes").and_then(Value::as_array_mut) {
        for process in processes {
            let named = known.iter().find(|(_, who)| process["pid"] == who.pid);
            if let Some((name, who)) = named {
                *process = name_of(name, who, process);
            }
        }
    }
    let whole = object.contains_key("netns");
    let place = match object.get_mut("socket") {
        Some(socket) => socket,
        None => &mut line,
    };
    let place = place.as_object_mut().unwrap();
    // Whoever asks for it gives a socket its cookie.
    place.remove("cookie");
    assert_eq!(place["netns"], netns.inode(), "{whole}");
    place["netns"] = json!("$netns");
    if let Some(inode) = place.get_mut("inode") {
        assert!(inode.is_u64());
        *inode = json!("$inode");
    }
    line
}

/// The name, if what is told of the process is true. Lists tell less of one than events do.
fn name_of(name: &str, who: &Identity, process: &Value) -> Value {
    let mut who = who.clone();
    for key in [
        "exe",
        "ancestors",
        "netns",
        "pidns",
        "mntns",
        "namespace_pid",
    ] {
        who.whole.remove(key);
    }
    match who.differs(process) {
        None => json!(name),
        Some(difference) => json!(format!("not {name}: {difference}")),
    }
}

/// A socket that these have.
fn held(transport: &str, local: &str, state: &str, options: &[&str], by: &[&str]) -> Value {
    let socket = with(socket(transport, local, options), "/state", json!(state));
    let socket = with(socket, "/uid", json!(0));
    json!({"event": "socket", "socket": socket, "ownership": "verified", "processes": by})
}

/// As in a container without the host's pids: processes have the numbers that they have there, and
/// nobody else's.
#[test]
fn within_a_pid_namespace_of_its_own() {
    let netns = Netns::new();
    let listener = netns.run(|| Socket::tcp4().bound("127.0.0.1:8080"));
    let mut command = netns.command("unshare");
    command
        .args(["--pid", "--fork", "--mount-proc"])
        .arg(portwatch())
        .args(["list", "--json", "--netns", &netns.inode().to_string()])
        .stdin(listener.as_fd().try_clone_to_owned().unwrap());
    let output = output_alone(&mut command);
    assert!(output.status.success(), "{output:?}");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(
        told.contains("not seen: processes outside of this pid namespace"),
        "{told}"
    );
    let line: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(line["socket"]["local"], inet("127.0.0.1:8080"), "{line}");
    let processes = line["processes"].as_array().unwrap();
    let who: Vec<_> = (processes.iter())
        .map(|process| (&process["pid"], &process["comm"], &process["args"][1]))
        .collect();
    assert_eq!(who, [(&json!(1), &json!("portwatch"), &json!("list"))]);
}

/// This process, which has sockets in many namespaces.
fn own() -> Identity {
    let comm = std::fs::read("/proc/self/comm").unwrap();
    let comm = String::from_utf8_lossy(comm.trim_ascii_end()).into_owned();
    Identity::of_self(Vec::new(), &comm)
}

#[test]
fn listeners_bound_sockets_and_udp_over_both_families() {
    let netns = Netns::new();
    let _inhabitant = inhabitant(&netns);
    let kept = netns.run(|| {
        let listener = Socket::tcp4().with(REUSEADDR).bound("127.0.0.1:8080");
        listener.listen(1).unwrap();
        let v6 = Socket::tcp6().with(V6ONLY).bound("[::]:8080");
        v6.listen(1).unwrap();
        let bound = Socket::tcp4().bound("0.0.0.0:80");
        let udp = Socket::udp6().with(REUSEPORT).bound("[::1]:53");
        [listener, v6, bound, udp]
    });
    let own = own();
    let seen = list(&netns, &[("$self", &own)], &[]);
    let by = ["$self"];
    compare(
        &seen,
        &[
            // The kernel sets it for an address that is no wildcard (net/ipv6/af_inet6.c, __inet6_bind).
            held("udp", "[::1]:53", "bound", &["reuseport", "v6only"], &by),
            held("tcp", "0.0.0.0:80", "bound", &[], &by),
            held("tcp", "127.0.0.1:8080", "listen", &["reuseaddr"], &by),
            held("tcp", "[::]:8080", "listen", &["v6only"], &by),
        ],
        Order::Same,
    );
    drop(kept);
}

#[test]
fn a_socket_that_two_processes_have() {
    let netns = Netns::new();
    let steps = [
        "socket=tcp4",
        "bind=127.0.0.1:8080",
        "listen",
        "fork",
        "pid",
        "wait",
        "end",
        "wait",
    ];
    let mut parent = Actor::start(&netns, &steps);
    parent.go();
    let child: u32 = parent.number();
    let (parent_is, child_is) = (parent.identity(), Identity::of(child));
    let known = [("$parent", &parent_is), ("$child", &child_is)];
    let seen = list(&netns, &known, &[]);
    let mut by = [(parent.pid(), "$parent"), (child, "$child")];
    by.sort_unstable();
    let by = by.map(|(_, name)| name);
    let expected = held("tcp", "127.0.0.1:8080", "listen", &[], &by);
    compare(&seen, &[expected], Order::Same);
    parent.go();
    parent.go();
}

#[test]
fn connections_and_timewaits() {
    let netns = Netns::new();
    let _inhabitant = inhabitant(&netns);
    let (listener, ended) = netns.run(|| {
        let listener = Socket::tcp4().with(REUSEADDR).bound("127.0.0.1:8080");
        listener.listen(8).unwrap();
        let ended = [(); 3].map(|()| {
            let client = Socket::tcp4();
            (sockets::connect(&listener, &client), client)
        });
        (listener, ended)
    });
    // The server closes first: the TIME_WAIT is on its port.
    for (server, client) in ended {
        netns.close_in_turn(server, client);
    }
    let (client, server) = netns.run(|| {
        let client = Socket::tcp4().bound("127.0.0.1:9000");
        let server = sockets::connect(&listener, &client);
        (client, server)
    });
    let own = own();
    let known = [("$self", &own)];
    let by = ["$self"];
    let listening = held("tcp", "127.0.0.1:8080", "listen", &["reuseaddr"], &by);
    let waiting = json!({
        "event": "timewaits", "transport": "tcp", "port": 8080, "netns": "$netns", "count": 3,
        "expires_in_ms": "$60s",
    });
    compare(
        &list(&netns, &known, &[]),
        &[waiting, listening.clone()],
        Order::Any,
    );

    let all = list(&netns, &known, &["--all"]);
    let connected = |local, remote, options: &[&str]| {
        let held = held("tcp", local, "established", options, &by);
        with(held, "/socket/remote", inet(remote))
    };
    let (waiting, rest): (Vec<_>, Vec<_>) = all
        .into_iter()
        .partition(|line| line["socket"]["state"] == "time-wait");
    assert_eq!(waiting.len(), 3, "{waiting:?}");
    for line in waiting {
        let mut expected = json!({
            "event": "socket",
            "socket": socket("tcp", "127.0.0.1:8080", &[]),
            "ownership": "none",
            "expires_in_ms": "$60s",
        });
        let place = &mut expected["socket"];
        place["state"] = json!("time-wait");
        place["remote"] = line["socket"]["remote"].clone();
        place.as_object_mut().unwrap().remove("inode");
        compare(&[line], &[expected], Order::Same);
    }
    compare(
        &rest,
        &[
            listening,
            connected("127.0.0.1:8080", "127.0.0.1:9000", &["reuseaddr"]),
            connected("127.0.0.1:9000", "127.0.0.1:8080", &[]),
        ],
        Order::Any,
    );
    drop((listener, client, server));
}

#[test]
fn filters() {
    let netns = Netns::new();
    let kept = netns.run(|| {
        [
            Socket::tcp4().bound("127.0.0.1:80"),
            Socket::tcp6().bound("[::1]:81"),
            Socket::udp4().bound("127.0.0.1:82"),
        ]
    });
    let pid = std::process::id().to_string();
    let ports = |arguments: &[&str]| -> Vec<u64> {
        let lines = list(&netns, &[], arguments);
        let port = |line: &Value| line["socket"]["local"]["port"].as_u64().unwrap();
        lines.iter().map(port).collect()
    };
    assert_eq!(ports(&[]), [80, 81, 82]);
    assert_eq!(ports(&["-4"]), [80, 82]);
    assert_eq!(ports(&["-6"]), [81]);
    assert_eq!(ports(&["--tcp"]), [80, 81]);
    assert_eq!(ports(&["--udp"]), [82]);
    assert_eq!(ports(&["-P", "80,82-90"]), [80, 82]);
    assert_eq!(ports(&["-p", &pid]), [80, 81, 82]);
    assert_eq!(ports(&["-p", "1"]), [0; 0]);
    assert_eq!(ports(&["-u", "0"]), [80, 81, 82]);
    assert_eq!(ports(&["-u", "12345"]), [0; 0]);
    assert_eq!(ports(&["--comm", "nobody"]), [0; 0]);
    assert_eq!(ports(&["-c", "nothing"]), [0; 0]);
    drop(kept);
}

#[test]
fn text() {
    let netns = Netns::new();
    let bound = netns.run(|| Socket::tcp4().bound("127.0.0.1:80"));
    let inode = netns.inode().to_string();
    let output = run(&["--netns", &inode]);
    let own = own();
    let (comm, pid) = (own.whole["comm"].as_str().unwrap(), own.pid);
    let wanted = format!("tcp4  127.0.0.1:80  bound  -  -  {inode}  {comm}[{pid}]  ");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with(&wanted), "{text}");
    assert!(text.ends_with("bound-not-listening\n"), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    drop(bound);
}

#[test]
fn a_named_namespace_is_told_by_its_name() {
    let netns = Netns::new();
    let udp = netns.run(|| Socket::udp4().bound("127.0.0.1:53"));
    let name = format!("portwatch-{}", std::process::id());
    let path = std::path::Path::new("/run/netns").join(&name);
    std::fs::create_dir_all("/run/netns").unwrap();
    std::fs::write(&path, "").unwrap();
    let source = format!(
        "/proc/self/fd/{}",
        std::os::fd::AsRawFd::as_raw_fd(&*netns.file())
    );
    let none = None::<&str>;
    let bind = nix::mount::MsFlags::MS_BIND;
    nix::mount::mount(Some(&*source), &path, none, bind, none).unwrap();
    let output = run(&["--json", "--netns", &name]);
    nix::mount::umount(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let line: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(line["netns_name"], json!(name));
    assert_eq!(line["socket"]["netns"], netns.inode());
    drop(udp);
}

#[test]
fn bad_input_is_a_usage_error() {
    for arguments in [
        &["-P", "99999"][..],
        &["-p", "0"],
        &["--netns", "there-is-none"],
        &["--unix"],
        &["extra"],
        &["--json", "-o", "text"],
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
        assert!(!output.stderr.is_empty(), "{arguments:?}");
    }
}

/// A socket of somebody whose files may not be looked at is not said to be nobody's. Here `portwatch`
/// has neither the right to look at others (CAP_SYS_PTRACE) nor the kernel's iterators (CAP_BPF).
#[test]
fn who_may_not_be_looked_at_is_not_nobody() {
    use std::os::unix::process::CommandExt as _;

    // include/uapi/linux/capability.h
    const CAP_SYS_PTRACE: u64 = 19;
    const CAP_SYS_ADMIN: u64 = 21;
    const CAP_PERFMON: u64 = 38;
    const CAP_BPF: u64 = 39;
    let netns = Netns::new();
    let steps = [
        "socket=tcp4",
        "bind=127.0.0.1:80",
        "listen",
        "say=listening",
        "stay",
    ];
    let mut holder = Actor::start(&netns, &steps);
    holder.go();
    holder.says("listening");
    let mut command = netns.command(portwatch());
    command.args(["list", "--json", "-P", "80"]);
    // SAFETY: between fork and exec only prctl(2) is called.
    unsafe {
        command.pre_exec(|| {
            for capability in [CAP_SYS_PTRACE, CAP_SYS_ADMIN, CAP_PERFMON, CAP_BPF] {
                if libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) != 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    let output = output_alone(&mut command);
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(
        told.contains("other processes have: not permitted"),
        "{told}"
    );
    let line: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(line["socket"]["local"], inet("127.0.0.1:80"));
    assert_eq!(line.get("ownership"), None, "{line}");
    assert_eq!(line.get("processes"), None, "{line}");
}

/// Also while other tests start programs, which have this process's descriptors until they are executed.
#[test]
fn a_test_is_told_alone() {
    let netns = Netns::new();
    let _inhabitant = inhabitant(&netns);
    let socket = netns.run(|| Socket::udp4().bound("127.0.0.1:8080"));
    let own = own();
    let known = [("$self", &own)];
    std::thread::scope(|scope| {
        let looking = scope.spawn(|| [(); 10].map(|()| list(&netns, &known, &[])));
        while !looking.is_finished() {
            assert!(spawn(&mut Command::new("true")).wait().unwrap().success());
            look_again_soon();
        }
        for list in looking.join().unwrap() {
            assert_eq!(list[0]["processes"], json!(["$self"]), "{list:?}");
        }
    });
    drop(socket);
}
