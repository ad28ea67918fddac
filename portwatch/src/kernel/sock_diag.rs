//! What the kernel itself tells of the sockets of a network namespace: NETLINK_SOCK_DIAG.
//!
//! No iterator over descriptors sees TIME_WAITs, connections without a process
//! or the kernel's own sockets; this does, though not who has them. Messages
//! are those of include/uapi/linux/inet_diag.h, the same from 3.3 on.

pub mod unix;

use std::io;
use std::os::fd::AsRawFd as _;

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};
use portwatch_common::record::{Socket, option};
use zerocopy::{FromBytes, FromZeros as _, Immutable, IntoBytes, KnownLayout};

/// The state (include/net/tcp_states.h) of a TCP socket in TIME_WAIT.
pub const TCP_TIME_WAIT: u8 = 6;
/// Of one that neither listens nor is connected.
pub const TCP_CLOSE: u8 = 7;
/// Of one that is bound and neither listens nor is connected, as sock_diag tells it.
const TCP_BOUND_INACTIVE: u8 = 13;

/// A bit for each state that is asked for.
pub mod states {
    /// TCP_ESTABLISHED: of UDP a connected socket.
    pub const ESTABLISHED: u32 = 1 << 1;
    /// TCP_TIME_WAIT.
    pub const TIME_WAIT: u32 = 1 << 6;
    /// TCP_CLOSE: of UDP one that is not connected.
    pub const CLOSE: u32 = 1 << 7;
    /// TCP_LISTEN.
    pub const LISTEN: u32 = 1 << 10;
    /// TCP_BOUND_INACTIVE: bound and neither listening nor connected. Kernels before 6.8 tell none.
    pub const BOUND_INACTIVE: u32 = 1 << 13;
    /// All there are.
    pub const ALL: u32 = u32::MAX;
}

/// `SOCK_DIAG_BY_FAMILY`, include/uapi/linux/sock_diag.h.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// `INET_DIAG_SKV6ONLY`: one byte.
const INET_DIAG_SKV6ONLY: u16 = 11;
/// Timer 3 of `struct inet_diag_msg` is that of a TIME_WAIT.
const TIMER_TIME_WAIT: u8 = 3;

/// As many bytes as the kernel puts into one answer at most: `NLMSG_GOODSIZE` may be 8 KiB, and the
/// dump grows to what it was read with, 32 KiB at most (net/netlink/af_netlink.c, netlink_recvmsg).
const ANSWER: usize = 32 << 10;

/// `struct nlmsghdr`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Header {
    len: u32,
    kind: u16,
    flags: u16,
    seq: u32,
    pid: u32,
}

impl Header {
    fn of_dump(length: usize) -> Self {
        Self {
            len: length as u32,
            kind: SOCK_DIAG_BY_FAMILY,
            flags: (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16,
            seq: 0,
            pid: 0,
        }
    }
}

/// `struct inet_diag_sockid`. Ports and addresses are in network order.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Id {
    sport: [u8; 2],
    dport: [u8; 2],
    src: [u8; 16],
    dst: [u8; 16],
    interface: u32,
    cookie: [u32; 2],
}

/// `struct nlmsghdr` and `struct inet_diag_req_v2` behind it.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Request {
    header: Header,
    family: u8,
    protocol: u8,
    extensions: u8,
    pad: u8,
    states: u32,
    id: Id,
}

/// `struct inet_diag_msg`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Message {
    family: u8,
    state: u8,
    timer: u8,
    retransmits: u8,
    id: Id,
    /// Milliseconds.
    expires: u32,
    rqueue: u32,
    wqueue: u32,
    uid: u32,
    inode: u32,
}

/// `struct nlattr`.
#[derive(Clone, Copy, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Attribute {
    len: u16,
    kind: u16,
}

/// A socket as the kernel tells of it.
#[derive(Debug, Clone, Copy)]
pub struct Told {
    /// The socket, without an address in the kernel; of the options `v6only` alone is told.
    pub socket: Socket,
    /// The user who made it, as seen from the reader's user namespace.
    pub uid: u32,
    /// Of a TIME_WAIT: milliseconds until it is over.
    pub expires_in_ms: Option<u32>,
}

/// All sockets of this protocol and family in these [`states`], of the network namespace of the
/// calling thread. `netns` is its inode number.
///
/// # Errors
///
/// If the kernel does not answer, as one that was built without the protocol's `_diag` module.
pub fn dump(netns: u32, family: u8, protocol: u8, states: u32) -> io::Result<Vec<Told>> {
    let request = Request {
        header: Header::of_dump(size_of::<Request>()),
        family,
        protocol,
        extensions: 0,
        pad: 0,
        states,
        id: Id::new_zeroed(),
    };
    let mut told = Vec::new();
    ask(request.as_bytes(), |message| {
        let (message, attributes) = Message::read_from_prefix(message).map_err(|_| broken())?;
        told.push(tell(&message, attributes, netns, protocol));
        Ok(())
    })?;
    Ok(told)
}

fn broken() -> io::Error {
    io::Error::other("an answer of sock_diag is not understood")
}

