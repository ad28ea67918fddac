//! Podman's containers, as root and as a user, as holders and as newcomers.

use std::fs::File;
use std::process::{Command, Output};

use portwatch_tests::{Socket, portwatch, systemd};
use serde_json::{Value, json};

use crate::room::{Room, Turn, new_group, output, printed};
use crate::scene::{Scene, group};

/// The image that all containers are made of: busybox and nothing else.
pub const IMAGE: &str = "localhost/portwatch-test:1";
/// A user of the room, who is nobody outside of it.
const USER: u32 = 54_321;

/// Pasta, as it calls itself on a processor that has AVX2.
const PASTA: &str = "pasta.avx2";

/// Podman's settings: what works on every host, whatever its cgroups are and its limits.
/// Where systemd runs it is as installed.
const CONFIGURATION: &str = r#"
[containers]
default_ulimits = []
pids_limit = 0
log_driver = "k8s-file"
[network]
network_backend = "netavark"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"#;

/// The driver that works on every file system.
const DRIVER: &str = r#"
[storage]
driver = "vfs"
runroot = "/run/containers/storage"
graphroot = "/var/lib/containers/storage"
"#;

/// Makes a user, with ids of its own for containers, and gives it a device for its networks.
const USERS: &str = r#"
mount -t tmpfs tmpfs /mnt
for file in passwd group subuid subgid; do cp /etc/$file /mnt/$file; done
echo "portwatch-test:x:54321:54321::$PWD/home:/bin/sh" >> /mnt/passwd
echo "portwatch-test:x:54321:" >> /mnt/group
echo "portwatch-test:1000000000:65536" | tee -a /mnt/subuid >> /mnt/subgid
for file in passwd group subuid subgid; do mount --bind /mnt/$file /etc/$file; done
mkdir -p home /run/user/54321
chmod 700 /run/user/54321
chown 54321:54321 home /run/user/54321
mknod -m 666 /mnt/tun c 10 200
mount --bind /mnt/tun /dev/net/tun
"#;

/// The user that the guest has.
const USER_OF_GUEST: &str = "
mkdir home
chown 54321:54321 home
";

/// What root's podman has where it usually is, in the folder.
const STORAGE: &str = "
mkdir -p home/storage /var/lib/containers
mount --bind home /var/lib/containers
";

/// A podman of the test's own, and what is traced of it.
pub struct Podman {
    scene: Scene,
    group: String,
    /// The option for a cgroup of its own, where systemd does not make one, and a user may.
    parent: Option<String>,
    user: bool,
    pub room: Room,
}

impl std::ops::Deref for Podman {
    type Target = Scene;

    fn deref(&self) -> &Scene {
        &self.scene
    }
}

impl Podman {
    /// One of root.
    pub fn of_root() -> Self {
        Self::new(Turn::shared(), false)
    }

    /// One of root, and no other containers meanwhile.
    pub fn alone() -> Self {
        Self::new(Turn::alone(), false)
    }

    /// One of a user.
    fn of_user() -> Self {
        Self::new(Turn::shared(), true)
    }

    fn new(turn: Turn, user: bool) -> Self {
        let trace = Scene::trace();
        let group = new_group();
        if user && systemd() {
            // Its own systemd, and its runtime directory, which is mounted before the room is made.
            let manager = format!("user@{USER}.service");
            printed(Command::new("systemctl").args(["start", &manager]));
        }
        let script = match (user, systemd()) {
            (false, _) => STORAGE,
            (true, false) => USERS,
            (true, true) => USER_OF_GUEST,
        };
        let room = Room::new(turn, &[&group], script);
        std::fs::write(room.path("containers.conf"), CONFIGURATION).unwrap();
        std::fs::write(room.path("storage.conf"), DRIVER).unwrap();
        let podman = Self {
            scene: Scene::new(trace, &room.netns),
            parent: (!user && !systemd()).then(|| format!("--cgroup-parent=/{group}")),
            group,
            user,
            room,
        };
        let archive = podman.room.path("root.tar");
        podman.podman(&["import", archive.to_str().unwrap(), IMAGE]);
        podman
    }

    /// `podman`, not started yet.
    pub fn command(&self, arguments: &[&str]) -> Command {
        self.command_within(&[], arguments)
    }

