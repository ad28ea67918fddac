//! Sockets as the kernel has them: made, brought into their states, and described for the rules.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};

use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::{Uid, setfsuid};
use portwatch::diagnose::rules::{Endpoint, Table};
use portwatch::event::State;
use portwatch_tests::socket::{REUSEADDR, REUSEPORT, V6ONLY};
use portwatch_tests::{Netns, Socket};

/// The second interface, which no connection goes through.
pub const OTHER: &str = "pw0";

/// Where cases get their ports from.
const PORTS: std::ops::Range<u16> = 1024..50_000;
/// Where the kernel gets its from.
pub const EPHEMERAL: &str = "50000 64999";

// enum in include/net/tcp_states.h
const TCP_FIN_WAIT2: u8 = 5;
const TCP_CLOSE: u8 = 7;
const TCP_CLOSE_WAIT: u8 = 8;

/// What the kernel said to a newcomer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// It has the port.
    Granted,
    /// EADDRINUSE.
    Refused,
}

impl Said {
    /// By what a system call returned; any other error is the test's own fault.
    pub fn of(result: io::Result<()>) -> Self {
        match result {
            Ok(()) => Self::Granted,
            Err(error) if error.raw_os_error() == Some(libc::EADDRINUSE) => Self::Refused,
            Err(error) => panic!("neither granted nor EADDRINUSE: {error}"),
        }
    }
}

/// A namespace with a second interface and addresses of IPv6.
pub fn prepare(netns: &Netns) {
    netns.ip(&format!("link add {OTHER} type bridge"));
    for address in ["fd00::1", "fd00::2"] {
        netns.ip(&format!("addr add {address}/128 dev lo"));
    }
    netns.sysctl("ipv4/ip_local_port_range", EPHEMERAL);
}

/// A socket that is to be.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Of TCP; else of UDP.
    pub tcp: bool,
    pub address: IpAddr,
    pub v6only: bool,
    pub reuseaddr: bool,
    pub reuseport: bool,
    pub uid: u32,
    pub device: Option<&'static str>,
}

impl Plan {
    /// socket(2) and the options.
    pub fn open(&self) -> Socket {
        let family = match self.address {
            IpAddr::V4(_) => libc::AF_INET,
            IpAddr::V6(_) => libc::AF_INET6,
        };
        let kind = if self.tcp {
            libc::SOCK_STREAM
        } else {
            libc::SOCK_DGRAM
        };
        let mut socket = as_user(self.uid, || Socket::open(family, kind, 0).unwrap());
        if self.v6only {
            socket.set(V6ONLY);
        }
        if self.reuseaddr {
            socket.set(REUSEADDR);
        }
        if self.reuseport {
            socket.set(REUSEPORT);
        }
        if let Some(device) = self.device {
            socket = socket.on_device(device);
        }
        socket
    }

    /// What the rules are told of it before it has an address.
    pub fn wants(&self, port: u16) -> Endpoint {
        Endpoint {
            table: if self.tcp { Table::Tcp } else { Table::Udp },
            address: self.address,
            port,
            v6only: self.v6only,
            reuseaddr: self.reuseaddr,
            reuseport: self.reuseport,
            uid: Some(self.uid),
            device: self.device.map(Into::into),
            state: State::Bound,
            netns: 0,
        }
    }

    /// What the rules are told of it once it has one.
    pub fn has(&self, socket: &Socket, state: State) -> Endpoint {
        let local = socket.local();
        Endpoint {
            address: local.ip(),
            v6only: local.is_ipv6() && getsockopt(socket, sockopt::Ipv6V6Only).unwrap(),
            state,
            uid: (state != State::TimeWait).then_some(self.uid),
            ..self.wants(local.port())
        }
    }

    /// bind(2).
    pub fn bind(&self, socket: &Socket, port: u16) -> Said {
        Said::of(socket.bind(&SocketAddr::new(self.address, port).to_string()))
    }
}

/// Makes sockets as another user: a socket is its whom the file system takes the thread for.
fn as_user<T>(uid: u32, make: impl FnOnce() -> T) -> T {
    setfsuid(Uid::from_raw(uid));
    let made = make();
    setfsuid(Uid::from_raw(0));
    made
}

/// The sockets of a case, which leave nothing behind when they are dropped.
#[derive(Default)]
pub struct Kept(Vec<Socket>);

impl Kept {
    pub fn keep(&mut self, socket: Socket) {
        self.0.push(socket);
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        for socket in &self.0 {
            socket.linger_not();
        }
    }
}

/// How a holder has its port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holding {
    Bound,
    Listening,
    /// bind(2) and connect(2).
    Connected,
    /// connect(2) alone: the kernel chose the port.
    Autobound,
    /// A listener's connection; the listener is gone.
    Accepted,
    /// The same, having sent its FIN.
    FinWait2,
    /// The same, having got the peer's.
    CloseWait,
    TimeWait,
}

