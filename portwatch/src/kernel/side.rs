//! Loads the kernel side, attaches it by the best backend there is, and reads what it keeps.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;

use aya::maps::{Array, HashMap, MapData, PerCpuArray, RingBuf};
use aya::programs::Iter;
use aya::{Btf as AyaBtf, Ebpf, EbpfLoader, Endianness, VerifierLogLevel};
use portwatch_common::map::{QUERIES_CAPACITY, WANTED_CAPACITY, control, lost};
use portwatch_common::record::{SnapshotEntry, Timewait, kind};

use super::attach::{self, AttachError};
use super::btf::Btf;
use super::decode;
use super::detach;
use super::hook::{self, Attach, Backend, Hook, Part};
use super::layout::Layout;
use super::losses::{KINDS, Losses, recursion_misses};
use super::settings::{self, Timers};
use super::support::Unsupported;
use super::tree::Tree;

/// The kernel side, built by `cargo xtask build-ebpf`.
#[cfg(not(feature = "log"))]
pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!("../../bpf/portwatch.bpf.o");

/// The kernel side with messages, built by `cargo xtask build-ebpf --features log`.
#[cfg(feature = "log")]
pub(super) static OBJECT: &[u8] =
    aya::include_bytes_aligned!("../../../portwatch-ebpf/target/portwatch-features.bpf.o");

/// What became of a hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The hook.
    pub hook: Hook,
    /// Why it is not in place, if it is not.
    pub failure: Option<String>,
}

/// A backend that was tried for a part of the work and not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The part.
    pub part: Part,
    /// The backend.
    pub backend: Backend,
    /// Why not.
    pub why: String,
}

/// The kernel side, loaded and attached. Dropping it detaches everything, soon after.
#[derive(Debug)]
pub struct KernelSide {
    /// Reading an iterator changes its program's links.
    ebpf: Mutex<Ebpf>,
    /// The types that hooks go to, as aya needs them to attach, until the choice is made.
    types: AyaBtf,
    ladder: Vec<Backend>,
    parts: Vec<Part>,
    placed: BTreeMap<Part, (Backend, Vec<Status>)>,
    steps: Vec<Step>,
    /// Backends of which a hook has been accepted.
    proven: BTreeSet<Backend>,
    /// Backends that this kernel refuses altogether, and why.
    refused: BTreeMap<Backend, String>,
    /// Why the addresses of functions are not known, if they are not.
    no_addresses: Option<String>,
    /// Those functions of this kernel that hooks go to.
    functions: BTreeSet<&'static str>,
    absent: Vec<String>,
    /// Calls that returned while their returns were probed and their entries not yet: nothing is lost
    /// with them, as the stream had not begun.
    entries_unseen: u64,
    /// What keeps the links while they are dropped, and so is the last to be.
    background: OnceLock<OwnedFd>,
}

impl Drop for KernelSide {
    fn drop(&mut self) {
        self.leave();
    }
}

/// What to load.
#[derive(Debug, Clone)]
pub struct Choice {
    /// The only backend to use, where a part can be done by several; else the first that works.
    pub backend: Option<Backend>,
    /// The parts of the work to do.
    pub parts: Vec<Part>,
    /// Bytes of the ring buffer: a power of two, at least a page.
    pub buffer: u32,
    /// Follow the descendants of the processes that are put into the [`Tree`].
    pub tree: bool,
}

