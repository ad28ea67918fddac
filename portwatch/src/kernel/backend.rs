//! Loads the kernel side and attaches it, hook by hook.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use aya::maps::{Array, HashMap, MapData, PerCpuArray, RingBuf};
use aya::programs::{BtfTracePoint, CgroupAttachMode, CgroupSock, Iter, ProgramError};
use aya::{Btf as AyaBtf, Ebpf, EbpfLoader, VerifierLogLevel};
use portwatch_common::field::ABSENT;
use portwatch_common::map::{QUERIES_CAPACITY, control, lost};
use portwatch_common::record::{SnapshotEntry, Timewait, kind};

use super::btf::Btf;
use super::decode;
use super::layout::Layout;
use super::support::Unsupported;
use super::symbols::{self, Symbols};

/// The kernel side, built by `cargo xtask build-ebpf`.
#[cfg(not(feature = "log"))]
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../bpf/portwatch.bpf.o");

/// The kernel side with messages, built by `cargo xtask build-ebpf --features log`.
#[cfg(feature = "log")]
static OBJECT: &[u8] =
    aya::include_bytes_aligned!("../../../portwatch-ebpf/target/portwatch-features.bpf.o");

/// What a hook is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// bind(2) and listen(2). Nothing works without it.
    Bind,
    /// The end of bound sockets.
    Release,
    /// TIME_WAIT.
    Timewait,
    /// Who processes are, when they fork, execute and end.
    Process,
    /// What existed before.
    Snapshot,
}

impl Part {
    /// What is not seen without the hooks of this part.
    #[must_use]
    pub fn loss(self) -> &'static str {
        match self {
            Self::Bind => "bind and listen",
            Self::Release => "some releases",
            Self::Timewait => "TIME_WAIT",
            Self::Process => "the arguments of some processes",
            Self::Snapshot => "who already held sockets",
        }
    }
}

/// How a program is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attach {
    /// To a tracepoint, with typed arguments.
    Tracepoint,
    /// To the release of sockets, at the root of the cgroup v2 hierarchy.
    CgroupSockRelease,
    /// To an iterator, which is read on demand.
    Iterator,
}

impl fmt::Display for Attach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tracepoint => "tp_btf",
            Self::CgroupSockRelease => "cgroup",
            Self::Iterator => "iter",
        })
    }
}

/// A program of the kernel side and where it goes. The program is called like its hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hook {
    /// Name of the program and its hook.
    pub name: &'static str,
    /// How it is attached.
    pub attach: Attach,
    /// What it is for.
    pub part: Part,
}

/// The hooks of the tracepoint backend, in the order in which they are attached:
/// what others rely on first.
pub const HOOKS: [Hook; 12] = [
    hook("sched_process_free", Attach::Tracepoint, Part::Process),
    hook("sched_process_exec", Attach::Tracepoint, Part::Process),
    hook("sched_process_fork", Attach::Tracepoint, Part::Process),
    hook("timer_expire_entry", Attach::Tracepoint, Part::Timewait),
    hook("timer_cancel", Attach::Tracepoint, Part::Timewait),
    hook("timer_start", Attach::Tracepoint, Part::Timewait),
    hook("inet_sock_set_state", Attach::Tracepoint, Part::Timewait),
    hook("tcp_destroy_sock", Attach::Tracepoint, Part::Release),
    hook("sock_release", Attach::CgroupSockRelease, Part::Release),
    hook("sys_exit", Attach::Tracepoint, Part::Bind),
    hook("task_file", Attach::Iterator, Part::Snapshot),
    hook("bpf_map", Attach::Iterator, Part::Timewait),
];

const fn hook(name: &'static str, attach: Attach, part: Part) -> Hook {
    Hook { name, attach, part }
}

/// What became of a hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The hook.
    pub hook: Hook,
    /// Why it is not in place, if it is not.
    pub failure: Option<String>,
}

/// The name of the one backend there is.
pub const TRACEPOINT: &str = "tracepoint";

