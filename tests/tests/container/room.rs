//! Namespaces for a runtime of a test's own, which end with all that runs in them; but a systemd knows
//! no process of another pid namespace, and so where it makes the containers' groups there is none, and
//! the test ends what it started.

use std::fs;
use std::os::fd::{AsFd as _, FromRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use portwatch_tests::{Netns, Printed, Program, patience, spawn, start, systemd};
use tempfile::TempDir;

/// Containers that are created while a job runs may be the job's: who looks at one has no other
/// containers beside it.
static CONTAINERS: RwLock<()> = RwLock::new(());

/// The right to have containers, for as long as it is there.
pub enum Turn {
    /// With others.
    Shared { _turn: RwLockReadGuard<'static, ()> },
    /// Alone.
    Alone {
        _turn: RwLockWriteGuard<'static, ()>,
    },
}

impl Turn {
    pub fn shared() -> Self {
        let turn = CONTAINERS.read().unwrap_or_else(PoisonError::into_inner);
        Self::Shared { _turn: turn }
    }

    pub fn alone() -> Self {
        let turn = CONTAINERS.write().unwrap_or_else(PoisonError::into_inner);
        Self::Alone { _turn: turn }
    }
}

/// Folders of `/run` that runtimes think their own; the rest of it leads to systemd.
const OWN_FOLDERS: &str = "
for name in containers crun libpod netns runc; do
    mkdir -p /run/$name
    mount -t tmpfs tmpfs /run/$name
done
";
const OWN_RUN: &str = "
mount -t tmpfs tmpfs /run
mkdir /run/netns
";
const PID_NAMESPACE: [&str; 4] = ["--pid", "--fork", "--kill-child", "--mount-proc"];

/// How long a runtime and its containers may take: dozens of times as long as they do.
pub fn limit() -> Duration {
    Duration::from_secs(60) * patience()
}

/// Network, mount, pid and host-name namespaces, and a folder. What is started in them ends with
/// them, however the test does; except where systemd runs, for which there is no pid namespace.
pub struct Room {
    /// The namespace whose ports are published on.
    pub netns: Arc<Netns>,
    folder: TempDir,
    holder: Program,
    /// The first process of the pid namespace: when it has ended, so have all others. The holder, if
    /// there is no such namespace.
    init: (u32, OwnedFd),
    /// Groups that the runtime makes at the root of every hierarchy.
    groups: Vec<String>,
    _turn: Turn,
}

impl Room {
    /// Makes one, sets it up by a script, and holds it. `groups` are taken away at its end.
    pub fn new(turn: Turn, groups: &[&str], script: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Other users have to get at what is theirs.
        fs::set_permissions(
            folder.path(),
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        )
        .unwrap();
        make_root_file_system(folder.path());
        let netns = Arc::new(Netns::new());
        let mut command = netns.command("unshare");
        command.args(["--mount", "--uts"]);
        if !systemd() {
            command.args(PID_NAMESPACE);
        }
        let run = if systemd() { OWN_FOLDERS } else { OWN_RUN };
        command
            .args(["sh", "-e", "-c"])
            .arg(format!("{run}{script}\necho ready\nexec cat"))
            .current_dir(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut holder = start(&mut command);
        let printed = Printed::of(holder.stdout.take().unwrap());
        assert_eq!(printed.next().as_deref(), Some("ready"), "{script}");
        let pid = holder.id();
        let init = if systemd() {
            pid
        } else {
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
            children.trim().parse().unwrap()
        };
        Self {
            netns,
            folder,
            holder,
            init: (init, pidfd(init)),
            groups: groups.iter().map(|group| (*group).to_owned()).collect(),
            _turn: turn,
        }
    }

    /// The folder, which is the same within and without.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A program that will run in the room.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--mount", "--uts", "--net"]);
        if !systemd() {
            command.arg("--pid");
        }
        command
            .arg("--target")
            .arg(self.init.0.to_string())
            .arg("--")
            .arg(program)
            .current_dir(self.folder.path())
            .stdin(Stdio::null());
        command
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // Its child, which is the first process of the namespace, is killed with it.
        let _ = self.holder.kill();
        let millis = u16::try_from(limit().as_millis()).unwrap_or(u16::MAX);
        let mut ended = [PollFd::new(self.init.1.as_fd(), PollFlags::POLLIN)];
        let seen = poll(&mut ended, PollTimeout::from(millis));
        if seen != Ok(1) && !std::thread::panicking() {
            panic!("the processes of a room did not end: {seen:?}");
        }
        for group in &self.groups {
            remove_group(group);
        }
    }
}

fn pidfd(pid: u32) -> OwnedFd {
    // SAFETY: it takes two numbers.
    let number = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    assert!(number >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: it is a descriptor that nobody else has.
    unsafe { OwnedFd::from_raw_fd(i32::try_from(number).unwrap()) }
}

/// A folder `root` with busybox in it, and an archive `root.tar` of that.
pub fn make_root_file_system(folder: &Path) {
    let root = folder.join("root");
    fs::create_dir_all(root.join("bin")).unwrap();
    for name in ["proc", "sys", "dev", "run", "etc", "tmp"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    let path = std::env::var_os("PATH").unwrap();
    let busybox = std::env::split_paths(&path)
        .map(|folder| folder.join("busybox"))
        .find(|file| file.is_file());
    fs::copy(busybox.unwrap(), root.join("bin/busybox")).unwrap();
    let mut command = Command::new("tar");
    command
        .arg("-C")
        .arg(&root)
        .arg("-cf")
        .arg(folder.join("root.tar"))
        .arg(".");
    assert!(spawn(&mut command).wait().unwrap().success());
}

/// A name for a cgroup of a test's own.
pub fn new_group() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("portwatch-test-{}-{number}", std::process::id())
}

/// Takes an empty cgroup and those within it away, in every hierarchy. One that is in use stays.
pub fn remove_group(name: &str) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let hierarchies = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (place, kind) = (fields.next()?, fields.next()?);
        matches!(kind, "cgroup" | "cgroup2").then_some(place)
    });
    for hierarchy in hierarchies {
        let group = Path::new(hierarchy).join(name);
        remove_folders(&group);
        // That of a namespace of containerd, if it was the last one in it.
        if name.contains('/') {
            let _ = group.parent().map(fs::remove_dir);
        }
    }
}

fn remove_folders(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_folders(&entry.path());
        }
    }
    let _ = fs::remove_dir(folder);
}

/// Runs a command to its end, whatever that is.
pub fn output(command: &mut Command) -> Output {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    spawn(command).wait_with_output().unwrap()
}

/// Runs a command, which succeeds; gives what it printed.
pub fn printed(command: &mut Command) -> String {
    let output = output(command);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {told}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
