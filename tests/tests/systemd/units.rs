//! Units that want one port, and ports that systemd itself has.

use portwatch_tests::expect::inet;
use serde_json::{Value, json};

use crate::machine::{Machine, Manager, USER};

/// A service that listens on a port of all addresses.
fn server(port: u16) -> String {
    format!(
        "[Service]\nType=exec\nSuccessExitStatus=1\n\
         ExecStart=/usr/bin/busybox httpd -f -p {port}\n"
    )
}

/// A process by its pid and place alone: who it is otherwise, `tests/host` sees to.
fn place(process: &Value) -> Value {
    json!({
        "pid": process["pid"],
        "comm": process["comm"],
        "uid": process["uid"],
        "unit": process["unit"],
        "cgroup": process["cgroup"],
    })
}

fn placed(pid: u64, comm: &str, uid: u32, unit: &str, cgroup: &str) -> Value {
    json!({"pid": pid, "comm": comm, "uid": uid, "unit": unit, "cgroup": cgroup})
}

/// A conflict with the places of its processes, without what varies.
fn conflict(refused: &Value) -> Value {
    let mut conflict = refused["conflict"].clone();
    for holder in conflict["holders"].as_array_mut().unwrap() {
        let socket = holder["socket"].as_object_mut().unwrap();
        for varies in ["cookie", "inode", "netns"] {
            socket.remove(varies);
        }
        if let Some(time) = holder.get_mut("bound_at") {
            *time = json!("$time");
        }
        let processes = holder["processes"].as_array_mut();
        for process in processes.into_iter().flatten() {
            *process = place(process);
        }
    }
    conflict
}

/// What is expected of one holder that listens on a port of all addresses of IPv6.
fn held(port: u16, uid: u32, processes: &[Value], said: [&str; 3]) -> Value {
    let [cause, summary, advice] = said;
    json!({
        "cause": cause,
        "summary": summary,
        "advice": advice,
        "evidence": "locked",
        "holders": [{
            "socket": {
                "transport": "tcp",
                "family": "ipv6",
                "local": inet(&format!("[::]:{port}")),
                "state": "listen",
                "options": ["reuseaddr"],
                "uid": uid,
            },
            "ownership": "verified",
            "bound_at": "$time",
            "processes": processes,
        }],
    })
}

#[test]
fn a_unit_against_a_unit() {
    let units = [
        ("pw-first@a.service", &*server(7100)),
        ("pw-second.service", &*server(7100)),
    ];
    let machine = Machine::new(Manager::System, &units);
    machine.systemctl(&["start", "pw-first@a.service"]);
    let bound = machine.wait("listen", "success", 7100);
    let first = placed(
        machine.pid("pw-first@a.service"),
        "busybox",
        0,
        "pw-first@a.service",
        r"/system.slice/system-pw\x2dfirst.slice/pw-first@a.service",
    );
    assert_eq!(place(&bound["process"]), first, "{bound}");
    let refused = machine.refused("pw-second.service", 7100);
    let process = &refused["process"];
    let second = placed(
        process["pid"].as_u64().unwrap(),
        "busybox",
        0,
        "pw-second.service",
        "/system.slice/pw-second.service",
    );
    assert_eq!(place(process), second, "{refused}");
    assert_eq!(refused["error"], "EADDRINUSE", "{refused}");
    let pid = &first["pid"];
    let said = [
        "listener",
        &format!("busybox[{pid}] listens on [::]:7100"),
        &format!("stop busybox[{pid}] (systemctl stop pw-first@a.service), or use another port"),
    ];
    let expected = held(7100, 0, std::slice::from_ref(&first), said);
    assert_eq!(conflict(&refused), expected, "{refused}");
}

#[test]
fn a_users_unit_against_a_users_unit() {
    let units = [
        ("pw-first.service", &*server(7200)),
        ("pw-second.service", &*server(7200)),
    ];
    let machine = Machine::new(Manager::User, &units);
    machine.systemctl(&["start", "pw-first.service"]);
    machine.wait("listen", "success", 7200);
    let manager = format!("/user.slice/user-{USER}.slice/user@{USER}.service");
    let place_of = |pid, name: &str| {
        let cgroup = format!("{manager}/app.slice/{name}");
        placed(pid, "busybox", USER, name, &cgroup)
    };
    let pid = machine.pid("pw-first.service");
    let refused = machine.refused("pw-second.service", 7200);
    let process = &refused["process"];
    let second = place_of(process["pid"].as_u64().unwrap(), "pw-second.service");
    assert_eq!(place(process), second, "{refused}");
    let said = [
        "listener",
        &format!("busybox[{pid}] listens on [::]:7200"),
        &format!(
            "stop busybox[{pid}] (systemctl --user stop pw-first.service), or use another port"
        ),
    ];
    let expected = held(7200, USER, &[place_of(pid, "pw-first.service")], said);
    assert_eq!(conflict(&refused), expected, "{refused}");
}

