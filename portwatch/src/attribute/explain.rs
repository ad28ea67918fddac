//! Why it was refused: from the records and what was looked up to the facts of a diagnosis.

use std::time::Instant;

use portwatch_common::record::{self, socket_flag};

use super::conflict::{evidence_of, has_binder, is_owned};
use super::convert::{address, socket, unix_address};
use super::ledger::Tenure;
use super::lookup::{Finding, FoundSocket, Owner, Place, Subject};
use super::process::Key;
use super::refusal::{Refusal, subject_of};
use super::standing::{Relation, Standing, relation};
use super::{Attribution, milliseconds};
use crate::diagnose;
use crate::diagnose::facts::{Call, Facts, Held, KernelSocket, Origin, Probe, RangeUse, Tie};
use crate::event::{
    Actor, Conflict, Evidence, Family, HeldSocket, Holder, Options, Ownership, Socket,
};
use crate::kernel::clock::TICK;
use crate::kernel::sock_diag::TCP_TIME_WAIT;
use crate::kernel::sysctls::Sysctls;

/// Who was refused.
struct Newcomer<'a> {
    refusal: &'a Refusal,
    standing: Option<Standing>,
    process: Option<&'a Actor>,
}

impl Newcomer<'_> {
    /// Whether it itself, and not an ancestor that was looked at in its place, has no right to low
    /// ports. That the right counts in the user namespace of its network is not looked at.
    fn lacks_low_ports(&self) -> bool {
        let standing = self.standing.as_ref();
        standing.is_some_and(|standing| {
            standing.is_of(self.refusal.task.tgid) && standing.lacks_low_ports
        })
    }
}

/// Whether all of a socket's owners are on their way out. One that is gone by now was.
fn end(owners: &[&Owner]) -> bool {
    let ends = |owner: &&Owner| {
        let standing = owner.standing.as_ref();
        standing.is_none_or(|standing| standing.exiting)
    };
    !owners.is_empty() && owners.iter().all(ends)
}

impl Attribution {
    /// Why it was refused. `socket` is the newcomer's, with the address that was asked for.
    pub(super) fn explain(
        &mut self,
        refusal: &Refusal,
        socket: Socket,
        mut process: Option<&mut Actor>,
    ) -> Conflict {
        let time = self.clock.at_monotonic(refusal.time);
        let mut facts = Facts::new(refusal.call, refusal.errno, time, socket);
        if refusal.call == Call::Bind
            && refusal.errno == libc::EINVAL
            && refusal.socket.local_port != 0
        {
            facts.already = address(&refusal.socket);
        }
        if let Some(process) = process.as_deref_mut() {
            facts.publishes = self.wanted(&facts.socket, process);
        }
        let process = process.as_deref();
        let found = self.conflicts.take(refusal.task.tid);
        let newcomer = Newcomer {
            refusal,
            standing: self.standing(refusal.key()),
            process,
        };
        facts.uid = Some(refusal.task.uid);
        facts.process = process.cloned();
        facts.host_netns = self.host_netns;
        facts.sysctls = self.settings(refusal);
        facts.may_bind_low = newcomer.lacks_low_ports().then_some(false);
        facts.unseen = self.itself(refusal.key()) == Some(None);
        facts.evidence = evidence_of(&found);
        facts.holders = (found.iter())
            .map(|holder| self.held(holder, &newcomer))
            .collect();
        if refusal.errno == libc::EADDRINUSE {
            if refusal.is_unix() {
                self.name(&newcomer, &mut facts);
            } else if let Some(place) = refusal.place() {
                self.range(place, &mut facts);
                if found.is_empty() && refusal.port != 0 {
                    self.look_elsewhere(place, &newcomer, &mut facts);
                }
                facts.probe = self.probe(place, refusal);
            }
        }
        if self.was_filtered(&newcomer, &facts) {
            facts.reached_kernel = Some(false);
        }
        diagnose::diagnose(&facts)
    }

    fn standing(&self, key: Key) -> Option<Standing> {
        match self.lookups.get(&Subject::Process(key)) {
            Some(Finding::Standing(standing)) => standing.clone(),
            _ => None,
        }
    }

    /// How a process itself stands, and not an ancestor in its place: `Some(None)` if it was looked for
    /// and not found.
    fn itself(&self, key: Key) -> Option<Option<&Standing>> {
        match self.lookups.get(&Subject::Process(key)) {
            Some(Finding::Standing(standing)) => {
                let standing = standing.as_ref();
                Some(standing.filter(|standing| standing.is_of(key.tgid)))
            }
            _ => None,
        }
    }

