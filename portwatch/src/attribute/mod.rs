//! From records to events: who did it, in which container, and what a
//! sequence of records means.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lru::LruCache;
use nix::errno::Errno;
use portwatch_common::map::{QUERIES_CAPACITY, filter as bit};
use portwatch_common::record::{self, kind, socket_flag};

use self::conflict::Conflicts;
use self::container::Containers;
pub use self::convert::socket;
use self::convert::{family, requested_address, rewritten_address, same, unix_address};
use self::ledger::Ledger;
use self::lookup::{Answer, Ask, Lookups, Patience};
use self::marks::Marks;
use self::order::Order;
use self::process::{Found, Key, Processes};
use self::refusal::Refusal;
use self::timewait::{Change, Timewaits};
use crate::event::{
    Actor, Bind, Body, Event, Family, Listen, Lost, Membership, Outcome, Phase, Release, Result,
    State, Timewait, Transport,
};
use crate::filter::Filter;
use crate::kernel::clock::{self, Clock};
use crate::kernel::decode::Record;
use crate::kernel::losses::Losses;
use crate::kernel::stream::Batch;
use crate::kernel::{netns, snapshot};

mod arguments;
pub mod cgroup;
pub mod conflict;
pub mod container;
mod convert;
mod explain;
mod job;
mod ledger;
pub mod looker;
pub mod lookup;
pub mod marks;
pub mod order;
pub mod process;
mod refusal;
pub mod standing;
pub mod timewait;
mod unit;

/// How long a reading of the clocks is good for.
const CLOCK_FRESH: Duration = Duration::from_secs(1);

/// How many sockets are remembered that runtimes have for containers of a job.
const PUBLISHED: usize = 4096;

/// Makes events of records.
#[derive(Debug)]
pub struct Attribution {
    order: Order,
    processes: Processes,
    containers: Containers,
    timewaits: Timewaits,
    listeners: Listeners,
    ledger: Ledger,
    conflicts: Conflicts,
    lookups: Lookups,
    /// By what containers are known to be of the job, if one is watched.
    marks: Option<Arc<Marks>>,
    /// The sockets that runtimes have for containers of the job, by their addresses in the kernel.
    published: LruCache<u64, Membership>,
    /// The refusal that is told next: its thread and time.
    next: (u32, u64),
    /// The stream is complete up to here, as far as it has come.
    complete_until: u64,
    /// Which events are wanted.
    filter: Filter,
    /// Whether all binds and releases are seen nevertheless.
    sees_all: bool,
    /// Inode number of the host's own network namespace.
    host_netns: Option<u32>,
    losses: Losses,
    undecoded: u64,
    clock: Clock,
    clock_read: Instant,
    jiffy: u64,
    proc: PathBuf,
    forgotten: Vec<u32>,
    asked: u64,
}

/// Who listens: sockets by their address in the kernel, and how many there are on a port.
#[derive(Debug, Default)]
struct Listeners {
    sockets: HashMap<u64, (u32, u16)>,
    ports: HashMap<(u32, u16), u32>,
}

impl Listeners {
    fn add(&mut self, address: u64, netns: u32, port: u16) {
        if self.sockets.insert(address, (netns, port)).is_none() {
            *self.ports.entry((netns, port)).or_default() += 1;
        }
    }

    fn remove(&mut self, address: u64) {
        if let Some(place) = self.sockets.remove(&address)
            && let Some(count) = self.ports.get_mut(&place)
        {
            *count -= 1;
            if *count == 0 {
                self.ports.remove(&place);
            }
        }
    }

    fn on(&self, netns: u32, port: u16) -> bool {
        self.ports.contains_key(&(netns, port))
    }
}

/// What has arrived that concerns refusals.
#[derive(Debug, Default)]
struct Arrived {
    refusals: Vec<Refusal>,
    holders: Vec<record::Holder>,
    processes: HashMap<Key, Said>,
}

/// What a process has said of itself.
#[derive(Debug)]
struct Said {
    line: Vec<Key>,
    may_be_containers: bool,
}

