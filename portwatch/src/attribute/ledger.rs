//! Who had which port, when: what was seen of binds and releases. Bounded; pure.

use std::num::NonZeroUsize;

use lru::LruCache;
use portwatch_common::record::{Bind, Listen, Release, Socket, Task, task_flag};

use super::lookup::Place;
use crate::kernel::snapshot;

/// Ports that are remembered, and sockets of each.
const PLACES: usize = 4096;
const TENURES: usize = 8;
/// How long after it was found free a port may be lost: tests' fixtures and builds lie between.
const PROBE: u64 = 60_000_000_000;
/// How far a bind's beginning may lie before its return, when its thread is kept from running.
const CALL: u64 = 10_000_000;

const UDP: u8 = libc::IPPROTO_UDP as u8;
const UDPLITE: u16 = libc::IPPROTO_UDPLITE as u16;
const MPTCP: u16 = libc::IPPROTO_MPTCP as u16;
/// IPPROTO_SMC.
const SMC: u16 = 256;

impl Place {
    /// That of a socket's own port, where there is a table for its protocol.
    pub fn of(socket: &Socket, port: u16) -> Option<Self> {
        let protocol = match socket.protocol {
            MPTCP | SMC => libc::IPPROTO_TCP as u8,
            UDPLITE => UDPLITE as u8,
            other => u8::try_from(other).ok()?,
        };
        let has_ports = i32::from(socket.sock_type) != libc::SOCK_RAW
            && matches!(i32::from(socket.family), libc::AF_INET | libc::AF_INET6)
            && (protocol == UDP
                || protocol == UDPLITE as u8
                || i32::from(protocol) == libc::IPPROTO_TCP);
        has_ports.then_some(Self {
            netns: socket.netns,
            protocol,
            port,
        })
    }
}

/// A socket's time on a port.
#[derive(Debug, Clone)]
pub struct Tenure {
    /// The socket, as it was bound, or listened since.
    pub socket: Socket,
    /// Who bound it; nobody if that was before the trace.
    pub binder: Option<Task>,
    /// Any port was asked for.
    pub any: bool,
    /// When it was bound (CLOCK_MONOTONIC, ns), 0 if that was before the trace.
    pub bound_at: u64,
    /// When it gave the port back, if that was seen.
    pub released_at: Option<u64>,
}

/// Who had which port.
#[derive(Debug)]
pub struct Ledger {
    places: LruCache<Place, Vec<Tenure>>,
}

impl Ledger {
    /// With what was there before.
    pub fn new(held: &[snapshot::Held]) -> Self {
        let capacity = NonZeroUsize::new(PLACES).unwrap_or(NonZeroUsize::MIN);
        let mut ledger = Self {
            places: LruCache::new(capacity),
        };
        for socket in held.iter().filter_map(|held| held.socket.as_ref()) {
            ledger.put(socket, None, false, 0);
        }
        ledger
    }

    /// A bind has succeeded.
    pub fn bound(&mut self, bind: &Bind) {
        let any = bind.requested.port == 0;
        let binder = (bind.task.flags & task_flag::UNKNOWN == 0).then_some(bind.task);
        self.put(&bind.socket, binder, any, bind.header.time);
    }

    fn put(&mut self, socket: &Socket, binder: Option<Task>, any: bool, bound_at: u64) {
        let Some(place) = Place::of(socket, socket.local_port) else {
            return;
        };
        let tenures = self.places.get_or_insert_mut(place, Vec::new);
        if tenures.len() == TENURES {
            // The one that is over for the longest time, else the oldest.
            let over = tenures
                .iter()
                .position(|tenure| tenure.released_at.is_some());
            tenures.remove(over.unwrap_or(0));
        }
        tenures.push(Tenure {
            socket: *socket,
            binder,
            any,
            bound_at,
            released_at: None,
        });
    }

    /// A socket listens.
    pub fn listens(&mut self, listen: &Listen) {
        let place = Place::of(&listen.socket, listen.socket.local_port);
        let tenures = place.and_then(|place| self.places.get_mut(&place));
        let same = tenures.into_iter().flatten().rev().find(|tenure| {
            tenure.released_at.is_none() && tenure.socket.address == listen.socket.address
        });
        if let Some(tenure) = same {
            tenure.socket.state = listen.socket.state;
        }
    }

    /// A socket has given its port back.
    pub fn released(&mut self, release: &Release) {
        let Some(place) = Place::of(&release.socket, release.socket.local_port) else {
            return;
        };
        let Some(tenures) = self.places.get_mut(&place) else {
            return;
        };
        let same = tenures.iter_mut().rev().find(|tenure| {
            tenure.released_at.is_none() && tenure.socket.address == release.socket.address
        });
        if let Some(tenure) = same {
            tenure.released_at = Some(release.header.time);
        }
    }

    /// Who found a port free by asking for any, not long before, and gave it back: of those who
    /// are close to the newcomer the last.
    pub fn probe(
        &self,
        place: Place,
        now: u64,
        is_close: impl Fn(&Task) -> bool,
    ) -> Option<(&Task, u64)> {
        let tenures = self.places.peek(&place)?.iter().rev();
        let mut probes = tenures.filter_map(|tenure| {
            let released_at = tenure.released_at.filter(|_| tenure.any)?;
            let since = now.checked_sub(released_at)?;
            Some((tenure.binder.as_ref()?, released_at)).filter(|_| since <= PROBE)
        });
        probes.find(|(task, _)| is_close(task))
    }