/// The kernel side, loaded and attached. Dropping it detaches everything.
#[derive(Debug)]
pub struct Backend {
    /// Reading an iterator changes its program's links.
    ebpf: Mutex<Ebpf>,
    statuses: Vec<Status>,
    absent: Vec<String>,
}

/// Values besides the fields' offsets, named like the globals of the kernel side.
struct Settings(Vec<(&'static str, u32)>, Vec<(&'static str, u64)>);

impl Backend {
    /// Loads the kernel side with a ring buffer of `buffer` bytes (a power of two, at least a
    /// page), and attaches the hooks of the `parts`. A hook that cannot be attached is noted in
    /// [`Backend::statuses`]; without those of [`Part::Bind`] there is nothing to do.
    ///
    /// # Errors
    ///
    /// If the kernel is too old or too strange, or refuses.
    pub fn load(parts: &[Part], buffer: u32) -> Result<Self, Unsupported> {
        let btf = Btf::from_path(Path::new(super::btf::VMLINUX)).map_err(|error| {
            Unsupported::new(
                "cannot trace: the kernel's types cannot be read",
                describe(&error),
                "use a kernel built with CONFIG_DEBUG_INFO_BTF=y",
            )
        })?;
        if btf.enum_value("BPF_MAP_TYPE_RINGBUF").is_none() {
            return Err(Unsupported::new(
                "cannot trace: this kernel is too old",
                "it has no BPF ring buffer, which came with Linux 5.8",
                "use Linux 5.10 or later",
            ));
        }
        let layout = Layout::resolve(&btf).map_err(|error| {
            Unsupported::new(
                "cannot trace: this kernel is not known to portwatch",
                describe(&error),
                "please report it, with the output of portwatch doctor",
            )
        })?;
        let (settings, symbols) = Settings::resolve(&btf);
        drop(btf);

        unlock_memory();
        let mut loader = EbpfLoader::new();
        loader.verifier_log_level(VerifierLogLevel::DISABLE);
        loader.map_max_entries("EVENTS", buffer);
        for (name, value) in layout.iter() {
            loader.override_global(name, value, true);
        }
        for (name, value) in &settings.0 {
            loader.override_global(name, value, true);
        }
        for (name, value) in &settings.1 {
            loader.override_global(name, value, true);
        }
        let ebpf = loader.load(OBJECT).map_err(|error| {
            Unsupported::new(
                "cannot trace: the kernel refuses portwatch's maps",
                describe(&error),
                "run it as root; before Linux 5.11 locked memory counts: ulimit -l unlimited",
            )
        })?;
        // It holds all of the kernel's types, which are about to be read again.
        drop(loader);
        let mut backend = Self {
            ebpf: Mutex::new(ebpf),
            statuses: Vec::new(),
            absent: layout.absent().iter().map(ToString::to_string).collect(),
        };
        #[cfg(feature = "log")]
        super::messages::print(&mut backend.ebpf()).map_err(|error| {
            Unsupported::new(
                "cannot print the kernel side's messages",
                describe(&error),
                "run cargo xtask build-ebpf --features log",
            )
        })?;
        backend.attach(parts, symbols.err())?;
        Ok(backend)
    }

    fn attach(&mut self, parts: &[Part], no_addresses: Option<String>) -> Result<(), Unsupported> {
        let btf = AyaBtf::from_sys_fs().map_err(|error| {
            Unsupported::new(
                "cannot trace: the kernel's types cannot be read",
                describe(&error),
                "use a kernel built with CONFIG_DEBUG_INFO_BTF=y",
            )
        })?;
        for hook in HOOKS.into_iter().filter(|hook| parts.contains(&hook.part)) {
            let failure = match &no_addresses {
                Some(reason) if hook.part == Part::Timewait => Some(reason.clone()),
                _ => self
                    .attach_one(hook, &btf)
                    .err()
                    .map(|error| format!("{error:#}")),
            };
            if let (Part::Bind, Some(reason)) = (hook.part, &failure) {
                return Err(Unsupported::new(
                    format!("cannot trace: the hook {} cannot be attached", hook.name),
                    reason.clone(),
                    "see portwatch doctor for what this kernel allows",
                ));
            }
            self.statuses.push(Status { hook, failure });
        }
        Ok(())
    }