impl KernelSide {
    /// Loads the kernel side and attaches, for each part, the hooks of the first backend that is
    /// accepted. Those that are not are noted in [`KernelSide::steps`]; without [`Part::Bind`] there
    /// is nothing to do.
    ///
    /// # Errors
    ///
    /// If the kernel is too old or too strange, or refuses.
    pub fn load(choice: &Choice) -> Result<Self, Unsupported> {
        // Only timers are known by their addresses, for which all of /proc/kallsyms may have to be read:
        // meanwhile the types are, one after the other, since each reading takes a lot of memory.
        let timers = (choice.backend.is_none_or(|it| it == Backend::Tracepoint)
            && choice.parts.contains(&Part::Timewait))
        .then(|| thread::spawn(Timers::read));
        let btf =
            Btf::from_path(Path::new(super::btf::VMLINUX)).map_err(|error| unreadable(&error))?;
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
        let settings = settings::resolve(&btf);
        let functions = hook::all()
            .flat_map(|hook| hook.targets.iter().copied())
            .filter(|target| btf.function(target).is_some())
            .collect();
        let names: Vec<_> = hook::all().flat_map(Hook::types).collect();
        let types = btf.excerpt(names.iter().map(|name| &**name));
        let types = AyaBtf::parse(&types, Endianness::default()).map_err(|e| unreadable(&e))?;
        drop(btf);

        unlock_memory();
        let mut loader = EbpfLoader::new();
        loader.verifier_log_level(VerifierLogLevel::DISABLE);
        loader.map_max_entries("EVENTS", choice.buffer);
        let follow_tree = u32::from(choice.tree);
        loader.override_global("FOLLOW_TREE", &follow_tree, true);
        if !choice.tree {
            loader.map_max_entries("TREE", 1);
        }
        for (name, value) in layout.iter() {
            loader.override_global(name, value, true);
        }
        for (name, value) in &settings {
            loader.override_global(name, value, true);
        }
        let timers = timers.map_or_else(
            || Ok(Timers::default()),
            |reading| reading.join().unwrap_or_else(|panic| resume_unwind(panic)),
        );
        let (timers, no_addresses) = match timers {
            Ok(timers) => (timers, None),
            Err(why) => (Timers::default(), Some(why)),
        };
        let timers = timers.settings();
        for (name, value) in &timers {
            loader.override_global(name, value, true);
        }
        let ebpf = loader.load(OBJECT).map_err(|error| {
            Unsupported::new(
                "cannot trace: the kernel refuses portwatch's maps",
                describe(&error),
                "run it as root; before Linux 5.11 locked memory counts: ulimit -l unlimited",
            )
        })?;
        // It holds all of the kernel's types, which it has read for itself.
        drop(loader);
        let mut side = Self {
            ebpf: Mutex::new(ebpf),
            types,
            ladder: match choice.backend {
                Some(backend) => vec![backend],
                None => Backend::LADDER.to_vec(),
            },
            parts: Part::ALL
                .into_iter()
                .filter(|part| choice.parts.contains(part))
                .collect(),
            placed: BTreeMap::new(),
            steps: Vec::new(),
            proven: BTreeSet::new(),
            refused: BTreeMap::new(),
            no_addresses,
            functions,
            absent: layout.absent().iter().map(ToString::to_string).collect(),
            entries_unseen: 0,
            background: OnceLock::new(),
        };
        #[cfg(feature = "log")]
        super::messages::print(&mut side.ebpf()).map_err(|error| {
            Unsupported::new(
                "cannot print the kernel side's messages",
                describe(&error),
                "run cargo xtask build-ebpf --features log",
            )
        })?;
        for part in side.parts.clone() {
            let ladder = if part.is_done_in_one_way() {
                Backend::LADDER.to_vec()
            } else {
                side.ladder.clone()
            };
            side.place(part, &ladder)?;
        }
        Ok(side)
    }

    /// Does a part by the first of these backends whose hooks are accepted here.
    fn place(&mut self, part: Part, ladder: &[Backend]) -> Result<(), Unsupported> {
        for backend in ladder {
            let hooks = part.hooks(*backend);
            if hooks.is_empty() {
                continue;
            }
            let accepted = match (self.refused.get(backend), &self.no_addresses) {
                (Some(why), _) => Err(why.clone()),
                (None, Some(why)) if (part, *backend) == (Part::Timewait, Backend::Tracepoint) => {
                    Err(why.clone())
                }
                _ => self.attach(*backend, hooks)?,
            };
            match accepted {
                Ok(statuses) => {
                    self.placed.insert(part, (*backend, statuses));
                    self.entries_unseen += self.losses().kretprobe;
                    return Ok(());
                }
                Err(why) => self.steps.push(Step {
                    part,
                    backend: *backend,
                    why,
                }),
            }
        }
        if part == Part::Bind {
            let reasons = self.steps.iter().filter(|step| step.part == part);
            let reasons: Vec<_> = reasons
                .map(|step| format!("{}: {}", step.backend, step.why))
                .collect();
            return Err(Unsupported::new(
                "cannot trace: no hook for bind and listen works here",
                reasons.join("; "),
                "see portwatch doctor for what this kernel allows",
            ));
        }
        Ok(())
    }

