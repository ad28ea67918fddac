//! From records to events: who did it, in which container, and what a
//! sequence of records means.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::time::Instant;

use nix::errno::Errno;
use portwatch_common::map::QUERIES_CAPACITY;
use portwatch_common::record::{self, Requested, kind, socket_flag};

use self::conflict::{AskOwners, Conflicts};
use self::container::Containers;
use self::order::Order;
use self::process::{Found, Key, Processes};
use self::timewait::{Change, Timewaits};
use crate::diagnose;
use crate::diagnose::facts::{Call, Facts, Held, KernelSocket, Origin};
use crate::event::{
    AbstractText, Actor, Address, Bind, Body, Conflict, Event, Family, HeldSocket, Holder, Listen,
    Lost, Options, Outcome, Ownership, PathText, Phase, Release, Result, Socket, State, Timewait,
    Transport, text,
};
use crate::kernel::clock::{self, Clock};
use crate::kernel::decode::Record;
use crate::kernel::losses::Losses;
use crate::kernel::snapshot;
use crate::kernel::stream::Batch;

mod arguments;
pub mod cgroup;
pub mod conflict;
pub mod container;
pub mod order;
pub mod process;
pub mod timewait;

const TCP_TIME_WAIT: u8 = 6;

/// How long a reading of the clocks is good for.
const CLOCK_FRESH: std::time::Duration = std::time::Duration::from_secs(1);

