//! Who processes are: from the kernel side's records, from forks, and from
//! `/proc` for what existed before or was lost.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use lru::LruCache;
use portwatch_common::record::{ANCESTORS, Ancestor as RawAncestor, Fork, Gone, Task, task_flag};

use super::arguments;
use super::cgroup::{self, ContainerRef};
use super::container::{Named, by_ancestor, is_proxy};
use crate::event::{Actor, Ancestor, Membership, Process, Text, text};
use crate::kernel::clock::{Clock, TICK};
use crate::kernel::decode::Identity;

/// How many living processes are remembered.
const LIVE: usize = 4096;
/// How many of those that are no more: a TIME_WAIT may begin after its owner's end.
const REAPED: usize = 2048;

/// A process's name for all time: `tgid` and `start_boottime`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    /// Its `tgid`.
    pub tgid: u32,
    /// Its leader's `start_boottime`, in nanoseconds.
    pub start: u64,
}

impl Key {
    /// The process of a task.
    #[must_use]
    pub fn of(task: &Task) -> Self {
        Self {
            tgid: task.tgid,
            start: task.start,
        }
    }

    /// Whether it is the same, as far as `/proc` tells: no pid is another's within a tick.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        self.tgid == other.tgid && self.start / TICK == other.start / TICK
    }
}

/// What is known of a process.
#[derive(Debug, Clone)]
struct Known {
    process: Arc<Process>,
    container: Option<ContainerRef>,
    /// That the container is of the job that is watched, and how.
    job: Option<Membership>,
    /// Its ancestors, the nearest first.
    line: Vec<Key>,
    comm: (Text, Option<String>),
    uid: u32,
    gid: u32,
}

impl Known {
    fn may_be_containers(&self) -> bool {
        self.container.is_some() || is_proxy(&self.process, &self.comm.0)
    }

    /// The name of one of its threads, which mostly is the one that is known and need not be made.
    fn comm_of(&self, task: &Task) -> (Text, Option<String>) {
        if self.comm.0.as_bytes() == until_nul(&task.comm) {
            (Arc::clone(&self.comm.0), None)
        } else {
            comm(&task.comm)
        }
    }
}

/// A process as `/proc` told, good for the tick in which it started.
#[derive(Debug, Clone)]
pub struct Found {
    /// Its pid.
    pub tgid: u32,
    start_tick: u64,
    known: Known,
}

impl Found {
    /// The container it is in.
    pub fn container(&self) -> Option<&ContainerRef> {
        self.known.container.as_ref()
    }

    /// Whether it is this process.
    pub(super) fn is(&self, key: Key) -> bool {
        self.tgid == key.tgid && self.start_tick == key.start / TICK
    }

    /// What it is.
    pub(super) fn process(&self) -> &Process {
        &self.known.process
    }
}

/// All that is known of processes; bounded.
#[derive(Debug)]
pub struct Processes {
    live: LruCache<Key, Known>,
    reaped: LruCache<Key, Known>,
    found: HashMap<u32, Found>,
}

impl Default for Processes {
    fn default() -> Self {
        let size = |size| NonZeroUsize::new(size).unwrap_or(NonZeroUsize::MIN);
        Self {
            live: LruCache::new(size(LIVE)),
            reaped: LruCache::new(size(REAPED)),
            found: HashMap::new(),
        }
    }
}

impl Processes {
    /// A process has said who it is; `proc` is where to look for its ancestors, and for arguments that it
    /// could not say. Returns a process that had to be forgotten for it, of which the kernel side must be
    /// told.
    pub fn identified(&mut self, identity: &Identity, proc: &Path) -> Option<Key> {
        let key = Key::of(&identity.task);
        let mut known = known(identity);
        if known.container.is_none() {
            known.container = by_ancestor(proc, &known.process);
        }
        if identity.no_memory || identity.args.is_none() {
            // It was exiting, and what it had is gone; what was known before still holds, unless
            // it executed another program since, of which we would have been told.
            if let Some(before) = self.live.peek(&key).or(self.found_as(key)) {
                let before = Arc::clone(&before.process);
                let process = Arc::make_mut(&mut known.process);
                process.args.clone_from(&before.args);
                process.args_hex.clone_from(&before.args_hex);
                process.args_truncated = before.args_truncated;
                // Its namespaces go before its sockets do as well.
                process.netns = process.netns.or(before.netns);
                process.pidns = process.pidns.or(before.pidns);
                process.mntns = process.mntns.or(before.mntns);
                process.namespace_pid = process.namespace_pid.or(before.namespace_pid);
                if process.exe.is_none() {
                    process.exe.clone_from(&before.exe);
                    process.exe_hex.clone_from(&before.exe_hex);
                }
            } else {
                arguments::find(identity, Arc::make_mut(&mut known.process), proc);
            }
        }
        self.insert(key, known)
    }

