//! Records: what the kernel side writes into the ring buffer.
//!
//! Every record begins with a [`Header`], whose `kind` says which struct
//! follows. All integers are in the machine's byte order except addresses,
//! which are in network order; ports are in the machine's order.

#[cfg(feature = "user")]
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Declares a plain `repr(C)` struct which the user side may decode from bytes.
///
/// `IntoBytes` makes the compiler refuse a struct with padding.
macro_rules! plain {
    ($($(#[$meta:meta])* pub struct $name:ident { $($body:tt)* })*) => {$(
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy)]
        #[cfg_attr(feature = "user", derive(FromBytes, IntoBytes, Immutable, KnownLayout, Debug))]
        pub struct $name { $($body)* }
    )*};
}
pub(crate) use plain;

/// The `kind` of a record's [`Header`].
///
/// Plain constants and not an enum: the user side turns a kind into a decoded
/// record by a total function, and never casts bytes to an enum.
pub mod kind {
    /// [`super::Bind`]: a bind(2) has returned.
    pub const BIND: u32 = 1;
    /// [`super::Listen`]: a listen(2) has returned.
    pub const LISTEN: u32 = 2;
    /// [`super::Release`]: a bound socket has given its port back.
    pub const RELEASE: u32 = 3;
    /// [`super::Timewait`]: a timewait socket's timer was armed.
    pub const TIMEWAIT_START: u32 = 4;
    /// [`super::Timewait`]: a timewait socket's timer was taken off the wheel.
    pub const TIMEWAIT_CANCEL: u32 = 5;
    /// [`super::Timewait`]: a timewait socket's timer has expired.
    pub const TIMEWAIT_EXPIRE: u32 = 6;
    /// [`super::Timewait`]: the timewait socket cancelled just before was
    /// replaced by a new connection of the same addresses and ports.
    pub const TIMEWAIT_REUSE: u32 = 7;
    /// [`super::Process`]: who a process is.
    pub const PROCESS: u32 = 8;
    /// [`super::Fork`]: a known process forked.
    pub const FORK: u32 = 9;
    /// [`super::Gone`]: a known process replaced its program by execve(2).
    pub const EXEC: u32 = 10;
    /// [`super::Gone`]: a known process was reaped.
    pub const REAP: u32 = 11;
    /// [`super::SnapshotEntry`]: a descriptor found by the snapshot (not
    /// in the ring buffer, but read from the iterator).
    pub const SNAPSHOT: u32 = 12;
    /// [`super::Timewait`]: a timewait socket that was asked for has entered
    /// TIME_WAIT (not in the ring buffer, but read from the iterator).
    pub const TIMEWAIT_FOUND: u32 = 13;
    /// [`super::Holder`]: a socket that has the port of a bind or listen of the same thread, whose
    /// record follows.
    pub const HOLDER: u32 = 14;
    /// [`super::SnapshotEntry`]: a process that has a socket open which was asked for (not in the
    /// ring buffer, but read from the iterator).
    pub const OWNER: u32 = 15;
    /// How many kinds there are, with 0 unused.
    pub const COUNT: usize = 16;
}

/// Bits of [`Socket::options`].
pub mod option {
    /// SO_REUSEADDR (`sk_reuse`).
    pub const REUSEADDR: u16 = 1 << 0;
    /// SO_REUSEPORT (`sk_reuseport`).
    pub const REUSEPORT: u16 = 1 << 1;
    /// IPV6_V6ONLY (`skc_ipv6only`).
    pub const V6ONLY: u16 = 1 << 2;
    /// IP_FREEBIND or IPV6_FREEBIND.
    pub const FREEBIND: u16 = 1 << 3;
    /// IP_TRANSPARENT or IPV6_TRANSPARENT.
    pub const TRANSPARENT: u16 = 1 << 4;
    /// IP_BIND_ADDRESS_NO_PORT.
    pub const BIND_ADDRESS_NO_PORT: u16 = 1 << 5;
}