    fn attach_one(&mut self, hook: Hook, btf: &AyaBtf) -> anyhow::Result<()> {
        use anyhow::Context as _;

        let mut ebpf = self.ebpf();
        let program = ebpf
            .program_mut(hook.name)
            .with_context(|| format!("no program {} in the object", hook.name))?;
        match hook.attach {
            Attach::Tracepoint => {
                let program: &mut BtfTracePoint = program.try_into()?;
                load(|| program.load(hook.name, btf))?;
                program.attach()?;
            }
            Attach::CgroupSockRelease => {
                let root =
                    cgroup_root(Path::new("/")).context("no cgroup v2 hierarchy is mounted")?;
                let cgroup = File::open(&root).with_context(|| root.display().to_string())?;
                let program: &mut CgroupSock = program.try_into()?;
                load(|| program.load())?;
                // A link takes no flags, and always lives beside others.
                program.attach(cgroup, CgroupAttachMode::Single)?;
            }
            Attach::Iterator => {
                let program: &mut Iter = program.try_into()?;
                load(|| program.load(hook.name, btf))?;
            }
        }
        Ok(())
    }

    /// What became of each hook.
    #[must_use]
    pub fn statuses(&self) -> &[Status] {
        &self.statuses
    }

    /// Whether a hook is in place.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.statuses
            .iter()
            .any(|status| status.hook.name == name && status.failure.is_none())
    }

    /// The optional kernel fields this kernel does not have.
    #[must_use]
    pub fn absent(&self) -> &[String] {
        &self.absent
    }

    /// Reads the sockets that exist now, through the iterator.
    ///
    /// # Errors
    ///
    /// If the iterator is not there or fails.
    pub fn snapshot(&self) -> anyhow::Result<Vec<SnapshotEntry>> {
        Ok(decode::all(
            &self.read_iterator("task_file")?,
            kind::SNAPSHOT,
        )?)
    }

    /// Asks which of these timewait sockets, by their addresses in the kernel, are in TIME_WAIT by
    /// now. At most [`QUERIES_CAPACITY`] are asked for.
    ///
    /// # Errors
    ///
    /// If the iterator is not there or fails.
    pub fn ask_timewaits(&self, addresses: &[u64]) -> anyhow::Result<Vec<Timewait>> {
        use anyhow::Context as _;

        {
            let mut ebpf = self.ebpf();
            let map = ebpf.map_mut("QUERIES").context("no map of queries")?;
            let mut queries = Array::<_, u64>::try_from(map)?;
            let end = (addresses.len() < QUERIES_CAPACITY as usize).then_some(0);
            let asked = addresses.iter().copied().chain(end);
            for (index, address) in (0..QUERIES_CAPACITY).zip(asked) {
                queries.set(index, address, 0)?;
            }
        }
        Ok(decode::all(
            &self.read_iterator("bpf_map")?,
            kind::TIMEWAIT_FOUND,
        )?)
    }

    fn read_iterator(&self, name: &str) -> anyhow::Result<Vec<u8>> {
        use anyhow::Context as _;

        let mut file = {
            let mut ebpf = self.ebpf();
            let program = ebpf.program_mut(name).context("no iterator")?;
            let program: &mut Iter = program.try_into()?;
            let link = program.attach()?;
            program.take_link(link)?.into_file()?
        };
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)
            .context("reading the iterator")?;
        Ok(bytes)
    }

    fn ebpf(&self) -> MutexGuard<'_, Ebpf> {
        // A panic elsewhere leaves the kernel side as it is.
        self.ebpf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the ring buffer out. It can be had once.
    #[must_use]
    pub fn take_ring(&mut self) -> Option<RingBuf<MapData>> {
        RingBuf::try_from(self.ebpf().take_map("EVENTS")?).ok()
    }

    /// Takes the map `CONTROL` out. It can be had once.
    #[must_use]
    pub fn take_control(&mut self) -> Option<Control> {
        Some(Control(
            Array::try_from(self.ebpf().take_map("CONTROL")?).ok()?,
        ))
    }

    /// Takes the map of identified processes out. It can be had once.
    #[must_use]
    pub fn take_identified(&mut self) -> Option<HashMap<MapData, u32, u32>> {
        HashMap::try_from(self.ebpf().take_map("IDENTIFIED")?).ok()
    }

    /// The filter map of this name, empty but for what was put into it.
    #[must_use]
    pub fn filter_map(&mut self, name: &str) -> Option<HashMap<&mut MapData, u32, u8>> {
        let ebpf = self.ebpf.get_mut().unwrap_or_else(PoisonError::into_inner);
        HashMap::try_from(ebpf.map_mut(name)?).ok()
    }

    /// The bitmap of ports.
    #[must_use]
    pub fn port_map(&mut self) -> Option<Array<&mut MapData, u64>> {
        let ebpf = self.ebpf.get_mut().unwrap_or_else(PoisonError::into_inner);
        Array::try_from(ebpf.map_mut("PORTS")?).ok()
    }

    /// What was lost since the kernel side was loaded.
    #[must_use]
    pub fn losses(&self) -> Losses {
        let mut losses = Losses::default();
        let ebpf = self.ebpf();
        if let Some(map) = ebpf.map("LOST")
            && let Ok(map) = PerCpuArray::<_, u64>::try_from(map)
        {
            let count = |index: u32| {
                map.get(&index, 0)
                    .map_or(0, |values| values.iter().copied().sum::<u64>())
            };
            for (index, name) in KINDS {
                losses.ring.insert(name, count(index));
            }
            losses.bound = count(lost::BOUND);
        }
        for status in &self.statuses {
            let name = status.hook.name;
            if let Some(program) = ebpf.program(name)
                && let Ok(descriptor) = program.fd()
                && let Some(misses) = recursion_misses(descriptor.as_fd().as_raw_fd())
            {
                losses.recursion.insert(name, misses);
            }
        }
        losses
    }

    /// How many instructions the verifier went through for each program, where the kernel tells
    /// (5.16 and later).
    #[must_use]
    pub fn verified_instructions(&self) -> BTreeMap<&'static str, u32> {
        let ebpf = self.ebpf();
        self.statuses
            .iter()
            .filter_map(|status| {
                let info = ebpf.program(status.hook.name)?.info().ok()?;
                Some((status.hook.name, info.verified_instruction_count()?))
            })
            .collect()
    }
}

