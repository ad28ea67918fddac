//! All sockets that have a port now, in every network namespace, and the processes that have them.
//!
//! The iterator over descriptors tells who has which socket; sock_diag, asked
//! within each namespace, tells of those that nobody has: TIME_WAITs,
//! connections whose process is gone, and the kernel's own.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};

use portwatch_common::record::{SnapshotEntry, Socket, Task, kind};
use procfs::process::Process;
use zerocopy::FromZeros as _;

use super::clock::TICK;
use super::netns::{self, Namespace};
use super::side::describe;
use super::sock_diag::{self, TCP_CLOSE, TCP_TIME_WAIT, Told, states};
use super::sysctls::Sysctls;
use super::{decode, iterator, support};

/// A socket that has a port.
#[derive(Debug, Clone)]
pub struct Owned {
    /// The socket.
    pub socket: Socket,
    /// Name of the interface it is bound to.
    pub device: Option<String>,
    /// Whether it got its port by bind(2) or listen(2), as far as that is known.
    pub bound: bool,
    /// The user who made it, where the kernel told.
    pub uid: Option<u32>,
    /// Of a TIME_WAIT: milliseconds until it is over.
    pub expires_in_ms: Option<u32>,
    /// The processes that have it open, each once.
    pub tasks: Vec<Task>,
}

/// A network namespace, seen from within.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Its name, if it is kept by one.
    pub name: Option<String>,
    /// Its settings.
    pub sysctls: Sysctls,
    /// Names of its interfaces, by index.
    interfaces: HashMap<u32, String>,
    told: Vec<Told>,
}

/// What there is.
#[derive(Debug, Default)]
pub struct Sockets {
    /// Each socket once.
    pub sockets: Vec<Owned>,
    /// The namespaces, by inode number.
    pub namespaces: BTreeMap<u32, Seen>,
    /// No process has a socket but those that are told with it, except in network namespaces of
    /// which somebody could not be looked at.
    pub complete: bool,
    /// Those namespaces, by inode number.
    pub hidden: BTreeSet<u32>,
    /// What could not be had, and why.
    pub missing: Vec<String>,
}

/// Which sockets are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Listeners, sockets that are bound, and TIME_WAITs.
    Bound,
    /// Connections too.
    All,
}

/// The states asked for of each protocol: bits of [`states`].
#[derive(Clone, Copy)]
struct States {
    tcp: u32,
    udp: u32,
}

impl Scope {
    fn states(self) -> States {
        match self {
            Self::All => States {
                tcp: states::ALL,
                udp: states::ALL,
            },
            Self::Bound => States {
                tcp: states::LISTEN | states::TIME_WAIT | states::BOUND_INACTIVE,
                udp: states::CLOSE,
            },
        }
    }
}

/// Looks at this host.
#[must_use]
pub fn all(scope: Scope) -> Sockets {
    let mut sockets = Sockets::default();
    // Entering a namespace takes a thread; the iterator needs none of its own.
    let (looked, iterated) = std::thread::scope(|threads| {
        let looking = threads.spawn(|| {
            let namespaces = netns::all(Path::new("/"));
            (look(scope.states(), &namespaces), namespaces)
        });
        let iterated = iterate();
        (looking.join().unwrap_or_default(), iterated)
    });
    let ((seen, missing), namespaces) = looked;
    (sockets.namespaces, sockets.missing) = (seen, missing);
    sockets.complete = support::is_in_initial_pidns(Path::new("/")) == Some(true);
    if !sockets.complete {
        let outside = "processes outside of this pid namespace";
        sockets.missing.push(outside.to_owned());
    }
    match iterated {
        Ok(entries) => {
            sockets.take_entries(&entries);
            sockets.take_told(Unknown::Confirm(namespaces));
            if sockets.complete {
                sockets.find_hidden(Path::new("/proc"));
            } else {
                // The iterator tells processes by their numbers on the host.
                sockets.find_owners(Path::new("/proc"));
            }
        }
        Err(why) => {
            sockets.missing.push(format!(
                "the options of sockets, and those of protocols other than TCP and UDP: {why}"
            ));
            // Whoever has none of these may have it or not.
            sockets.take_told(Unknown::Believe);
            sockets.find_owners(Path::new("/proc"));
        }
    }
    sockets
}

