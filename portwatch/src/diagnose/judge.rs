//! From facts to a cause: which one, in which order they are tried, and on whose account.
//!
//! The order is that of what helps most. What cannot be stopped by ending a process comes first
//! (the kernel, TIME_WAIT), then who keeps the port on another's behalf (a container's proxy,
//! systemd), then what the process itself is or did, then how options and addresses meet, and at
//! last that somebody simply serves the port.

use super::facts::{Call, Facts, Held, Origin, PathState, Tie};
use super::rules::{Conflict, Endpoint, Overlap, Reuseport, Search, verdict};
use crate::event::{
    Actor, Address, Ancestor, Cause, Evidence, Family, Ownership, State, Text, Transport,
};
use crate::kernel::clock::TICK;

/// A cause, and the holder it is about.
#[derive(Debug)]
pub(super) struct Judgement<'a> {
    pub(super) cause: Cause,
    /// The holder that decided.
    pub(super) held: Option<&'a Held>,
    /// What the rules say of the two.
    pub(super) conflict: Option<Conflict>,
}

/// Programs that hold ports of the host for a container.
const PROXIES: [&str; 8] = [
    "docker-proxy",
    "dockerd",
    "conmon",
    "rootlessport",
    "rootlesskit",
    "pasta",
    "pasta.avx2",
    "slirp4netns",
];

pub(super) fn judge(facts: &Facts) -> Judgement<'_> {
    let alone = |cause| Judgement {
        cause,
        held: None,
        conflict: None,
    };
    match facts.errno {
        libc::EADDRINUSE | libc::EACCES | libc::EPERM if facts.reached_kernel == Some(false) => {
            alone(Cause::SyscallFiltered)
        }
        libc::EADDRINUSE => in_use(facts).unwrap_or_else(|| alone(Cause::Unknown)),
        // A path that may not be written to is refused with EACCES too.
        libc::EACCES | libc::EPERM if is_unix(facts) => alone(Cause::Unknown),
        libc::EPERM => alone(Cause::SecurityPolicy),
        libc::EACCES => alone(match lacks_capability(facts) {
            Some(true) => Cause::PrivilegedPort,
            Some(false) => Cause::SecurityPolicy,
            None => Cause::Unknown,
        }),
        libc::EADDRNOTAVAIL => alone(Cause::AddressNotLocal),
        libc::EINVAL if facts.already.is_some() => alone(Cause::AlreadyBound),
        _ => alone(Cause::Unknown),
    }
}

fn is_unix(facts: &Facts) -> bool {
    facts.socket.family == Some(Family::Unix)
}

/// Whether the port is a low one and the process lacks what it takes, or must have, as
/// `inet_port_requires_bind_service` (6.18) and `ns_capable` have it: port 0 takes nothing.
fn lacks_capability(facts: &Facts) -> Option<bool> {
    let low = facts.port()? < facts.sysctls.unprivileged_port_start?;
    if !low || facts.port() == Some(0) {
        return Some(false);
    }
    let lacks = facts.may_bind_low.map(|may| !may);
    // Users have what their programs were given, which is next to nothing.
    lacks.or_else(|| (facts.unseen && facts.uid? != 0).then_some(true))
}

fn in_use(facts: &Facts) -> Option<Judgement<'_>> {
    let about = |cause, held| Judgement {
        cause,
        held,
        conflict: None,
    };
    match &facts.socket.local {
        Some(Address::Path { .. }) => {
            // Whoever has the socket of a path that is left over has bound another there.
            let held = facts.holders.first();
            let held = held.filter(|_| facts.path != Some(PathState::Stale));
            return Some(about(Cause::UnixPath, held));
        }
        Some(Address::Abstract { .. } | Address::Unnamed { .. }) => {
            return Some(about(Cause::UnixAbstract, facts.holders.first()));
        }
        Some(Address::Inet { port: 0, .. }) => {
            return Some(about(Cause::PortRangeExhausted, None));
        }
        _ => {}
    }
    let (held, conflict) = decider(facts)?;
    Some(Judgement {
        cause: by_holder(facts, held, conflict),
        held: Some(held),
        conflict,
    })
}