    fn insert(&mut self, key: Key, known: Known) -> Option<Key> {
        match self.live.push(key, known) {
            Some((evicted, _)) if evicted != key => Some(evicted),
            _ => None,
        }
    }

    /// A known process forked: the child is what its parent was, until it says otherwise.
    pub fn forked(&mut self, fork: &Fork) -> Option<Key> {
        let parent = Key {
            tgid: fork.parent_tgid,
            start: fork.parent_start,
        };
        let child = Key {
            tgid: fork.child_tgid,
            start: fork.child_start,
        };
        let mut known = self.known(parent)?.clone();
        let (comm, comm_hex) = known.comm.clone();
        let process = Arc::make_mut(&mut known.process);
        process.namespace_pid = None;
        process.ancestors.insert(
            0,
            Ancestor {
                pid: parent.tgid,
                comm,
                comm_hex,
            },
        );
        process.ancestors.truncate(ANCESTORS);
        known.line.insert(0, parent);
        known.line.truncate(ANCESTORS);
        self.insert(child, known)
    }

    /// A known process executed another program.
    pub fn executed(&mut self, gone: &Gone) {
        self.live.pop(&Key {
            tgid: gone.tgid,
            start: gone.start,
        });
        self.found.remove(&gone.tgid);
    }

    /// A known process is no more. What it was is remembered for a while.
    pub fn reaped(&mut self, gone: &Gone) {
        let key = Key {
            tgid: gone.tgid,
            start: gone.start,
        };
        let known = self.live.pop(&key).or_else(|| {
            let found = self.found_as(key).cloned();
            self.found.remove(&gone.tgid);
            found
        });
        if let Some(known) = known {
            self.reaped.push(key, known);
        }
    }

    /// `/proc` told of these processes when the trace began.
    pub fn found(&mut self, found: Vec<Found>) {
        self.found
            .extend(found.into_iter().map(|found| (found.tgid, found)));
    }

    /// What is known of a process, living or not.
    fn peek(&self, key: Key) -> Option<&Known> {
        let known = self.live.peek(&key).or_else(|| self.reaped.peek(&key));
        known.or_else(|| self.found_as(key))
    }

    /// The ancestors of a process, the nearest first, as far as they are known.
    #[must_use]
    pub fn line(&self, key: Key) -> &[Key] {
        self.peek(key).map_or(&[], |known| &known.line)
    }

    /// Whether what a process does may be a container's: it is in one or serves one. Nothing if it is not
    /// known.
    #[must_use]
    pub fn may_be_containers(&self, key: Key) -> Option<bool> {
        self.peek(key).map(Known::may_be_containers)
    }

    /// Whether the parent of a process is known to be of this name.
    #[must_use]
    pub fn is_child_of(&self, key: Key, comm: &str) -> bool {
        let parent = (self.peek(key)).and_then(|known| known.process.ancestors.first());
        parent.is_some_and(|parent| &*parent.comm == comm)
    }

    fn found_as(&self, key: Key) -> Option<&Known> {
        let found = self.found.get(&key.tgid)?;
        found.is(key).then_some(&found.known)
    }

    fn known(&mut self, key: Key) -> Option<&mut Known> {
        if !self.live.contains(&key) && !self.reaped.contains(&key) {
            let known = self.found_as(key)?.clone();
            self.live.push(key, known);
        }
        match self.live.get_mut(&key) {
            Some(known) => Some(known),
            None => self.reaped.get_mut(&key),
        }
    }