    fn settings(&self, refusal: &Refusal) -> Sysctls {
        match self.lookups.get(&refusal.settings()) {
            Some(Finding::Settings(sysctls)) => sysctls.clone(),
            _ => Sysctls::default(),
        }
    }

    /// A holder with its processes.
    fn held(&mut self, record: &record::Holder, newcomer: &Newcomer<'_>) -> Held {
        let timewait = record.socket.state == TCP_TIME_WAIT;
        let above = self.above(&record.socket);
        let raw = above.as_ref().map_or(record.socket, |above| above.socket);
        let owners = match self.lookups.get(&subject_of(&raw)) {
            Some(Finding::Owners(owners)) => Some(owners.clone()),
            _ if above.is_none() && !is_owned(record) => Some(Vec::new()),
            _ => None,
        };
        let binder = match &above {
            Some(above) => above.binder,
            None => has_binder(record).then_some(record.binder),
        };
        let binder_key = binder.as_ref().map(Key::of);
        let binder = binder.and_then(|binder| self.actor(&binder));
        let last = if timewait {
            self.timewaits.closer(&record.socket)
        } else {
            binder.clone()
        };
        let mut held = self.owned(&raw, owners.as_deref(), last, newcomer);
        held.holder.socket.uid = (!timewait).then_some(record.uid);
        let bound_at = above
            .as_ref()
            .map_or(record.bound_at, |above| above.bound_at);
        held.holder.bound_at = (bound_at != 0).then(|| self.clock.at_monotonic(bound_at));
        held.holder.expires_in_ms =
            timewait.then(|| milliseconds(record.expires_in.saturating_mul(self.jiffy)));
        if above.is_none() && record.socket.flags & socket_flag::KERNEL != 0 {
            held.kernel = Some(KernelSocket::default());
        }
        if record.autobound != 0 {
            held.origin = Some(Origin::Autobound);
        } else {
            // systemd itself binds within the unit's group: socket_address_listen_in_cgroup in its
            // core/socket.c. That leaves no doubt, as files may.
            let unit = binder.as_ref().and_then(|by| by.process.unit.clone());
            let unit = unit.filter(|unit| unit.ends_with(".socket"));
            held.socket_unit = unit.or(held.socket_unit);
            held.binder = binder;
        }
        // Its owner ended between the refusal and the look for it, and the port was free then.
        let binder = binder_key.and_then(|key| self.itself(key));
        let gone = binder.is_some_and(|binder| binder.is_none_or(|standing| standing.exiting));
        held.exiting |= owners.is_none_or(|owners| owners.is_empty())
            && gone
            && self.order.releases(raw.address);
        held
    }

    /// The user's socket of MPTCP to which one of the kernel's belongs.
    pub(super) fn above(&self, socket: &record::Socket) -> Option<Tenure> {
        if socket.flags & socket_flag::KERNEL == 0 {
            return None;
        }
        let mut bound = self.ledger.mptcp(socket)?.clone();
        bound.socket.state = socket.state;
        bound.socket.remote = socket.remote;
        bound.socket.remote_port = socket.remote_port;
        bound.socket.options = socket.options;
        Some(bound)
    }

    /// A socket with those who have it, or had.
    fn owned(
        &mut self,
        raw: &record::Socket,
        owners: Option<&[Owner]>,
        last: Option<Actor>,
        newcomer: &Newcomer<'_>,
    ) -> Held {
        let known = owners.map_or_else(Vec::new, |owners| self.then(owners, newcomer.refusal));
        let actors: Vec<_> = known
            .iter()
            .filter_map(|owner| self.actor(&owner.task))
            .collect();
        let (ownership, mut processes) = match (owners, last) {
            _ if !actors.is_empty() => (Some(Ownership::Verified), actors),
            (_, Some(last)) => (Some(Ownership::LastKnown), vec![last]),
            (Some(_), None) => (Some(Ownership::None), Vec::new()),
            (None, None) => (None, Vec::new()),
        };
        let told = socket(raw, &[0; 16]);
        let publishes = (self.containers).publishes(&told, &processes, Instant::now());
        let job = publishes.as_ref().and_then(|of| self.membership(&of.named));
        for process in &mut processes {
            process.job = process.job.or(job);
        }
        let tie = self.tie(&known, &processes, newcomer);
        let unit = known.iter().find_map(|owner| owner.unit.as_deref());
        Held {
            exiting: end(&known),
            socket_unit: unit.map(Into::into),
            tie,
            ..Held::from(Holder {
                socket: HeldSocket {
                    socket: told,
                    uid: None,
                },
                ownership,
                bound_at: None,
                expires_in_ms: None,
                processes,
                publishes: publishes.map(Into::into),
            })
        }
    }