    /// The same, by a program that becomes it.
    fn command_within(&self, within: &[&str], arguments: &[&str]) -> Command {
        let program = [within, &["podman"]].concat();
        let mut command = if self.user {
            let mut command = self.room.command("setpriv");
            let user = USER.to_string();
            command.args(["--reuid", &user, "--regid", &user, "--clear-groups"]);
            command.args(["--inh-caps=-all"]).args(program);
            command.current_dir(self.room.path("home"));
            command.env("HOME", self.room.path("home"));
            command.env("USER", "portwatch-test");
            command.env("XDG_RUNTIME_DIR", format!("/run/user/{USER}"));
            command
        } else {
            let mut command = self.room.command(program[0]);
            command.args(&program[1..]);
            command
        };
        if !systemd() {
            command
                .env("CONTAINERS_CONF", self.room.path("containers.conf"))
                .env("CONTAINERS_STORAGE_CONF", self.room.path("storage.conf"));
        }
        command.args(arguments);
        command
    }

    /// The cgroup of one of root's containers.
    fn group_of(&self, id: &str) -> String {
        if systemd() {
            format!("/machine.slice/libpod-{id}.scope/container")
        } else {
            format!("/{}/libpod-{id}", self.group)
        }
    }

    /// What has the ports of a user's containers.
    fn forwarder(&self) -> &'static str {
        let version = self.podman(&["version", "--format", "{{.Client.Version}}"]);
        let (major, _) = version.split_once('.').unwrap();
        if major.parse::<u32>().unwrap() < 5 {
            "rootlessport"
        } else {
            PASTA
        }
    }

    /// Runs `podman`, which succeeds; gives what it printed.
    fn podman(&self, arguments: &[&str]) -> String {
        printed(&mut self.command(arguments))
    }

    /// Runs `podman`, which fails.
    fn fail(&self, arguments: &[&str]) -> String {
        let Output { status, stderr, .. } = output(&mut self.command(arguments));
        let told = String::from_utf8_lossy(&stderr).into_owned();
        assert!(!status.success(), "podman {arguments:?}: {told}");
        told
    }

    /// What [`Podman::run`] gives to `podman`.
    pub fn run_arguments<'a>(&'a self, options: &[&'a str], busybox: &[&'a str]) -> Vec<&'a str> {
        let image: &[&str] = &[IMAGE, "/bin/busybox"];
        let run: &[&str] = &["run", "--detach", "--pull=never"];
        // A container in a pod is below the pod's.
        let own = self.parent.as_deref();
        let parent = own.filter(|_| !options.contains(&"--pod")).into_iter();
        let parent: Vec<_> = parent.collect();
        [run, &parent, options, image, busybox].concat()
    }

    /// Starts a container in the background: options of `podman run`, and what busybox does in it. Gives
    /// its id.
    pub fn run(&self, options: &[&str], busybox: &[&str]) -> String {
        self.podman(&self.run_arguments(options, busybox))
    }

    /// Starts one of root's in the network of the host itself, and not of the room.
    fn run_on_host(&self, options: &[&str], busybox: &[&str]) -> String {
        let options = [&["--net", "host"], options].concat();
        let arguments = self.run_arguments(&options, busybox);
        let enter = ["nsenter", "--net=/proc/self/fd/0"];
        let mut command = self.command_within(&enter, &arguments);
        command.stdin(File::open("/proc/self/ns/net").unwrap());
        printed(&mut command)
    }
}

impl Drop for Podman {
    /// Where they do not end with the room, its containers end here.
    fn drop(&mut self) {
        if !systemd() {
            return;
        }
        for all in ["pod", "container"] {
            output(&mut self.command(&[all, "rm", "--all", "--force", "--time", "0"]));
        }
        if self.user {
            // Ends the process that keeps the user's namespaces.
            output(&mut self.command(&["system", "migrate"]));
        }
    }
}

fn container(id: &str, name: &str) -> Value {
    json!({"runtime": "podman", "id": id, "name": name, "image": IMAGE})
}

/// As podman lists the containers that there are by name.
fn id_of(podman: &Podman, name: &str) -> String {
    podman.podman(&[
        "inspect",
        "--type",
        "container",
        "--format",
        "{{.Id}}",
        name,
    ])
}