fn iterate() -> Result<Vec<SnapshotEntry>, String> {
    let bytes = iterator::read("task_file", "task_file").map_err(|error| format!("{error:#}"))?;
    decode::all(&bytes, kind::SNAPSHOT).map_err(|error| error.to_string())
}

/// From within each namespace, in the calling thread.
fn look(
    wanted: States,
    namespaces: &BTreeMap<u32, Namespace>,
) -> (BTreeMap<u32, Seen>, Vec<String>) {
    let mut seen = BTreeMap::new();
    let mut missing = Vec::new();
    let own = netns::own();
    for (inode, namespace) in namespaces {
        let entered = match own {
            Some(own) if own == *inode && seen.is_empty() => Ok(()),
            _ => netns::enter(namespace),
        };
        let looked = entered.map(|()| within(*inode, wanted));
        let (mut one, failed) = match looked {
            Ok(looked) => looked,
            // Its last process may have ended meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => {
                missing.push(format!(
                    "what the kernel tells of the network namespace {inode}: {error}"
                ));
                (Seen::default(), None)
            }
        };
        if let Some(error) = failed {
            missing.push(format!(
                "what the kernel tells of a protocol in the network namespace {inode}: {error}"
            ));
        }
        one.name.clone_from(&namespace.name);
        seen.insert(*inode, one);
    }
    (seen, missing)
}

/// What the kernel tells of the calling thread's namespace, and what went wrong with some of it.
fn within(inode: u32, wanted: States) -> (Seen, Option<io::Error>) {
    let (told, error) = tell(inode, wanted);
    let interfaces = nix::net::if_::if_nameindex().ok();
    let interfaces = interfaces.iter().flat_map(|list| list.iter());
    let seen = Seen {
        name: None,
        sysctls: Sysctls::read(Path::new("/proc")),
        interfaces: interfaces
            .map(|one| (one.index(), one.name().to_string_lossy().into_owned()))
            .collect(),
        told,
    };
    (seen, error)
}

fn tell(inode: u32, wanted: States) -> (Vec<Told>, Option<io::Error>) {
    let mut told = Vec::new();
    let mut failed = None;
    for family in [libc::AF_INET, libc::AF_INET6] {
        for (protocol, states) in [
            (libc::IPPROTO_TCP, wanted.tcp),
            (libc::IPPROTO_UDP, wanted.udp),
        ] {
            if states == 0 {
                continue;
            }
            match sock_diag::dump(inode, family as u8, protocol as u8, states) {
                Ok(some) => told.extend(some),
                // A kernel without IPv6 has nothing to tell of it.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) => failed = Some(error),
            }
        }
    }
    (told, failed)
}

/// What to do with a socket that the kernel told of and that no process was seen to have.
enum Unknown {
    /// Ask again, in these network namespaces: it may have been closed since, before its process was
    /// looked at.
    Confirm(BTreeMap<u32, Namespace>),
    /// Take it as it is.
    Believe,
}

impl Sockets {
    /// Takes what the iterator has seen: an entry a descriptor.
    fn take_entries(&mut self, entries: &[SnapshotEntry]) {
        let mut places = HashMap::with_capacity(entries.len());
        self.sockets.reserve(entries.len());
        for entry in entries {
            let place = *places.entry(entry.socket.address).or_insert_with(|| {
                self.sockets.push(Owned {
                    socket: entry.socket,
                    device: None,
                    bound: entry.bound != 0,
                    uid: Some(entry.uid),
                    expires_in_ms: None,
                    tasks: Vec::new(),
                });
                self.sockets.len() - 1
            });
            let tasks = &mut self.sockets[place].tasks;
            if tasks.iter().all(|task| task.tgid != entry.task.tgid) {
                tasks.push(entry.task);
            }
        }
        for owned in &mut self.sockets {
            owned.tasks.sort_by_key(|task| task.tgid);
            let socket = &owned.socket;
            if socket.device != 0
                && let Some(seen) = self.namespaces.get(&socket.netns)
            {
                owned.device = seen.interfaces.get(&socket.device).cloned();
            }
        }
        for socket in &self.sockets {
            self.namespaces.entry(socket.socket.netns).or_default();
        }
    }