    /// Attaches hooks. Either all of them are in place, but for optional ones, or none, with the
    /// reason.
    fn attach(
        &mut self,
        backend: Backend,
        hooks: &[Hook],
    ) -> Result<Result<Vec<Status>, String>, Unsupported> {
        let mut statuses = Vec::new();
        let mut refusal = None;
        for hook in hooks {
            let attached = match self.target(hook) {
                Some(target) => attach::hook(&mut self.ebpf(), *hook, target, &self.types),
                // There is nothing that it could miss.
                None if hook.optional => continue,
                None => Err(AttachError::Absent(
                    "this kernel has no such function".to_owned(),
                )),
            };
            if attached.is_ok() && hook.attach.backend() == backend {
                self.proven.insert(backend);
            }
            let failure = attached.err();
            if let Some(error) = &failure
                && !hook.optional
            {
                let why = format!("{hook}: {error}");
                if error.is_of_the_backend() && !self.proven.contains(&backend) {
                    self.refused.insert(backend, why.clone());
                }
                refusal = Some(why);
                break;
            }
            statuses.push(Status {
                hook: *hook,
                failure: failure.map(|error| error.to_string()),
            });
        }
        if refusal.is_none() && statuses.iter().all(|status| status.failure.is_some()) {
            refusal = statuses
                .first()
                .and_then(|status| Some(format!("{}: {}", status.hook, status.failure.as_ref()?)));
        }
        Ok(match refusal {
            None => Ok(statuses),
            Some(why) => {
                self.detach(&statuses);
                Err(why)
            }
        })
    }

