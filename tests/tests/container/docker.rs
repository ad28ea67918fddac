//! Docker's containers, as holders and as newcomers.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use portwatch_tests::expect::inet;
use portwatch_tests::trace::shown;
use portwatch_tests::{LIMIT, Netns, Socket, Trace, netns, portwatch, spawn};
use serde_json::{Value, json};

use crate::daemon::Docker;

/// A trace, and a daemon whose namespace is that of the scenario.
struct Host {
    docker: Docker,
    trace: Arc<Trace>,
    from: usize,
}

impl Host {
    fn new(options: &[&str]) -> Self {
        let trace = Trace::shared(&[]);
        let from = trace.seen();
        Self {
            docker: Docker::start(options),
            trace,
            from,
        }
    }

    fn netns(&self) -> &Netns {
        &self.docker.netns
    }

    /// Waits for an event.
    fn wait(&self, wanted: &str, is: impl Fn(&Value) -> bool) -> Value {
        self.wait_from(self.from, wanted, is)
    }

    fn wait_from(&self, from: usize, wanted: &str, is: impl Fn(&Value) -> bool) -> Value {
        let seen = self.trace.wait_for(from, *LIMIT, is);
        seen.unwrap_or_else(|why| {
            let lines = shown(&self.trace.lines(from));
            panic!("{wanted} did not come: {why}; seen:\n{lines}")
        })
    }

    /// Waits for the refused bind of a port of the daemon's namespace, by a program.
    fn refused(&self, from: usize, comm: &str, port: u16) -> Value {
        let netns = self.netns().inode();
        self.wait_from(from, &format!("the failed bind of {port}"), |event| {
            event["event"] == "bind"
                && event["error"] == "EADDRINUSE"
                && event["process"]["comm"] == comm
                && event["socket"]["netns"] == netns
                && event["socket"]["local"]["port"] == port
        })
    }

    /// Has a process of the host refused a port of all addresses.
    fn refuse(&self, port: u16) -> Value {
        let from = self.trace.seen();
        self.netns().run(|| {
            let error = Socket::tcp4().bind(&format!("0.0.0.0:{port}")).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EADDRINUSE));
        });
        self.refused(from, netns::COMM, port)["conflict"].clone()
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
    let _listener = host.netns().run(|| {
        let listener = Socket::tcp4().bound("0.0.0.0:9090");
        listener.listen(1).unwrap();
        listener
    });
    let arguments = Docker::run_arguments(&["-p", "9090:80"], &["sleep", "600"]);
    let output = host.docker.try_docker(&arguments);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("address already in use"), "{told}");
    let refused = host.refused(host.from, "docker-proxy", 9090);
    let conflict = &refused["conflict"];
    assert_eq!(conflict["cause"], "listener", "{conflict}");
    let holder = &conflict["holders"][0];
    assert_eq!(
        holder["processes"][0]["pid"],
        std::process::id(),
        "{holder}"
    );
    assert!(holder["publishes"].is_null(), "{holder}");
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
    let refused = host.refused(host.from, "busybox", 7070);
    let of = |place: usize| container(&ids[place], names[place], &json!({}));
    assert_eq!(refused["process"]["container"], of(1), "{refused}");
    let conflict = &refused["conflict"];
    let holder = &conflict["holders"][0];
    assert_eq!(holder["processes"][0]["container"], of(0), "{conflict}");
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