/// Bits of [`Socket::flags`].
pub mod socket_flag {
    /// The socket is the kernel's own (`sk_kern_sock`): no descriptor leads to it.
    pub const KERNEL: u16 = 1 << 0;
    /// The port was to be chosen by the kernel, for connect(2) or sendto(2) and the like without a
    /// bind(2) before.
    pub const AUTOBIND: u16 = 1 << 1;
    /// No file leads to the socket: its process has closed it, or it never had one.
    pub const NO_FILE: u16 = 1 << 2;
}

/// Values of [`Holder::evidence`].
pub mod evidence {
    /// Met by the kernel's own check, under the lock of the table: the last one before it failed.
    pub const LOCKED: u32 = 1;
    /// Found by a walk of the table, without its lock, just after.
    pub const WALKED: u32 = 2;
}

/// Bits of [`Task::flags`].
pub mod task_flag {
    /// The task is a kernel thread (PF_KTHREAD), so it says nothing of who did it.
    pub const KERNEL_THREAD: u32 = 1 << 0;
    /// There was no task to name: the event came out of an interrupt.
    pub const UNKNOWN: u32 = 1 << 1;
    /// The process is of the tree that is followed.
    pub const IN_TREE: u32 = 1 << 2;
}

/// Bits of [`Process::flags`].
pub mod process_flag {
    /// The process had no memory left (it was exiting): no arguments, no executable.
    pub const NO_MEMORY: u32 = 1 << 0;
    /// The executable's path was longer than [`super::PATH_CAPACITY`]; its beginning is missing.
    pub const EXE_TRUNCATED: u32 = 1 << 1;
    /// The same of the cgroup v2 path.
    pub const CGROUP_TRUNCATED: u32 = 1 << 2;
    /// The same of the cgroup v1 path.
    pub const CGROUP_V1_TRUNCATED: u32 = 1 << 3;
    /// The page with the arguments was not resident: they could not be read.
    pub const NO_ARGS: u32 = 1 << 4;
    /// The process has executed no program since it was forked.
    pub const FORKED: u32 = 1 << 5;
}

/// Bytes of a path which a [`Process`] holds.
pub const PATH_CAPACITY: usize = 512;
/// Bytes kept free behind a path, so that a component may be written whole at its end.
pub const COMPONENT_CAPACITY: usize = 256;
/// Length of a path's buffer.
pub const PATH_BUFFER: usize = PATH_CAPACITY + COMPONENT_CAPACITY;
/// Arguments of a [`Process`], in bytes: longer ones are cut.
pub const ARGS_CAPACITY: usize = 4096;
/// How many ancestors a [`Process`] names at most.
pub const ANCESTORS: usize = 16;
/// `sizeof(sockaddr_un.sun_path)`.
pub const UNIX_PATH: usize = 108;

