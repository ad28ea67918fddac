//! From the kernel's numbers to the words of events: sockets and addresses.

use portwatch_common::record::{self, Requested, socket_flag};

use super::process;
use crate::event::{
    AbstractText, Address, Family, Options, PathText, Socket, State, Transport, text,
};

pub(super) fn family(raw: u16) -> Option<Family> {
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
pub(super) fn requested_address(requested: &Requested, path: &[u8]) -> Option<Address> {
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
pub(super) fn address(raw: &record::Socket) -> Option<Address> {
    socket(raw, &[0; 16]).local
}

/// The address that a cgroup program put in place of the one asked for.
pub(super) fn rewritten_address(bind: &record::Bind) -> Option<Address> {
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
pub(super) fn unix_address(path: &[u8]) -> Option<Address> {
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
pub(super) fn same(got: &Option<Address>, asked: &Option<Address>, ignore_port: bool) -> bool {
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
