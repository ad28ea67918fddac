//! Records as they are, as they should not be, and as they change.

mod databases;
mod life;

use std::fs::{self, File};
use std::time::Duration;

use std::sync::Arc;

use tempfile::TempDir;

use super::*;
use crate::event::{
    Actor, Address, Family, Options, Process, Publishes, Socket, State, Text, Time, Transport,
};

const STORAGE: [&str; 2] = [
    "var/lib/containers/storage/overlay-containers/containers.json",
    "var/lib/containers/storage/overlay-containers/volatile-containers.json",
];

const DOCKER: &str = include_str!("../../../tests/fixtures/runtime/docker/config.v2.json");
const PODMAN: &str = include_str!("../../../tests/fixtures/runtime/podman/containers.json");
const DAEMON: &str = include_str!("../../../tests/fixtures/runtime/docker/daemon.json");

const WEB: &str = "3f4e1c0a9b7d5e2f8c6a4b1d0e9f7a5c3b2d1e0f9a8b7c6d5e4f3a2b1c0d9e8f";
const DB: &str = "9d0c4f6b2a1e8d7c5b3a9f0e1d2c3b4a5f6e7d8c9b0a1f2e3d4c5b6a7f8e9d0c";
const INFRA: &str = "1b2c3d4e5f60718293a4b5c6d7e8f9010a1b2c3d4e5f60718293a4b5c6d7e8f9";

/// Where records are was looked up for something else just before the daemon came.
#[test]
fn a_daemon_that_came_a_moment_ago() {
    // Whether the ports that were read before would be good enough for others or not.
    for before in [50, 1_050] {
        let mut host = Host::new();
        assert_eq!(host.containers.publishing(8080, host.now), []);
        host.wait(before);
        host.get("docker", WEB);
        host.write("proc/7/comm", "dockerd\n");
        host.write("proc/7/cmdline", "dockerd\0--data-root\0/srv/docker\0");
        let record = docker_path(WEB).replace("var/lib", "proc/7/root/srv");
        host.write(&record, DOCKER);
        host.wait(1);
        let found = host.containers.publishing(8080, host.now);
        assert_eq!(found.len(), 2, "one of each family, {before}: {found:?}");
    }
}

/// A host whose clock is moved by hand.
struct Host {
    root: TempDir,
    containers: Containers,
    now: Instant,
}

impl Host {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        Self {
            containers: Containers::new(root.path()),
            root,
            now: Instant::now(),
        }
    }

    fn path(&self, path: &str) -> PathBuf {
        let path = self.root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }

    /// Replaces a file as the runtimes do: by rename.
    fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.path(path);
        let new = path.with_extension("new");
        fs::write(&new, content).unwrap();
        fs::rename(new, path).unwrap();
    }

    fn wait(&mut self, milliseconds: u64) {
        self.now += Duration::from_millis(milliseconds);
    }

    /// What is known of a container, but for its life.
    fn named(&mut self, runtime: &'static str, id: &str) -> Named {
        lifeless(self.containers.get(&reference(runtime, id), self.now))
    }

    /// When it was created, and since when it runs.
    fn life(&mut self, runtime: &'static str, id: &str) -> [Option<String>; 2] {
        let life = self.containers.get(&reference(runtime, id), self.now).life;
        [life.created, life.running_since].map(|time| time.map(|time| time.to_string()))
    }

    fn get(&mut self, runtime: &'static str, id: &str) -> Container {
        self.named(runtime, id).container
    }
}

fn lifeless(named: Named) -> Named {
    Named {
        life: Life::default(),
        ..named
    }
}

fn reference(runtime: &'static str, id: &str) -> ContainerRef {
    ContainerRef {
        runtime,
        id: id.to_owned(),
    }
}

fn docker_path(id: &str) -> String {
    format!("var/lib/docker/containers/{id}/config.v2.json")
}

fn container(runtime: &'static str, id: &str, name: &str, image: &str) -> Container {
    Container {
        name: text(name),
        image: text(image),
        ..just_id(&reference(runtime, id))
    }
}

fn web() -> Container {
    let labels = [
        ("com.docker.compose.container-number", "1"),
        ("com.docker.compose.project", "shop"),
        ("com.docker.compose.service", "web"),
    ];
    Container {
        labels: labels
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
        ..container("docker", WEB, "shop-web-1", "nginx:1.27")
    }
}