plain! {
    /// What every record begins with.
    pub struct Header {
        /// One of [`kind`].
        pub kind: u32,
        /// Of no meaning; keeps `time` aligned.
        pub reserved: u32,
        /// CLOCK_MONOTONIC in nanoseconds (`bpf_ktime_get_ns`).
        pub time: u64,
    }

    /// The task that did it.
    pub struct Task {
        /// `tgid`, in the initial pid namespace. What users call the pid.
        pub tgid: u32,
        /// `pid` of the thread, in the initial pid namespace.
        pub tid: u32,
        /// `start_boottime` of the thread group's leader: with `tgid`, a process's name for all time.
        pub start: u64,
        /// Effective uid, as seen from the initial user namespace.
        pub uid: u32,
        /// Bits of [`task_flag`].
        pub flags: u32,
        /// The thread's `comm`, NUL-terminated.
        pub comm: [u8; 16],
        /// Effective gid, as seen from the initial user namespace.
        pub gid: u32,
        /// Of no meaning; fills the struct up.
        pub reserved: u32,
    }

    /// A socket, as it was at the time of the record.
    pub struct Socket {
        /// Address of the `struct sock` (or `inet_timewait_sock`): its identity while it lives.
        pub address: u64,
        /// `skc_cookie`, 0 if nobody asked for one yet.
        pub cookie: u64,
        /// Inode number of the socket's file, 0 if it has none (any more).
        pub inode: u64,
        /// `skc_rcv_saddr` or `skc_v6_rcv_saddr`; an IPv4 address is in the first four bytes.
        pub local: [u8; 16],
        /// `skc_daddr` or `skc_v6_daddr`, in the same way.
        pub remote: [u8; 16],
        /// Inode number of the network namespace.
        pub netns: u32,
        /// `skc_bound_dev_if`: index of the interface the socket is bound to, or 0.
        pub device: u32,
        /// `skc_family`: AF_INET, AF_INET6 or AF_UNIX.
        pub family: u16,
        /// `sk_protocol`: IPPROTO_TCP, IPPROTO_MPTCP, …
        pub protocol: u16,
        /// `sk_type`: SOCK_STREAM, SOCK_DGRAM, …
        pub sock_type: u16,
        /// Local port, 0 when unbound.
        pub local_port: u16,
        /// Remote port, 0 when not connected.
        pub remote_port: u16,
        /// Bits of [`option`].
        pub options: u16,
        /// `skc_state`: TCP_LISTEN and so on.
        pub state: u8,
        /// `tw_substate` of a timewait socket, else 0.
        pub substate: u8,
        /// Bits of [`socket_flag`].
        pub flags: u16,
    }

    /// The address a caller gave to bind(2).
    pub struct Requested {
        /// First 4 or 16 bytes of the address, by `family`.
        pub address: [u8; 16],
        /// `sa_family` as given.
        pub family: u16,
        /// Port as given.
        pub port: u16,
        /// `sin6_scope_id` as given.
        pub scope: u32,
        /// The third argument of bind(2).
        pub length: u32,
        /// Bytes of it which could be read.
        pub read: u32,
    }

    /// The address that a cgroup program put in place of the one asked for.
    pub struct Rewritten {
        /// First 4 or 16 bytes of the address.
        pub address: [u8; 16],
        /// The port.
        pub port: u16,
        /// 1 if there was such a program and it changed something, else 0.
        pub is: u16,
        /// Of no meaning; fills the struct up.
        pub reserved: u32,
    }

    /// A bind has returned.
    pub struct Bind {
        /// With [`kind::BIND`].
        pub header: Header,
        /// The caller.
        pub task: Task,
        /// The socket after the call; all zero when the descriptor was no socket.
        pub socket: Socket,
        /// The address asked for.
        pub requested: Requested,
        /// The address that was bound to instead.
        pub rewritten: Rewritten,
        /// 0, or a negative errno.
        pub result: i32,
        /// How many bytes of `path` are set.
        pub path_length: u32,
        /// Name of the interface `socket.device`, NUL-terminated.
        pub device: [u8; 16],
    }

    /// [`Bind`] of an AF_UNIX address: the same with the path behind it.
    pub struct BindUnix {
        /// The bind itself.
        pub bind: Bind,
        /// `sun_path`, not always NUL-terminated, then padding.
        pub path: [u8; UNIX_PATH + 4],
    }

    /// A listen(2) has returned.
    pub struct Listen {
        /// With [`kind::LISTEN`].
        pub header: Header,
        /// The caller.
        pub task: Task,
        /// The socket after the call; all zero when the descriptor was no socket.
        pub socket: Socket,
        /// 0, or a negative errno.
        pub result: i32,
        /// The second argument of listen(2).
        pub backlog: i32,
        /// How many bytes of `path` are set.
        pub path_length: u32,
        /// Of no meaning; fills the struct up.
        pub reserved: u32,
        /// Name of the interface `socket.device`, NUL-terminated.
        pub device: [u8; 16],
    }

    /// [`Listen`] on an AF_UNIX socket: the same with the path behind it.
    pub struct ListenUnix {
        /// The listen itself.
        pub listen: Listen,
        /// `sun_path`, not always NUL-terminated, then padding.
        pub path: [u8; UNIX_PATH + 4],
    }

    /// A bound socket has given its port back.
    pub struct Release {
        /// With [`kind::RELEASE`].
        pub header: Header,
        /// Who closed the last descriptor; [`task_flag::UNKNOWN`] if nobody could be seen doing it.
        pub task: Task,
        /// The socket, still with its port.
        pub socket: Socket,
        /// When it was bound (CLOCK_MONOTONIC, ns); 0 if that was before the trace.
        pub bound_at: u64,
        /// The process that bound it; 0 if that was before the trace.
        pub binder_tgid: u32,
        /// Bits of [`task_flag`] of the process that bound it, of when it did.
        pub binder_flags: u32,
        /// `start` of the process that bound it.
        pub binder_start: u64,
        /// Name of the interface `socket.device`, NUL-terminated.
        pub device: [u8; 16],
    }

    /// Something happened to a timewait socket's timer.
    pub struct Timewait {
        /// With one of the `TIMEWAIT_*` kinds.
        pub header: Header,
        /// Who closed the connection; [`task_flag::UNKNOWN`] if it was not seen closing.
        pub task: Task,
        /// The timewait socket (`substate` tells TIME_WAIT from FIN_WAIT2).
        pub socket: Socket,
        /// Jiffies from now until the timer expires, or would have; 0 if its time has come.
        pub expires_in: u64,
        /// Why a timer was cancelled, as far as it is known then: one of [`super::record::cancel`].
        pub reason: u32,
        /// Of no meaning; fills the struct up.
        pub reserved: u32,
    }

    /// A socket that has the port which a bind or listen did not get.
    pub struct Holder {
        /// With [`kind::HOLDER`].
        pub header: Header,
        /// The newcomer's thread: [`Task::tid`] of the record that follows.
        pub tid: u32,
        /// One of [`evidence`].
        pub evidence: u32,
        /// The socket that has the port.
        pub socket: Socket,
        /// Who bound it, or connected it without a bind, if that was seen; else [`task_flag::UNKNOWN`].
        pub binder: Task,
        /// When it was bound (CLOCK_MONOTONIC, ns); 0 if that was not seen.
        pub bound_at: u64,
        /// Of a timewait socket: jiffies until its timer expires.
        pub expires_in: u64,
        /// `sk_uid`, as seen from the initial user namespace; a timewait socket has none.
        pub uid: u32,
        /// 1 if it was seen getting its port by connect(2), else 0.
        pub autobound: u32,
    }

    /// One ancestor of a process.
    pub struct Ancestor {
        /// `start_boottime` in nanoseconds.
        pub start: u64,
        /// Its `tgid`.
        pub tgid: u32,
        /// Of no meaning; keeps `comm` aligned.
        pub reserved: u32,
        /// Its `comm`, NUL-terminated.
        pub comm: [u8; 16],
    }

    /// Who a process is. The arguments follow: `args_read` bytes of them, in a
    /// buffer of [`ARGS_CAPACITY`] bytes.
    pub struct Process {
        /// With [`kind::PROCESS`].
        pub header: Header,
        /// The process, through the thread that was seen.
        pub task: Task,
        /// Of no meaning; keeps the struct without padding.
        pub reserved: u32,
        /// The process's pid in its own pid namespace.
        pub namespace_pid: u32,
        /// Inode number of its network namespace.
        pub netns: u32,
        /// Inode number of its pid namespace.
        pub pidns: u32,
        /// Inode number of its mount namespace.
        pub mntns: u32,
        /// Bits of [`process_flag`].
        pub flags: u32,
        /// How many of `ancestors` are set, nearest first.
        pub ancestor_count: u32,
        /// Bytes of `exe` that are set.
        pub exe_length: u32,
        /// Bytes of `cgroup` that are set.
        pub cgroup_length: u32,
        /// Bytes of `cgroup_v1` that are set.
        pub cgroup_v1_length: u32,
        /// Bytes of arguments the process has.
        pub args_length: u32,
        /// Bytes of arguments that follow this struct.
        pub args_read: u32,
        /// The ancestors, nearest first.
        pub ancestors: [Ancestor; ANCESTORS],
        /// The executable's path: NUL-terminated components, the last one first.
        pub exe: [u8; PATH_BUFFER],
        /// The cgroup v2 path, in the same way.
        pub cgroup: [u8; PATH_BUFFER],
        /// The path in the first cgroup v1 hierarchy where it is not the root, in the same way.
        pub cgroup_v1: [u8; PATH_BUFFER],
    }

    /// A known process forked: until its own record comes, the child is what its parent was.
    pub struct Fork {
        /// With [`kind::FORK`].
        pub header: Header,
        /// The parent's `start`.
        pub parent_start: u64,
        /// The child's `start`.
        pub child_start: u64,
        /// The parent's `tgid`.
        pub parent_tgid: u32,
        /// The child's `tgid`.
        pub child_tgid: u32,
    }

    /// What was known of a process no longer holds: it executed another program, or is no more.
    pub struct Gone {
        /// With [`kind::EXEC`] or [`kind::REAP`].
        pub header: Header,
        /// Its `start`.
        pub start: u64,
        /// Its `tgid`.
        pub tgid: u32,
        /// Of no meaning; fills the struct up.
        pub reserved: u32,
    }

    /// A socket that a process has open, found by the snapshot.
    pub struct SnapshotEntry {
        /// With [`kind::SNAPSHOT`].
        pub header: Header,
        /// The process that has it open.
        pub task: Task,
        /// The socket.
        pub socket: Socket,
        /// The descriptor's number.
        pub descriptor: u32,
        /// 1 if the socket was bound, as far as the kernel remembers, by bind(2) and not by connect(2).
        pub bound: u32,
        /// The socket's user.
        pub uid: u32,
        /// Of no meaning; fills the struct up.
        pub reserved: u32,
    }
}