/// The map `CONTROL`.
pub struct Control(Array<MapData, u32>);

impl Control {
    /// Tells the kernel side that the reader is about to sleep and has to be woken.
    ///
    /// # Errors
    ///
    /// If the map cannot be written.
    pub fn sleep(&mut self) -> Result<(), aya::maps::MapError> {
        self.0.set(control::ASLEEP, 1, 0)
    }

    /// Puts filters into force: bits of [`portwatch_common::map::filter`].
    ///
    /// # Errors
    ///
    /// If the map cannot be written.
    pub fn set_filters(&mut self, filters: u32) -> Result<(), aya::maps::MapError> {
        self.0.set(control::FILTERS, filters, 0)
    }
}

/// The kinds of records, by the names under which their loss is told.
const KINDS: [(u32, &str); 11] = [
    (kind::BIND, "bind"),
    (kind::LISTEN, "listen"),
    (kind::RELEASE, "release"),
    (kind::TIMEWAIT_START, "timewait-start"),
    (kind::TIMEWAIT_CANCEL, "timewait-cancel"),
    (kind::TIMEWAIT_EXPIRE, "timewait-expire"),
    (kind::TIMEWAIT_REUSE, "timewait-reuse"),
    (kind::PROCESS, "process"),
    (kind::FORK, "fork"),
    (kind::EXEC, "exec"),
    (kind::REAP, "reap"),
];

/// What was lost, since the kernel side was loaded or between two moments.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Losses {
    /// Records that did not fit into the ring buffer, by kind.
    pub ring: BTreeMap<&'static str, u64>,
    /// Runs of a program that were skipped because it ran already on that processor, by program.
    pub recursion: BTreeMap<&'static str, u64>,
    /// Bound sockets that could not be followed.
    pub bound: u64,
}