    /// Adds what the kernel has told of to what is known.
    fn take_told(&mut self, unknown: Unknown) {
        let mut known: HashMap<(u32, u64), usize> = HashMap::with_capacity(self.sockets.len());
        for (place, owned) in self.sockets.iter().enumerate() {
            known.insert((owned.socket.netns, owned.socket.inode), place);
        }
        let mut strangers = Vec::new();
        for seen in self.namespaces.values_mut() {
            for told in std::mem::take(&mut seen.told) {
                let socket = &told.socket;
                match known.get(&(socket.netns, socket.inode)) {
                    Some(place) if socket.inode != 0 => {
                        let owned = &mut self.sockets[*place];
                        owned.uid = Some(told.uid);
                        owned.socket.cookie = socket.cookie;
                    }
                    _ if socket.local_port == 0 => {}
                    _ => strangers.push(told),
                }
            }
        }
        if let Unknown::Confirm(namespaces) = unknown {
            self.drop_subflows(&mut strangers);
            confirm(&mut strangers, namespaces);
        }
        for told in strangers {
            let device = self.namespaces.get(&told.socket.netns);
            let device = device.and_then(|seen| seen.interfaces.get(&told.socket.device));
            self.sockets.push(Owned {
                device: device.cloned(),
                socket: told.socket,
                bound: true,
                // A timewait socket has no user of its own: the kernel tells 0.
                uid: told.expires_in_ms.is_none().then_some(told.uid),
                expires_in_ms: told.expires_in_ms,
                tasks: Vec::new(),
            });
        }
    }

    /// Takes out the TCP sockets behind those of MPTCP: the process has the latter.
    fn drop_subflows(&self, strangers: &mut Vec<Told>) {
        let place = |socket: &Socket| (socket.netns, socket.local_port, socket.family);
        let mptcp: Vec<_> = self
            .sockets
            .iter()
            .filter(|owned| i32::from(owned.socket.protocol) == libc::IPPROTO_MPTCP)
            .map(|owned| place(&owned.socket))
            .collect();
        strangers.retain(|told| {
            told.socket.state == TCP_TIME_WAIT
                || i32::from(told.socket.protocol) != libc::IPPROTO_TCP
                || !mptcp.contains(&place(&told.socket))
        });
    }

    /// Whether nobody has a socket of a network namespace but those that are told with it.
    #[must_use]
    pub fn is_complete(&self, netns: u32) -> bool {
        self.complete && !self.hidden.contains(&netns)
    }

    /// Where nobody was seen to have a socket, somebody may have it who cannot be looked at.
    fn find_hidden(&mut self, proc: &Path) {
        let unowned: BTreeSet<u32> = (self.sockets.iter())
            .filter(|owned| owned.tasks.is_empty() && owned.socket.state != TCP_TIME_WAIT)
            .map(|owned| owned.socket.netns)
            .collect();
        if unowned.is_empty() {
            return;
        }
        for (pid, netns) in hidden(proc) {
            if unowned.contains(&netns) {
                self.missing
                    .push(format!("which sockets process {pid} has: not permitted"));
                self.hidden.insert(netns);
            }
        }
    }

    /// Finds the processes behind the sockets' inodes in `/proc`, in place of any that are known.
    fn find_owners(&mut self, proc: &Path) {
        for owned in &mut self.sockets {
            owned.tasks.clear();
        }
        let places: HashMap<u64, usize> = (self.sockets.iter().enumerate())
            .filter(|(_, owned)| owned.socket.inode != 0)
            .map(|(place, owned)| (owned.socket.inode, place))
            .collect();
        let sockets = &mut self.sockets;
        let unreadable = openers(proc, |inode, task| {
            if let Some(place) = places.get(&inode)
                && let Some(task) = task()
            {
                sockets[*place].tasks.push(task);
            }
        });
        match unreadable {
            Ok(0) => {}
            Ok(unreadable) => {
                self.complete = false;
                self.missing.push(format!(
                    "which sockets {unreadable} other processes have: not permitted"
                ));
            }
            Err(why) => {
                self.complete = false;
                self.missing.push(format!("who has the sockets: {why}"));
            }
        }
    }
}