impl Arrived {
    /// `own` says whether only what a job does is wanted.
    fn take(&mut self, record: &Record, own: bool) {
        match record {
            Record::Holder(holder) => self.holders.push(*holder),
            Record::Process(identity) => {
                let said = Said {
                    line: process::line(identity),
                    may_be_containers: own && process::may_be_containers(identity),
                };
                self.processes.insert(Key::of(&identity.task), said);
            }
            record => self.refusals.extend(Refusal::of(record)),
        }
    }
}

impl Attribution {
    /// Begins with what existed before. `ask` takes what has to be looked up.
    #[must_use]
    pub fn new(held: &[snapshot::Held], ask: Ask, patience: Patience) -> Self {
        let mut listeners = Listeners::default();
        for held in held.iter().filter(|held| held.listening) {
            if let Some(address) = held.address {
                listeners.add(address, held.netns, held.port);
            }
        }
        Self {
            order: Order::default(),
            complete_until: 0,
            processes: Processes::default(),
            containers: Containers::new("/".as_ref()),
            timewaits: Timewaits::default(),
            listeners,
            ledger: Ledger::new(held),
            conflicts: Conflicts::default(),
            lookups: Lookups::new(ask, patience),
            marks: None,
            published: LruCache::new(NonZeroUsize::new(PUBLISHED).unwrap_or(NonZeroUsize::MIN)),
            next: (0, 0),
            filter: Filter::default(),
            sees_all: false,
            host_netns: netns::host(),
            // What was lost since the hooks are in place is lost to the stream.
            losses: Losses::default(),
            undecoded: 0,
            clock: Clock::now(),
            clock_read: Instant::now(),
            jiffy: clock::jiffy(),
            proc: PathBuf::from("/proc"),
            forgotten: Vec::new(),
            asked: 0,
        }
    }

    /// Which events are wanted: nothing is looked up for others.
    pub fn choose(&mut self, filter: Filter) {
        // No filter keeps binds and releases from being seen.
        self.sees_all = filter.in_kernel() & !bit::UNIX == 0;
        self.filter = filter;
    }

    /// A job is watched, of which containers with these marks are as well.
    pub fn watch(&mut self, marks: Arc<Marks>) {
        self.marks = Some(marks);
    }

    /// What `/proc` told of processes that were there before.
    pub fn found(&mut self, found: Vec<Found>) {
        self.processes.found(found);
    }

    /// Takes a batch in; the events that are complete by now go to `emit`.
    pub fn batch(&mut self, batch: &Batch, mut emit: impl FnMut(&Event)) {
        if self.clock_read.elapsed() >= CLOCK_FRESH {
            self.clock = Clock::now();
            self.clock_read = Instant::now();
        }
        let own = self.wants_own();
        let undecoded = &mut self.undecoded;
        let mut arrived = Arrived::default();
        self.order.add(batch.records().filter_map(|record| {
            *undecoded += u64::from(record.is_err());
            let record = record.ok()?;
            arrived.take(&record, own);
            Some(record)
        }));
        self.ask_for(&arrived);
        self.complete_until = batch.complete_until;
        self.look(&mut emit);
        if let Some(losses) = &batch.losses {
            self.lost(losses, &mut emit);
        }
    }

    /// Answers have come; the events that are complete by now go to `emit`.
    pub fn answered(&mut self, answers: Vec<Answer>, mut emit: impl FnMut(&Event)) {
        self.lookups.answered(answers, Instant::now());
        self.look(&mut emit);
    }

    /// Looks whether something need not be waited for any more: see [`lookup::LOOK`].
    pub fn look(&mut self, emit: &mut impl FnMut(&Event)) {
        self.lookups.expire(Instant::now());
        self.ready(self.complete_until, emit);
    }

    /// Whether answers are waited for.
    #[must_use]
    pub fn is_asking(&self) -> bool {
        self.lookups.are_open()
    }

    /// The stream has ended: everything goes to `emit`.
    pub fn finish(&mut self, mut emit: impl FnMut(&Event)) {
        self.complete_until = u64::MAX;
        self.ready(u64::MAX, &mut emit);
        self.tell_limited(&mut emit);
    }

    /// Nothing comes behind what is here.
    pub fn nothing_comes_behind(&mut self) {
        self.complete_until = u64::MAX;
    }

    /// Processes that had to be forgotten: the kernel side must send them again.
    pub fn forgotten(&mut self) -> impl Iterator<Item = u32> {
        self.forgotten.drain(..)
    }

