//! Docker's containers, as holders and as newcomers.

use std::process::{Command, Stdio};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use portwatch_tests::expect::inet;
use portwatch_tests::{LIMIT, Trace, look_again_soon, portwatch, spawn};
use serde_json::{Value, json};

use crate::daemon::Docker;
use crate::room::printed;
use crate::scene::{Scene, group};

/// A daemon, and what is traced of it.
struct Host {
    docker: Docker,
    scene: Scene,
}

impl std::ops::Deref for Host {
    type Target = Scene;

    fn deref(&self) -> &Scene {
        &self.scene
    }
}

impl Host {
    fn new(options: &[&str]) -> Self {
        let trace = Scene::trace();
        let docker = Docker::start(options);
        Self {
            scene: Scene::new(trace, &docker.netns),
            docker,
        }
    }
}

const LABELS: [&str; 4] = [
    "--label",
    "com.docker.compose.project=shop",
    "--label",
    "com.docker.compose.service=web",
];

fn container(id: &str, name: &str, labels: &Value) -> Value {
    let mut container = json!({
        "runtime": "docker",
        "id": id,
        "name": name,
        "image": "portwatch-test:1",
    });
    if labels.as_object().is_some_and(|labels| !labels.is_empty()) {
        container["labels"] = labels.clone();
    }
    container
}

#[test]
fn a_published_port_refuses_a_process_of_the_host() {
    let host = Host::new(&[]);
    let options = [&LABELS[..], &["--name", "web-1", "-p", "8080:80"]].concat();
    let id = host.docker.run(&options, &["sleep", "600"]);
    let conflict = host.refuse(8080);
    let labels = json!({
        "com.docker.compose.project": "shop",
        "com.docker.compose.service": "web",
    });
    assert_eq!(conflict["cause"], "published-port", "{conflict}");
    let holders = conflict["holders"].as_array().unwrap();
    assert_eq!(holders.len(), 2, "one of each family: {conflict}");
    assert_eq!(holders[0]["socket"]["local"], inet("0.0.0.0:8080"));
    assert_eq!(holders[1]["socket"]["local"], inet("[::]:8080"));
    for holder in holders {
        assert_eq!(holder["socket"]["state"], "listen", "{holder}");
        assert_eq!(holder["ownership"], "verified", "{holder}");
        assert_eq!(holder["processes"][0]["comm"], "docker-proxy", "{holder}");
        let published = json!({"container": container(&id, "web-1", &labels), "port": 80});
        assert_eq!(holder["publishes"], published, "{holder}");
    }
    assert_eq!(
        conflict["summary"],
        "container web-1 (portwatch-test:1, compose shop/web) publishes its port 80 on 0.0.0.0:8080"
    );
    assert_eq!(
        conflict["advice"],
        "stop container web-1 (docker stop web-1), or change its mapping of ports"
    );
}

/// Asked of the port, and not of a refusal.
#[test]
fn why_a_published_port_is_held() {
    let host = Host::new(&[]);
    let options = ["--name", "web-1", "-p", "8080:80"];
    let id = host.docker.run(&options, &["sleep", "600"]);
    let netns = host.netns().inode().to_string();
    let mut command = Command::new(portwatch());
    command.args(["why", "8080", "--json", "--netns", &netns]);
    command.stdout(Stdio::piped());
    let output = spawn(&mut command).wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    let web = container(&id, "web-1", &json!({}));
    let published = |address: &str| {
        json!({
            "container": web, "protocol": "tcp", "address": address, "port": 80, "by_socket": true,
        })
    };
    assert_eq!(
        told["published"],
        json!([published("0.0.0.0"), published("::")])
    );
    let place = &told["places"][0];
    assert_eq!(place["conflict"]["cause"], "published-port", "{told}");
    let publishes = json!({"container": web, "port": 80});
    assert_eq!(place["holders"][0]["publishes"], publishes, "{told}");
}

