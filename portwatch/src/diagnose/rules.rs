//! The kernel's rules of which two sockets may have one port.
//!
//! Restated over what can be known of a socket, for TCP, UDP and UDP-Lite, from
//! Linux 6.18: `net/ipv4/inet_connection_sock.c`, `net/ipv4/inet_hashtables.c`
//! and `net/ipv4/udp.c`. The same rules hold from 5.10 on, but for one address
//! (see `overlap`) and for bugs, mended since, by which kernels granted what
//! they should not. `cargo xtask test differential` holds them against the running
//! kernel.
//!
//! What is left out, because it decides only where sockets were changed after
//! they were bound: `tb->fastreuse` and `tb->fastreuseport`, by which
//! `inet_csk_get_port` grants a port without a look at its sockets, and
//! `sk_reuseport_cb`, which a newcomer has only if a program was attached to it
//! before it was bound. VRFs (`l3mdev`) are left out too.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use portwatch_common::record::option;

use crate::event::{Address, Socket, State, Text, Transport};

/// Which table of ports a socket is in: sockets of different tables never meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    /// `tcp_death_row.hashinfo`: TCP, and the subflows by which MPTCP and SMC hold ports.
    Tcp,
    /// `udp_table`.
    Udp,
    /// `udplite_table`.
    Udplite,
}

/// A socket, as far as the rules ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The table of its protocol.
    pub table: Table,
    /// The address it is bound to, or wants. [`IpAddr::V6`] is a socket of AF_INET6, whose address
    /// may be a v4-mapped one.
    pub address: IpAddr,
    /// The port it is bound to, or wants; 0 wants any.
    pub port: u16,
    /// `sk_ipv6only`: IPV6_V6ONLY. The kernel sets it on a socket that it binds to a specific
    /// address of IPv6 (`__inet6_bind`, 6.18); of a newcomer with one it decides nothing.
    pub v6only: bool,
    /// `sk_reuse`: SO_REUSEADDR.
    pub reuseaddr: bool,
    /// `sk_reuseport`: SO_REUSEPORT.
    pub reuseport: bool,
    /// `sk_uid`: the user who made it, as seen from the initial user namespace. A timewait socket
    /// has none.
    pub uid: Option<u32>,
    /// Name of the interface it is bound to (`sk_bound_dev_if`).
    pub device: Option<Text>,
    /// Its state.
    pub state: State,
    /// Inode number of its network namespace.
    pub netns: u32,
}

impl Endpoint {
    /// The endpoint that a socket of an event is; nothing if one of the facts that decide is
    /// missing, or its protocol has no ports of these tables.
    #[must_use]
    pub fn of(socket: &Socket, uid: Option<u32>) -> Option<Self> {
        let table = match socket.transport.as_ref()? {
            Transport::Tcp | Transport::Mptcp | Transport::Smc => Table::Tcp,
            Transport::Udp => Table::Udp,
            Transport::Udplite => Table::Udplite,
            _ => return None,
        };
        let Address::Inet { address, port, .. } = socket.local.as_ref()? else {
            return None;
        };
        let state = socket.state.unwrap_or(State::Bound);
        if uid.is_none() && state != State::TimeWait {
            return None;
        }
        let has = |bit| socket.options.0 & bit != 0;
        Some(Self {
            table,
            address: *address,
            port: *port,
            v6only: has(option::V6ONLY),
            reuseaddr: has(option::REUSEADDR),
            reuseport: has(option::REUSEPORT),
            uid,
            device: socket.bound_device.clone(),
            state,
            netns: socket.netns?,
        })
    }

    /// `sk_rcv_saddr`: what a socket of AF_INET6 has there if its address is none of IPv4 is
    /// `LOOPBACK4_IPV6`.
    fn v4(&self) -> Ipv4Addr {
        match self.address {
            IpAddr::V4(address) => address,
            IpAddr::V6(address) if address.is_unspecified() => Ipv4Addr::UNSPECIFIED,
            IpAddr::V6(address) => address
                .to_ipv4_mapped()
                .unwrap_or(Ipv4Addr::new(127, 0, 0, 6)),
        }
    }

    /// `sk_v6_rcv_saddr`, of IPv4 the v4-mapped address.
    fn v6(&self) -> Ipv6Addr {
        match self.address {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        }
    }

    /// Whether its address is one of IPv4, be it a v4-mapped one.
    fn is_mapped(&self) -> bool {
        self.v6().to_ipv4_mapped().is_some()
    }

    /// Whether its address is a wildcard: `::`, `0.0.0.0` or `::ffff:0.0.0.0`.
    fn is_wildcard(&self) -> bool {
        self.v6().is_unspecified() || self.v6() == Ipv4Addr::UNSPECIFIED.to_ipv6_mapped()
    }
}