    /// Those of a socket's owners that had been started by the refusal. What one of them has forked since
    /// inherited the socket, be it for as long as it takes to call execve(2), and refused nothing; only
    /// where nobody else is left has it the port now.
    fn then<'a>(&self, owners: &'a [Owner], refusal: &Refusal) -> Vec<&'a Owner> {
        let time = self.clock.at_monotonic(refusal.time);
        let then: Vec<_> = (owners.iter())
            .filter(|owner| self.clock.at_boottime(owner.task.start) <= time)
            .collect();
        if then.is_empty() {
            owners.iter().collect()
        } else {
            then
        }
    }

    /// What the owners of a holder have to do with the newcomer.
    fn tie(&self, owners: &[&Owner], actors: &[Actor], newcomer: &Newcomer<'_>) -> Option<Tie> {
        let standing = newcomer.standing.as_ref()?;
        let pid = newcomer.refusal.task.tgid;
        let exe_of = |actor: Option<&Actor>| actor.and_then(|actor| actor.process.exe.clone());
        let program = exe_of(newcomer.process);
        let others = owners.iter().filter(|owner| owner.task.tgid != pid);
        others.into_iter().find_map(|owner| {
            let actor = actors.iter().find(|actor| actor.pid == owner.task.tgid);
            let same = program.is_some() && exe_of(actor) == program;
            match relation(standing, pid, owner.standing.as_ref()?)? {
                Relation::Line => Some(Tie::Sibling),
                Relation::Group => same.then_some(Tie::Sibling),
                Relation::LeftOver { job_tick } => Some(Tie::LeftOver {
                    job_started_at: self.clock.at_boottime(job_tick.saturating_mul(TICK)),
                }),
            }
        })
    }

    /// No hook and no walk has found a holder: whatever has the port now, or had it by what was seen
    /// of binds and releases.
    fn look_elsewhere(&mut self, place: Place, newcomer: &Newcomer<'_>, facts: &mut Facts) {
        let refusal = newcomer.refusal;
        let (found, why) = match self.lookups.get(&Subject::Port(place)) {
            Some(Finding::Sockets(found)) => (
                found.clone(),
                "whoever had it gave it back before it could be looked for",
            ),
            Some(_) => (Vec::new(), "its network namespace could not be looked into"),
            None => (Vec::new(), "nobody could look for it in time"),
        };
        facts.no_holder = Some(why.into());
        for found in found {
            let inode = found.socket.inode;
            let known = self.ledger.of(place, inode).cloned();
            let later = known
                .as_ref()
                .is_some_and(|tenure| tenure.bound_at >= refusal.time);
            if later || (inode != 0 && inode == refusal.socket.inode) {
                continue;
            }
            let mut held = self.with_owners(&found, newcomer);
            match known {
                Some(tenure) => self.add_known(&tenure, &mut held),
                // sock_diag does not tell of them.
                None => held.options_unknown = true,
            }
            facts.holders.push(held);
        }
        if !diagnose::is_explained(facts)
            && let Some(tenant) = self.ledger.tenant(place, refusal.time, refusal.task.tid)
        {
            let tenant = tenant.clone();
            let binder = tenant.binder.and_then(|binder| self.actor(&binder));
            let mut held = self.owned(&tenant.socket, None, binder, newcomer);
            self.add_known(&tenant, &mut held);
            facts.holders = vec![held];
        }
        facts.evidence = (!facts.holders.is_empty()).then_some(Evidence::Userspace);
    }

    /// Adds what was seen of a socket's bind.
    fn add_known(&mut self, tenure: &Tenure, held: &mut Held) {
        held.holder.socket.socket.options = Options(tenure.socket.options);
        held.holder.bound_at =
            (tenure.bound_at != 0).then(|| self.clock.at_monotonic(tenure.bound_at));
        held.binder = tenure.binder.and_then(|binder| self.actor(&binder));
    }

    fn with_owners(&mut self, found: &FoundSocket, newcomer: &Newcomer<'_>) -> Held {
        let last = self.timewaits.closer(&found.socket);
        let mut held = self.owned(&found.socket, found.owners.as_deref(), last, newcomer);
        held.holder.socket.uid = found.uid;
        held.holder.expires_in_ms = found.expires_in_ms.map(u64::from);
        held
    }

    /// What has the name of AF_UNIX.
    fn name(&mut self, newcomer: &Newcomer<'_>, facts: &mut Facts) {
        let refusal = newcomer.refusal;
        let subject = Subject::Name {
            netns: refusal.socket.netns,
            by: refusal.key(),
            name: refusal.name.clone(),
        };
        let (state, sockets) = match self.lookups.get(&subject) {
            Some(Finding::Name(state, sockets)) => (state.clone(), sockets.clone()),
            _ => return,
        };
        facts.path = state;
        for found in sockets {
            let mut held = self.with_owners(&found, newcomer);
            held.holder.socket.socket.local = unix_address(&found.name);
            facts.holders.push(held);
        }
        facts.evidence = (!facts.holders.is_empty()).then_some(Evidence::Userspace);
    }

    /// Who fills the range of ports.
    fn range(&mut self, place: Place, facts: &mut Facts) {
        if let Some(Finding::Range(usage)) = self.lookups.get(&Subject::Range(place)) {
            let usage = usage.clone();
            let most = usage.most.iter();
            facts.range = Some(RangeUse {
                used: usage.used,
                timewait: usage.timewait,
                most: most
                    .filter_map(|(task, count)| Some((self.actor(task)?, *count)))
                    .collect(),
            });
        }
    }

    /// Who found the port free a moment before: the newcomer, one of its ancestors or of those that they
    /// started, or one that it started itself.
    fn probe(&mut self, place: Place, refusal: &Refusal) -> Option<Probe> {
        let newcomer = refusal.key();
        let processes = &self.processes;
        let line = processes.line(newcomer);
        let is_of = |line: &[Key], key: &Key| line.iter().any(|other| other.is(key));
        let found = self.ledger.probe(place, refusal.time, |task| {
            let key = Key::of(task);
            let others = processes.line(key);
            key.is(&newcomer)
                || is_of(line, &key)
                || is_of(others, &newcomer)
                || others.first().is_some_and(|parent| {
                    // Whatever it starts has nothing to do with each other.
                    let manager = parent.tgid == 1 || processes.is_child_of(key, "systemd");
                    !manager && is_of(line, parent)
                })
        });
        let (task, released_at) = found.map(|(task, at)| (*task, at))?;
        Some(Probe {
            process: self.actor(&task)?,
            released_at: self.clock.at_monotonic(released_at),
        })
    }

    /// Whether a seccomp filter answered: one is in force, and nothing else could have.
    fn was_filtered(&self, newcomer: &Newcomer<'_>, facts: &Facts) -> bool {
        let refusal = newcomer.refusal;
        let standing = newcomer.standing.as_ref();
        if !standing.is_some_and(|standing| standing.filtered)
            || facts.socket.family == Some(Family::Unix)
        {
            return false;
        }
        let denials = match self.lookups.get(&Subject::Denials(refusal.key())) {
            Some(Finding::Denials(Some(denials))) => Some(denials),
            _ => None,
        };
        match refusal.errno {
            libc::EPERM => denials.is_some_and(|denials| !denials.eperm),
            libc::EACCES => {
                let high = facts
                    .sysctls
                    .unprivileged_port_start
                    .is_some_and(|start| refusal.port == 0 || refusal.port >= start);
                high && denials.is_some_and(|denials| !denials.eacces)
            }
            libc::EADDRINUSE => {
                let Some(place) = refusal.place().filter(|place| place.port != 0) else {
                    return false;
                };
                let none = matches!(
                    self.lookups.get(&Subject::Port(place)),
                    Some(Finding::Sockets(sockets)) if sockets.is_empty()
                );
                // No connection has come and gone on it either.
                let range = facts.sysctls.local_port_range.as_ref();
                let unused = range.is_some_and(|range| !range.contains(&refusal.port));
                self.sees_all && none && unused && facts.holders.is_empty()
            }
            _ => false,
        }
    }
}
