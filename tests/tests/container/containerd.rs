//! Containers of containerd, as `ctr` makes them, and with the labels that Kubernetes gives.

use std::cell::RefCell;
use std::process::Stdio;

use portwatch_tests::{Program, start, systemd};
use serde_json::{Value, json};

use crate::room::{Room, Turn, limit, output, printed};
use crate::scene::{Scene, group};

/// A containerd of the test's own, and what is traced of it.
struct Containerd {
    scene: Scene,
    room: Room,
    _daemon: Program,
    /// Namespaces and ids of what was started.
    started: RefCell<Vec<[String; 2]>>,
}

impl std::ops::Deref for Containerd {
    type Target = Scene;

    fn deref(&self) -> &Scene {
        &self.scene
    }
}

impl Containerd {
    /// Starts one; it is ready when this returns.
    /// `groups` are those of its containers.
    fn start(groups: &[&str]) -> Self {
        let trace = Scene::trace();
        let room = Room::new(Turn::shared(), groups, "");
        let place = |name: &str| room.path(name).display().to_string();
        let configuration = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = {:?}\n",
            place("data"),
            place("state"),
            place("socket")
        );
        std::fs::write(room.path("config.toml"), configuration).unwrap();
        let log = || std::fs::File::create(room.path("log")).unwrap();
        let mut command = room.command("containerd");
        command.arg("--config").arg(room.path("config.toml"));
        command.stdout(Stdio::null()).stderr(log());
        let daemon = start(&mut command);
        let containerd = Self {
            scene: Scene::new(trace, &room.netns),
            room,
            _daemon: daemon,
            started: RefCell::default(),
        };
        containerd.wait_until_ready();
        containerd
    }

    /// It tells systemd alone that it is, so it is asked.
    fn wait_until_ready(&self) {
        let begin = std::time::Instant::now();
        while !output(&mut self.command(&["version"])).status.success() {
            let log = std::fs::read_to_string(self.room.path("log")).unwrap_or_default();
            assert!(begin.elapsed() < limit(), "containerd is not ready:\n{log}");
        }
    }

    fn command(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = self.room.command("ctr");
        command
            .arg("--address")
            .arg(self.room.path("socket"))
            .args(arguments);
        command
    }

    /// Starts a container in a namespace of containerd: options of `ctr run`, its id, and what busybox does
    /// in it.
    fn run(&self, namespace: &str, options: &[&str], id: &str, busybox: &[&str]) {
        let root = self.room.path("root").display().to_string();
        let run = ["--namespace", namespace, "run", "--detach", "--rootfs"];
        let scope = format!("--cgroup={}:{id}", scopes(namespace));
        let group: &[&str] = if systemd() {
            &["--runc-systemd-cgroup", &scope]
        } else {
            &[]
        };
        let program: &[&str] = &[&root, id, "/bin/busybox"];
        printed(&mut self.command(&[&run[..], group, options, program, busybox].concat()));
        let started = [namespace, id].map(str::to_owned);
        self.started.borrow_mut().push(started);
    }

    /// The cgroup of a container of a namespace.
    fn group_of(&self, namespace: &str, id: &str) -> String {
        if !systemd() {
            return format!("/{namespace}/{id}");
        }
        let (slice, prefix) = scopes(namespace).split_once(':').unwrap();
        match slice.split_once('-') {
            None => format!("/{slice}/{prefix}-{id}.scope"),
            Some((outer, _)) => format!("/{outer}.slice/{slice}/{prefix}-{id}.scope"),
        }
    }
}

impl Drop for Containerd {
    /// Where they do not end with the room, its containers end here.
    fn drop(&mut self) {
        if !systemd() {
            return;
        }
        for [namespace, id] in self.started.take() {
            let kill = ["tasks", "kill", "--signal", "SIGKILL", &id];
            output(&mut self.command(&[&["--namespace", &namespace], &kill[..]].concat()));
        }
    }
}