impl Losses {
    /// What came on top of `earlier`; what did not is left out.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let difference = |now: &BTreeMap<&'static str, u64>, then: &BTreeMap<&'static str, u64>| {
            now.iter()
                .map(|(name, count)| {
                    (
                        *name,
                        count.saturating_sub(then.get(name).copied().unwrap_or(0)),
                    )
                })
                .filter(|(_, count)| *count != 0)
                .collect()
        };
        Self {
            ring: difference(&self.ring, &earlier.ring),
            recursion: difference(&self.recursion, &earlier.recursion),
            bound: self.bound.saturating_sub(earlier.bound),
        }
    }
}

impl Settings {
    /// All settings, and why the addresses of functions are not known, if they are not.
    fn resolve(btf: &Btf) -> (Self, Result<(), String>) {
        const TIMEWAIT: &str = "tw_timer_handler";
        const REQUEST: &str = "reqsk_timer_handler";

        let (symbols, known) =
            match Symbols::read(Path::new(symbols::KALLSYMS), &[TIMEWAIT, REQUEST]) {
                Ok(symbols) if symbols.get(TIMEWAIT).is_some() => (symbols, Ok(())),
                Ok(symbols) => (symbols, Err(format!("this kernel has no {TIMEWAIT}"))),
                Err(error) => (Symbols::default(), Err(describe(&error))),
            };
        let address = |name| symbols.get(name).map_or(0, |symbol| symbol.address);
        let bit = |name| {
            btf.enum_value(name)
                .and_then(|value| u32::try_from(value).ok())
                .unwrap_or(0)
        };
        let index = |name| {
            btf.enum_value(name)
                .and_then(|value| u32::try_from(value).ok())
                .unwrap_or(ABSENT)
        };
        let calls = SystemCalls::of_this_machine();
        let small = vec![
            ("NR_BIND", calls.bind),
            ("NR_LISTEN", calls.listen),
            ("NR_COMPAT_BIND", calls.compat_bind),
            ("NR_COMPAT_LISTEN", calls.compat_listen),
            ("NR_COMPAT_SOCKETCALL", calls.compat_socketcall),
            ("COMPAT_MASK", calls.compat_mask),
            ("NR_IGNORE", calls.ignore),
            ("FLAG_FREEBIND", bit("INET_FLAGS_FREEBIND")),
            ("FLAG_TRANSPARENT", bit("INET_FLAGS_TRANSPARENT")),
            (
                "FLAG_BIND_ADDRESS_NO_PORT",
                bit("INET_FLAGS_BIND_ADDRESS_NO_PORT"),
            ),
            ("SUBSYS_PIDS", index("pids_cgrp_id")),
            ("SUBSYS_MEMORY", index("memory_cgrp_id")),
            ("SUBSYS_DEVICES", index("devices_cgrp_id")),
            ("SUBSYS_CPU", index("cpu_cgrp_id")),
        ];
        let large = vec![
            ("TIMEWAIT_HANDLER", address(TIMEWAIT)),
            ("REQUEST_HANDLER", address(REQUEST)),
        ];
        (Self(small, large), known)
    }
}

/// Numbers of the system calls that concern us, and how a 32-bit task's call is told.
struct SystemCalls {
    bind: u32,
    listen: u32,
    compat_bind: u32,
    compat_listen: u32,
    compat_socketcall: u32,
    compat_mask: u32,
    ignore: u32,
}

impl SystemCalls {
    #[cfg(target_arch = "x86_64")]
    const fn of_this_machine() -> Self {
        Self {
            bind: 49,
            listen: 50,
            // arch/x86/entry/syscalls/syscall_32.tbl
            compat_bind: 361,
            compat_listen: 363,
            compat_socketcall: 102,
            // TS_COMPAT, arch/x86/include/asm/thread_info.h
            compat_mask: 0x2,
            // __X32_SYSCALL_BIT, arch/x86/include/uapi/asm/unistd.h
            ignore: 0x4000_0000,
        }
    }