/// A socket unit and its service, of which no process runs before somebody connects.
fn socket_unit(port: u16) -> [(&'static str, String); 3] {
    let service = "[Service]\nType=exec\nExecStart=/usr/bin/busybox sleep 600\n";
    [
        ("pw-web.socket", format!("[Socket]\nListenStream={port}\n")),
        ("pw-web.service", service.to_owned()),
        ("pw-late.service", server(port)),
    ]
}

#[test]
fn a_socket_of_systemds() {
    let units = socket_unit(7300);
    let units = units.each_ref().map(|(name, content)| (*name, &**content));
    let machine = Machine::new(Manager::System, &units);
    machine.systemctl(&["start", "pw-web.socket"]);
    let refused = machine.refused("pw-late.service", 7300);
    assert_eq!(refused["process"]["unit"], "pw-late.service", "{refused}");
    let manager = placed(1, "systemd", 0, "init.scope", "/init.scope");
    let said = [
        "socket-activation",
        "systemd has [::]:7300 for pw-web.socket",
        "systemctl stop pw-web.socket, or take the socket that it passes on (LISTEN_FDS)",
    ];
    let expected = held(7300, 0, &[manager], said);
    assert_eq!(conflict(&refused), expected, "{refused}");
}

/// Whose file bears another name: who bound it tells.
#[test]
fn a_socket_of_a_template() {
    let units = [
        ("pw-web@.socket", "[Socket]\nListenStream=760%i\n"),
        (
            "pw-web@.service",
            "[Service]\nExecStart=/usr/bin/busybox sleep 600\n",
        ),
        ("pw-late.service", &*server(7602)),
    ];
    let machine = Machine::new(Manager::System, &units);
    machine.systemctl(&["start", "pw-web@2.socket"]);
    let refused = machine.refused("pw-late.service", 7602);
    machine.systemctl(&["stop", "pw-web@2.socket"]);
    let manager = placed(1, "systemd", 0, "init.scope", "/init.scope");
    let said = [
        "socket-activation",
        "systemd has [::]:7602 for pw-web@2.socket",
        "systemctl stop pw-web@2.socket, or take the socket that it passes on (LISTEN_FDS)",
    ];
    let expected = held(7602, 0, &[manager], said);
    assert_eq!(conflict(&refused), expected, "{refused}");
}

#[test]
fn a_socket_of_a_users_systemd() {
    let units = socket_unit(7400);
    let units = units.each_ref().map(|(name, content)| (*name, &**content));
    let machine = Machine::new(Manager::User, &units);
    machine.systemctl(&["start", "pw-web.socket"]);
    let refused = machine.refused("pw-late.service", 7400);
    let pid = refused["conflict"]["holders"][0]["processes"][0]["pid"].as_u64();
    let group = format!("/user.slice/user-{USER}.slice/user@{USER}.service/init.scope");
    let unit = format!("user@{USER}.service");
    let manager = placed(pid.unwrap_or_default(), "systemd", USER, &unit, &group);
    let said = [
        "socket-activation",
        "systemd has [::]:7400 for pw-web.socket",
        "systemctl --user stop pw-web.socket, or take the socket that it passes on (LISTEN_FDS)",
    ];
    let expected = held(7400, USER, &[manager], said);
    assert_eq!(conflict(&refused), expected, "{refused}");
}

/// Both have it; what it does with it does not matter.
#[test]
fn a_service_that_was_passed_a_socket() {
    let units = socket_unit(7500);
    let units = units.each_ref().map(|(name, content)| (*name, &**content));
    let machine = Machine::new(Manager::System, &units);
    machine.systemctl(&["start", "pw-web.socket"]);
    machine.systemctl(&["start", "pw-web.service"]);
    let service = placed(
        machine.pid("pw-web.service"),
        "busybox",
        0,
        "pw-web.service",
        "/system.slice/pw-web.service",
    );
    let refused = machine.refused("pw-late.service", 7500);
    let manager = placed(1, "systemd", 0, "init.scope", "/init.scope");
    let said = [
        "socket-activation",
        "systemd has [::]:7500 for pw-web.socket",
        "systemctl stop pw-web.socket, or take the socket that it passes on (LISTEN_FDS)",
    ];
    let expected = held(7500, 0, &[manager, service], said);
    assert_eq!(conflict(&refused), expected, "{refused}");
}