#[test]
fn docker() {
    let mut host = Host::new();
    host.write(&docker_path(WEB), DOCKER);
    assert_eq!(host.get("docker", WEB), web());
    // cri-dockerd.
    assert_eq!(host.get("containerd", WEB), web());
    assert_eq!(host.get("docker", DB), container("docker", DB, "", ""));
    assert_eq!(host.get("podman", WEB), container("podman", WEB, "", ""));
}

#[test]
fn docker_elsewhere() {
    let mut host = Host::new();
    host.write("etc/docker/daemon.json", DAEMON);
    host.write(
        &format!("srv/docker/containers/{WEB}/config.v2.json"),
        DOCKER,
    );
    assert_eq!(host.get("docker", WEB), web());

    // What the user says goes before what the file says.
    host.containers =
        Containers::new(host.root.path()).docker_data_root(Path::new("/var/lib/docker"));
    assert_eq!(host.get("docker", WEB), container("docker", WEB, "", ""));
    host.containers = Containers::new(host.root.path()).docker_data_root(Path::new("/other"));
    host.write(&format!("other/containers/{WEB}/config.v2.json"), DOCKER);
    assert_eq!(host.get("docker", WEB), web());
}

#[test]
fn docker_with_an_unusable_configuration() {
    for daemon in [
        "",
        "{",
        "[]",
        "{}",
        r#"{"data-root": 1}"#,
        r#"{"data-root": null}"#,
        r#"{"data-root": "relative"}"#,
    ] {
        let mut host = Host::new();
        host.write("etc/docker/daemon.json", daemon);
        host.write(&docker_path(WEB), DOCKER);
        assert_eq!(host.get("docker", WEB), web(), "with {daemon}");
    }
}

#[test]
fn podman() {
    let mut host = Host::new();
    host.write(STORAGE[0], PODMAN);
    let image = "docker.io/library/postgres:17";
    assert_eq!(host.get("podman", DB), container("podman", DB, "db", image));
    assert_eq!(host.get("cri-o", DB), container("cri-o", DB, "db", image));
    // The container of a pod itself has no image.
    assert_eq!(
        host.get("podman", INFRA),
        container("podman", INFRA, "shop-infra", "")
    );
    assert_eq!(host.get("podman", WEB), container("podman", WEB, "", ""));
}

#[test]
fn podman_with_rm() {
    let mut host = Host::new();
    for stable in ["[]", "{"] {
        host.wait(1000);
        host.write(STORAGE[0], stable);
        host.write(STORAGE[1], PODMAN);
        let image = "docker.io/library/postgres:17";
        assert_eq!(host.get("podman", DB), container("podman", DB, "db", image));
        host.containers = Containers::new(host.root.path());
    }
}