/// How a port was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Search {
    /// By its number: bind(2) with a port, and listen(2).
    Named,
    /// Any: one of the ports that bind(2) with port 0 tries (`inet_csk_find_open_port`).
    Any {
        /// The namespace's `net.ipv4.ip_autobind_reuse`: sockets with SO_REUSEADDR may share
        /// where no port is free of them. Default off.
        autobind_reuse: bool,
    },
}

/// Why a newcomer cannot have the port beside a holder: their addresses meet, and neither of the
/// two options that let sockets share a port does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conflict {
    /// How the addresses meet.
    pub overlap: Overlap,
    /// Why SO_REUSEADDR does not let them share.
    pub reuseaddr: Reuseaddr,
    /// Why SO_REUSEPORT does not.
    pub reuseport: Reuseport,
}

/// How the addresses of two sockets meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overlap {
    /// It is the same address.
    Same,
    /// The newcomer's is a wildcard.
    NewcomerWildcard,
    /// The holder's is a wildcard.
    HolderWildcard,
    /// One is of IPv4, the other of a socket of AF_INET6 that takes IPv4 too.
    DualStack,
}

/// Why SO_REUSEADDR does not let two sockets share a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reuseaddr {
    /// Neither has it.
    Neither,
    /// The holder lacks it.
    NewcomerOnly,
    /// The newcomer lacks it.
    HolderOnly,
    /// Both have it, but the holder listens.
    HolderListens,
    /// Both have it, but the port was not asked for by its number.
    NotNamed,
}

/// Why SO_REUSEPORT does not let two sockets share a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reuseport {
    /// Neither has it.
    Neither,
    /// The holder lacks it.
    NewcomerOnly,
    /// The newcomer lacks it.
    HolderOnly,
    /// Both have it, but they are of different users.
    OtherUser,
    /// Both have it, but the port was not asked for by its number.
    NotNamed,
}

/// Whether a holder keeps a newcomer from its port, and if so why. The port of the holder is taken
/// for the one that is tried where the newcomer asks for any.
///
/// The newcomer's state does not matter: listen(2) asks for the port once more, by the same rules
/// (`inet_csk_listen_start`), and then meets a holder that has begun to listen since the bind.
///
/// A port may have many holders. For TCP the newcomer is refused if any of them is in its way.
/// For UDP the first one that is met ends the search: `udp_lib_lport_inuse` grants the port at
/// once when it meets a socket that shares by SO_REUSEPORT.
#[must_use]
pub fn verdict(newcomer: &Endpoint, holder: &Endpoint, search: Search) -> Option<Conflict> {
    let meet = newcomer.netns == holder.netns
        && newcomer.table == holder.table
        && (newcomer.port == holder.port || newcomer.port == 0)
        && devices_meet(newcomer, holder);
    if !meet {
        return None;
    }
    let overlap = overlap(newcomer, holder)?;
    let (reuseaddr, reuseport) = match newcomer.table {
        Table::Tcp => tcp(newcomer, holder, search)?,
        Table::Udp | Table::Udplite => (udp_reuseaddr(newcomer, holder)?, {
            reuseport(newcomer, holder).err()?
        }),
    };
    Some(Conflict {
        overlap,
        reuseaddr,
        reuseport,
    })
}

/// Sockets bound to different interfaces never meet; one that is bound to none meets all.
fn devices_meet(newcomer: &Endpoint, holder: &Endpoint) -> bool {
    match (&newcomer.device, &holder.device) {
        (Some(newcomer), Some(holder)) => newcomer == holder,
        _ => true,
    }
}

/// `inet_bind_conflict` (6.1 and later; before, the same within `inet_csk_bind_conflict`).
fn tcp(newcomer: &Endpoint, holder: &Endpoint, search: Search) -> Option<(Reuseaddr, Reuseport)> {
    let shared_port = reuseport(newcomer, holder);
    let both_reuseaddr = newcomer.reuseaddr && holder.reuseaddr;
    if both_reuseaddr && holder.state != State::Listen {
        // The kernel's `relax`: false in the first round of a search for any port, true in the
        // second one, which ip_autobind_reuse allows, and wherever a port was named.
        return match search {
            Search::Named => None,
            Search::Any {
                autobind_reuse: true,
            } => {
                // Sockets that share by SO_REUSEPORT would get each other's connections.
                shared_port
                    .is_ok()
                    .then_some((Reuseaddr::NotNamed, Reuseport::NotNamed))
            }
            Search::Any {
                autobind_reuse: false,
            } => Some((
                Reuseaddr::NotNamed,
                shared_port.err().unwrap_or(Reuseport::NotNamed),
            )),
        };
    }
    let reuseaddr = match (newcomer.reuseaddr, holder.reuseaddr) {
        (true, true) => Reuseaddr::HolderListens,
        (true, false) => Reuseaddr::NewcomerOnly,
        (false, true) => Reuseaddr::HolderOnly,
        (false, false) => Reuseaddr::Neither,
    };
    match (shared_port, search) {
        (Ok(()), Search::Named) => None,
        (Ok(()), Search::Any { .. }) => Some((reuseaddr, Reuseport::NotNamed)),
        (Err(reuseport), _) => Some((reuseaddr, reuseport)),
    }
}

