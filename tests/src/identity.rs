//! Who a process is, as `/proc` tells it: what an event has to say of it.

use std::fs;
use std::ops::RangeInclusive;
use std::os::unix::ffi::OsStrExt as _;
use std::process;

use nix::time::{ClockId, clock_gettime};
use serde_json::{Map, Value, json};

/// Nanoseconds of a tick of `/proc/PID/stat`.
const TICK: i64 = 10_000_000;
/// How far apart two readings of the clocks may be.
const SLACK: i64 = 5_000_000;
/// How many bytes of arguments an event holds.
const ARGS: usize = 4096;
/// How many ancestors an event holds.
const ANCESTORS: usize = 16;

/// A process.
#[derive(Debug, Clone)]
pub struct Identity {
    /// In the initial pid namespace.
    pub pid: u32,
    /// The threads that may act; any if there are none.
    pub threads: Vec<u32>,
    /// Everything of it that has one value, as in an event.
    pub whole: Map<String, Value>,
    /// When it may have started, in nanoseconds since the epoch.
    pub started: RangeInclusive<i64>,
}

fn now(clock: ClockId) -> i64 {
    let now = clock_gettime(clock).unwrap();
    now.tv_sec() * 1_000_000_000 + now.tv_nsec()
}

/// When the clock of the processes' starts was 0, in nanoseconds since the epoch: of some readings of
/// both clocks the one between which least time passed.
fn boot_time() -> i64 {
    let readings = (0..5).map(|_| {
        let before = now(ClockId::CLOCK_BOOTTIME);
        let realtime = realtime();
        (now(ClockId::CLOCK_BOOTTIME) - before, realtime - before)
    });
    let (_, boot) = readings.min().unwrap();
    boot
}

/// Now, in nanoseconds since the epoch.
pub fn realtime() -> i64 {
    now(ClockId::CLOCK_REALTIME)
}

/// Bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The key and value of bytes from outside, and their exact form if they are no UTF-8.
fn put(whole: &mut Map<String, Value>, key: &str, bytes: &[u8]) {
    whole.insert(key.to_owned(), String::from_utf8_lossy(bytes).into());
    if std::str::from_utf8(bytes).is_err() {
        whole.insert(format!("{key}_hex"), hex(bytes).into());
    }
}

/// The children of a process.
pub fn children(parent: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").unwrap();
    let pids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &u32| {
        // It may have ended since.
        fs::exists(format!("/proc/{pid}/stat")).unwrap_or(false) && stat(*pid).parent == parent
    })
    .collect()
}

/// `comm`, parent and start of a process.
struct Stat {
    comm: Vec<u8>,
    parent: u32,
    start: i64,
}

fn stat(pid: u32) -> Stat {
    let stat = fs::read(format!("/proc/{pid}/stat")).unwrap();
    let open = stat.iter().position(|byte| *byte == b'(').unwrap();
    let close = stat.iter().rposition(|byte| *byte == b')').unwrap();
    let rest = String::from_utf8_lossy(&stat[close + 1..]);
    let rest: Vec<_> = rest.split_ascii_whitespace().collect();
    Stat {
        comm: stat[open + 1..close].to_vec(),
        parent: rest[1].parse().unwrap(),
        start: rest[19].parse().unwrap(),
    }
}

fn namespace(pid: u32, kind: &str) -> u64 {
    let link = fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
    let link = link.to_string_lossy();
    let number = link.split(['[', ']']).nth(1).unwrap();
    number.parse().unwrap()
}

/// The cgroup: of version 2, or where that is the root, of version 1.
fn cgroups(pid: u32) -> (String, Option<String>) {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let of = |wanted: &str| {
        text.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let controllers = parts.next()?;
            let path = parts.next()?;
            let is = controllers.split(',').any(|name| name == wanted);
            (is && path != "/").then(|| path.to_owned())
        })
    };
    let first = ["pids", "memory", "devices", "cpu"]
        .into_iter()
        .find_map(of);
    match (of(""), first) {
        (Some(second), first) => (second, first),
        (None, Some(first)) => (first, None),
        (None, None) => ("/".to_owned(), None),
    }
}

fn ancestors(parent: u32) -> Vec<Value> {
    let mut ancestors = Vec::new();
    let mut pid = parent;
    while pid != 0 && ancestors.len() < ANCESTORS {
        let stat = stat(pid);
        let mut ancestor = Map::new();
        ancestor.insert("pid".to_owned(), pid.into());
        put(&mut ancestor, "comm", &stat.comm);
        ancestors.push(ancestor.into());
        pid = stat.parent;
    }
    ancestors
}

