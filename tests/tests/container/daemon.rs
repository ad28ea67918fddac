//! A dockerd of a test's own.

use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use portwatch_tests::{Netns, Program, signal, start, systemd, wait};
use tempfile::TempDir;

use crate::room::{Turn, limit, make_root_file_system, new_group, output, remove_group};

/// The image that all containers are made of: busybox and nothing else.
pub const IMAGE: &str = "portwatch-test:1";

/// A running dockerd, in a network and mount namespace of its own.
pub struct Docker {
    /// The namespace whose ports it publishes on.
    pub netns: Arc<Netns>,
    folder: TempDir,
    daemon: Program,
    /// The cgroup of its containers.
    group: String,
    _turn: Turn,
}

impl Docker {
    /// Starts one; it is ready when this returns.
    pub fn start(options: &[&str]) -> Self {
        Self::new(Turn::shared(), options)
    }

    /// The same, and no other containers meanwhile.
    pub fn alone(options: &[&str]) -> Self {
        Self::new(Turn::alone(), options)
    }

    fn new(turn: Turn, options: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name);
        let netns = Arc::new(Netns::new());
        // It tells as a service of systemd does.
        let ready = UnixDatagram::bind(place("ready")).unwrap();
        ready.set_read_timeout(Some(limit())).unwrap();
        let group = new_group();
        let mut command = netns.command("dockerd");
        // With systemd the groups are systemd's, and go with their containers.
        if !systemd() {
            command.arg(format!("--cgroup-parent=/{group}"));
        }
        command
            .arg("--data-root")
            .arg(place("data"))
            .arg("--exec-root")
            .arg(place("exec"))
            .arg("--pidfile")
            .arg(place("pid"))
            .arg("--host")
            .arg(format!("unix://{}", place("socket").display()))
            .args(options)
            .env("NOTIFY_SOCKET", place("ready"))
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(place("out")).unwrap())
            .stderr(std::fs::File::create(place("log")).unwrap());
        // SAFETY: between fork and exec only system calls are made.
        unsafe { command.pre_exec(|| own_mounts().map_err(std::io::Error::from)) };
        let daemon = start(&mut command);
        let docker = Self {
            netns,
            folder,
            daemon,
            group,
            _turn: turn,
        };
        let mut told = [0; 64];
        match ready.recv(&mut told) {
            Ok(length) if told[..length].starts_with(b"READY=1") => {}
            other => panic!("dockerd is not ready: {other:?}\n{}", docker.log()),
        }
        docker.make_image();
        docker
    }

    /// The cgroup of one of its containers.
    pub fn group_of(&self, id: &str) -> String {
        if systemd() {
            format!("/system.slice/docker-{id}.scope")
        } else {
            format!("/{}/{id}", self.group)
        }
    }

    fn make_image(&self) {
        make_root_file_system(self.folder.path());
        let archive = self.folder.path().join("root.tar");
        self.docker(&["import", archive.to_str().unwrap(), IMAGE]);
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// `docker`, which talks to this daemon.
    pub fn command(&self) -> Command {
        let mut command = Command::new("docker");
        self.reached_by(&mut command);
        command.stdin(Stdio::null());
        command
    }

    /// Tells a command, and what it starts, of this daemon.
    pub fn reached_by(&self, command: &mut Command) {
        let host = format!("unix://{}", self.socket().display());
        command
            .env("DOCKER_HOST", host)
            .env("DOCKER_CONFIG", self.folder.path());
    }

    /// Runs `docker` to its end, whatever that is.
    pub fn try_docker(&self, arguments: &[&str]) -> Output {
        output(self.command().args(arguments))
    }

    /// The name of the process that binds a published port: since 28.0 the daemon itself, which gives the
    /// socket to docker-proxy.
    pub fn binder(&self) -> &'static str {
        let version = self.docker(&["version", "--format", "{{.Server.Version}}"]);
        let major = version.split('.').next().unwrap_or_default();
        if major.parse::<u32>().unwrap() < 28 {
            "docker-proxy"
        } else {
            "dockerd"
        }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    /// Runs `docker`, which succeeds; gives what it printed.
    pub fn docker(&self, arguments: &[&str]) -> String {
        let output = self.try_docker(arguments);
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "docker {arguments:?}: {told}\n{}",
            self.log()
        );
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Starts a container in the background: options of `docker run`, and what busybox does in it.
    /// Gives its id.
    pub fn run(&self, options: &[&str], busybox: &[&str]) -> String {
        self.docker(&Self::run_arguments(options, busybox))
    }

    /// What [`Docker::run`] gives to `docker`.
    pub fn run_arguments<'a>(options: &[&'a str], busybox: &[&'a str]) -> Vec<&'a str> {
        let image: &[&str] = &[IMAGE, "/bin/busybox"];
        [&["run", "--detach"][..], options, image, busybox].concat()
    }
}

impl Drop for Docker {
    /// Its containers end first: their shims would outlive it.
    fn drop(&mut self) {
        let containers = self.try_docker(&["ps", "--all", "--quiet"]);
        let ids = String::from_utf8_lossy(&containers.stdout).into_owned();
        let ids: Vec<&str> = ids.split_whitespace().collect();
        if !ids.is_empty() {
            self.try_docker(&[&["rm", "--force"][..], &ids].concat());
        }
        signal(&self.daemon, Signal::SIGTERM);
        wait(&mut self.daemon, limit());
        remove_group(&self.group);
    }
}

/// What is mounted from here on is seen by this process and its children alone.
fn own_mounts() -> nix::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
}