/// Sends a request for a dump and takes the messages that come back, without their headers.
fn ask(request: &[u8], mut take: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let kernel = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkSockDiag,
    )?;
    let to = NetlinkAddr::new(0, 0);
    sendto(kernel.as_raw_fd(), request, &to, MsgFlags::empty())?;
    let mut buffer = vec![0; ANSWER];
    loop {
        // With this flag the length is that of the answer, read or not.
        let length = recv(kernel.as_raw_fd(), &mut buffer, MsgFlags::MSG_TRUNC)?;
        let answer = buffer
            .get(..length)
            .ok_or_else(|| io::Error::other("an answer of sock_diag was cut short"))?;
        if read(answer, &mut take)? {
            return Ok(());
        }
    }
}

/// Reads one answer, some messages long. `true` if it was the last.
fn read(mut answer: &[u8], take: &mut impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<bool> {
    while !answer.is_empty() {
        let (header, _) = Header::read_from_prefix(answer).map_err(|_| broken())?;
        let length = header.len as usize;
        let body = answer.get(size_of::<Header>()..length).ok_or_else(broken)?;
        match i32::from(header.kind) {
            // How a dump failed stands in its last message.
            libc::NLMSG_DONE | libc::NLMSG_ERROR => {
                let (errno, _) = i32::read_from_prefix(body).map_err(|_| broken())?;
                if errno < 0 {
                    return Err(io::Error::from_raw_os_error(errno.saturating_neg()));
                }
                return Ok(true);
            }
            _ if header.kind == SOCK_DIAG_BY_FAMILY => take(body)?,
            _ => {}
        }
        // NLMSG_ALIGN
        answer = answer.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

fn tell(message: &Message, attributes: &[u8], netns: u32, protocol: u8) -> Told {
    let sock_type = match i32::from(protocol) {
        libc::IPPROTO_TCP => libc::SOCK_STREAM,
        _ => libc::SOCK_DGRAM,
    };
    let Id {
        sport,
        dport,
        src,
        dst,
        interface,
        cookie,
    } = message.id;
    let mut options = 0;
    if attribute(attributes, INET_DIAG_SKV6ONLY).and_then(<[u8]>::first) == Some(&1) {
        options |= option::V6ONLY;
    }
    let mut socket = Socket::new_zeroed();
    socket.cookie = u64::from(cookie[0]) | u64::from(cookie[1]) << 32;
    socket.inode = message.inode.into();
    socket.local = src;
    socket.remote = dst;
    socket.netns = netns;
    socket.device = interface;
    socket.family = message.family.into();
    socket.protocol = protocol.into();
    socket.sock_type = sock_type as u16;
    socket.local_port = u16::from_be_bytes(sport);
    socket.remote_port = u16::from_be_bytes(dport);
    socket.options = options;
    socket.state = match message.state {
        TCP_BOUND_INACTIVE => TCP_CLOSE,
        state => state,
    };
    Told {
        socket,
        uid: message.uid,
        expires_in_ms: (message.timer == TIMER_TIME_WAIT).then_some(message.expires),
    }
}

/// The value of an attribute.
fn attribute(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    while let Ok((attribute, value)) = Attribute::read_from_prefix(attributes) {
        if attribute.kind == kind {
            let length = usize::from(attribute.len).checked_sub(size_of::<Attribute>())?;
            return value.get(..length);
        }
        // One that claims no length would be read for ever.
        let length = usize::from(attribute.len).max(size_of::<Attribute>());
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    const AF_INET: u8 = libc::AF_INET as u8;

    fn own(told: &[Told], port: u16) -> Option<(u8, [u8; 4], u64)> {
        let mut own = told.iter().filter(|told| told.socket.local_port == port);
        let socket = own.next()?.socket;
        assert!(own.next().is_none());
        let [a, b, c, d, ..] = socket.local;
        Some((socket.state, [a, b, c, d], socket.inode))
    }

    #[test]
    fn own_sockets_are_told() {
        use std::os::fd::AsFd as _;

        let tcp = TcpListener::bind("127.0.0.3:0").unwrap();
        let udp = UdpSocket::bind("127.0.0.3:0").unwrap();
        let inode = |fd| nix::sys::stat::fstat(fd).unwrap().st_ino;
        let listeners = dump(1, AF_INET, libc::IPPROTO_TCP as u8, states::LISTEN).unwrap();
        let port = tcp.local_addr().unwrap().port();
        assert_eq!(
            own(&listeners, port),
            Some((10, [127, 0, 0, 3], inode(tcp.as_fd())))
        );
        let unconnected = dump(1, AF_INET, libc::IPPROTO_UDP as u8, states::CLOSE).unwrap();
        let port = udp.local_addr().unwrap().port();
        assert_eq!(
            own(&unconnected, port),
            Some((7, [127, 0, 0, 3], inode(udp.as_fd())))
        );
    }

    #[test]
    fn an_error_is_one_and_nonsense_too() {
        let error = dump(1, AF_INET, 250, states::ALL).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT), "{error}");
        for answer in [&[0; 3][..], &[0; 16], &[255; 40]] {
            assert!(read(answer, &mut |_| Ok(())).is_err(), "{answer:?}");
        }
        assert_eq!(attribute(&[0; 64], 11), None);
    }
}