/// By its proxies' sockets, and when these are gone by the packet filter alone.
#[test]
fn a_published_port_is_listed() {
    let host = Host::new(&[]);
    let options = ["--name", "web-1", "-p", "8080:80"];
    let id = host.docker.run(&options, &["sleep", "600"]);
    let netns = host.netns().inode().to_string();
    let list = |options: &[&str]| {
        let options = [&["list", "--netns", &netns], options].concat();
        printed(Command::new(portwatch()).args(options))
    };
    let rows = || -> Vec<Value> {
        let list = list(&["--json"]);
        let lines = list.lines();
        lines
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    };
    let publishes = json!({"container": container(&id, "web-1", &json!({})), "port": 80});
    let held = rows();
    assert_eq!(held.len(), 2, "one of each family: {held:?}");
    for row in &held {
        assert_eq!(row["event"], "socket", "{row}");
        assert_eq!(row["socket"]["local"]["port"], 8080, "{row}");
        assert_eq!(row["publishes"], publishes, "{row}");
    }
    let proxies: Vec<_> = (held.iter())
        .map(|row| row["processes"][0]["pid"].as_i64().unwrap())
        .collect();
    for pid in &proxies {
        kill(Pid::from_raw((*pid).try_into().unwrap()), Signal::SIGKILL).unwrap();
    }
    let begin = Instant::now();
    while proxies
        .iter()
        .any(|pid| std::fs::exists(format!("/proc/{pid}/fd/0")).unwrap())
    {
        assert!(begin.elapsed() < *LIMIT, "{proxies:?} do not end");
        look_again_soon();
    }
    let expected = ["0.0.0.0", "::"].map(|address| {
        json!({
            "event": "published", "transport": "tcp", "address": address, "port": 8080,
            "netns": host.netns().inode(), "publishes": publishes,
        })
    });
    let seen = rows().into_iter().map(|mut row| {
        for key in ["schema", "seq", "time"] {
            row.as_object_mut().unwrap().remove(key);
        }
        row
    });
    assert_eq!(seen.collect::<Vec<_>>(), expected);
    let text = list(&[]);
    let told = text.matches("published by web-1 (docker) → 80, no socket");
    assert_eq!(told.count(), 2, "{text}");
}

/// Without a proxy dockerd has the socket itself.
#[test]
fn a_port_that_dockerd_itself_holds() {
    let host = Host::new(&["--userland-proxy=false"]);
    let options = ["--name", "web-1", "-p", "8080:80"];
    let id = host.docker.run(&options, &["sleep", "600"]);
    let conflict = host.refuse(8080);
    assert_eq!(conflict["cause"], "published-port", "{conflict}");
    let holder = &conflict["holders"][0];
    assert_eq!(holder["processes"][0]["comm"], "dockerd", "{holder}");
    let published = json!({"container": container(&id, "web-1", &json!({})), "port": 80});
    assert_eq!(holder["publishes"], published, "{holder}");
}

#[test]
fn a_process_of_the_host_refuses_a_published_port() {
    let host = Host::new(&[]);
    let _listener = host.listener(9090);
    let arguments = Docker::run_arguments(&["--name", "web-1", "-p", "9090:80"], &["sleep", "600"]);
    let output = host.docker.try_docker(&arguments);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("address already in use"), "{told}");
    let refused = host.refused(0, host.docker.binder(), 9090);
    let conflict = &refused["conflict"];
    assert_eq!(conflict["cause"], "listener", "{conflict}");
    let holder = &conflict["holders"][0];
    assert_eq!(
        holder["processes"][0]["pid"],
        std::process::id(),
        "{holder}"
    );
    assert!(holder["publishes"].is_null(), "{holder}");
    // The daemon has made the container before its port was refused.
    let id = host
        .docker
        .docker(&["ps", "--all", "--quiet", "--no-trunc"]);
    let wanted = json!({"container": container(&id, "web-1", &json!({})), "port": 80});
    assert_eq!(conflict["publishes"], wanted, "{conflict}");
}

#[test]
fn a_container_of_the_hosts_network_refuses_another() {
    let host = Host::new(&[]);
    let listen = ["nc", "-l", "-p", "7070"];
    let names = ["first", "second"];
    let ids = names.map(|name| {
        let id = host.docker.run(&["--net", "host", "--name", name], &listen);
        host.wait(&format!("the bind of {name}"), |event| {
            event["event"] == "bind" && event["process"]["container"]["name"] == name
        });
        id
    });
    let refused = host.refused(0, "busybox", 7070);
    let of = |place: usize| container(&ids[place], names[place], &json!({}));
    assert_eq!(refused["process"]["container"], of(1), "{refused}");
    assert_eq!(group(&refused["process"]), host.docker.group_of(&ids[1]));
    let conflict = &refused["conflict"];
    let holder = &conflict["holders"][0];
    let process = &holder["processes"][0];
    assert_eq!(process["container"], of(0), "{conflict}");
    assert_eq!(group(process), host.docker.group_of(&ids[0]));
    // Its shim was started by a process that is gone, but that is how containers are run.
    assert_eq!(conflict["cause"], "listener", "{conflict}");
    assert!(
        conflict["advice"]
            .as_str()
            .unwrap()
            .contains("docker stop first"),
        "{conflict}"
    );
}