/// The slice and the prefix of the scopes that systemd has for the containers of a namespace: as the
/// kubelet has it, and as `ctr` does.
fn scopes(namespace: &str) -> &'static str {
    match namespace {
        "k8s.io" => "kubepods-besteffort.slice:cri-containerd",
        _ => "system.slice:ctr",
    }
}

fn container(id: &str, name: &str) -> Value {
    json!({"runtime": "containerd", "id": id, "name": name})
}

/// One of the default namespace, and one of a namespace that its cgroup's path does not tell of.
#[test]
fn a_container_of_the_hosts_network_refuses_another() {
    let containerd = Containerd::start(&["default/ctr-first", "shop/ctr-second"]);
    let listen = ["nc", "-l", "-p", "7070"];
    let options = ["--net-host", "--label", "app=shop"];
    containerd.run("default", &options, "ctr-first", &listen);
    let mut first = container("ctr-first", "ctr-first");
    first["labels"] = json!({"app": "shop"});
    let bound = containerd.bound(7070, "ctr-first");
    assert_eq!(bound["process"]["container"], first, "{bound}");
    assert_eq!(
        group(&bound["process"]),
        containerd.group_of("default", "ctr-first")
    );
    containerd.run("shop", &["--net-host"], "ctr-second", &listen);
    let refused = containerd.refused(0, "busybox", 7070);
    let second = container("ctr-second", "ctr-second");
    assert_eq!(refused["process"]["container"], second, "{refused}");
    assert_eq!(
        group(&refused["process"]),
        containerd.group_of("shop", "ctr-second")
    );
    let conflict = &refused["conflict"];
    let holder = &conflict["holders"][0]["processes"][0];
    assert_eq!(holder["container"], first, "{conflict}");
    let advice = conflict["advice"].as_str().unwrap();
    assert!(advice.contains("ctr tasks kill ctr-first"), "{advice}");

    // A process of the host against it.
    let conflict = containerd.refuse(7070);
    assert_eq!(
        conflict["holders"][0]["processes"][0]["container"], first,
        "{conflict}"
    );
}

/// As the kubelet has its containers made: by an id that says nothing, with labels.
#[test]
fn a_pod_of_kubernetes() {
    let id = format!("{:064x}", std::process::id());
    let containerd = Containerd::start(&[&format!("k8s.io/{id}")]);
    let labels = [
        ("io.kubernetes.pod.namespace", "shop"),
        ("io.kubernetes.pod.name", "web-7d9f"),
        (
            "io.kubernetes.pod.uid",
            "2f9e1a7c-6b0d-4c57-9e58-0d6f3b1f2a11",
        ),
        ("io.kubernetes.container.name", "nginx"),
    ];
    let given = labels.map(|(key, value)| format!("{key}={value}"));
    let mut options = vec!["--net-host"];
    for label in &given {
        options.extend(["--label", label]);
    }
    containerd.run("k8s.io", &options, &id, &["nc", "-l", "-p", "7171"]);
    let bound = containerd.bound(7171, &id);
    let pod = json!({
        "namespace": "shop",
        "name": "web-7d9f",
        "uid": "2f9e1a7c-6b0d-4c57-9e58-0d6f3b1f2a11",
        "container": "nginx",
    });
    assert_eq!(bound["process"]["pod"], pod, "{bound}");
    assert_eq!(bound["process"]["container"]["name"], "nginx", "{bound}");
    assert_eq!(group(&bound["process"]), containerd.group_of("k8s.io", &id));
    let conflict = containerd.refuse(7171);
    let holder = &conflict["holders"][0]["processes"][0];
    assert_eq!(holder["pod"], pod, "{conflict}");
    let advice = conflict["advice"].as_str().unwrap();
    assert!(
        advice.contains("kubectl -n shop delete pod web-7d9f"),
        "{advice}"
    );
}