#[test]
fn podman_without_names_or_metadata() {
    let mut host = Host::new();
    let cases = [
        (r#""names":null,"metadata":null"#, "", ""),
        (r#""names":[],"metadata":"{\"name\":\"m\"}""#, "m", ""),
        (r#""names":["a","b"],"metadata":"{""#, "a", ""),
        (r#""metadata":"{\"image-name\":\"i\"}""#, "", "i"),
    ];
    for (rest, name, image) in cases {
        host.wait(1000);
        host.write(STORAGE[0], format!(r#"[{{"id":"{DB}",{rest}}}]"#));
        assert_eq!(
            host.get("podman", DB),
            container("podman", DB, name, image),
            "of {rest}"
        );
    }
}

#[test]
fn runtimes_without_records() {
    let mut host = Host::new();
    for (runtime, id) in [
        ("lxc", "web"),
        ("systemd-nspawn", "web"),
        ("ecs", "0123456789abcdef0123456789abcdef-1"),
        ("containerd", "c1"),
        ("containerd", WEB),
    ] {
        assert_eq!(host.get(runtime, id), container(runtime, id, "", ""));
    }
}

#[test]
fn an_id_is_no_path() {
    let mut host = Host::new();
    host.write("var/lib/docker/evil/config.v2.json", DOCKER);
    fs::create_dir_all(host.path("var/lib/docker/containers/x")).unwrap();
    for id in ["../evil", "", ".", "/etc"] {
        assert_eq!(host.get("docker", id), container("docker", id, "", ""));
    }
}

#[test]
fn a_rename_is_seen_within_a_second() {
    let mut host = Host::new();
    let renamed = Container {
        name: text("front"),
        ..web()
    };
    host.write(&docker_path(WEB), DOCKER);
    assert_eq!(host.get("docker", WEB), web());
    host.wait(1000);
    assert_eq!(host.get("docker", WEB), web());

    host.write(&docker_path(WEB), DOCKER.replace("/shop-web-1", "/front"));
    host.wait(999);
    assert_eq!(host.get("docker", WEB), web());
    host.wait(1);
    assert_eq!(host.get("docker", WEB), renamed);

    // The clock of the file may be set back.
    host.write(&docker_path(WEB), DOCKER);
    let file = File::options()
        .write(true)
        .open(host.path(&docker_path(WEB)));
    let epoch = std::time::UNIX_EPOCH;
    file.unwrap().set_modified(epoch).unwrap();
    host.wait(1000);
    assert_eq!(host.get("docker", WEB), web());
}

#[test]
fn a_file_that_did_not_change_is_not_read_again() {
    let mut host = Host::new();
    let path = host.path(&docker_path(WEB));
    fs::write(&path, DOCKER).unwrap();
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    assert_eq!(host.get("docker", WEB), web());

    // Other content under the same stamp.
    fs::write(&path, " ".repeat(DOCKER.len())).unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    file.set_modified(modified).unwrap();
    host.wait(5000);
    assert_eq!(host.get("docker", WEB), web());
}

#[test]
fn an_absent_record_is_looked_for_once_a_second() {
    let mut host = Host::new();
    let nothing = container("docker", WEB, "", "");
    assert_eq!(host.get("docker", WEB), nothing);
    host.write(&docker_path(WEB), DOCKER);
    host.wait(999);
    assert_eq!(host.get("docker", WEB), nothing);
    host.wait(1);
    assert_eq!(host.get("docker", WEB), web());
}

#[test]
fn a_removed_container_keeps_its_name() {
    let mut host = Host::new();
    host.write(&docker_path(WEB), DOCKER);
    host.write(STORAGE[0], PODMAN);
    let db = host.get("podman", DB);
    assert_eq!(host.get("docker", WEB), web());
    fs::remove_file(host.path(&docker_path(WEB))).unwrap();
    host.write(STORAGE[0], "[]");
    for _ in 0..2 {
        host.wait(1000);
        assert_eq!(host.get("docker", WEB), web());
        assert_eq!(host.get("podman", DB), db);
    }
}

#[test]
fn a_time_before_the_last_is_no_reason_to_read() {
    let mut host = Host::new();
    host.wait(60_000);
    host.write(&docker_path(WEB), DOCKER);
    assert_eq!(host.get("docker", WEB), web());
    host.now -= Duration::from_secs(30);
    assert_eq!(host.get("docker", WEB), web());
}

#[test]
fn only_so_many_are_kept() {
    let mut host = Host::new();
    for number in 0..1000 {
        host.get("docker", &format!("{number:064x}"));
    }
    assert_eq!(host.containers.cache.len(), 256);
}

#[test]
fn a_truncated_record_leaves_just_the_id() {
    let mut host = Host::new();
    let mut lengths: Vec<usize> = (0..DOCKER.trim_end().len()).step_by(97).collect();
    lengths.push(DOCKER.trim_end().len() - 1);
    for length in lengths {
        host.wait(1000);
        host.write(&docker_path(WEB), &DOCKER[..length]);
        assert_eq!(
            host.get("docker", WEB),
            container("docker", WEB, "", ""),
            "after {length} bytes"
        );
    }
    for length in (0..PODMAN.trim_end().len()).step_by(97) {
        host.wait(1000);
        host.write(STORAGE[0], &PODMAN[..length]);
        assert_eq!(
            host.get("podman", DB),
            container("podman", DB, "", ""),
            "after {length} bytes"
        );
    }
    // And the whole record heals it.
    host.wait(1000);
    host.write(&docker_path(WEB), DOCKER);
    assert_eq!(host.get("docker", WEB), web());
}

#[test]
fn a_hostile_record_leaves_just_the_id() {
    let mut host = Host::new();
    let deep = "[".repeat(100_000);
    let large = format!("{DOCKER}{}", " ".repeat(4 << 20));
    let records: [&[u8]; 12] = [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b"\0\0\0\0",
        deep.as_bytes(),
        large.as_bytes(),
        DOCKER.as_bytes().split_at(1).1,
        &DOCKER.replace(WEB, DB).into_bytes(),
        &DOCKER.replace("\"/shop-web-1\"", "7").into_bytes(),
        &DOCKER.replace("\"shop\"", "{}").into_bytes(),
    ];
    for record in records {
        host.wait(1000);
        host.write(&docker_path(WEB), record);
        host.write(STORAGE[0], record);
        let shown = String::from_utf8_lossy(record);
        for runtime in ["docker", "podman"] {
            assert_eq!(
                host.get(runtime, WEB),
                container(runtime, WEB, "", ""),
                "of {shown:.80}"
            );
        }
    }
}

#[test]
fn a_record_that_breaks_loses_the_name() {
    let mut host = Host::new();
    host.write(&docker_path(WEB), DOCKER);
    assert_eq!(host.get("docker", WEB), web());
    host.write(&docker_path(WEB), "{");
    host.wait(1000);
    assert_eq!(host.get("docker", WEB), container("docker", WEB, "", ""));
}

#[test]
fn a_record_that_is_no_plain_file_is_not_waited_for() {
    let mut host = Host::new();
    let fifo = host.path(&docker_path(WEB));
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::create_dir_all(host.path(STORAGE[0])).unwrap();
    assert_eq!(host.get("docker", WEB), container("docker", WEB, "", ""));
    assert_eq!(host.get("podman", WEB), container("podman", WEB, "", ""));
}

#[test]
fn empty_fields_are_absent() {
    let mut host = Host::new();
    let empty = [
        format!(r#"{{"ID":"{WEB}"}}"#),
        format!(r#"{{"ID":"{WEB}","Name":"/","Config":null}}"#),
        format!(r#"{{"ID":"{WEB}","Name":"","Config":{{"Image":"","Labels":null}}}}"#),
        format!(r#"{{"ID":"{WEB}","Config":{{"Image":null,"Labels":{{}}}}}}"#),
    ];
    for record in empty {
        host.wait(1000);
        host.write(&docker_path(WEB), &record);
        assert_eq!(
            host.get("docker", WEB),
            container("docker", WEB, "", ""),
            "of {record}"
        );
    }
}

/// A socket of the host on a port.
fn held(transport: Transport, address: [u8; 4], port: u16) -> Socket {
    Socket {
        transport: Some(transport),
        family: Some(Family::Ipv4),
        local: Some(Address::v4(address, port)),
        remote: None,
        state: Some(State::Listen),
        options: Options::default(),
        bound_device: None,
        netns: Some(1),
        cookie: None,
        inode: None,
        kernel: false,
    }
}

/// A process with these arguments.
fn actor(line: &str) -> Actor {
    let args: Vec<Text> = line.split(' ').map(Text::from).collect();
    Actor {
        pid: 880,
        tid: None,
        comm: "proxy".into(),
        comm_hex: None,
        uid: 0,
        start_time: Time(0),
        gid: 0,
        job: None,
        process: Arc::new(Process {
            exe: args.first().cloned(),
            args: Some(args),
            ..Process::default()
        }),
    }
}

#[test]
fn ports_that_a_running_container_publishes() {
    let mut host = Host::new();
    let ports = |host: &mut Host, port| -> Vec<_> {
        let found = host.containers.publishing(port, host.now).into_iter();
        found
            .map(|found| {
                (
                    found.named.container.name.unwrap().to_string(),
                    found.host_address,
                    found.port,
                )
            })
            .collect()
    };
    let web = |name: &str, port| {
        let at = |address: &str| (name.to_owned(), Some(address.parse().unwrap()), port);
        [at("0.0.0.0"), at("::")]
    };
    assert_eq!(ports(&mut host, 8080), []);
    host.write(&docker_path(WEB), DOCKER);
    // That there is none is good for a moment only.
    assert_eq!(ports(&mut host, 8080), []);
    // The folder was not there when the stores were looked for.
    host.wait(1000);
    assert_eq!(ports(&mut host, 8080), web("shop-web-1", 80));
    assert_eq!(ports(&mut host, 80), []);

    let moved = DOCKER.replace(r#""HostPort":"8080""#, r#""HostPort":"8081""#);
    host.write(&docker_path(WEB), &moved);
    host.wait(999);
    assert_eq!(ports(&mut host, 8080), web("shop-web-1", 80));
    assert_eq!(ports(&mut host, 8081), web("shop-web-1", 80));
    assert_eq!(ports(&mut host, 8080), []);

    host.write(
        &docker_path(WEB),
        moved.replace(r#""Running":true"#, r#""Running":false"#),
    );
    host.wait(1000);
    assert_eq!(ports(&mut host, 8081), []);
}

#[test]
fn who_publishes_what_a_proxy_holds() {
    let mut host = Host::new();
    host.write(&docker_path(WEB), DOCKER);
    host.write(STORAGE[0], PODMAN);
    let proxy = "/usr/bin/docker-proxy -proto tcp -host-ip 0.0.0.0 -host-port 8080 -container-ip";
    let publishes = |container: Container, port| {
        Some(Publishes {
            container,
            pod: None,
            port,
        })
    };
    let db = container("podman", DB, "db", "docker.io/library/postgres:17");
    let cases = [
        (
            format!("{proxy} 172.18.0.2 -container-port 80"),
            8080,
            publishes(web(), Some(80)),
        ),
        // Another container's address or port: that of a container without a record.
        (format!("{proxy} 172.18.0.3 -container-port 80"), 8080, None),
        (format!("{proxy} 172.18.0.2 -container-port 81"), 8080, None),
        (format!("{proxy} 172.18.0.2 -container-port 80"), 9090, None),
        (
            "/usr/sbin/dockerd -H fd://".to_owned(),
            8080,
            publishes(web(), Some(80)),
        ),
        (
            "/usr/bin/rootlesskit --port-driver=builtin".to_owned(),
            8080,
            publishes(web(), Some(80)),
        ),
        (
            format!("/usr/bin/conmon --api-version 1 -c {DB}"),
            8080,
            publishes(db, None),
        ),
        ("/usr/bin/conmon -c ../evil".to_owned(), 8080, None),
        ("/usr/sbin/nginx -c x".to_owned(), 8080, None),
    ];
    for (line, port, expected) in cases {
        let socket = held(Transport::Tcp, [0, 0, 0, 0], port);
        let seen = host
            .containers
            .publishes(&socket, &[actor("/bin/sh"), actor(&line)], host.now);
        assert_eq!(seen.map(Into::into), expected, "of {line} on {port}");
    }
    let daemon = [actor("/usr/sbin/dockerd")];
    for (socket, why) in [
        (held(Transport::Udp, [0, 0, 0, 0], 8080), "another protocol"),
        (
            held(Transport::Tcp, [127, 0, 0, 1], 8080),
            "another address",
        ),
        (held(Transport::Raw, [0, 0, 0, 0], 8080), "no port"),
    ] {
        assert_eq!(
            host.containers.publishes(&socket, &daemon, host.now),
            None,
            "{why}"
        );
    }
}

/// That another daemon's container was seen on the port is no answer for this one's.
#[test]
fn a_port_of_two_daemons() {
    let mut host = Host::new();
    host.write(&docker_path(WEB), DOCKER);
    let socket = held(Transport::Tcp, [0, 0, 0, 0], 8080);
    let proxy = |address: &str| {
        let line = format!("docker-proxy -container-ip {address} -container-port 80");
        [actor(&line)]
    };
    let names = |found: Option<NamedPort>| found.and_then(|found| found.named.container.name);
    let (first, second) = (proxy("172.18.0.2"), proxy("172.18.0.3"));
    let seen = host.containers.publishes(&socket, &first, host.now);
    assert_eq!(names(seen).as_deref(), Some("shop-web-1"));

    let other = DOCKER.replace("172.18.0.2", "172.18.0.3").replace(WEB, DB);
    host.write(&docker_path(DB), other.replace("shop-web-1", "other"));
    host.wait(50);
    let seen = host.containers.publishes(&socket, &second, host.now);
    assert_eq!(names(seen).as_deref(), Some("other"));
}