/// Its record is gone with it; what was asked for while it ran stays known.
#[test]
fn a_container_that_is_killed_and_removed() {
    let host = Host::new(&[]);
    let id = host
        .docker
        .run(&["--rm", "--name", "brief"], &["nc", "-l", "-p", "81"]);
    let of_container = |event: &Value| event["process"]["container"]["id"] == id.as_str();
    let bind = host.wait("the bind", |event| {
        event["event"] == "bind" && of_container(event)
    });
    assert_eq!(bind["socket"]["local"]["port"], 81, "{bind}");
    assert_ne!(bind["socket"]["netns"], host.netns().inode(), "{bind}");
    let brief = container(&id, "brief", &json!({}));
    assert_eq!(bind["process"]["container"], brief);
    assert_eq!(bind["process"]["namespace_pid"], 1, "{bind}");
    host.docker.docker(&["kill", "brief"]);
    let release = host.wait("the release", |event| {
        event["event"] == "release" && of_container(event)
    });
    assert_eq!(release["process"]["container"], brief, "{release}");
    assert_eq!(release["process"]["pid"], bind["process"]["pid"]);
}

#[test]
fn a_container_that_is_renamed() {
    let host = Host::new(&[]);
    host.docker
        .run(&["--name", "before", "-p", "8080:80"], &["sleep", "600"]);
    let name = |conflict: &Value| conflict["holders"][0]["publishes"]["container"]["name"].clone();
    assert_eq!(name(&host.refuse(8080)), "before");
    host.docker.docker(&["rename", "before", "after"]);
    let begin = Instant::now();
    // What is known of it is good for a second.
    loop {
        let conflict = host.refuse(8080);
        if name(&conflict) == "after" {
            break;
        }
        assert!(begin.elapsed() < *LIMIT, "{conflict}");
    }
}

/// By name, by the beginning of the id, and by label; and what docker-proxy is refused for a container.
#[test]
fn events_of_one_container() {
    let host = Host::new(&[]);
    let _listener = host.listener(9090);
    // The trace is of the whole machine, where others may have containers too.
    let name = format!("web-{}", std::process::id());
    let label = format!("portwatch.test={name}");
    let web = ["--label", &label, "--name", &name];
    let web_id = host.docker.run(&web, &["sleep", "600"]);
    let other_id = host.docker.run(&["--name", "other"], &["sleep", "600"]);
    let wanted = [&name, &web_id[..12], &label];
    let traces = wanted.map(|wanted| Trace::start(&["--container", wanted]));
    let refused = format!("refused-{}", std::process::id());
    let refusals = Trace::start(&["--container", &refused, "--failed"]);
    // One that lives on and one that is gone when its event is told.
    for (name, port) in [("other", "85"), (name.as_str(), "86")] {
        host.docker
            .docker(&["exec", name, "/bin/busybox", "httpd", "-p", port]);
    }
    let options = ["--name", &refused, "-p", "9090:80"];
    let arguments = Docker::run_arguments(&options, &["sleep", "600"]);
    assert!(!host.docker.try_docker(&arguments).status.success());
    for (trace, wanted) in traces.into_iter().zip(wanted) {
        let seen = trace.wait_for(0, *LIMIT, |event| {
            event["event"] == "bind" && event["socket"]["local"]["port"] == 86
        });
        let seen = seen.unwrap_or_else(|why| panic!("with {wanted}: {why}"));
        let container = &seen["process"]["container"];
        assert_eq!(container["id"], web_id.as_str(), "with {wanted}");
        assert_eq!(container["name"], name.as_str(), "with {wanted}");
        let lines = trace.stop().lines;
        let of_other = |line: &&Value| line["process"]["container"]["id"] == other_id.as_str();
        assert_eq!(lines.iter().find(of_other), None, "with {wanted}");
        assert_eq!(lines[0]["filters"]["container"], json!([wanted]));
    }
    let seen = refusals
        .wait_for(0, *LIMIT, |event| event["event"] == "bind")
        .unwrap();
    assert_eq!(seen["process"]["comm"], host.docker.binder(), "{seen}");
    let publishes = &seen["conflict"]["publishes"];
    assert_eq!(publishes["container"]["name"], refused.as_str(), "{seen}");
    assert_eq!(publishes["port"], 80, "{seen}");
}
