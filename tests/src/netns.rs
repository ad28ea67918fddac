//! Network namespaces of a test's own.

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::panic::resume_unwind;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;

use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::gettid;

use crate::{LIMIT, look_again_soon, spawn, unforked, unforked_for};

// enum in include/net/tcp_states.h
const TCP_FIN_WAIT2: u8 = 5;
const TCP_TIME_WAIT: u8 = 6;

/// Name of the threads that act in a namespace.
pub const COMM: &str = "pw-scenario";

nix::ioctl_write_ptr_bad!(
    /// Sets an interface's flags.
    set_flags,
    libc::SIOCSIFFLAGS,
    libc::ifreq
);

/// A network namespace with its loopback up.
pub struct Netns {
    namespace: Mutex<Option<Arc<File>>>,
    inode: u32,
    threads: Mutex<Vec<u32>>,
}

impl Default for Netns {
    fn default() -> Self {
        Self::new()
    }
}

impl Netns {
    /// A new one. No reset ends a TIME_WAIT of it (RFC 1337): on a machine that is late a FIN is sent
    /// again, acknowledged twice, and the second acknowledgement is answered with a reset.
    pub fn new() -> Self {
        let namespace = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            loopback(true);
            std::fs::write("/proc/sys/net/ipv4/tcp_rfc1337", "1").unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        let namespace = namespace.join().unwrap();
        let inode = u32::try_from(crate::inode(&namespace)).unwrap();
        Self {
            namespace: Mutex::new(Some(Arc::new(namespace))),
            inode,
            threads: Mutex::default(),
        }
    }

    /// Its inode number.
    pub fn inode(&self) -> u32 {
        self.inode
    }

    /// The file that keeps it.
    pub fn file(&self) -> Arc<File> {
        let file = self.namespace.lock().unwrap().clone();
        file.expect("the namespace was let go")
    }

    /// Lets it go: it is taken down once no process and no socket is in it.
    pub fn let_go(&self) {
        *self.namespace.lock().unwrap() = None;
    }

    /// The threads that have acted in it.
    pub fn threads(&self) -> Vec<u32> {
        self.threads.lock().unwrap().clone()
    }