    /// The socket that was bound last before a bind of this thread was refused, if it had not given
    /// the port back before that began.
    pub fn tenant(&self, place: Place, at: u64, tid: u32) -> Option<&Tenure> {
        let tenures = self.places.peek(&place)?;
        let last = tenures.iter().rev().find(|tenure| tenure.bound_at < at)?;
        // What a thread has given back itself was not in its own way.
        let own = last.binder.is_some_and(|task| task.tid == tid);
        let had_it = match last.released_at {
            None => true,
            Some(released_at) => !own && released_at.saturating_add(CALL) >= at,
        };
        had_it.then_some(last)
    }

    /// What is known of a socket with this inode.
    pub fn of(&self, place: Place, inode: u64) -> Option<&Tenure> {
        let mut tenures = self.places.peek(&place)?.iter();
        tenures.find(|tenure| inode != 0 && tenure.socket.inode == inode)
    }

    /// The user's MPTCP socket behind one of the kernel's on the same address.
    pub fn mptcp(&self, subflow: &Socket) -> Option<&Tenure> {
        let place = Place::of(subflow, subflow.local_port)?;
        let mut tenures = self.places.peek(&place)?.iter().rev();
        tenures.find(|tenure| {
            tenure.socket.protocol == MPTCP
                && tenure.released_at.is_none()
                && tenure.socket.family == subflow.family
                && tenure.socket.local == subflow.local
        })
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros as _;

    use super::*;

    const MS: u64 = 1_000_000;

    fn bind(address: u64, tgid: u32, asked: u16, at: u64) -> Bind {
        let mut bind = Bind::new_zeroed();
        bind.header.time = at;
        bind.task.tgid = tgid;
        bind.task.tid = tgid;
        bind.requested.port = asked;
        bind.socket.address = address;
        bind.socket.inode = address;
        bind.socket.family = libc::AF_INET as u16;
        bind.socket.protocol = libc::IPPROTO_TCP as u16;
        bind.socket.sock_type = libc::SOCK_STREAM as u16;
        bind.socket.netns = 1;
        bind.socket.local_port = 4_000;
        bind
    }

    fn release(of: &Bind, at: u64) -> Release {
        let mut release = Release::new_zeroed();
        release.header.time = at;
        release.socket = of.socket;
        release
    }

    fn place() -> Place {
        Place {
            netns: 1,
            protocol: 6,
            port: 4_000,
        }
    }

    fn empty() -> Ledger {
        Ledger::new(&[])
    }

    #[test]
    fn a_port_that_was_asked_for_as_any_and_given_back_is_a_probe() {
        let mut ledger = empty();
        let probe = bind(1, 7, 0, 10 * MS);
        ledger.bound(&probe);
        let found = |ledger: &Ledger, now, close| {
            let found = ledger.probe(place(), now, |task| task.tgid == close);
            found.map(|(task, at)| (task.tgid, at / MS))
        };
        assert_eq!(found(&ledger, 30 * MS, 7), None, "it still has it");
        ledger.released(&release(&probe, 20 * MS));
        assert_eq!(found(&ledger, 30 * MS, 7), Some((7, 20)));
        assert_eq!(found(&ledger, 30 * MS, 8), None, "a stranger's");
        assert_eq!(found(&ledger, 20 * MS + PROBE + 1, 7), None, "long ago");
        let named = bind(2, 9, 4_000, 40 * MS);
        ledger.bound(&named);
        ledger.released(&release(&named, 50 * MS));
        assert_eq!(
            found(&ledger, 60 * MS, 9),
            None,
            "it was asked for by number"
        );
    }

    #[test]
    fn who_had_the_port_when_a_bind_was_refused() {
        let mut ledger = empty();
        let tenant = |ledger: &Ledger, at, tid| {
            let tenant = ledger.tenant(place(), at, tid)?;
            Some(tenant.socket.address)
        };
        let first = bind(1, 7, 4_000, 10 * MS);
        ledger.bound(&first);
        assert_eq!(tenant(&ledger, 9 * MS, 8), None, "it came later");
        assert_eq!(tenant(&ledger, 11 * MS, 8), Some(1));
        ledger.released(&release(&first, 20 * MS));
        assert_eq!(tenant(&ledger, 21 * MS, 8), Some(1), "while the call ran");
        assert_eq!(tenant(&ledger, 21 * MS, 7), None, "its own");
        assert_eq!(tenant(&ledger, 31 * MS, 8), None, "long gone");
        assert_eq!(ledger.of(place(), 1).unwrap().bound_at, 10 * MS);
        assert!(ledger.of(place(), 2).is_none());
    }

    #[test]
    fn a_subflow_leads_to_the_socket_of_mptcp() {
        let mut ledger = empty();
        let subflow = bind(2, 0, 4_000, 0).socket;
        assert!(ledger.mptcp(&subflow).is_none());
        let mut mptcp = bind(1, 7, 4_000, 10);
        mptcp.socket.protocol = MPTCP;
        ledger.bound(&mptcp);
        assert_eq!(ledger.mptcp(&subflow).unwrap().socket.address, 1);
        let mut elsewhere = subflow;
        elsewhere.local[0] = 10;
        assert!(ledger.mptcp(&elsewhere).is_none());
        ledger.released(&release(&mptcp, 20));
        assert!(ledger.mptcp(&subflow).is_none());
    }

    #[test]
    fn a_port_that_is_bound_all_the_time_takes_no_memory() {
        let mut ledger = empty();
        let kept = bind(1, 7, 4_000, 1);
        ledger.bound(&kept);
        for number in 2..1_000 {
            let bind = bind(number, 8, 4_000, number);
            ledger.bound(&bind);
            ledger.released(&release(&bind, number));
        }
        let tenures = ledger.places.peek(&place()).unwrap();
        assert_eq!(tenures.len(), TENURES);
        assert_eq!(tenures[0].socket.address, 1, "who still has it stays");
    }
}
