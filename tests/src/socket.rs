//! Sockets with every option that decides over binding.

use std::io;
use std::mem::ManuallyDrop;
use std::net::{SocketAddr, SocketAddrV4, TcpStream};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

use libc::{c_int, socklen_t};

use crate::unforked;

/// IPPROTO_MPTCP, include/uapi/linux/in.h.
pub const MPTCP: c_int = 262;

/// A socket.
#[derive(Debug)]
pub struct Socket(ManuallyDrop<OwnedFd>);

/// An option of SOL_SOCKET, IPPROTO_IP or IPPROTO_IPV6 that is switched on.
#[derive(Debug, Clone, Copy)]
pub struct Switch(c_int, c_int);

/// SO_REUSEADDR.
pub const REUSEADDR: Switch = Switch(libc::SOL_SOCKET, libc::SO_REUSEADDR);
/// SO_REUSEPORT.
pub const REUSEPORT: Switch = Switch(libc::SOL_SOCKET, libc::SO_REUSEPORT);
/// IPV6_V6ONLY.
pub const V6ONLY: Switch = Switch(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY);
/// IP_FREEBIND.
pub const FREEBIND: Switch = Switch(libc::IPPROTO_IP, libc::IP_FREEBIND);
/// IP_TRANSPARENT.
pub const TRANSPARENT: Switch = Switch(libc::IPPROTO_IP, libc::IP_TRANSPARENT);
/// IP_BIND_ADDRESS_NO_PORT.
pub const BIND_ADDRESS_NO_PORT: Switch = Switch(libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT);

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// The address that this text says.
pub fn address(text: &str) -> SocketAddr {
    match text.parse() {
        Ok(address) => address,
        Err(_) => panic!("{text} is no address"),
    }
}

/// The `struct sockaddr_in` or `sockaddr_in6` of an address.
pub fn sockaddr(address: SocketAddr) -> Vec<u8> {
    let family = |number: c_int| u16::try_from(number).unwrap_or_default().to_ne_bytes();
    let mut bytes = Vec::new();
    match address {
        SocketAddr::V4(address) => {
            bytes.extend(family(libc::AF_INET));
            bytes.extend(address.port().to_be_bytes());
            bytes.extend(address.ip().octets());
            bytes.extend([0; 8]);
        }
        SocketAddr::V6(address) => {
            bytes.extend(family(libc::AF_INET6));
            bytes.extend(address.port().to_be_bytes());
            bytes.extend(address.flowinfo().to_be_bytes());
            bytes.extend(address.ip().octets());
            bytes.extend(address.scope_id().to_ne_bytes());
        }
    }
    bytes
}

/// The `struct sockaddr_un` with this path, or NUL and abstract name, or nothing for autobind.
pub fn sockaddr_un(path: &[u8]) -> Vec<u8> {
    let mut bytes = u16::try_from(libc::AF_UNIX)
        .unwrap_or_default()
        .to_ne_bytes()
        .to_vec();
    bytes.extend(path);
    bytes
}

/// bind(2) of any descriptor, with any bytes as address.
pub fn bind(descriptor: RawFd, address: &[u8]) -> io::Result<()> {
    bind_at(descriptor, address.as_ptr(), address.len())
}

fn bind_at(descriptor: RawFd, address: *const u8, len: usize) -> io::Result<()> {
    // SAFETY: the kernel checks the pointer.
    let result = unsafe { libc::bind(descriptor, address.cast(), len as socklen_t) };
    check(result).map(drop)
}

/// bind(2) with an address that cannot be read.
pub fn bind_unreadable(socket: &Socket) -> io::Result<()> {
    socket.bind_at(std::ptr::without_provenance(8), 16)
}

/// listen(2) of any descriptor.
pub fn listen(descriptor: RawFd, backlog: c_int) -> io::Result<()> {
    // SAFETY: there is no memory involved.
    check(unsafe { libc::listen(descriptor, backlog) }).map(drop)
}