    fn ready(&mut self, complete_until: u64, emit: &mut impl FnMut(&Event)) {
        while let Some(record) = self.order.peek(complete_until) {
            if let Some(refusal) = Refusal::of(record)
                && self.may_want(&refusal, || {
                    // Of one whose record was lost nothing is known by now.
                    let known = self.processes.may_be_containers(refusal.key());
                    known.unwrap_or(true)
                })
                && self.has_to_wait(&refusal)
            {
                break;
            }
            let Some(record) = self.order.next(complete_until) else {
                break;
            };
            let time = self.clock.at_monotonic(record.time());
            if let Record::Timewait(timewait) = &record {
                for timewait in self.timewait(timewait) {
                    let body = Body::Timewait(timewait);
                    emit(&Event { time, body });
                }
            } else if let Some(body) = self.event(&record) {
                emit(&Event { time, body });
            }
        }
    }

    fn event(&mut self, record: &Record) -> Option<Body> {
        match record {
            Record::Bind(bind, path) => Some(Body::Bind(self.bind(bind, path))),
            Record::Listen(listen, path) => Some(Body::Listen(self.listen(listen, path))),
            Record::Release(release) => Some(Body::Release(self.release(release))),
            // One of these may be two events.
            Record::Timewait(_) => None,
            Record::Holder(holder) => {
                self.conflicts.add(holder);
                None
            }
            Record::Process(identity) => {
                let forgotten = self.processes.identified(identity, &self.proc);
                self.forget(forgotten);
                None
            }
            Record::Fork(fork) => {
                let forgotten = self.processes.forked(fork);
                self.forget(forgotten);
                None
            }
            Record::Gone(gone) => {
                if gone.header.kind == kind::EXEC {
                    self.processes.executed(gone);
                } else {
                    self.processes.reaped(gone);
                }
                None
            }
        }
    }

    /// Asks for what the refusals among what has arrived need.
    fn ask_for(&mut self, arrived: &Arrived) {
        if arrived.refusals.is_empty() {
            return;
        }
        let now = Instant::now();
        for refusal in &arrived.refusals {
            let tid = refusal.task.tid;
            let key = Key::of(&refusal.task);
            let holders = arrived.holders.iter().filter(|holder| holder.tid == tid);
            let holders = self.conflicts.of(tid).iter().chain(holders);
            let said = arrived.processes.get(&key);
            // Who it is may be in a record before it that is not heeded yet: then that is asked for when
            // its turn has come, if it is wanted.
            let containers = || match said {
                Some(said) => said.may_be_containers,
                None => self.processes.may_be_containers(key).unwrap_or(false),
            };
            if !self.may_want(refusal, containers) {
                continue;
            }
            let line = match said {
                Some(said) => &said.line,
                None => self.processes.line(key),
            };
            let above = |socket: &record::Socket| self.above(socket).map(|above| above.socket);
            for question in refusal.questions(holders, line, above) {
                self.lookups.want(question, now);
            }
        }
        self.lookups.send();
    }

    /// Whether a refusal, the next one to be told, waits for an answer. What could not be known to be
    /// needed when it arrived is asked for now, once, and only if it has not waited long already:
    /// otherwise in a storm one would wait behind the other.
    fn has_to_wait(&mut self, refusal: &Refusal) -> bool {
        let tid = refusal.task.tid;
        let above = |socket: &record::Socket| self.above(socket).map(|above| above.socket);
        let line = self.processes.line(Key::of(&refusal.task));
        let questions = refusal.questions(self.conflicts.of(tid).iter(), line, above);
        let is_new = self.next != (tid, refusal.time);
        self.next = (tid, refusal.time);
        let since = clock::monotonic().saturating_sub(refusal.time);
        let is_new = is_new && self.lookups.may_ask(Duration::from_nanos(since));
        let mut waits = false;
        for question in questions {
            if is_new && self.lookups.get(&question.subject).is_none() {
                waits |= self.lookups.want(question, Instant::now());
            } else {
                waits |= self.lookups.is_open(&question.subject);
            }
        }
        self.lookups.send();
        if waits && self.order.is_crowded() {
            self.lookups.pass_over();
            return false;
        }
        waits
    }