#[test]
fn a_published_port() {
    let podman = Podman::of_root();
    let options = ["--name", "web-1", "--label", "app=shop", "-p", "8080:80"];
    let id = podman.run(&options, &["sleep", "600"]);
    let mut web = container(&id, "web-1");
    web["labels"] = json!({"app": "shop"});

    // A process of the host against it.
    let conflict = podman.refuse(8080);
    assert_eq!(conflict["cause"], "published-port", "{conflict}");
    let holder = &conflict["holders"][0];
    assert_eq!(holder["processes"][0]["comm"], "conmon", "{holder}");
    assert_eq!(
        holder["publishes"],
        json!({"container": web, "port": 80}),
        "{holder}"
    );
    assert_eq!(
        conflict["summary"],
        format!("container web-1 ({IMAGE}) publishes its port 80 on 0.0.0.0:8080")
    );
    assert_eq!(
        conflict["advice"],
        "stop container web-1 (podman stop web-1), or change its mapping of ports"
    );

    // Another container against it.
    let from = podman.seen();
    let options = ["--name", "second", "-p", "8080:81"];
    let told = podman.fail(&podman.run_arguments(&options, &["sleep", "600"]));
    assert!(told.contains("address already in use"), "{told}");
    let refused = podman.refused(from, "podman", 8080);
    let conflict = &refused["conflict"];
    let second = container(&id_of(&podman, "second"), "second");
    assert_eq!(
        conflict["publishes"],
        json!({"container": second, "port": 81}),
        "{refused}"
    );
    let holder = &conflict["holders"][0];
    assert_eq!(
        holder["publishes"],
        json!({"container": web, "port": 80}),
        "{refused}"
    );
}

fn host_against_container(podman: &Podman, binder: &str, cause: &str) {
    let _listener = podman.listener(9090);
    let options = ["--name", "web-1", "-p", "9090:80"];
    let run = podman.run_arguments(&options, &["sleep", "600"]);
    if binder == PASTA {
        // It is content with the port of IPv6 alone.
        podman.podman(&run);
    } else {
        podman.fail(&run);
    }
    let refused = podman.refused(0, binder, 9090);
    let conflict = &refused["conflict"];
    let holder = &conflict["holders"][0];
    assert_eq!(
        holder["processes"][0]["pid"],
        std::process::id(),
        "{holder}"
    );
    if binder == PASTA {
        // Its container may run by the time it is looked for: see docs/limitations.md.
        return;
    }
    assert_eq!(conflict["cause"], cause, "{conflict}");
    let web = container(&id_of(podman, "web-1"), "web-1");
    assert_eq!(
        conflict["publishes"],
        json!({"container": web, "port": 80}),
        "{conflict}"
    );
}

#[test]
fn a_process_of_the_host_refuses_a_published_port() {
    let podman = Podman::of_root();
    // Podman may have ended when it is looked for. Where its records are in this room, which has a
    // mount namespace of its own, the other's conmon tells.
    podman.run(&["--name", "other"], &["sleep", "600"]);
    host_against_container(&podman, "podman", "listener");
}

#[test]
fn a_process_of_the_host_refuses_a_published_port_of_a_user() {
    let podman = Podman::of_user();
    // It is the first container, so no conmon tells where the records are.
    // It binds the wildcard of IPv6.
    host_against_container(&podman, podman.forwarder(), "dual-stack");
}

#[test]
fn a_pod() {
    let podman = Podman::of_root();
    let create = ["pod", "create", "--name", "shop", "-p", "9090:90"];
    let parent: Vec<_> = podman.parent.as_deref().into_iter().collect();
    let pod_id = podman.podman(&[&create[..], &parent].concat());
    let id = podman.run(
        &["--pod", "shop", "--name", "front"],
        &["nc", "-l", "-p", "90"],
    );
    let bound = podman.bound(90, &id);
    let pod = json!({"name": "shop", "uid": pod_id});
    assert_eq!(
        bound["process"]["container"],
        container(&id, "front"),
        "{bound}"
    );
    assert_eq!(bound["process"]["pod"], pod, "{bound}");

    // Its ports are those of the container that holds its namespaces.
    let conflict = podman.refuse(9090);
    let holder = &conflict["holders"][0];
    let infra = format!("{}-infra", &pod_id[..12]);
    let publishes = &holder["publishes"];
    assert_eq!(publishes["container"]["name"], infra, "{holder}");
    assert_eq!(
        publishes["container"]["id"],
        id_of(&podman, &infra),
        "{holder}"
    );
    assert_eq!(publishes["pod"], pod, "{holder}");
    assert_eq!(publishes["port"], 90, "{holder}");
    assert_eq!(
        conflict["advice"],
        "stop pod shop (podman pod stop shop), or change its mapping of ports"
    );
}