impl Socket {
    /// socket(2), with SOCK_CLOEXEC.
    pub fn open(family: c_int, kind: c_int, protocol: c_int) -> io::Result<Self> {
        // SAFETY: there is no memory involved.
        let descriptor =
            check(unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) })?;
        // SAFETY: the descriptor is new and nobody else's.
        Ok(Self::from(unsafe { OwnedFd::from_raw_fd(descriptor) }))
    }

    fn new(family: c_int, kind: c_int, protocol: c_int) -> Self {
        match Self::open(family, kind, protocol) {
            Ok(socket) => socket,
            Err(error) => panic!("socket({family}, {kind}, {protocol}): {error}"),
        }
    }

    /// TCP over IPv4.
    pub fn tcp4() -> Self {
        Self::new(libc::AF_INET, libc::SOCK_STREAM, 0)
    }

    /// TCP over IPv6.
    pub fn tcp6() -> Self {
        Self::new(libc::AF_INET6, libc::SOCK_STREAM, 0)
    }

    /// UDP over IPv4.
    pub fn udp4() -> Self {
        Self::new(libc::AF_INET, libc::SOCK_DGRAM, 0)
    }

    /// UDP over IPv6.
    pub fn udp6() -> Self {
        Self::new(libc::AF_INET6, libc::SOCK_DGRAM, 0)
    }

    /// MPTCP over IPv4.
    pub fn mptcp4() -> Self {
        Self::new(libc::AF_INET, libc::SOCK_STREAM, MPTCP)
    }

    /// Whether the kernel has MPTCP. Debian's 5.10 has not (CONFIG_MPTCP).
    pub fn has_mptcp() -> bool {
        match Self::open(libc::AF_INET, libc::SOCK_STREAM, MPTCP) {
            Ok(_) => true,
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::EPROTONOSUPPORT));
                println!("this kernel has no MPTCP");
                false
            }
        }
    }

    /// By the word that the actor has for it: `tcp4`, `tcp6`, `udp4`, `udp6`, `mptcp4`.
    pub fn by_name(name: &str) -> Self {
        match name {
            "tcp4" => Self::tcp4(),
            "tcp6" => Self::tcp6(),
            "udp4" => Self::udp4(),
            "udp6" => Self::udp6(),
            "mptcp4" => Self::mptcp4(),
            other => panic!("there is no kind of socket {other}"),
        }
    }

    /// Switches an option on.
    pub fn set(&self, Switch(level, name): Switch) {
        let on: c_int = 1;
        self.set_bytes(level, name, &on.to_ne_bytes());
    }

    /// The socket with an option switched on.
    #[must_use]
    pub fn with(self, switch: Switch) -> Self {
        self.set(switch);
        self
    }

    /// SO_BINDTODEVICE.
    #[must_use]
    pub fn on_device(self, name: &str) -> Self {
        self.set_bytes(libc::SOL_SOCKET, libc::SO_BINDTODEVICE, name.as_bytes());
        self
    }

    /// SO_LINGER of 0: close resets.
    pub fn linger_not(&self) {
        let linger = [1i32.to_ne_bytes(), 0i32.to_ne_bytes()].concat();
        self.set_bytes(libc::SOL_SOCKET, libc::SO_LINGER, &linger);
    }

    fn set_bytes(&self, level: c_int, name: c_int, value: &[u8]) {
        // SAFETY: the pointer and length are those of a slice.
        let result = unsafe {
            libc::setsockopt(
                self.0.as_raw_fd(),
                level,
                name,
                value.as_ptr().cast(),
                value.len() as socklen_t,
            )
        };
        if let Err(error) = check(result) {
            panic!("setsockopt({level}, {name}): {error}");
        }
    }

    /// SO_COOKIE.
    pub fn cookie(&self) -> u64 {
        u64::from_ne_bytes(self.get_bytes(libc::SOL_SOCKET, libc::SO_COOKIE))
    }

    /// The state of a TCP socket, by its number in include/net/tcp_states.h.
    pub fn tcp_state(&self) -> u8 {
        // It is the first byte of struct tcp_info.
        let [state] = self.get_bytes(libc::IPPROTO_TCP, libc::TCP_INFO);
        state
    }

    /// The first bytes of an option's value.
    fn get_bytes<const N: usize>(&self, level: c_int, name: c_int) -> [u8; N] {
        let mut value = [0; N];
        let mut length = N as socklen_t;
        // SAFETY: the pointers are of live variables, the length that of the value.
        let result = unsafe {
            libc::getsockopt(
                self.0.as_raw_fd(),
                level,
                name,
                value.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        check(result).unwrap();
        assert_eq!(length as usize, N, "getsockopt({level}, {name})");
        value
    }

    /// bind(2).
    pub fn bind(&self, text: &str) -> io::Result<()> {
        self.bind_bytes(&sockaddr(address(text)))
    }

    /// The socket bound to this address.
    #[must_use]
    pub fn bound(self, text: &str) -> Self {
        match self.bind(text) {
            Ok(()) => self,
            Err(error) => panic!("bind to {text}: {error}"),
        }
    }

    /// bind(2) with these bytes.
    pub fn bind_bytes(&self, address: &[u8]) -> io::Result<()> {
        bind(self.0.as_raw_fd(), address)
    }

    /// bind(2) with the bytes that are there when the kernel reads them.
    pub fn bind_at(&self, address: *const u8, len: usize) -> io::Result<()> {
        bind_at(self.0.as_raw_fd(), address, len)
    }

    /// listen(2).
    pub fn listen(&self, backlog: c_int) -> io::Result<()> {
        listen(self.0.as_raw_fd(), backlog)
    }

    /// connect(2).
    pub fn connect(&self, to: SocketAddr) -> io::Result<()> {
        let to = sockaddr(to);
        // SAFETY: the pointer and length are those of a slice.
        let result = unsafe {
            libc::connect(
                self.0.as_raw_fd(),
                to.as_ptr().cast(),
                to.len() as socklen_t,
            )
        };
        check(result).map(drop)
    }

    /// accept4(2).
    pub fn accept(&self) -> io::Result<Self> {
        // SAFETY: the address is not asked for.
        let result = unsafe {
            libc::accept4(
                self.0.as_raw_fd(),
                std::ptr::null_mut(),
                std::ptr::null_mut(),
                libc::SOCK_CLOEXEC,
            )
        };
        // SAFETY: the descriptor is new and nobody else's.
        check(result).map(|descriptor| Self::from(unsafe { OwnedFd::from_raw_fd(descriptor) }))
    }

    /// shutdown(2) of the sending half.
    pub fn shutdown(&self) {
        // SAFETY: there is no memory involved.
        check(unsafe { libc::shutdown(self.0.as_raw_fd(), libc::SHUT_WR) }).unwrap();
    }

    /// The address it is bound to.
    pub fn local(&self) -> SocketAddr {
        self.stream(|stream| stream.local_addr()).unwrap()
    }

    /// The address it is connected to.
    pub fn remote(&self) -> SocketAddr {
        self.stream(|stream| stream.peer_addr()).unwrap()
    }

    /// Does something with it as std's type, which knows no difference.
    pub fn stream<T>(&self, use_it: impl FnOnce(&TcpStream) -> T) -> T {
        use_it(&TcpStream::from(self.0.try_clone().unwrap()))
    }

    /// A second descriptor of the same socket.
    #[must_use]
    pub fn duplicate(&self) -> Self {
        Self::from(self.0.try_clone().unwrap())
    }

    /// The descriptor's number.
    pub fn number(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Lets a program that is executed keep it.
    pub fn keep(&self) {
        let flags = nix::fcntl::FdFlag::empty();
        nix::fcntl::fcntl(&*self.0, nix::fcntl::FcntlArg::F_SETFD(flags)).unwrap();
    }

    /// Its inode number, as in `/proc/PID/fd`.
    pub fn inode(&self) -> u64 {
        nix::sys::stat::fstat(&*self.0).unwrap().st_ino
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<OwnedFd> for Socket {
    fn from(descriptor: OwnedFd) -> Self {
        Self(ManuallyDrop::new(descriptor))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // SAFETY: it is not used any more.
        unforked(|| unsafe { ManuallyDrop::drop(&mut self.0) });
    }
}

/// A connection over this listener: its end on the side of the server.
pub fn connect(listener: &Socket, client: &Socket) -> Socket {
    client.connect(listener.local()).unwrap();
    listener.accept().unwrap()
}

/// Sends a TCP segment of IPv4 that belongs to no connection, through a raw socket: it has one byte
/// of data and no flag.
pub fn send_stray_segment(from: SocketAddrV4, to: SocketAddrV4) {
    let mut segment = Vec::new();
    segment.extend(from.port().to_be_bytes());
    segment.extend(to.port().to_be_bytes());
    // Sequence number, acknowledged number.
    segment.extend([0; 8]);
    // Length of the header in words, flags, window, checksum, urgent pointer.
    segment.extend([5 << 4, 0, 0xff, 0xff, 0, 0, 0, 0]);
    segment.push(b'x');

    let mut pseudo = Vec::new();
    pseudo.extend(from.ip().octets());
    pseudo.extend(to.ip().octets());
    pseudo.extend([0, 6]);
    pseudo.extend((segment.len() as u16).to_be_bytes());
    pseudo.extend(&segment);
    let sum: u32 = pseudo
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | u32::from(word.get(1).copied().unwrap_or(0)))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !((folded & 0xffff) + (folded >> 16)) as u16;
    segment[16..18].copy_from_slice(&checksum.to_be_bytes());

    let raw = Socket::new(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_TCP);
    let address = nix::sys::socket::SockaddrIn::from(to);
    let flags = nix::sys::socket::MsgFlags::empty();
    let sent = nix::sys::socket::sendto(raw.number(), &segment, &address, flags).unwrap();
    assert_eq!(sent, segment.len());
}