/// The holder to speak of: of those in the way the one that is hardest to get around. The kernel's
/// check ends with the first one it meets, which may be a connection of a listener that lives; it
/// would go on to the listener if the connection were gone.
///
/// A holder that was found without the kernel's lock is believed only if the rules do not
/// contradict: a wrong holder is worse than none. The first one under the lock is the kernel's own
/// word.
fn decider(facts: &Facts) -> Option<(&Held, Option<Conflict>)> {
    let newcomer = Endpoint::of(&facts.socket, facts.uid);
    let locked = facts.evidence == Some(Evidence::Locked);
    let in_the_way = facts
        .holders
        .iter()
        .enumerate()
        .filter_map(|(place, held)| {
            let socket = &held.holder.socket;
            let holder = Endpoint::of(&socket.socket, socket.uid);
            let (Some(newcomer), Some(holder)) = (&newcomer, holder) else {
                return Some((held, None));
            };
            let conflict = verdict(newcomer, &holder, Search::Named);
            (conflict.is_some() || (locked && place == 0)).then_some((held, conflict))
        });
    in_the_way.min_by_key(|(held, _)| {
        if state(held) == Some(State::TimeWait) {
            // It goes by itself, sooner or later.
            let reuse = held.holder.socket.socket.options.has_reuseaddr();
            if reuse { 3 } else { 2 }
        } else {
            u8::from(is_connection(held))
        }
    })
}

fn state(held: &Held) -> Option<State> {
    held.holder.socket.socket.state
}

/// Whether one of the holders keeps the newcomer from its port, by the rules.
pub(super) fn is_in_the_way(facts: &Facts) -> bool {
    decider(facts).is_some()
}

/// Whether it is a connection, TIME_WAIT excepted, or a socket of UDP with a peer.
fn is_connection(held: &Held) -> bool {
    !matches!(
        state(held),
        None | Some(State::Listen | State::Bound | State::Close | State::TimeWait)
    )
}

fn is_tcp(held: &Held) -> bool {
    matches!(
        held.holder.socket.socket.transport,
        Some(Transport::Tcp | Transport::Mptcp | Transport::Smc)
    )
}

fn by_holder(facts: &Facts, held: &Held, conflict: Option<Conflict>) -> Cause {
    let listens = state(held) == Some(State::Listen);
    if held.kernel.is_some() {
        return Cause::KernelSocket;
    }
    if state(held) == Some(State::TimeWait) {
        // A newcomer with it would not have been refused by one that had it.
        if held.options_unknown && !facts.socket.options.has_reuseaddr() {
            return Cause::Unknown;
        }
        let reuse = held.holder.socket.socket.options.has_reuseaddr();
        return if reuse {
            Cause::TimeWait
        } else {
            Cause::TimeWaitNoReuse
        };
    }
    if held.exiting {
        return Cause::ExitingHolder;
    }
    if held.holder.publishes.is_some() || is_held_by(held, is_proxy) {
        return Cause::PublishedPort;
    }
    if held.socket_unit.is_some() || is_held_by(held, is_systemd) {
        return Cause::SocketActivation;
    }
    if lost_race(facts, held) {
        return Cause::LostRace;
    }
    if is_connection(held)
        && let Some(cause) = by_connection(facts, held)
    {
        return cause;
    }
    if held.holder.ownership == Some(Ownership::None) {
        return Cause::NoProcess;
    }
    if facts.call == Call::Listen && listens {
        // Who is in the way says more than that it was listen(2) which was refused.
        return by_job(facts, held).unwrap_or(Cause::ListenConflict);
    }
    match conflict.map(|conflict| conflict.reuseport) {
        _ if held.options_unknown => {}
        Some(Reuseport::OtherUser) => return Cause::ReuseportUid,
        Some(Reuseport::NewcomerOnly | Reuseport::HolderOnly) => return Cause::ReuseportOneSided,
        _ => {}
    }
    if is_inherited(held) {
        return Cause::InheritedListener;
    }
    if let Some(cause) = by_job(facts, held) {
        return cause;
    }
    by_addresses(facts, held, conflict)
}

fn by_addresses(facts: &Facts, held: &Held, conflict: Option<Conflict>) -> Cause {
    let holder = &held.holder.socket.socket;
    if facts.socket.bound_device.is_some() != holder.bound_device.is_some() {
        return Cause::BoundDevice;
    }
    if is_tcp(held) && state(held) != Some(State::Listen) {
        return if matches!(state(held), Some(State::Bound | State::Close)) {
            Cause::BoundNotListening
        } else {
            Cause::Unknown
        };
    }
    match conflict.map(|conflict| conflict.overlap) {
        Some(Overlap::DualStack) => return Cause::DualStack,
        Some(Overlap::NewcomerWildcard | Overlap::HolderWildcard) => {
            return Cause::WildcardOverlap;
        }
        _ => {}
    }
    let in_host = facts.host_netns.is_some() && holder.netns == facts.host_netns;
    if in_host && is_held_by(held, |actor| actor.process.container.is_some()) {
        return Cause::HostNetwork;
    }
    Cause::Listener
}