    fn forget(&mut self, key: Option<Key>) {
        self.forgotten.extend(key.map(|key| key.tgid));
    }

    fn actor(&mut self, task: &record::Task) -> Option<Actor> {
        let (containers, marks) = (&mut self.containers, &self.marks);
        self.processes
            .actor(task, self.clock, &self.proc, |reference| {
                let named = containers.get(reference, Instant::now());
                let job = marks.as_ref().and_then(|marks| marks.membership(&named));
                (named, job)
            })
    }

    fn bind(&mut self, bind: &record::Bind, path: &[u8]) -> Bind {
        let asked = requested_address(&bind.requested, path);
        let mut socket = socket(&bind.socket, &bind.device);
        let autobind = bind.socket.flags & socket_flag::AUTOBIND != 0;
        let mut requested = None;
        if bind.result == 0 && socket.family.is_some_and(|family| family != Family::Unix) {
            // A raw socket's port is its protocol, whatever was asked for.
            let ignore_port = socket.transport == Some(Transport::Raw);
            if socket.local.is_some()
                && asked.is_some()
                && !same(&socket.local, &asked, ignore_port)
            {
                requested = asked;
            }
        } else if let Some(tried) = rewritten_address(bind) {
            socket.local = Some(tried);
            requested = asked;
        } else {
            socket.local = asked;
        }
        if bind.result != 0 && !autobind {
            socket.remote = None;
        }
        if socket.family.is_none() {
            socket.family = family(bind.requested.family);
        }
        socket.state = None;
        let mut process = self.actor(&bind.task);
        if bind.result == 0 {
            self.ledger.bound(bind);
            self.claim(&bind.socket, &socket, process.as_mut());
        }
        let conflict = (bind.result < 0 && !autobind).then(|| {
            let refusal = Refusal::bind(bind, path);
            self.explain(&refusal, socket.clone(), process.as_mut())
        });
        Bind {
            result: result(bind.result),
            socket,
            requested,
            autobind,
            conflict: conflict.map(Box::new),
            process,
        }
    }

    fn listen(&mut self, listen: &record::Listen, path: &[u8]) -> Listen {
        let raw = &listen.socket;
        let mut socket = socket(raw, &listen.device);
        if socket.family == Some(Family::Unix) {
            socket.local = unix_address(path);
        }
        if listen.result == 0 {
            self.ledger.listens(listen);
            if raw.local_port != 0 {
                self.listeners.add(raw.address, raw.netns, raw.local_port);
            }
        } else {
            socket.state = None;
        }
        let mut process = self.actor(&listen.task);
        if let Some(process) = &mut process {
            process.job = process.job.or(self.published.peek(&raw.address).copied());
        }
        let conflict = (listen.result < 0).then(|| {
            let refusal = Refusal::listen(listen, path);
            self.explain(&refusal, socket.clone(), process.as_mut())
        });
        Listen {
            result: result(listen.result),
            socket,
            backlog: listen.backlog,
            conflict: conflict.map(Box::new),
            process,
        }
    }

    fn release(&mut self, release: &record::Release) -> Release {
        self.listeners.remove(release.socket.address);
        self.ledger.released(release);
        let binder = Key {
            tgid: release.binder_tgid,
            start: release.binder_start,
        };
        let seen = release.bound_at != 0;
        let mut binder = if seen && binder != Key::of(&release.task) {
            self.processes.actor_by_key(binder, self.clock)
        } else {
            None
        };
        if let Some(binder) = &mut binder {
            binder.job = process::membership(release.binder_flags).or(binder.job);
        }
        let mut process = self.actor(&release.task);
        let published = self.published.pop(&release.socket.address);
        for actor in [&mut binder, &mut process].into_iter().flatten() {
            actor.job = actor.job.or(published);
        }
        let mut socket = socket(&release.socket, &release.device);
        socket.state = None;
        socket.remote = None;
        Release {
            socket,
            bound_at: seen.then(|| self.clock.at_monotonic(release.bound_at)),
            held_ms: seen
                .then(|| milliseconds(release.header.time.saturating_sub(release.bound_at))),
            binder,
            process,
        }
    }