    #[cfg(target_arch = "aarch64")]
    const fn of_this_machine() -> Self {
        Self {
            bind: 200,
            listen: 201,
            // arch/arm64/tools/syscall_32.tbl
            compat_bind: 282,
            compat_listen: 284,
            compat_socketcall: 102,
            // PSR_MODE32_BIT, arch/arm64/include/uapi/asm/ptrace.h
            compat_mask: 0x10,
            ignore: 0,
        }
    }
}

/// Before 5.11 BPF maps count as locked memory, of which little is allowed by default. Where it is
/// needed and not permitted, creating the maps fails, and says so.
fn unlock_memory() {
    use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};

    let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
}

/// Loads a program, and makes an error of what the kernel says without the verifier's whole log.
fn load(mut load: impl FnMut() -> Result<(), ProgramError>) -> anyhow::Result<()> {
    match load() {
        Ok(()) => Ok(()),
        Err(ProgramError::LoadError {
            io_error,
            verifier_log,
        }) => {
            let log = verifier_log.to_string();
            // The last lines say what was wrong.
            let lines: Vec<_> = log.lines().filter(|line| !line.is_empty()).collect();
            let tail = lines[lines.len().saturating_sub(4)..].join(" | ");
            if tail.is_empty() {
                anyhow::bail!("the kernel refuses to load it: {io_error}");
            }
            anyhow::bail!("the kernel refuses to load it: {io_error}: {tail}");
        }
        Err(error) => Err(error.into()),
    }
}

/// An error with all its causes in one line.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// Where the cgroup v2 hierarchy is mounted. `root` is `/`, but for tests.
#[must_use]
pub fn cgroup_root(root: &Path) -> Option<PathBuf> {
    // mount(8)'s fields: ID parent major:minor root mountpoint options … - type source options
    let mounts = fs::read_to_string(root.join("proc/self/mountinfo")).ok()?;
    mounts.lines().find_map(|line| {
        let (mount, rest) = line.split_once(" - ")?;
        let mut fields = mount.split(' ');
        let (origin, point) = (fields.nth(3)?, fields.next()?);
        (rest.starts_with("cgroup2 ") && origin == "/").then(|| PathBuf::from(point))
    })
}

/// `recursion_misses` of a program, which its descriptor's fdinfo tells (5.12 and later).
fn recursion_misses(descriptor: i32) -> Option<u64> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{descriptor}")).ok()?;
    let line = info
        .lines()
        .find_map(|line| line.strip_prefix("recursion_misses:"))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_lost_is_told_once() {
        let earlier = Losses {
            ring: [("bind", 3), ("listen", 1)].into(),
            recursion: BTreeMap::new(),
            bound: 2,
        };
        let now = Losses {
            ring: [("bind", 5), ("listen", 1), ("release", 0)].into(),
            recursion: [("sys_exit", 1)].into(),
            bound: 2,
        };
        assert_eq!(
            now.since(&earlier),
            Losses {
                ring: [("bind", 2)].into(),
                recursion: [("sys_exit", 1)].into(),
                bound: 0,
            }
        );
        assert_eq!(now.since(&now), Losses::default());
    }

    #[test]
    fn the_cgroup_root_is_found_where_it_is() {
        let mounts = |text: &str| {
            let root = tempfile::tempdir().unwrap();
            fs::create_dir_all(root.path().join("proc/self")).unwrap();
            fs::write(root.path().join("proc/self/mountinfo"), text).unwrap();
            cgroup_root(root.path())
        };
        let hybrid = "30 20 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
            31 30 0:27 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(
            mounts(hybrid),
            Some(PathBuf::from("/sys/fs/cgroup/unified"))
        );
        let part = "31 30 0:27 /kubepods /host rw - cgroup2 cgroup2 rw\n";
        assert_eq!(
            mounts(part),
            None,
            "a part of the hierarchy is not its root"
        );
        assert_eq!(mounts("nonsense\n - \n"), None);
    }

    #[test]
    fn every_hook_has_its_own_name() {
        let names: std::collections::BTreeSet<_> = HOOKS.iter().map(|hook| hook.name).collect();
        assert_eq!(names.len(), HOOKS.len());
    }
}