    /// Looks for one that does not live, or was never heard of.
    fn look_for(&mut self, key: Key, proc: &Path) -> Option<&mut Known> {
        if self.known(key).is_none()
            && let Some(found) = from_proc(proc, key.tgid)
        {
            self.found.insert(key.tgid, found);
        }
        self.known(key)
    }

    /// Who a task was; nothing if it was a kernel thread or not seen. `name` gives a container its
    /// name, which may change while its processes live, and says whether it is of the job. `proc` is
    /// where to look for a process that was never heard of: its record was lost.
    pub fn actor(
        &mut self,
        task: &Task,
        clock: Clock,
        proc: &Path,
        name: impl FnOnce(&ContainerRef) -> (Named, Option<Membership>),
    ) -> Option<Actor> {
        if task.flags & (task_flag::KERNEL_THREAD | task_flag::UNKNOWN) != 0 || task.tgid == 0 {
            return None;
        }
        let key = Key::of(task);
        let known = match self.live.get_mut(&key) {
            Some(known) => Some(known),
            None => self.look_for(key, proc),
        };
        let (process, (comm, comm_hex), job) = match known {
            Some(known) => {
                if let Some(reference) = &known.container {
                    let (named, job) = name(reference);
                    let Named { container, pod, .. } = named;
                    known.job = job;
                    let before = (known.process.container.as_ref(), &known.process.pod);
                    if before != (Some(&container), &pod) {
                        let process = Arc::make_mut(&mut known.process);
                        (process.container, process.pod) = (Some(container), pod);
                    }
                }
                (Arc::clone(&known.process), known.comm_of(task), known.job)
            }
            None => (Arc::default(), comm(&task.comm), None),
        };
        Some(Actor {
            pid: task.tgid,
            tid: Some(task.tid),
            comm,
            comm_hex,
            uid: task.uid,
            start_time: clock.at_boottime(task.start),
            gid: task.gid,
            job: membership(task.flags).or(job),
            process,
        })
    }

    /// Who a process was, by its name for all time, if it is known.
    pub fn actor_by_key(&mut self, key: Key, clock: Clock) -> Option<Actor> {
        let known = self.known(key)?;
        let (comm, comm_hex) = known.comm.clone();
        Some(Actor {
            pid: key.tgid,
            tid: None,
            comm,
            comm_hex,
            uid: known.uid,
            start_time: clock.at_boottime(key.start),
            gid: known.gid,
            job: known.job,
            process: Arc::clone(&known.process),
        })
    }
}

/// A `comm`, up to its NUL.
#[must_use]
pub fn comm(bytes: &[u8]) -> (Text, Option<String>) {
    text(until_nul(bytes))
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().position(|byte| *byte == 0);
    &bytes[..end.unwrap_or(bytes.len())]
}

fn known(identity: &Identity) -> Known {
    let cgroup = String::from_utf8_lossy(&identity.cgroup);
    let cgroup_v1 = String::from_utf8_lossy(&identity.cgroup_v1);
    let mut process = Process {
        netns: nonzero(identity.netns),
        pidns: nonzero(identity.pidns),
        mntns: nonzero(identity.mntns),
        namespace_pid: nonzero(identity.namespace_pid).filter(|pid| *pid != identity.task.tgid),
        ancestors: identity.ancestors.iter().map(ancestor).collect(),
        args_truncated: identity.args_truncated,
        ..Process::default()
    };
    if let Some(exe) = &identity.exe {
        let (exe, hex) = text(exe);
        (process.exe, process.exe_hex) = (Some(exe), hex);
    }
    if let Some(args) = &identity.args {
        set_args(&mut process, args);
    }
    let container = set_cgroup(&mut process, &cgroup, &cgroup_v1);
    Known {
        process: Arc::new(process),
        container,
        job: None,
        line: line(identity),
        comm: comm(&identity.task.comm),
        uid: identity.task.uid,
        gid: identity.task.gid,
    }
}

/// The same of a process that has said who it is: see [`Processes::may_be_containers`].
pub fn may_be_containers(identity: &Identity) -> bool {
    known(identity).may_be_containers()
}