/// Processes whose open files may not be looked at, each with its network namespace. One of which not
/// even that may be known is taken to be in the host's, as the first process is.
#[must_use]
pub fn hidden(proc: &Path) -> Vec<(u32, u32)> {
    let processes = procfs::process::all_processes_with_root(proc);
    let pids = processes.into_iter().flatten().flatten();
    let pids = pids.map(|process| process.pid().unsigned_abs());
    let hidden = pids.filter(|pid| {
        // Asked of another link, for which not all open files are gone through: the same are refused
        // (`proc_pid_get_link`, fs/proc/base.c, 5.10 to 7.3).
        let other = std::fs::read_link(proc.join(pid.to_string()).join("cwd"));
        if !other.is_err_and(|error| is_denied(&error)) {
            return false;
        }
        // Who has no file open has no socket.
        let first = open_files(proc, *pid).next();
        first.is_some_and(|link| link.is_err_and(|error| is_denied(&error)))
    });
    let hidden = hidden.filter_map(|pid| {
        let netns = netns::of(proc, &pid.to_string()).or_else(netns::host)?;
        Some((pid, netns))
    });
    hidden.collect()
}

/// What the descriptors of a process lead to. Without CAP_SYS_PTRACE root may read the folder, but no
/// link in it.
fn open_files(proc: &Path, pid: u32) -> impl Iterator<Item = io::Result<PathBuf>> {
    let folder = std::fs::read_dir(proc.join(pid.to_string()).join("fd"));
    let (entries, error) = match folder {
        Ok(entries) => (Some(entries), None),
        Err(error) => (None, Some(Err(error))),
    };
    let links = entries
        .into_iter()
        .flatten()
        .map(|entry| std::fs::read_link(entry?.path()));
    error.into_iter().chain(links)
}

fn is_denied(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied
}

/// Looks through the open files of all processes: each socket of each once, by its inode, with a way
/// to ask who that is. `proc` is `/proc`. Gives the number of processes whose files may not be
/// looked at, or not all of them.
///
/// # Errors
///
/// If there is no `/proc`.
pub fn openers(
    proc: &Path,
    mut found: impl FnMut(u64, &mut dyn FnMut() -> Option<Task>),
) -> Result<u32, String> {
    let processes = procfs::process::all_processes_with_root(proc);
    // Mounted with hidepid it does not even show others' processes.
    let mut unreadable = u32::from(!proc.join("1").exists());
    for process in processes.map_err(|error| describe(&error))?.flatten() {
        let mut task = None;
        let mut seen = HashSet::new();
        let mut refused = false;
        for link in open_files(proc, process.pid().unsigned_abs()) {
            let inode = match &link {
                Ok(target) => socket_inode(target),
                Err(error) => {
                    refused |= is_denied(error);
                    None
                }
            };
            if let Some(inode) = inode
                && seen.insert(inode)
            {
                found(inode, &mut || {
                    task = task.or_else(|| task_of(&process));
                    task
                });
            }
        }
        unreadable += u32::from(refused);
    }
    Ok(unreadable)
}

/// The number in `socket:[4711]`.
fn socket_inode(target: &Path) -> Option<u64> {
    let text = target.to_str()?.strip_prefix("socket:[")?;
    text.strip_suffix(']')?.parse().ok()
}

/// Takes out those that are no more. TIME_WAITs need not be asked for: they had no process.
fn confirm(strangers: &mut Vec<Told>, mut namespaces: BTreeMap<u32, Namespace>) {
    let doubtful = |told: &Told| told.socket.state != TCP_TIME_WAIT;
    let places: HashSet<u32> = (strangers.iter())
        .filter(|told| doubtful(told))
        .map(|told| told.socket.netns)
        .collect();
    if places.is_empty() {
        return;
    }
    // Listeners alone are told without a walk over all connections.
    let state = |told: &Told| match (told.socket.state, i32::from(told.socket.protocol)) {
        (TCP_CLOSE, libc::IPPROTO_TCP) => states::BOUND_INACTIVE,
        (state, _) => 1 << state,
    };
    let of = |protocol: i32| {
        let states = strangers.iter().filter(|told| doubtful(told));
        let states = states.filter(|told| i32::from(told.socket.protocol) == protocol);
        states.fold(0, |states, told| states | state(told))
    };
    let wanted = States {
        tcp: of(libc::IPPROTO_TCP),
        udp: of(libc::IPPROTO_UDP),
    };
    namespaces.retain(|inode, _| places.contains(inode));
    let again = std::thread::scope(|threads| {
        let looking = threads.spawn(|| look(wanted, &namespaces).0);
        looking.join().unwrap_or_default()
    });
    let again: HashSet<_> = (again.values().flat_map(|seen| &seen.told))
        .map(|told| (told.socket.netns, told.socket.cookie))
        .collect();
    strangers
        .retain(|told| !doubtful(told) || again.contains(&(told.socket.netns, told.socket.cookie)));
}