    /// Whether connections in FIN_WAIT2 wait to be asked for.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.timewaits.is_waiting()
    }

    /// Some of the connections in FIN_WAIT2, by their addresses in the kernel: whether they have
    /// gone on to TIME_WAIT must be asked for. Each time others, if there are many.
    pub fn waiting(&mut self) -> Vec<u64> {
        let waiting = self
            .timewaits
            .waiting(self.asked, QUERIES_CAPACITY as usize);
        self.asked = waiting.last().copied().unwrap_or_default();
        waiting
    }

    /// These have.
    pub fn found_timewaits(&mut self, found: Vec<record::Timewait>) {
        self.order.add(found.into_iter().map(Record::Timewait));
    }

    fn timewait(&mut self, timewait: &record::Timewait) -> Vec<Timewait> {
        let closer = if timewait.header.kind == kind::TIMEWAIT_START {
            self.actor(&timewait.task)
        } else {
            None
        };
        let raw = &timewait.socket;
        let listeners = &self.listeners;
        let changes = self.timewaits.change(timewait, &self.order, closer, || {
            listeners.on(raw.netns, raw.local_port)
        });
        let expires_in = milliseconds(timewait.expires_in.saturating_mul(self.jiffy));
        let mut socket = socket(raw, &[0; 16]);
        socket.state = Some(State::TimeWait);
        let changes = changes.into_iter().map(|change| match change {
            Change::Enter { waited, closer } => Timewait {
                phase: Phase::Enter,
                socket: socket.clone(),
                // Unknown where its end is already here.
                expires_in_ms: (expires_in != 0).then_some(expires_in),
                fin_wait2_ms: waited.map(milliseconds),
                reason: None,
                lasted_ms: None,
                process: closer,
            },
            Change::Exit {
                reason,
                lasted,
                closer,
            } => Timewait {
                phase: Phase::Exit,
                socket: socket.clone(),
                expires_in_ms: None,
                fin_wait2_ms: None,
                reason,
                lasted_ms: lasted.map(milliseconds),
                process: closer,
            },
        });
        changes.collect()
    }

    /// Tells what was not looked up, for want of time.
    fn tell_limited(&mut self, emit: &mut impl FnMut(&Event)) {
        let count = self.lookups.limited();
        if count != 0 {
            emit(&Event {
                time: self.clock.at_monotonic(clock::monotonic()),
                body: Body::Lost(Lost {
                    count,
                    place: "lookup".into(),
                    of: Default::default(),
                }),
            });
        }
    }

    fn lost(&mut self, losses: &Losses, emit: &mut impl FnMut(&Event)) {
        self.tell_limited(emit);
        let new = losses.since(&self.losses);
        self.losses.clone_from(losses);
        let time = self.clock.at_monotonic(clock::monotonic());
        let mut tell = |place: &'static str, count: u64, of: std::collections::BTreeMap<_, _>| {
            if count != 0 {
                emit(&Event {
                    time,
                    body: Body::Lost(Lost {
                        count,
                        place: place.into(),
                        of,
                    }),
                });
            }
        };
        let by_name = |counts: &std::collections::BTreeMap<&'static str, u64>| {
            counts
                .iter()
                .map(|(name, count)| ((*name).into(), *count))
                .collect()
        };
        tell("ring", new.ring.values().sum(), by_name(&new.ring));
        tell(
            "recursion",
            new.recursion.values().sum(),
            by_name(&new.recursion),
        );
        tell("kretprobe", new.kretprobe, Default::default());
        tell("bound", new.bound, Default::default());
        tell("tree", new.tree, Default::default());
        tell(
            "decode",
            std::mem::take(&mut self.undecoded),
            Default::default(),
        );
    }
}

fn milliseconds(nanoseconds: u64) -> u64 {
    nanoseconds / 1_000_000
}

fn result(result: i32) -> Result {
    if result >= 0 {
        return Result {
            outcome: Outcome::Success,
            error: None,
            errno: None,
        };
    }
    let errno = result.saturating_neg();
    let name = match Errno::from_raw(errno) {
        Errno::UnknownErrno => None,
        known => Some(format!("{known:?}").into()),
    };
    Result {
        outcome: Outcome::Failure,
        error: name,
        errno: Some(errno),
    }
}

#[cfg(test)]
mod tests;