    /// Acts in the namespace, in a thread of its own. No process is started meanwhile, so what is
    /// closed here is closed by the last who has it; and so it must not start one.
    pub fn run<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        unforked(|| self.run_while_forking(|| unforked_for(act)))
    }

    /// Acts in the namespace while processes may be started: for what takes long and closes no
    /// socket that matters.
    pub fn run_while_forking<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        self.within(|| {
            let tid = gettid().as_raw().cast_unsigned();
            self.threads.lock().unwrap().push(tid);
            act()
        })
    }

    /// Starts a program in the namespace as [`spawn`] does, by vfork(2): a fork in which the child itself
    /// enters the namespace copies the page tables of all tests, and there are hundreds of actors.
    pub fn spawn(&self, command: &mut Command) -> Child {
        self.within(|| spawn(command))
    }

    fn within<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        let namespace = self.file();
        thread::scope(|scope| {
            let thread = thread::Builder::new().name(COMM.to_owned());
            let acting = thread.spawn_scoped(scope, || {
                setns(&*namespace, CloneFlags::CLONE_NEWNET).unwrap();
                act()
            });
            match acting.unwrap().join() {
                Ok(result) => result,
                Err(panic) => resume_unwind(panic),
            }
        })
    }

    /// A program that enters the namespace itself.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        let namespace = self.file();
        // SAFETY: between fork and exec only setns(2) is called.
        unsafe {
            command.pre_exec(move || {
                setns(&*namespace, CloneFlags::CLONE_NEWNET).map_err(std::io::Error::from)
            });
        }
        command
    }

    /// Runs `ip` of iproute2.
    pub fn ip(&self, arguments: &str) {
        let mut command = Command::new("ip");
        command.args(arguments.split(' '));
        let status = self.spawn(&mut command).wait().unwrap();
        assert!(status.success(), "ip {arguments}: {status}");
    }

    /// Sets a sysctl of the namespace, by its path below `/proc/sys/net`.
    pub fn sysctl(&self, path: &str, value: &str) {
        let path = format!("/proc/sys/net/{path}");
        self.run(|| {
            if let Err(error) = std::fs::write(&path, value) {
                panic!("{path}: {error}");
            }
        });
    }

    /// Sets a sysctl that a kernel may not have.
    pub fn sysctl_if_there(&self, path: &str, value: &str) {
        // Whether it is there is the same in every namespace.
        if std::fs::exists(format!("/proc/sys/net/{path}")).unwrap() {
            self.sysctl(path, value);
        }
    }

    /// Takes the loopback up or down.
    pub fn loopback(&self, up: bool) {
        self.run(|| loopback(up));
    }

    /// Waits until an address of IPv6, in hexadecimal, can be bound to: a worker of the kernel sees
    /// to that, also where no duplicate can be.
    pub fn wait_for_address(&self, address: &str) {
        let begin = Instant::now();
        self.run_while_forking(|| {
            loop {
                let addresses = std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap();
                // address, index, length of the prefix, scope, flags, device
                let flags = addresses.lines().find_map(|line| {
                    let mut fields = line.split_ascii_whitespace();
                    (fields.next()? == address).then(|| fields.nth(3))?
                });
                let flags = flags.map(|flags| u32::from_str_radix(flags, 16).unwrap());
                if flags.is_some_and(|flags| flags & libc::IFA_F_TENTATIVE == 0) {
                    return;
                }
                assert!(begin.elapsed() < *LIMIT, "{address}: {addresses}");
                look_again_soon();
            }
        });
    }

    /// Waits until a TCP socket with this local and remote port is in FIN_WAIT2: the peer knows of
    /// its close. `table` is `tcp`, or `tcp6` for a socket of IPv6. Tells as what it waits there.
    pub fn wait_for_fin_wait2(&self, table: &str, ports: (u16, u16)) -> FinWait2 {
        let seen = self.wait_for_socket(table, ports, |state| state == Some(TCP_FIN_WAIT2));
        match seen {
            Some(seen) if seen.timer == TIMEWAIT_TIMER => FinWait2::Timewait,
            _ => FinWait2::Socket,
        }
    }

    /// Waits until the TCP connection with this local and remote port is in TIME_WAIT: the peer's
    /// close has arrived.
    pub fn wait_for_timewait(&self, table: &str, ports: (u16, u16)) {
        self.wait_for_socket(table, ports, |state| state == Some(TCP_TIME_WAIT));
    }

    /// Closes one end of a TCP connection of IPv4 and then, when it knows of that, the other: the
    /// first is in TIME_WAIT, and only that one.
    pub fn close_in_turn(&self, first: crate::Socket, second: crate::Socket) {
        let ports = (first.local().port(), first.remote().port());
        self.run(|| drop(first));
        self.wait_for_fin_wait2("tcp", ports);
        self.run(|| drop(second));
        self.wait_for_timewait("tcp", ports);
    }

    /// Waits until there is no TCP socket with this local and remote port.
    pub fn wait_for_none(&self, table: &str, ports: (u16, u16)) {
        self.wait_for_socket(table, ports, |state| state.is_none());
    }

    /// Looks until what is seen of the socket is right: nothing tells of these states.
    fn wait_for_socket(
        &self,
        table: &str,
        ports: (u16, u16),
        right: impl Fn(Option<u8>) -> bool + Sync,
    ) -> Option<Seen> {
        let begin = Instant::now();
        self.run_while_forking(|| {
            loop {
                let sockets = std::fs::read_to_string(format!("/proc/thread-self/net/{table}"));
                let sockets = sockets.unwrap();
                let seen = sockets.lines().find_map(|line| seen(line, ports));
                if right(seen.map(|seen| seen.state)) {
                    return seen;
                }
                assert!(
                    begin.elapsed() < *LIMIT,
                    "the socket with ports {ports:?} does not get on:\n{sockets}"
                );
                look_again_soon();
            }
        })
    }
}

impl Drop for Netns {
    /// Keeps the namespace until this process ends: its number would be given to the next one, of
    /// which the last events of this one would seem to be.
    fn drop(&mut self) {
        if let Ok(Some(namespace)) = self.namespace.get_mut() {
            std::mem::forget(Arc::clone(namespace));
        }
    }
}

/// As what a connection waits in FIN_WAIT2 for its peer's close.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinWait2 {
    /// As the socket it was: somebody has it still, or the acknowledgement of its close came while that
    /// was under way (`sock_owned_by_user` in `tcp_rcv_state_process`, net/ipv4/tcp_input.c).
    Socket,
    /// As a timewait socket.
    Timewait,
}

/// What `/proc/net/tcp` has as the timer of a timewait socket (`get_timewait4_sock` in
/// net/ipv4/tcp_ipv4.c).
const TIMEWAIT_TIMER: u8 = 3;

/// What `/proc/net/tcp` says of a socket.
#[derive(Clone, Copy)]
struct Seen {
    state: u8,
    timer: u8,
}

/// A line of `/proc/net/tcp`, if it is of a socket with these ports.
fn seen(line: &str, ports: (u16, u16)) -> Option<Seen> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let mut port = || {
        let (_, port) = fields.next()?.rsplit_once(':')?;
        u16::from_str_radix(port, 16).ok()
    };
    if (port()?, port()?) != ports {
        return None;
    }
    let state = u8::from_str_radix(fields.next()?, 16).ok()?;
    // What is queued comes between.
    let (timer, _) = fields.nth(1)?.split_once(':')?;
    let timer = u8::from_str_radix(timer, 16).ok()?;
    Some(Seen { state, timer })
}

fn loopback(up: bool) {
    let socket = crate::Socket::udp4();
    // SAFETY: an ifreq of zeros is a valid one.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    let flags = if up {
        libc::IFF_UP | libc::IFF_RUNNING
    } else {
        0
    };
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the request is a valid ifreq.
    unsafe { set_flags(socket.number(), &raw const request) }.unwrap();
}
