//! What is known of a bind or listen that was refused: all that a diagnosis is made from.
//!
//! What is not known is `None` or empty, and then decides nothing.

use crate::event::{Actor, Address, Evidence, Holder, Publishes, Socket, Text, Time};
use crate::kernel::sysctls::Sysctls;

/// The system call that was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// bind(2).
    Bind,
    /// listen(2).
    Listen,
}

/// All that is known of a refusal.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The system call.
    pub call: Call,
    /// What it returned, as a positive number.
    pub errno: i32,
    /// When.
    pub time: Time,
    /// The newcomer: its socket, with the address that was asked for as `local`.
    pub socket: Socket,
    /// The user who made the socket (`sk_uid`).
    pub uid: Option<u32>,
    /// Who asked.
    pub process: Option<Actor>,
    /// Whether the kernel's own bind ran. A seccomp supervisor can answer in its place.
    pub reached_kernel: Option<bool>,
    /// The address that the socket had before, if it had one.
    pub already: Option<Address>,
    /// Whether the process has CAP_NET_BIND_SERVICE in the user namespace of its network.
    pub may_bind_low: Option<bool>,
    /// Whether the process could not be looked at any more: mostly because it has ended.
    pub unseen: bool,
    /// Why the address could not be used, after EADDRNOTAVAIL.
    pub address_fault: Option<AddressFault>,
    /// What has the path, of AF_UNIX.
    pub path: Option<PathState>,
    /// The namespace's settings.
    pub sysctls: Sysctls,
    /// How the holders were found.
    pub evidence: Option<Evidence>,
    /// The sockets that have the port; the first is the one the kernel's check ran into.
    pub holders: Vec<Held>,
    /// Why there is no holder, if that is known.
    pub no_holder: Option<Text>,
    /// That the process, or one close to it, had found this port free a moment before.
    pub probe: Option<Probe>,
    /// The job that is traced.
    pub job: Option<Job>,
    /// Who has how many ports of the ephemeral range.
    pub range: Option<RangeUse>,
    /// Inode number of the host's own network namespace.
    pub host_netns: Option<u32>,
    /// The container that the process, a container runtime's, wanted to publish a port of.
    pub publishes: Option<Publishes>,
}

impl Facts {
    /// What is known at the least.
    #[must_use]
    pub fn new(call: Call, errno: i32, time: Time, socket: Socket) -> Self {
        Self {
            call,
            errno,
            time,
            socket,
            uid: None,
            process: None,
            reached_kernel: None,
            already: None,
            may_bind_low: None,
            unseen: false,
            address_fault: None,
            path: None,
            sysctls: Sysctls::default(),
            evidence: None,
            holders: Vec::new(),
            no_holder: None,
            probe: None,
            job: None,
            range: None,
            host_netns: None,
            publishes: None,
        }
    }

    /// The port that was asked for.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        self.socket.local.as_ref()?.port()
    }
}

/// A holder, and what is known of it beside what is told of it.
#[derive(Debug, Clone)]
pub struct Held {
    /// What is told.
    pub holder: Holder,
    /// Whether it is a socket of the kernel's own, without a file.
    pub kernel: Option<KernelSocket>,
    /// How a connection came to its port.
    pub origin: Option<Origin>,
    /// Who bound it.
    pub binder: Option<Actor>,
    /// Whether a process that has it is ending: exiting, a zombie, or sent a signal just before.
    pub exiting: bool,
    /// The systemd socket unit it is of.
    pub socket_unit: Option<Text>,
    /// What its process has to do with the newcomer's.
    pub tie: Option<Tie>,
    /// SO_REUSEADDR and SO_REUSEPORT of it are not known.
    pub options_unknown: bool,
}

/// What a holder's process has to do with the newcomer's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tie {
    /// Both are of one job: one of them started the other, or they run one program.
    Sibling,
    /// It was left over before the newcomer's job was started.
    LeftOver {
        /// When the job was started.
        job_started_at: Time,
    },
}

impl From<Holder> for Held {
    fn from(holder: Holder) -> Self {
        Self {
            holder,
            kernel: None,
            origin: None,
            binder: None,
            exiting: false,
            socket_unit: None,
            tie: None,
            options_unknown: false,
        }
    }
}

/// A socket of the kernel's own.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KernelSocket {
    /// What it is for: `WireGuard`, `VXLAN`, …
    pub protocol: Option<Text>,
    /// The interface it serves.
    pub interface: Option<Text>,
}

/// How a connection came to its port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// It went out, and the kernel chose the port.
    Autobound,
    /// A listener accepted it.
    Accepted,
}

/// Why an address could not be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AddressFault {
    /// No interface of the namespace has it. What they have is given.
    Absent(Vec<std::net::IpAddr>),
    /// Duplicate address detection is not over.
    Tentative,
    /// IPv6 is off in the namespace.
    Ipv6Off,
}

/// What has the path of an AF_UNIX socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathState {
    /// A socket that is open.
    InUse,
    /// A file that is left over: no open socket has this path.
    Stale,
}

/// A port that was bound by asking for any, and given back, by the newcomer's process or one of its job.
#[derive(Debug, Clone)]
pub struct Probe {
    /// Who did it.
    pub process: Actor,
    /// When it was given back.
    pub released_at: Time,
}

/// A job: a command with all that it starts.
#[derive(Debug, Clone)]
pub struct Job {
    /// Its first process.
    pub pid: u32,
    /// When it was started.
    pub started_at: Time,
}

/// Who has how many ports of the ephemeral range.
#[derive(Debug, Clone)]
pub struct RangeUse {
    /// Ports that somebody has.
    pub used: u32,
    /// Of those, how many wait in TIME_WAIT.
    pub timewait: u32,
    /// The processes that have the most, and how many each.
    pub most: Vec<(Actor, u32)>,
}