    /// What a hook goes to here. The types tell of kprobes' functions too: those that the compiler
    /// has inlined everywhere have none.
    fn target(&self, hook: &Hook) -> Option<&'static str> {
        if matches!(
            hook.attach,
            Attach::Tracepoint | Attach::CgroupSockRelease | Attach::Iterator
        ) {
            return hook.targets.first().copied();
        }
        let mut targets = hook.targets.iter().copied();
        targets.find(|target| self.functions.contains(target))
    }

    fn detach(&self, statuses: &[Status]) {
        let mut ebpf = self.ebpf();
        for status in statuses {
            if status.failure.is_none() {
                attach::unload(&mut ebpf, status.hook);
            }
        }
    }

    /// Gives up the hooks of a part and takes those of the next backend. `false` if there is none:
    /// then they stay.
    ///
    /// # Errors
    ///
    /// If the next one cannot be attached either and nothing works without it.
    pub fn step_down(&mut self, part: Part, why: &str) -> Result<bool, Unsupported> {
        let Some((backend, _)) = self.placed.get(&part) else {
            return Ok(false);
        };
        let backend = *backend;
        let below: Vec<_> = self
            .ladder
            .iter()
            .copied()
            .filter(|next| *next > backend && !part.hooks(*next).is_empty())
            .collect();
        if below.is_empty() {
            return Ok(false);
        }
        if let Some((_, statuses)) = self.placed.remove(&part) {
            self.detach(&statuses);
        }
        self.steps.push(Step {
            part,
            backend,
            why: why.to_owned(),
        });
        self.place(part, &below)?;
        Ok(true)
    }

    /// The end is near: however the process ends from here on, it does not wait for its hooks to be
    /// detached.
    pub fn leave(&self) {
        if self.background.get().is_none()
            // Without it detaching takes longer, and that is all.
            && let Ok(background) = detach::in_background()
        {
            let _ = self.background.set(background);
        }
    }

    /// The choice is made: gives the memory back that only it needs.
    pub fn settle(&mut self) {
        self.types = AyaBtf::new();
    }

    /// The parts that were asked for, each with the backend that does it, if any does.
    pub fn parts(&self) -> impl Iterator<Item = (Part, Option<Backend>)> {
        self.parts
            .iter()
            .map(|part| (*part, self.placed.get(part).map(|(backend, _)| *backend)))
    }

    /// The backend that sees bind and listen.
    #[must_use]
    pub fn backend(&self) -> Backend {
        // Without it nothing is loaded.
        self.placed
            .get(&Part::Bind)
            .map_or(Backend::Tracepoint, |(backend, _)| *backend)
    }

    /// The backends that were not taken, in the order in which they were tried, and why.
    #[must_use]
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// What became of each hook of the backends in use.
    pub fn statuses(&self) -> impl Iterator<Item = (Part, &Status)> {
        self.placed
            .iter()
            .flat_map(|(part, (_, statuses))| statuses.iter().map(|status| (*part, status)))
    }

    /// Whether one of these programs is in place.
    #[must_use]
    pub fn has(&self, programs: &[&str]) -> bool {
        self.statuses()
            .any(|(_, status)| status.failure.is_none() && programs.contains(&status.hook.program))
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
        self.put_addresses("QUERIES", addresses, QUERIES_CAPACITY)?;
        Ok(decode::all(
            &self.read_iterator("bpf_map")?,
            kind::TIMEWAIT_FOUND,
        )?)
    }

    /// Asks which processes have these sockets open, by their addresses in the kernel. At most
    /// [`WANTED_CAPACITY`] are asked for.
    ///
    /// # Errors
    ///
    /// If the iterator is not there or fails.
    pub fn ask_owners(&self, addresses: &[u64]) -> anyhow::Result<Vec<SnapshotEntry>> {
        self.put_addresses("WANTED", addresses, WANTED_CAPACITY)?;
        Ok(decode::all(&self.read_iterator("owners")?, kind::OWNER)?)
    }

    /// Writes addresses into an array, up to the first 0 behind them.
    fn put_addresses(&self, map: &str, addresses: &[u64], capacity: u32) -> anyhow::Result<()> {
        use anyhow::Context as _;

        let mut ebpf = self.ebpf();
        let map = ebpf.map_mut(map).context("no map of addresses")?;
        let mut map = Array::<_, u64>::try_from(map)?;
        let end = (addresses.len() < capacity as usize).then_some(0);
        let asked = addresses.iter().copied().chain(end);
        for (index, address) in (0..capacity).zip(asked) {
            map.set(index, address, 0)?;
        }
        Ok(())
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

    /// Takes the tree of processes that is followed out. It can be had once.
    #[must_use]
    pub fn take_tree(&mut self) -> Option<Tree> {
        HashMap::try_from(self.ebpf().take_map("TREE")?)
            .ok()
            .map(Tree::new)
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
            losses.kretprobe = count(lost::KRETPROBE).saturating_sub(self.entries_unseen);
            losses.tree = count(lost::TREE);
        }
        for (_, status) in self.statuses() {
            let name = status.hook.program;
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
        self.statuses()
            .filter_map(|(_, status)| {
                let info = ebpf.program(status.hook.program)?.info().ok()?;
                Some((status.hook.program, info.verified_instruction_count()?))
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

/// Before 5.11 BPF maps count as locked memory, of which little is allowed by default. Where it is
/// needed and not permitted, creating the maps fails, and says so.
pub(super) fn unlock_memory() {
    use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};

    let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
}

/// The kernel's types cannot be read.
fn unreadable(error: &dyn std::error::Error) -> Unsupported {
    Unsupported::new(
        "cannot trace: the kernel's types cannot be read",
        describe(error),
        "use a kernel built with CONFIG_DEBUG_INFO_BTF=y",
    )
}

/// An error with all its causes in one line.
pub(super) fn describe(error: &dyn std::error::Error) -> String {
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