/// Makes events of records.
#[derive(Debug)]
pub struct Attribution {
    order: Order,
    processes: Processes,
    containers: Containers,
    timewaits: Timewaits,
    listeners: Listeners,
    conflicts: Conflicts,
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

impl Attribution {
    /// Begins with what existed before.
    #[must_use]
    pub fn new(held: &[snapshot::Held], ask_owners: AskOwners) -> Self {
        let mut listeners = Listeners::default();
        for held in held.iter().filter(|held| held.listening) {
            if let Some(address) = held.address {
                listeners.add(address, held.netns, held.port);
            }
        }
        Self {
            order: Order::default(),
            processes: Processes::default(),
            containers: Containers::new("/".as_ref()),
            timewaits: Timewaits::default(),
            listeners,
            conflicts: Conflicts::new(ask_owners),
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
        let undecoded = &mut self.undecoded;
        let mut holders = HashSet::new();
        self.order.add(batch.records().filter_map(|record| {
            *undecoded += u64::from(record.is_err());
            if let Ok(Record::Holder(holder)) = &record
                && Conflicts::is_owned(holder)
            {
                holders.insert(holder.socket.address);
            }
            record.ok()
        }));
        if !holders.is_empty() {
            self.conflicts.ask(&holders);
        }
        self.ready(batch.complete_until, &mut emit);
        if let Some(losses) = &batch.losses {
            self.lost(losses, &mut emit);
        }
    }

    /// The stream has ended: everything goes to `emit`.
    pub fn finish(&mut self, mut emit: impl FnMut(&Event)) {
        self.ready(u64::MAX, &mut emit);
    }

    /// Processes that had to be forgotten: the kernel side must send them again.
    pub fn forgotten(&mut self) -> impl Iterator<Item = u32> {
        self.forgotten.drain(..)
    }

    fn ready(&mut self, complete_until: u64, emit: &mut impl FnMut(&Event)) {
        while let Some(record) = self.order.next(complete_until) {
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

    fn forget(&mut self, key: Option<Key>) {
        self.forgotten.extend(key.map(|key| key.tgid));
    }

    fn actor(&mut self, task: &record::Task) -> Option<Actor> {
        let containers = &mut self.containers;
        self.processes
            .actor(task, self.clock, &self.proc, |reference| {
                containers.get(reference, Instant::now())
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
        let process = self.actor(&bind.task);
        let conflict = (bind.result < 0 && !autobind).then(|| {
            let mut facts = Facts::new(
                Call::Bind,
                bind.result.saturating_neg(),
                self.clock.at_monotonic(bind.header.time),
                socket.clone(),
            );
            if bind.result == -libc::EINVAL && bind.socket.local_port != 0 {
                facts.already = address(&bind.socket);
            }
            self.conflict(facts, &bind.task, process.as_ref())
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
            if raw.local_port != 0 {
                self.listeners.add(raw.address, raw.netns, raw.local_port);
            }
        } else {
            socket.state = None;
        }
        let process = self.actor(&listen.task);
        let conflict = (listen.result < 0).then(|| {
            let facts = Facts::new(
                Call::Listen,
                listen.result.saturating_neg(),
                self.clock.at_monotonic(listen.header.time),
                socket.clone(),
            );
            self.conflict(facts, &listen.task, process.as_ref())
        });
        Listen {
            result: result(listen.result),
            socket,
            backlog: listen.backlog,
            conflict: conflict.map(Box::new),
            process,
        }
    }

    /// Why a bind or listen of a task was refused.
    fn conflict(
        &mut self,
        mut facts: Facts,
        task: &record::Task,
        process: Option<&Actor>,
    ) -> Conflict {
        let found = self.conflicts.take(task.tid);
        facts.uid = Some(task.uid);
        facts.process = process.cloned();
        facts.host_netns = self.conflicts.host_netns();
        facts.sysctls = self.conflicts.sysctls(facts.socket.netns);
        if facts.errno == libc::EACCES {
            facts.may_bind_low = process::may_bind_low(&self.proc, Key::of(task));
        }
        facts.evidence = conflict::evidence_of(&found);
        facts.holders = found.iter().map(|found| self.held(found)).collect();
        diagnose::diagnose(&facts)
    }

    /// A holder with its processes.
    fn held(&mut self, found: &conflict::Found) -> Held {
        let record = &found.record;
        let timewait = record.socket.state == TCP_TIME_WAIT;
        let binder = conflict::has_binder(record)
            .then(|| self.actor(&record.binder))
            .flatten();
        let owners: Vec<_> = (found.owners.iter().flatten())
            .filter_map(|task| self.actor(task))
            .collect();
        let (ownership, processes) = if !owners.is_empty() {
            (Ownership::Verified, owners)
        } else {
            let last = if timewait {
                self.timewaits.closer(&record.socket)
            } else {
                binder.clone()
            };
            match last {
                Some(last) => (Ownership::LastKnown, vec![last]),
                None => (Ownership::None, Vec::new()),
            }
        };
        let held = socket(&record.socket, &[0; 16]);
        let publishes = self.containers.publishes(&held, &processes, Instant::now());
        let holder = Holder {
            socket: HeldSocket {
                socket: held,
                uid: (!timewait).then_some(record.uid),
            },
            ownership,
            bound_at: (record.bound_at != 0).then(|| self.clock.at_monotonic(record.bound_at)),
            expires_in_ms: timewait
                .then(|| milliseconds(record.expires_in.saturating_mul(self.jiffy))),
            processes,
            publishes,
        };
        let mut held = Held::from(holder);
        if record.socket.flags & socket_flag::KERNEL != 0 {
            held.kernel = Some(KernelSocket::default());
        }
        if record.autobound != 0 {
            held.origin = Some(Origin::Autobound);
        } else {
            held.binder = binder;
        }
        held
    }

    fn release(&mut self, release: &record::Release) -> Release {
        self.listeners.remove(release.socket.address);
        let binder = Key {
            tgid: release.binder_tgid,
            start: release.binder_start,
        };
        let seen = release.bound_at != 0;
        let binder = if seen && binder != Key::of(&release.task) {
            self.processes.actor_by_key(binder, self.clock)
        } else {
            None
        };
        let mut socket = socket(&release.socket, &release.device);
        socket.state = None;
        socket.remote = None;
        Release {
            socket,
            bound_at: seen.then(|| self.clock.at_monotonic(release.bound_at)),
            held_ms: seen
                .then(|| milliseconds(release.header.time.saturating_sub(release.bound_at))),
            binder,
            process: self.actor(&release.task),
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

    fn lost(&mut self, losses: &Losses, emit: &mut impl FnMut(&Event)) {
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

fn family(raw: u16) -> Option<Family> {
    match i32::from(raw) {
        libc::AF_INET => Some(Family::Ipv4),
        libc::AF_INET6 => Some(Family::Ipv6),
        libc::AF_UNIX => Some(Family::Unix),
        _ => None,
    }
}

fn transport(socket: &record::Socket) -> Transport {
    let kind = i32::from(socket.sock_type);
    if i32::from(socket.family) == libc::AF_UNIX {
        return match kind {
            libc::SOCK_STREAM => Transport::Stream,
            libc::SOCK_SEQPACKET => Transport::Seqpacket,
            _ => Transport::Dgram,
        };
    }
    if kind == libc::SOCK_RAW {
        return Transport::Raw;
    }
    match i32::from(socket.protocol) {
        libc::IPPROTO_TCP => Transport::Tcp,
        libc::IPPROTO_UDP => Transport::Udp,
        libc::IPPROTO_MPTCP => Transport::Mptcp,
        libc::IPPROTO_SCTP => Transport::Sctp,
        libc::IPPROTO_DCCP => Transport::Dccp,
        libc::IPPROTO_UDPLITE => Transport::Udplite,
        libc::IPPROTO_ICMP | libc::IPPROTO_ICMPV6 => Transport::Icmp,
        // IPPROTO_SMC, include/uapi/linux/in.h
        256 => Transport::Smc,
        _ => Transport::Other(socket.protocol),
    }
}

/// enum in include/net/tcp_states.h.
fn state(socket: &record::Socket) -> Option<State> {
    Some(match socket.state {
        1 => State::Established,
        2 => State::SynSent,
        3 | 12 => State::SynRecv,
        4 => State::FinWait1,
        5 => State::FinWait2,
        6 => State::TimeWait,
        7 if socket.local_port != 0 => State::Bound,
        7 => State::Close,
        8 => State::CloseWait,
        9 => State::LastAck,
        10 => State::Listen,
        11 => State::Closing,
        _ => return None,
    })
}

/// A socket of a record, with the name of the interface it is bound to, NUL-terminated.
#[must_use]
pub fn socket(raw: &record::Socket, device: &[u8]) -> Socket {
    let family = family(raw.family);
    let nonzero = |number: u64| (number != 0).then_some(number);
    let inet = |address: [u8; 16], port| match family {
        Some(Family::Ipv4) => {
            let [a, b, c, d, ..] = address;
            Some(Address::v4([a, b, c, d], port))
        }
        Some(Family::Ipv6) => Some(Address::v6(address, port, 0)),
        _ => None,
    };
    Socket {
        // The descriptor was no socket where there is neither.
        transport: (raw.address != 0 || raw.sock_type != 0).then(|| transport(raw)),
        family,
        local: inet(raw.local, raw.local_port),
        remote: (raw.remote_port != 0)
            .then(|| inet(raw.remote, raw.remote_port))
            .flatten(),
        state: state(raw),
        options: Options(raw.options),
        bound_device: (device.first() != Some(&0)).then(|| process::comm(device).0),
        netns: nonzero(raw.netns.into()).map(|_| raw.netns),
        cookie: nonzero(raw.cookie),
        inode: nonzero(raw.inode),
        kernel: raw.flags & socket_flag::KERNEL != 0,
    }
}

/// The address a caller gave, as far as it could be read and is of a family we know.
fn requested_address(requested: &Requested, path: &[u8]) -> Option<Address> {
    let [a, b, c, d, ..] = requested.address;
    match i32::from(requested.family) {
        libc::AF_INET if requested.read >= 8 => Some(Address::v4([a, b, c, d], requested.port)),
        libc::AF_INET6 if requested.read >= 24 => Some(Address::v6(
            requested.address,
            requested.port,
            requested.scope,
        )),
        libc::AF_UNIX => unix_address(path),
        _ => None,
    }
}

/// The address a socket has.
fn address(raw: &record::Socket) -> Option<Address> {
    socket(raw, &[0; 16]).local
}

/// The address that a cgroup program put in place of the one asked for.
fn rewritten_address(bind: &record::Bind) -> Option<Address> {
    let rewritten = &bind.rewritten;
    if rewritten.is == 0 {
        return None;
    }
    let [a, b, c, d, ..] = rewritten.address;
    match i32::from(bind.requested.family) {
        libc::AF_INET => Some(Address::v4([a, b, c, d], rewritten.port)),
        libc::AF_INET6 => Some(Address::v6(rewritten.address, rewritten.port, 0)),
        _ => None,
    }
}

/// The name of an AF_UNIX socket (unix(7)): a path up to a NUL, an abstract name behind one, or none.
fn unix_address(path: &[u8]) -> Option<Address> {
    match path {
        [] => Some(Address::Unnamed { unnamed: true }),
        [0, name @ ..] => {
            let (name, name_hex) = text(name);
            Some(Address::Abstract {
                name: AbstractText { name, name_hex },
            })
        }
        path => {
            let end = path.iter().position(|byte| *byte == 0);
            let (path, path_hex) = text(&path[..end.unwrap_or(path.len())]);
            Some(Address::Path {
                path: PathText { path, path_hex },
            })
        }
    }
}

/// Whether a socket got what was asked for. The scope is not told by the socket.
fn same(got: &Option<Address>, asked: &Option<Address>, ignore_port: bool) -> bool {
    match (got, asked) {
        (
            Some(Address::Inet { address, port, .. }),
            Some(Address::Inet {
                address: asked_address,
                port: asked_port,
                ..
            }),
        ) => address == asked_address && (ignore_port || port == asked_port),
        _ => got == asked,
    }
}