impl Identity {
    /// Of a living process, through its first thread.
    pub fn of(pid: u32) -> Self {
        let stat = stat(pid);
        let status = fs::read(format!("/proc/{pid}/status")).unwrap();
        let status = String::from_utf8_lossy(&status).into_owned();
        let field = |name: &str| -> Vec<u32> {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let numbers = line.unwrap().split_ascii_whitespace();
            numbers.map(|number| number.parse().unwrap()).collect()
        };
        let mut whole = Map::new();
        whole.insert("pid".to_owned(), pid.into());
        put(&mut whole, "comm", &stat.comm);
        let exe = fs::read_link(format!("/proc/{pid}/exe")).unwrap();
        put(&mut whole, "exe", exe.as_os_str().as_bytes());
        for (key, kind) in [("netns", "net"), ("pidns", "pid"), ("mntns", "mnt")] {
            whole.insert(key.to_owned(), namespace(pid, kind).into());
        }
        whole.insert("uid".to_owned(), field("Uid:")[1].into());
        whole.insert("gid".to_owned(), field("Gid:")[1].into());
        let own_pid = field("NSpid:").last().copied();
        if let Some(own_pid) = own_pid.filter(|own| *own != pid) {
            whole.insert("namespace_pid".to_owned(), own_pid.into());
        }
        whole.insert("ancestors".to_owned(), ancestors(stat.parent).into());
        let (cgroup, cgroup_v1) = cgroups(pid);
        whole.insert("cgroup".to_owned(), cgroup.into());
        if let Some(cgroup_v1) = cgroup_v1 {
            whole.insert("cgroup_v1".to_owned(), cgroup_v1.into());
        }
        let tick = boot_time() + stat.start * TICK;
        let identity = Self {
            pid,
            threads: vec![pid],
            whole,
            started: tick - SLACK..=tick + TICK + SLACK,
        };
        identity.with_args(&fs::read(format!("/proc/{pid}/cmdline")).unwrap())
    }

    /// Of this process, through these threads with this name.
    pub fn of_self(threads: Vec<u32>, comm: &str) -> Self {
        let mut identity = Self::of(process::id()).with("comm", json!(comm));
        identity.threads = threads;
        // Threads of this process are in many.
        identity.whole.remove("netns");
        identity
    }

    /// With other arguments, each with a NUL behind it.
    #[must_use]
    pub fn with_args(mut self, bytes: &[u8]) -> Self {
        for key in ["args", "args_hex", "args_truncated"] {
            self.whole.remove(key);
        }
        let kept = &bytes[..bytes.len().min(ARGS)];
        if kept.len() < bytes.len() {
            self.whole.insert("args_truncated".to_owned(), true.into());
        }
        // Where a process has written a title over its arguments, NULs fill the rest.
        let end = kept.iter().rposition(|byte| *byte != 0);
        let kept = &kept[..end.map_or(0, |last| last + 1)];
        let args: Vec<_> = kept.split(|byte| *byte == 0).collect();
        if args.iter().any(|arg| std::str::from_utf8(arg).is_err()) {
            let args: Vec<_> = args.iter().map(|arg| hex(arg)).collect();
            self.whole.insert("args_hex".to_owned(), args.into());
        }
        let args: Vec<_> = args
            .iter()
            .map(|arg| String::from_utf8_lossy(arg))
            .collect();
        self.whole.insert("args".to_owned(), args.into());
        self
    }

    /// With another value.
    #[must_use]
    pub fn with(mut self, key: &str, value: Value) -> Self {
        self.whole.insert(key.to_owned(), value);
        self
    }

    /// Without a value.
    #[must_use]
    pub fn without(mut self, key: &str) -> Self {
        self.whole.remove(key);
        self
    }

    /// A child of this one, of which nothing else is other.
    #[must_use]
    pub fn child(&self, pid: u32) -> Self {
        let mut child = self.clone();
        child.pid = pid;
        child.threads = vec![pid];
        let mut ancestors = self.whole["ancestors"].as_array().unwrap().clone();
        ancestors.insert(0, json!({"pid": self.pid, "comm": self.whole["comm"]}));
        ancestors.truncate(ANCESTORS);
        child.started = *self.started.start()..=i64::MAX;
        child
            .with("pid", pid.into())
            .with("ancestors", ancestors.into())
    }

    /// What of this `process` of an event is not that of this identity; nothing if it is whole and
    /// true.
    pub fn differs(&self, process: &Value) -> Option<String> {
        let mut seen = process.as_object()?.clone();
        if let Some(tid) = seen.remove("tid").and_then(|tid| tid.as_u64())
            && !self.threads.is_empty()
            && !self.threads.iter().any(|thread| u64::from(*thread) == tid)
        {
            return Some(format!("tid: {tid} is none of {:?}", self.threads));
        }
        let started = seen.remove("start_time");
        // What follows from the cgroup, which is compared.
        for key in ["unit", "container"] {
            seen.remove(key);
        }
        if !self.whole.contains_key("netns") {
            seen.remove("netns");
        }
        let whole = Value::Object(self.whole.clone());
        if let Some(difference) = crate::expect::difference(&whole, &seen.into()) {
            return Some(difference);
        }
        let started = started.and_then(|time| nanoseconds(time.as_str()?));
        match started {
            Some(started) if self.started.contains(&started) => None,
            _ => Some(format!(
                "start_time: {started:?} is not within {:?}",
                self.started
            )),
        }
    }
}

/// A time of an event in nanoseconds since the epoch.
pub fn nanoseconds(time: &str) -> Option<i64> {
    let time: jiff::Timestamp = time.parse().ok()?;
    i64::try_from(time.as_nanosecond()).ok()
}