/// Values of [`Timewait::reason`].
pub mod cancel {
    /// Not known when the timer was cancelled.
    pub const UNKNOWN: u32 = 0;
    /// connect(2) took the address and port over.
    pub const REUSED: u32 = 1;
    /// The network namespace is being taken down.
    pub const PURGED: u32 = 2;

    /// How long after a timewait socket's end on the same processor the connection request may come
    /// that it went for, in nanoseconds. It comes at once, in the same softirq, but the processor may be
    /// a virtual one that is kept waiting. A client whose segments ended a TIME_WAIT otherwise tries
    /// again after a second (`TCP_TIMEOUT_INIT`, include/net/tcp.h).
    pub const SUCCESSION: u64 = 100_000_000;
}

/// A record with its kind.
///
/// # Safety
///
/// The struct is `repr(C)`, without padding, valid for every bit pattern, and begins with a [`Header`].
pub unsafe trait Record: Copy + 'static {}

// SAFETY: see the declarations above.
unsafe impl Record for Bind {}
// SAFETY: see the declarations above.
unsafe impl Record for BindUnix {}
// SAFETY: see the declarations above.
unsafe impl Record for Listen {}
// SAFETY: see the declarations above.
unsafe impl Record for ListenUnix {}
// SAFETY: see the declarations above.
unsafe impl Record for Release {}
// SAFETY: see the declarations above.
unsafe impl Record for Timewait {}
// SAFETY: see the declarations above.
unsafe impl Record for Holder {}
// SAFETY: see the declarations above.
unsafe impl Record for Fork {}
// SAFETY: see the declarations above.
unsafe impl Record for Gone {}