/// Of a connection that has the port, without a listener. A server of UDP may have connected its
/// socket: that it has a peer says nothing.
fn by_connection(facts: &Facts, held: &Held) -> Option<Cause> {
    let range = facts.sysctls.local_port_range.as_ref();
    let chosen = facts
        .port()
        .zip(range)
        .map(|(port, range)| range.contains(&port));
    let opening = matches!(
        state(held),
        Some(State::Established | State::SynSent | State::SynRecv)
    );
    let cause = match held.origin {
        Some(Origin::Accepted) => Cause::LingeringConnection,
        _ if !opening => Cause::LingeringConnection,
        Some(Origin::Autobound) => Cause::EphemeralCollision,
        None if chosen == Some(true) => Cause::EphemeralCollision,
        None if !is_tcp(held) => return None,
        // The kernel gives no connection such a port of its own accord.
        None if chosen == Some(false) && state(held) == Some(State::Established) => {
            Cause::LingeringConnection
        }
        None => Cause::Unknown,
    };
    Some(cause)
}

fn is_held_by(held: &Held, is: impl Fn(&Actor) -> bool) -> bool {
    held.holder.processes.iter().any(is)
}

fn is_proxy(actor: &Actor) -> bool {
    let exe = actor.process.exe.as_deref().unwrap_or_default();
    let program = exe.rsplit('/').next().unwrap_or_default();
    PROXIES
        .iter()
        .any(|proxy| *proxy == &*actor.comm || *proxy == program)
}

/// The system's manager, or a user's.
fn is_systemd(actor: &Actor) -> bool {
    &*actor.comm == "systemd"
}

/// The port was found free before, and somebody bound it since. When a connection got it is not known:
/// but while it had it, nobody who asked for any port would have been given this one.
fn lost_race(facts: &Facts, held: &Held) -> bool {
    facts
        .probe
        .as_ref()
        .is_some_and(|probe| match held.holder.bound_at {
            Some(bound_at) => bound_at >= probe.released_at,
            None => held.origin == Some(Origin::Autobound),
        })
}

fn is_inherited(held: &Held) -> bool {
    let Some(binder) = &held.binder else {
        return false;
    };
    // No pid is another process's within a tick, which is as near as /proc tells a start.
    let same = |actor: &Actor| {
        let apart = actor.start_time.0.abs_diff(binder.start_time.0);
        actor.pid == binder.pid && apart < TICK
    };
    held.holder.ownership == Some(Ownership::Verified)
        && !held.holder.processes.is_empty()
        && !is_held_by(held, same)
}

/// What the job explains: a worker beside this one, or what an earlier job left over.
fn by_job(facts: &Facts, held: &Held) -> Option<Cause> {
    // A container runtime binds for a container, and is no worker of whoever started it.
    if facts.publishes.is_some() || held.holder.publishes.is_some() {
        return None;
    }
    let newcomer = facts.process.as_ref();
    // Whoever has it itself is in its own way, whoever else has the same descriptor.
    if is_held_by(held, |actor| newcomer.is_some_and(|it| it.pid == actor.pid)) {
        return None;
    }
    match held.tie {
        Some(Tie::Sibling) => return Some(Cause::Sibling),
        Some(Tie::LeftOver { .. }) if !stands_alone(facts, held) => return Some(Cause::StaleJob),
        _ => {}
    }
    let (job, newcomer) = (facts.job.as_ref()?, newcomer?);
    let of_job = |actor: &Actor| {
        actor.pid == job.pid
            || actor
                .process
                .ancestors
                .iter()
                .any(|ancestor| ancestor.pid == job.pid)
    };
    if of_job(newcomer) && is_held_by(held, of_job) {
        return Some(Cause::Sibling);
    }
    let left_over = |actor: &Actor| {
        let process = &actor.process;
        let parent = process.ancestors.first();
        let orphan = parent.is_some_and(|parent| parent.pid == 1 || &*parent.comm == "systemd");
        let leads = |ancestors: &[Ancestor]| ancestors.iter().any(|a| a.pid == actor.pid);
        actor.start_time < job.started_at && orphan && !leads(&newcomer.process.ancestors)
    };
    (is_held_by(held, left_over) && !stands_alone(facts, held)).then_some(Cause::StaleJob)
}

/// Whether the holder is a service or a container of its own: nothing that started one stays its
/// parent, which says something only within the unit or the container of the job.
fn stands_alone(facts: &Facts, held: &Held) -> bool {
    let newcomer = facts.process.as_ref();
    let own_unit = newcomer.and_then(|actor| actor.process.unit.as_ref());
    let own_container = newcomer.and_then(container_of);
    is_held_by(held, |actor| {
        let (unit, container) = (actor.process.unit.as_ref(), container_of(actor));
        (unit != own_unit && unit.is_some_and(|unit| unit.ends_with(".service")))
            || (container != own_container && container.is_some())
    })
}

/// The id of the container that a process is in.
fn container_of(actor: &Actor) -> Option<&Text> {
    let container = actor.process.container.as_ref();
    container.map(|container| &container.id)
}