/// A process as the iterator would tell of it, to the tick in which it was started.
pub fn task_of(process: &Process) -> Option<Task> {
    let stat = process.stat().ok()?;
    let status = process.status().ok()?;
    let mut task = Task::new_zeroed();
    task.tgid = process.pid().unsigned_abs();
    task.tid = task.tgid;
    task.start = stat.starttime * TICK;
    task.uid = status.euid;
    task.gid = status.egid;
    // One byte is left for the NUL.
    for (to, from) in task.comm[..15].iter_mut().zip(stat.comm.bytes()) {
        *to = from;
    }
    Some(task)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(address: u64, inode: u64, tgid: u32) -> SnapshotEntry {
        let mut entry = SnapshotEntry::new_zeroed();
        entry.socket.address = address;
        entry.socket.inode = inode;
        entry.socket.netns = 1;
        entry.socket.local_port = 80;
        entry.task.tgid = tgid;
        entry
    }

    fn told(inode: u64, cookie: u64, state: u8) -> Told {
        let mut socket = Socket::new_zeroed();
        (socket.netns, socket.inode, socket.cookie) = (1, inode, cookie);
        (socket.local_port, socket.state, socket.protocol) = (80, state, 6);
        Told {
            socket,
            uid: 33,
            expires_in_ms: (state == TCP_TIME_WAIT).then_some(9),
        }
    }

    fn tgids(sockets: &Sockets) -> Vec<Vec<u32>> {
        let tgids = |owned: &Owned| owned.tasks.iter().map(|task| task.tgid).collect();
        sockets.sockets.iter().map(tgids).collect()
    }

    #[test]
    fn a_socket_of_several_descriptors_and_processes_is_one() {
        let mut sockets = Sockets::default();
        let entries = [(1, 9), (1, 9), (1, 7), (2, 7)];
        sockets.take_entries(&entries.map(|(address, tgid)| entry(address, address, tgid)));
        assert_eq!(tgids(&sockets), [vec![7, 9], vec![7]]);
    }

    #[test]
    fn what_the_kernel_tells_is_added_to_what_is_known() {
        let mut sockets = Sockets::default();
        sockets.take_entries(&[entry(1, 5, 7)]);
        let seen = sockets.namespaces.get_mut(&1).unwrap();
        seen.told = vec![told(5, 50, 10), told(0, 60, TCP_TIME_WAIT), told(6, 70, 10)];
        sockets.take_told(Unknown::Believe);
        let seen: Vec<_> = (sockets.sockets.iter())
            .map(|owned| (owned.socket.cookie, owned.uid, owned.expires_in_ms))
            .collect();
        assert_eq!(
            seen,
            [
                (50, Some(33), None),
                (60, None, Some(9)),
                (70, Some(33), None)
            ]
        );
        assert_eq!(tgids(&sockets), [vec![7], vec![], vec![]]);
    }

    #[test]
    fn subflows_are_not_told_beside_their_socket() {
        let mut sockets = Sockets::default();
        let mut mptcp = entry(1, 5, 7);
        mptcp.socket.protocol = libc::IPPROTO_MPTCP as u16;
        sockets.take_entries(&[mptcp]);
        let mut strangers = vec![told(6, 1, 10), told(0, 2, TCP_TIME_WAIT)];
        sockets.drop_subflows(&mut strangers);
        assert_eq!(strangers.len(), 1);
        assert_eq!(strangers[0].socket.cookie, 2);
    }

    #[test]
    fn own_sockets_have_owners_in_proc() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut sockets = Sockets::default();
        let own = netns::own().unwrap();
        let (seen, error) = within(own, Scope::Bound.states());
        assert!(error.is_none(), "{error:?}");
        sockets.namespaces.insert(own, seen);
        sockets.take_told(Unknown::Believe);
        sockets.find_owners(Path::new("/proc"));
        let mut found = (sockets.sockets.iter()).filter(|one| one.socket.local_port == port);
        let tasks = &found.next().unwrap().tasks;
        assert_eq!(tasks.len(), 1);
        assert_eq!(tasks[0].tgid, std::process::id());
    }
}