/// `udp_lib_lport_inuse` (5.10, 6.18): sockets with SO_REUSEADDR share whatever they do.
fn udp_reuseaddr(newcomer: &Endpoint, holder: &Endpoint) -> Option<Reuseaddr> {
    match (newcomer.reuseaddr, holder.reuseaddr) {
        (true, true) => None,
        (true, false) => Some(Reuseaddr::NewcomerOnly),
        (false, true) => Some(Reuseaddr::HolderOnly),
        (false, false) => Some(Reuseaddr::Neither),
    }
}

/// Whether two sockets share by SO_REUSEPORT. A timewait socket is nobody's.
fn reuseport(newcomer: &Endpoint, holder: &Endpoint) -> Result<(), Reuseport> {
    match (newcomer.reuseport, holder.reuseport) {
        (false, false) => Err(Reuseport::Neither),
        (true, false) => Err(Reuseport::NewcomerOnly),
        (false, true) => Err(Reuseport::HolderOnly),
        (true, true) if holder.state == State::TimeWait || newcomer.uid == holder.uid => Ok(()),
        (true, true) => Err(Reuseport::OtherUser),
    }
}

/// Whether the addresses of two sockets meet, and how.
///
/// From 6.1 on a TCP socket with a specific address is looked for by its address (`bhash2`). That
/// leads to the same answer as the comparison of each socket, but for 127.0.0.6: by comparison
/// an unbound socket of AF_INET6 that is connected over IPv6 meets it, by address it does not.
fn overlap(newcomer: &Endpoint, holder: &Endpoint) -> Option<Overlap> {
    let meet = if newcomer.table == Table::Tcp && uses_bhash2(newcomer) {
        bhash2_meets(newcomer, holder)
    } else {
        rcv_saddr_equal(newcomer, holder)
    };
    meet.then(|| how(newcomer, holder))
}

fn how(newcomer: &Endpoint, holder: &Endpoint) -> Overlap {
    let families = newcomer.address.is_ipv4() != holder.address.is_ipv4();
    if families || newcomer.is_mapped() != holder.is_mapped() {
        Overlap::DualStack
    } else if newcomer.v6() == holder.v6() {
        Overlap::Same
    } else if newcomer.is_wildcard() {
        Overlap::NewcomerWildcard
    } else {
        Overlap::HolderWildcard
    }
}

/// `inet_use_hash2_on_bind` (6.18; `inet_use_bhash2_on_bind` before).
fn uses_bhash2(newcomer: &Endpoint) -> bool {
    !newcomer.is_wildcard()
}

/// Whether a holder is in one of the two buckets that a newcomer with a specific address is held
/// against: that of the wildcards (`inet_bhash2_addr_any_conflict`), and that of its own address
/// (`inet_bhash2_conflict`).
fn bhash2_meets(newcomer: &Endpoint, holder: &Endpoint) -> bool {
    // inet_bind2_bucket_match_addr_any, inet_bind2_bucket_addr_match
    let wildcard = holder.v6().is_unspecified() || (holder.is_wildcard() && newcomer.is_mapped());
    let own = holder.v6() == newcomer.v6();
    // __inet_bhash2_conflict
    let refuses_v4 = holder.v6only && newcomer.is_mapped();
    (wildcard || own) && !refuses_v4
}

/// `inet_rcv_saddr_equal` with `match_wildcard`.
fn rcv_saddr_equal(newcomer: &Endpoint, holder: &Endpoint) -> bool {
    match newcomer.address {
        IpAddr::V4(_) => ipv4_rcv_saddr_equal(newcomer, holder),
        IpAddr::V6(_) => ipv6_rcv_saddr_equal(newcomer, holder),
    }
}

fn ipv4_rcv_saddr_equal(newcomer: &Endpoint, holder: &Endpoint) -> bool {
    let (new, held) = (newcomer.v4(), holder.v4());
    !holder.v6only && (new == held || new.is_unspecified() || held.is_unspecified())
}

fn ipv6_rcv_saddr_equal(newcomer: &Endpoint, holder: &Endpoint) -> bool {
    let (new, held) = (newcomer.v6(), holder.v6());
    if newcomer.is_mapped() && holder.is_mapped() {
        return ipv4_rcv_saddr_equal(newcomer, holder);
    }
    new == held
        || (held.is_unspecified() && !(holder.v6only && newcomer.is_mapped()))
        || (new.is_unspecified() && !(newcomer.v6only && holder.is_mapped()))
}

#[cfg(test)]
#[path = "rules/tests.rs"]
mod tests;