#[test]
fn containers_of_the_hosts_network_and_a_new_name() {
    let podman = Podman::of_root();
    let listen = ["nc", "-l", "-p", "7070"];
    let first = podman.run(&["--net", "host", "--name", "first"], &listen);
    let bound = podman.bound(7070, &first);
    assert_eq!(group(&bound["process"]), podman.group_of(&first));
    podman.podman(&["rename", "first", "renamed"]);
    let second = podman.run(&["--net", "host", "--name", "second"], &listen);
    let refused = podman.refused(0, "busybox", 7070);
    assert_eq!(
        refused["process"]["container"],
        container(&second, "second"),
        "{refused}"
    );
    let holder = &refused["conflict"]["holders"][0];
    assert_eq!(
        holder["processes"][0]["container"]["id"], first,
        "{refused}"
    );
    // What is known of it is good for a second.
    let begin = std::time::Instant::now();
    loop {
        let conflict = podman.refuse(7070);
        let seen = &conflict["holders"][0]["processes"][0]["container"];
        if *seen == container(&first, "renamed") {
            break;
        }
        assert_eq!(*seen, container(&first, "first"), "{conflict}");
        assert!(begin.elapsed() < *portwatch_tests::LIMIT, "{conflict}");
    }
}

/// The others publish in, or are of, a namespace that the test has made.
#[test]
fn a_container_of_the_network_of_the_host() {
    let podman = Podman::of_root();
    // Below those that are given away. One found free by asking would be lost in a race.
    let port = 10_000 + u16::try_from(std::process::id() % 20_000).unwrap();
    let at = format!("[::]:{port}");
    let listen = ["httpd", "-f", "-p", &at];
    let id = podman.run_on_host(&["--name", "web-1"], &listen);
    podman.bound(port, &id);
    Socket::tcp6().bind(&at).unwrap_err();
    let refused = podman.wait("the failed bind", |event| {
        event["event"] == "bind"
            && event["error"] == "EADDRINUSE"
            && event["process"]["pid"] == std::process::id()
            && event["socket"]["local"]["port"] == port
    });
    let conflict = &refused["conflict"];
    let process = &conflict["holders"][0]["processes"][0];
    assert_eq!(process["container"], container(&id, "web-1"), "{conflict}");
    assert_eq!(conflict["cause"], "host-network", "{conflict}");
    assert_eq!(
        conflict["summary"],
        format!(
            "busybox[{}] of container web-1 ({IMAGE}) is in the host's own network and listens on \
             {at}",
            process["pid"]
        )
    );
    assert_eq!(
        conflict["advice"],
        "stop container web-1 (podman stop web-1), or give it a network of its own: no --network \
         host, no hostNetwork"
    );
}

/// Its record is taken away as soon as it has ended.
#[test]
fn a_container_that_binds_and_exits_at_once() {
    let podman = Podman::of_root();
    // The first process of the container goes into the background, and so ends.
    let run = podman.run_arguments(&["--rm", "--name", "brief"], &["httpd", "-p", "82"]);
    let id = podman.podman(&run);
    let bound = podman.wait("the bind of 82", |event| {
        event["event"] == "bind" && event["socket"]["local"]["port"] == 82
    });
    assert_eq!(
        bound["process"]["container"],
        container(&id, "brief"),
        "{bound}"
    );
}