/// The ancestors of a process that has said who it is.
pub fn line(identity: &Identity) -> Vec<Key> {
    let ancestors = identity.ancestors.iter();
    ancestors
        .map(|raw| Key {
            tgid: raw.tgid,
            start: raw.start,
        })
        .collect()
}

fn nonzero(number: u32) -> Option<u32> {
    (number != 0).then_some(number)
}

fn ancestor(raw: &RawAncestor) -> Ancestor {
    let (comm, comm_hex) = comm(&raw.comm);
    Ancestor {
        pid: raw.tgid,
        comm,
        comm_hex,
    }
}

/// The arguments as they lie in memory: each with a NUL behind it. A process may have written a
/// title over them and padded it with NULs, which are no arguments.
fn set_args(process: &mut Process, bytes: &[u8]) {
    let end = bytes
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |last| last + 1);
    if end == 0 {
        return;
    }
    let args: Vec<_> = bytes[..end].split(|byte| *byte == 0).collect();
    if args.iter().any(|arg| std::str::from_utf8(arg).is_err()) {
        process.args_hex = Some(args.iter().map(|arg| crate::event::hex(arg)).collect());
    }
    process.args = Some(args.iter().map(|arg| text(arg).0).collect());
}

/// Sets the cgroup and what follows from it; returns the container.
fn set_cgroup(process: &mut Process, v2: &str, v1: &str) -> Option<ContainerRef> {
    let some = |path: &str| (!path.is_empty() && path != "/").then(|| Text::from(path));
    let place = cgroup::of_process(some(v2).as_deref(), some(v1).as_deref());
    (process.cgroup, process.cgroup_v1) = match (some(v2), some(v1)) {
        (Some(v2), v1) => (Some(v2), v1),
        (None, Some(v1)) => (Some(v1), None),
        (None, None) => (Some("/".into()), None),
    };
    process.unit = place.unit.map(Text::from);
    place.container
}

/// Reads who a process is from `/proc` (or another root, for tests); nothing if it is gone.
#[must_use]
pub fn from_proc(root: &Path, tgid: u32) -> Option<Found> {
    let directory = root.join(tgid.to_string());
    let read = procfs::process::Process::new_with_root(directory.clone()).ok()?;
    let stat = read.stat().ok()?;
    let status = read.status().ok()?;
    let mut process = Process {
        namespace_pid: status
            .nspid
            .as_ref()
            .and_then(|pids| pids.last())
            .map(|pid| pid.unsigned_abs())
            .filter(|pid| *pid != tgid),
        ..Process::default()
    };
    if let Ok(exe) = std::fs::read_link(directory.join("exe")) {
        use std::os::unix::ffi::OsStrExt as _;
        let (exe, hex) = text(exe.as_os_str().as_bytes());
        (process.exe, process.exe_hex) = (Some(exe), hex);
    }
    if let Ok(args) = std::fs::read(directory.join("cmdline")) {
        let kept = args.len().min(portwatch_common::record::ARGS_CAPACITY);
        process.args_truncated = kept < args.len();
        set_args(&mut process, &args[..kept]);
    }
    if let Ok(namespaces) = read.namespaces() {
        let number = |name: &str| {
            let namespace = namespaces.0.get(std::ffi::OsStr::new(name))?;
            u32::try_from(namespace.identifier).ok()
        };
        process.netns = number("net");
        process.pidns = number("pid");
        process.mntns = number("mnt");
    }
    let line;
    (process.ancestors, line) = ancestors_from_proc(root, stat.ppid);
    let (v2, v1) = cgroups_from_proc(&directory);
    let container = set_cgroup(&mut process, &v2, &v1);
    let container = container.or_else(|| by_ancestor(root, &process));
    Some(Found {
        tgid,
        start_tick: stat.starttime,
        known: Known {
            process: Arc::new(process),
            container,
            job: None,
            line,
            comm: text(stat.comm.as_bytes()),
            uid: status.euid,
            gid: status.egid,
        },
    })
}

/// The ancestors of processes by their parent, which many have in common.
pub type AncestorsByParent = HashMap<i32, Vec<Ancestor>>;