/// The ports that are left.
pub struct Kernel {
    ports: std::ops::Range<u16>,
}

impl Kernel {
    pub fn new() -> Self {
        Self { ports: PORTS }
    }

    /// A port that no case had: a connection in TIME_WAIT outlives its case.
    pub fn port(&mut self) -> u16 {
        self.ports.next().expect("too many cases for a namespace")
    }

    /// Makes a holder. What is to be kept as long as it is goes into `kept`.
    pub fn hold(
        &mut self,
        plan: &Plan,
        holding: Holding,
        over_v4: bool,
        kept: &mut Kept,
    ) -> Endpoint {
        let socket = plan.open();
        if holding != Holding::Autobound {
            let port = self.port();
            assert_eq!(plan.bind(&socket, port), Said::Granted, "{port} is in use");
        }
        match holding {
            Holding::Bound => described(plan, socket, State::Bound, kept),
            Holding::Listening => {
                socket.listen(16).unwrap();
                described(plan, socket, State::Listen, kept)
            }
            Holding::Connected | Holding::Autobound => {
                let at = SocketAddr::new(peer(plan.address, over_v4), 0);
                if plan.tcp {
                    let server = TcpListener::bind(at).unwrap();
                    socket.connect(server.local_addr().unwrap()).unwrap();
                    kept.keep(Socket::from(std::os::fd::OwnedFd::from(server)));
                } else {
                    socket.connect(SocketAddr::new(at.ip(), 9)).unwrap();
                }
                described(plan, socket, State::Established, kept)
            }
            Holding::Accepted | Holding::FinWait2 | Holding::CloseWait | Holding::TimeWait => {
                accepted(plan, socket, holding, over_v4, kept)
            }
        }
    }
}

fn described(plan: &Plan, socket: Socket, state: State, kept: &mut Kept) -> Endpoint {
    let endpoint = plan.has(&socket, state);
    kept.keep(socket);
    endpoint
}

/// An address over which a socket with this one can be connected.
fn peer(address: IpAddr, over_v4: bool) -> IpAddr {
    let v4: IpAddr = [127, 0, 0, 1].into();
    match address {
        IpAddr::V4(address) if address.is_unspecified() => v4,
        IpAddr::V4(_) => address,
        IpAddr::V6(any) if any.is_unspecified() && !over_v4 => std::net::Ipv6Addr::LOCALHOST.into(),
        IpAddr::V6(any) if any.is_unspecified() => mapped([127, 0, 0, 1]),
        IpAddr::V6(other) => match other.to_ipv4_mapped() {
            Some(any) if any.is_unspecified() => mapped([127, 0, 0, 1]),
            _ => address,
        },
    }
}

/// The v4-mapped address.
pub fn mapped(address: [u8; 4]) -> IpAddr {
    std::net::Ipv4Addr::from(address).to_ipv6_mapped().into()
}

fn accepted(
    plan: &Plan,
    listener: Socket,
    holding: Holding,
    over_v4: bool,
    kept: &mut Kept,
) -> Endpoint {
    listener.listen(16).unwrap();
    let to = SocketAddr::new(peer(plan.address, over_v4), listener.local().port());
    let family = if to.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    let client = Socket::open(family, libc::SOCK_STREAM, 0).unwrap();
    client.connect(to).unwrap();
    let socket = as_user(plan.uid, || listener.accept().unwrap());
    drop(listener);
    let endpoint = match holding {
        Holding::CloseWait => {
            client.shutdown();
            until(&socket, TCP_CLOSE_WAIT);
            plan.has(&socket, State::CloseWait)
        }
        Holding::FinWait2 => {
            socket.shutdown();
            until(&socket, TCP_FIN_WAIT2);
            plan.has(&socket, State::FinWait2)
        }
        Holding::TimeWait => {
            socket.shutdown();
            until(&socket, TCP_FIN_WAIT2);
            let endpoint = plan.has(&socket, State::TimeWait);
            client.shutdown();
            // The timewait socket has taken its place.
            until(&socket, TCP_CLOSE);
            endpoint
        }
        _ => plan.has(&socket, State::Established),
    };
    kept.keep(socket);
    kept.keep(client);
    endpoint
}

/// Looks until the connection is in this state: its segments are on their way, and nothing tells
/// of their arrival.
fn until(socket: &Socket, state: u8) {
    let begin = std::time::Instant::now();
    loop {
        let now = socket.tcp_state();
        if now == state {
            return;
        }
        assert!(
            begin.elapsed() < *portwatch_tests::LIMIT,
            "state {now}, not {state}"
        );
        std::thread::yield_now();
    }
}