/// Without root, another process than podman's own has the port. On cgroup v1 its containers have no cgroup.
#[test]
fn a_published_port_of_a_user() {
    let podman = Podman::of_user();
    let options = ["--name", "web-1", "--label", "app=shop", "-p", "8080:80"];
    let id = podman.run(&options, &["nc", "-l", "-p", "80"]);
    let mut web = container(&id, "web-1");
    web["labels"] = json!({"app": "shop"});
    let bound = podman.bound(80, &id);
    assert_eq!(bound["process"]["container"], web, "{bound}");
    assert_ne!(bound["process"]["netns"], podman.netns().inode(), "{bound}");

    let conflict = podman.refuse(8080);
    assert_eq!(conflict["cause"], "published-port", "{conflict}");
    let holder = &conflict["holders"][0];
    let forwarder = podman.forwarder();
    assert_eq!(holder["processes"][0]["comm"], forwarder, "{holder}");
    assert_eq!(
        holder["publishes"],
        json!({"container": web, "port": 80}),
        "{holder}"
    );

    // As it is told of a port, and of a container.
    let inode = podman.netns().inode().to_string();
    let why = output(Command::new(portwatch()).args(["why", "8080", "--json", "--netns", &inode]));
    let why: Value = serde_json::from_slice(&why.stdout).unwrap();
    let published = json!({
        "container": web, "protocol": "tcp", "address": "0.0.0.0", "port": 80, "by_socket": true,
    });
    assert_eq!(why["published"], json!([published]), "{why}");
    let list =
        printed(Command::new(portwatch()).args(["list", "--json", "--container", &id[..20]]));
    let of = |port: u16| {
        let rows = list
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap());
        let mut rows = rows.filter(|row| row["socket"]["local"]["port"] == port);
        rows.next().unwrap_or_default()
    };
    assert_eq!(of(80)["processes"][0]["container"], web, "{list}");
    let publishes = json!({"container": web, "port": 80});
    assert_eq!(of(8080)["publishes"], publishes, "{list}");

    let from = podman.seen();
    let options = ["--name", "second", "-p", "8080:81"];
    let told = podman.fail(&podman.run_arguments(&options, &["sleep", "600"]));
    let told = told.to_lowercase();
    assert!(told.contains("address already in use"), "{told}");
    let refused = podman.refused(from, forwarder, 8080);
    let second = container(&id_of(&podman, "second"), "second");
    let conflict = &refused["conflict"];
    assert_eq!(
        conflict["publishes"],
        json!({"container": second, "port": 81}),
        "{refused}"
    );
    let publishes = &conflict["holders"][0]["publishes"];
    assert_eq!(
        *publishes,
        json!({"container": web, "port": 80}),
        "{refused}"
    );
}

/// Within the second for which it is not looked anew for ports.
#[test]
fn a_port_of_a_user_that_goes_to_another_container() {
    let podman = Podman::of_user();
    for (name, port) in [("first", "81"), ("second", "82")] {
        let id = podman.run(
            &["--name", name, "-p", &format!("8080:{port}")],
            &["sleep", "600"],
        );
        let conflict = podman.refuse(8080);
        let publishes = &conflict["holders"][0]["publishes"];
        assert_eq!(publishes["container"], container(&id, name), "{conflict}");
        assert_eq!(publishes["port"].to_string(), port, "{conflict}");
        podman.podman(&["rm", "--force", "--time", "0", name]);
    }
}

#[test]
fn a_pod_of_a_user() {
    let podman = Podman::of_user();
    let pod_id = podman.podman(&["pod", "create", "--name", "shop", "-p", "9090:90"]);
    podman.run(&["--pod", "shop", "--name", "front"], &["sleep", "600"]);
    let conflict = podman.refuse(9090);
    let publishes = &conflict["holders"][0]["publishes"];
    // All its containers are in one network namespace, and one has the ports.
    let infra = format!("{}-infra", &pod_id[..12]);
    assert_eq!(publishes["container"]["name"], infra, "{conflict}");
    assert_eq!(
        publishes["pod"],
        json!({"name": "shop", "uid": pod_id}),
        "{conflict}"
    );
    assert_eq!(publishes["port"], 90, "{conflict}");
}

#[test]
fn a_port_of_a_user_that_slirp4netns_holds() {
    let podman = Podman::of_user();
    let network = "slirp4netns:port_handler=slirp4netns";
    let options = ["--network", network, "--name", "web-1", "-p", "8080:80"];
    let id = podman.run(&options, &["sleep", "600"]);
    let conflict = podman.refuse(8080);
    let holder = &conflict["holders"][0];
    assert_eq!(holder["processes"][0]["comm"], "slirp4netns", "{holder}");
    let web = container(&id, "web-1");
    assert_eq!(
        holder["publishes"],
        json!({"container": web, "port": 80}),
        "{holder}"
    );
}