/// Who a task is, with what is read fast from `/proc`: its arguments and cgroup. For lists of many
/// processes; nothing but what the task itself says of one that is gone. `name` is as in
/// [`Processes::actor`].
pub fn brief(
    root: &Path,
    task: &Task,
    clock: Clock,
    ancestors: &mut AncestorsByParent,
    name: impl FnOnce(&ContainerRef) -> Named,
) -> Actor {
    let directory = root.join(task.tgid.to_string());
    let mut process = Process::default();
    let args = std::fs::read(directory.join("cmdline")).ok();
    let (v2, v1) = cgroups_from_proc(&directory);
    // Read last: if it is the same process still, what was read before is its own.
    let stat = procfs::process::Process::new_with_root(directory).and_then(|read| read.stat());
    let parent = stat.ok().filter(|stat| stat.starttime == task.start / TICK);
    if let Some(ppid) = parent.map(|stat| stat.ppid) {
        if let Some(args) = args {
            let kept = args.len().min(portwatch_common::record::ARGS_CAPACITY);
            process.args_truncated = kept < args.len();
            set_args(&mut process, &args[..kept]);
        }
        let reference = set_cgroup(&mut process, &v2, &v1);
        if let Some(reference) =
            reference.or_else(|| brief_by_ancestor(root, task.tgid, ppid, ancestors))
        {
            let Named { container, pod, .. } = name(&reference);
            (process.container, process.pod) = (Some(container), pod);
        }
    }
    let (comm, comm_hex) = comm(&task.comm);
    Actor {
        pid: task.tgid,
        tid: None,
        comm,
        comm_hex,
        uid: task.uid,
        start_time: clock.at_boottime(task.start),
        gid: task.gid,
        job: membership(task.flags),
        process: Arc::new(process),
    }
}

/// How a process belongs to the job that is watched, by a task's flags.
pub fn membership(flags: u32) -> Option<Membership> {
    (flags & task_flag::IN_TREE != 0).then_some(Membership::Descendant)
}

/// The container that a process is in by its ancestors alone.
fn brief_by_ancestor(
    root: &Path,
    tgid: u32,
    parent: i32,
    ancestors: &mut AncestorsByParent,
) -> Option<ContainerRef> {
    use std::os::unix::fs::MetadataExt as _;
    let mntns = std::fs::metadata(root.join(format!("{tgid}/ns/mnt")))
        .ok()?
        .ino();
    let process = Process {
        mntns: u32::try_from(mntns).ok(),
        ancestors: ancestors
            .entry(parent)
            .or_insert_with(|| ancestors_from_proc(root, parent).0)
            .clone(),
        ..Process::default()
    };
    by_ancestor(root, &process)
}

fn ancestors_from_proc(root: &Path, parent: i32) -> (Vec<Ancestor>, Vec<Key>) {
    let (mut ancestors, mut line) = (Vec::new(), Vec::new());
    let mut pid = parent;
    while pid > 0 && ancestors.len() < ANCESTORS {
        let directory = root.join(pid.to_string());
        let Some(stat) = procfs::process::Process::new_with_root(directory)
            .ok()
            .and_then(|process| process.stat().ok())
        else {
            break;
        };
        let (comm, comm_hex) = text(stat.comm.as_bytes());
        ancestors.push(Ancestor {
            pid: pid.unsigned_abs(),
            comm,
            comm_hex,
        });
        line.push(Key {
            tgid: pid.unsigned_abs(),
            start: stat.starttime * TICK,
        });
        pid = stat.ppid;
    }
    (ancestors, line)
}

/// The cgroup paths of both versions, of version 1 that of the same hierarchies as the kernel side
/// takes it from.
fn cgroups_from_proc(directory: &Path) -> (String, String) {
    let text = std::fs::read(directory.join("cgroup")).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let path_of = |wanted: &str| {
        text.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            controllers
                .split(',')
                .any(|name| name == wanted)
                .then(|| path.to_owned())
        })
    };
    let v1 = ["pids", "memory", "devices", "cpu"]
        .into_iter()
        .filter_map(path_of)
        .find(|path| path != "/")
        .unwrap_or_default();
    (path_of("").unwrap_or_default(), v1)
}
