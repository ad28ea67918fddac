//! Looks up what a refusal's explanation needs, beside the stream.
//!
//! In a thread of its own: it enters network namespaces, which a thread does for itself alone, and
//! what it reads may take longer than events may wait.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::os::linux::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use portwatch_common::map::WANTED_CAPACITY;
use portwatch_common::record::{SnapshotEntry, Socket, Task};

use super::lookup::{Answer, Finding, FoundSocket, Owner, Place, Question, Subject, Usage};
use super::process::Key;
use super::standing::{self, Standing};
use super::unit::{self, Manager};
use crate::diagnose::facts::PathState;
use crate::kernel::clock::TICK;
use crate::kernel::sock_diag::{self, TCP_TIME_WAIT, Told, states, unix};
use crate::kernel::sysctls::Sysctls;
use crate::kernel::{denial, netns, sockets};

/// How often who has sockets is asked for in a round: each time all open files are looked through.
const PASSES: usize = 4;
/// How many processes are told of that fill a range.
const MOST: usize = 3;
/// How many network namespaces are looked through for the socket of a path.
const NAMESPACES: usize = 64;

/// For how long it is known who cannot be looked at.
const HIDDEN: Duration = Duration::from_secs(10);

/// What the kernel's iterators over open files tell; nothing where there are none.
pub trait OpenFiles: Send {
    /// Which processes have sockets open, by the sockets' addresses in the kernel.
    fn owners(&self, _addresses: &[u64]) -> Option<Vec<SnapshotEntry>> {
        None
    }

    /// All sockets that have a port, once for each descriptor of each process.
    fn sockets(&self) -> Option<Vec<SnapshotEntry>> {
        None
    }
}

/// Looks up what is asked.
pub struct Looker {
    files: Box<dyn OpenFiles>,
    proc: PathBuf,
    /// The network namespace it is in, and how it comes back to the one it began in.
    inside: Option<u32>,
    home: Option<(u32, File)>,
    /// Processes that cannot be looked at, with their network namespaces, and when that was found.
    hidden: (Option<Instant>, Vec<(u32, u32)>),
}

impl Looker {
    /// One for this host. For a thread that does nothing else.
    #[must_use]
    pub fn new(files: Box<dyn OpenFiles>) -> Self {
        let own = netns::own();
        let home = File::open("/proc/thread-self/ns/net").ok();
        Self {
            files,
            proc: PathBuf::from("/proc"),
            inside: own,
            home: own.zip(home),
            hidden: (None, Vec::new()),
        }
    }

    /// Answers questions, one after the other. Those about sockets go first, while their owners are
    /// there; those that take long last.
    pub fn answer(&mut self, questions: Vec<Question>, mut tell: impl FnMut(Vec<Answer>)) {
        let (sockets, mut others): (Vec<_>, Vec<_>) = questions
            .into_iter()
            .partition(|question| matches!(question.subject, Subject::Socket { .. }));
        if !sockets.is_empty() {
            tell(self.sockets(sockets));
        }
        others.sort_by_key(|question| match question.subject {
            Subject::Socket { .. } | Subject::Process(_) => 0,
            Subject::Settings { .. } => 1,
            Subject::Denials(_) => 2,
            // All open files are looked through.
            Subject::Port(_) | Subject::Range(_) | Subject::Name { .. } => 3,
        });
        for question in others {
            let finding = self.find(&question);
            tell(vec![(question.subject, finding)]);
        }
    }

    fn find(&mut self, question: &Question) -> Finding {
        match &question.subject {
            // Answered with the others of its kind.
            Subject::Socket { .. } => Finding::Unknown,
            Subject::Process(key) => Finding::Standing(self.newcomer(*key, &question.via)),
            Subject::Denials(key) => {
                let denials = denial::of(&self.proc, key.tgid);
                // What was read is of another if it has ended meanwhile.
                Finding::Denials(denials.filter(|_| self.standing(*key).is_some()))
            }
            Subject::Settings { netns, .. } => {
                if self.enter(*netns, question) {
                    Finding::Settings(Sysctls::read(&self.proc))
                } else {
                    Finding::Unknown
                }
            }
            Subject::Port(place) => self.port(*place, question),
            Subject::Range(place) => self.range(*place, question),
            Subject::Name { netns, by, name } => self.name(*netns, *by, name, question),
        }
    }

    /// Who has these sockets open.
    fn sockets(&mut self, questions: Vec<Question>) -> Vec<Answer> {
        let mut answers = Vec::with_capacity(questions.len());
        for (pass, some) in questions.chunks(WANTED_CAPACITY as usize).enumerate() {
            let addresses = some.iter().filter_map(|question| match question.subject {
                Subject::Socket { address, .. } => Some(address),
                _ => None,
            });
            let addresses: Vec<_> = addresses.collect();
            let entries = (pass < PASSES).then(|| self.files.owners(&addresses));
            for question in some {
                let finding = match (&entries, &question.subject) {
                    (Some(Some(entries)), Subject::Socket { address, inode }) => {
                        let of = |entry: &&SnapshotEntry| {
                            (entry.socket.address, entry.socket.inode) == (*address, *inode)
                        };
                        let tasks = entries.iter().filter(of).map(|entry| entry.task);
                        let owners = self.owners_of(tasks, question.socket.as_ref());
                        let netns = question.socket.map_or(0, |socket| socket.netns);
                        if owners.is_empty() && self.is_hidden(netns) {
                            Finding::Unknown
                        } else {
                            Finding::Owners(owners)
                        }
                    }
                    // There is no iterator.
                    (Some(None), Subject::Socket { inode, .. }) => {
                        let openers = self.openers(&HashSet::from([*inode]));
                        let owners = question
                            .socket
                            .and_then(|socket| self.openers_of(&socket, &openers));
                        owners.map_or(Finding::Unknown, Finding::Owners)
                    }
                    _ => Finding::Unknown,
                };
                answers.push((question.subject.clone(), finding));
            }
        }
        answers
    }

    /// Whether somebody in a network namespace cannot be looked at, who may have what nobody has.
    fn is_hidden(&mut self, netns: u32) -> bool {
        let (when, hidden) = &mut self.hidden;
        if when.is_none_or(|when| when.elapsed() >= HIDDEN) {
            *hidden = sockets::hidden(&self.proc);
            *when = Some(Instant::now());
        }
        hidden.iter().any(|(_, of)| *of == netns)
    }

    /// Each process once, with what it is.
    fn owners_of(&self, tasks: impl Iterator<Item = Task>, socket: Option<&Socket>) -> Vec<Owner> {
        let mut owners: Vec<Owner> = Vec::new();
        for task in tasks {
            // A process may have it open by several descriptors.
            if owners.iter().all(|owner| owner.task.tgid != task.tgid) {
                owners.push(Owner {
                    standing: self.standing(Key::of(&task)),
                    unit: socket.and_then(|socket| self.unit(&task, socket)),
                    task,
                });
            }
        }
        owners
    }

    fn standing(&self, key: Key) -> Option<Standing> {
        standing::read(&self.proc, key.tgid, key.start / TICK)
    }

    /// How a newcomer stands, or its nearest ancestor that still lives.
    fn newcomer(&self, key: Key, via: &[Key]) -> Option<Standing> {
        // What leads to another than the newcomer itself are none of its ancestors.
        let via = if via.first() == Some(&key) { via } else { &[] };
        let line = std::iter::once(&key).chain(via.iter().skip(1));
        line.map(|key| self.standing(*key)).find(Option::is_some)?
    }

    /// The socket unit for which a systemd has a socket.
    fn unit(&self, task: &Task, socket: &Socket) -> Option<String> {
        if !task.comm.starts_with(b"systemd\0") {
            return None;
        }
        let manager = match task.tgid {
            1 => Manager::System,
            _ => Manager::User(task.uid),
        };
        let root = self.proc.join(task.tgid.to_string()).join("root");
        unit::of(&root, manager, socket)
    }

    /// Takes the thread into a network namespace: by a thread that is in it, or by one of the ways to
    /// it there are.
    fn enter(&mut self, wanted: u32, question: &Question) -> bool {
        if self.inside == Some(wanted) {
            return true;
        }
        let first = question.via.first();
        let thread = first.map(|key| format!("{}/task/{}", key.tgid, question.tid));
        let processes = question.via.iter().map(|key| key.tgid.to_string());
        let mut paths = thread.into_iter().chain(processes);
        let path = paths.find(|path| netns::of(&self.proc, path) == Some(wanted));
        let path = path.map(|path| self.proc.join(path).join("ns/net"));
        let file = match &self.home {
            Some((home, file)) if *home == wanted => file.try_clone().ok(),
            _ => path.and_then(|path| File::open(path).ok()),
        };
        let file = file.or_else(|| {
            let all = netns::all(Path::new("/"));
            File::open(&all.get(&wanted)?.path).ok()
        });
        let entered = file.is_some_and(|file| setns(file, CloneFlags::CLONE_NEWNET).is_ok());
        // What a path led to may be another one by now.
        self.inside = if entered { netns::own() } else { self.inside };
        self.inside == Some(wanted)
    }

    /// The processes that have sockets open, by the sockets' inodes, and whether all could be looked at.
    fn openers(&self, inodes: &HashSet<u64>) -> (HashMap<u64, Vec<Task>>, bool) {
        let mut openers = HashMap::<u64, Vec<Task>>::new();
        if inodes.is_empty() {
            return (openers, true);
        }
        let unreadable = sockets::openers(&self.proc, |inode, task| {
            if inodes.contains(&inode)
                && let Some(task) = task()
            {
                openers.entry(inode).or_default().push(task);
            }
        });
        (openers, unreadable == Ok(0))
    }

    /// Those of them that have one, if that is known.
    fn openers_of(
        &self,
        socket: &Socket,
        (openers, complete): &(HashMap<u64, Vec<Task>>, bool),
    ) -> Option<Vec<Owner>> {
        let tasks = openers.get(&socket.inode).cloned();
        // A socket without an inode has no process.
        let known = tasks.is_some() || *complete || socket.inode == 0;
        known.then(|| self.owners_of(tasks.unwrap_or_default().into_iter(), Some(socket)))
    }

    /// The sockets that have a port now.
    fn port(&mut self, place: Place, question: &Question) -> Finding {
        if !self.enter(place.netns, question) {
            return Finding::Unknown;
        }
        let all = dump(place, states::ALL);
        let told = all.filter(|told| told.socket.local_port == place.port);
        let told: Vec<_> = told.collect();
        let inodes = told.iter().map(|told| told.socket.inode);
        let inodes: HashSet<_> = inodes.filter(|inode| *inode != 0).collect();
        let openers = self.openers(&inodes);
        let found = told.into_iter().map(|told| FoundSocket {
            owners: self.openers_of(&told.socket, &openers),
            socket: told.socket,
            name: Vec::new(),
            uid: (told.socket.state != TCP_TIME_WAIT).then_some(told.uid),
            expires_in_ms: told.expires_in_ms,
        });
        Finding::Sockets(found.collect())
    }

    /// Who fills the range of ports.
    fn range(&mut self, place: Place, question: &Question) -> Finding {
        if !self.enter(place.netns, question) {
            return Finding::Unknown;
        }
        let Some(range) = Sysctls::read(&self.proc).local_port_range else {
            return Finding::Unknown;
        };
        let within = |socket: &Socket| {
            range.contains(&socket.local_port) && Place::of(socket, place.port) == Some(place)
        };
        let told = dump(place, states::ALL).map(|told| told.socket);
        let mut ports = BTreeMap::new();
        let mut by_inode = HashMap::new();
        for socket in told.filter(within) {
            // One that waits beside one that lives counts as that.
            let waits = ports.entry(socket.local_port).or_insert(true);
            *waits &= socket.state == TCP_TIME_WAIT;
            by_inode.insert(socket.inode, socket.local_port);
        }
        by_inode.remove(&0);
        let mut counts = HashMap::<u32, (Task, HashSet<u16>)>::new();
        let mut count = |task: Task, port| {
            let (_, ports) = counts.entry(task.tgid).or_insert((task, HashSet::new()));
            ports.insert(port);
        };
        if let Some(entries) = self.files.sockets() {
            // Before Linux 6.8 sock_diag tells no TCP socket that is bound and nothing else.
            for entry in entries.iter().filter(|entry| within(&entry.socket)) {
                ports.insert(entry.socket.local_port, false);
                count(entry.task, entry.socket.local_port);
            }
        } else {
            let _ = sockets::openers(&self.proc, |inode, task| {
                if let Some(port) = by_inode.get(&inode)
                    && let Some(task) = task()
                {
                    count(task, *port);
                }
            });
        }
        let timewait = ports.values().filter(|waits| **waits).count();
        let mut most: Vec<_> = (counts.into_values())
            .map(|(task, ports)| (task, ports.len() as u32))
            .collect();
        most.sort_by_key(|(task, count)| (std::cmp::Reverse(*count), task.tgid));
        most.truncate(MOST);
        Finding::Range(Usage {
            used: ports.len() as u32,
            timewait: timewait as u32,
            most,
        })
    }

    /// What has a name of AF_UNIX. A path is one of the file system, whatever the network namespace
    /// of who has bound it.
    fn name(&mut self, netns: u32, by: Key, name: &[u8], question: &Question) -> Finding {
        let is_path = name.first().is_some_and(|first| *first != 0);
        let file = is_path.then(|| self.file(by, name, &question.via));
        let is_it = |named: &unix::Named| {
            let same = cut(&named.name) == cut(name);
            match file {
                // What made a file is of it, by whatever name.
                Some(Some(file)) => named.file == Some(file) || same,
                _ => same,
            }
        };
        let mut found = Vec::new();
        let mut complete = self.enter(netns, question);
        if complete {
            let named = unix::named(netns).unwrap_or_default();
            found.extend(named.into_iter().filter(&is_it));
        }
        if is_path && found.is_empty() {
            let others = netns::all(Path::new("/"));
            let others = others.into_iter().filter(|(other, _)| *other != netns);
            for (count, (other, namespace)) in others.enumerate() {
                if self.enter(other, question) && count < NAMESPACES {
                    let named = unix::named(other).unwrap_or_default();
                    found.extend(named.into_iter().filter(&is_it));
                } else if namespace.path.exists() {
                    complete = false;
                }
                if !found.is_empty() || count == NAMESPACES {
                    break;
                }
            }
        }
        let state = match (is_path, found.is_empty()) {
            (false, _) => None,
            (true, false) => Some(PathState::InUse),
            (true, true) => (complete && file.flatten().is_some()).then_some(PathState::Stale),
        };
        let inodes = found.iter().map(|named| named.socket.inode).collect();
        let openers = self.openers(&inodes);
        let found = found.into_iter().map(|named| FoundSocket {
            owners: self.openers_of(&named.socket, &openers),
            socket: named.socket,
            name: named.name,
            uid: None,
            expires_in_ms: None,
        });
        Finding::Name(state, found.collect())
    }

    /// The file at a path, as a process sees it, or an ancestor of it if it is gone.
    fn file(&self, by: Key, path: &[u8], via: &[Key]) -> Option<unix::File> {
        use std::os::unix::ffi::OsStrExt as _;

        let path = Path::new(std::ffi::OsStr::from_bytes(cut(path)));
        let line = std::iter::once(&by).chain(via);
        let from = if path.is_absolute() { "root" } else { "cwd" };
        let path = path.strip_prefix("/").unwrap_or(path);
        let places = line.map(|key| self.proc.join(key.tgid.to_string()).join(from));
        let metadata = places
            .filter(|place| place.exists())
            .find_map(|place| fs::symlink_metadata(place.join(path)).ok())?;
        Some(unix::File {
            inode: metadata.st_ino() as u32,
            device: (
                libc::major(metadata.st_dev()),
                libc::minor(metadata.st_dev()),
            ),
        })
    }
}

/// A path up to a NUL; an abstract name, which begins with one, as it is.
fn cut(name: &[u8]) -> &[u8] {
    match name {
        [] | [0, ..] => name,
        path => path.split(|byte| *byte == 0).next().unwrap_or(path),
    }
}

/// What sock_diag tells of a table of ports in the calling thread's namespace.
fn dump(place: Place, states: u32) -> impl Iterator<Item = Told> {
    let families = [libc::AF_INET, libc::AF_INET6].into_iter();
    families.flat_map(move |family| {
        // A kernel without IPv6 has nothing to tell of it.
        sock_diag::dump(place.netns, family as u8, place.protocol, states).unwrap_or_default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_ends_at_a_nul_and_an_abstract_name_does_not() {
        assert_eq!(cut(b"/run/x\0\0"), b"/run/x");
        assert_eq!(cut(b"\0x\0"), b"\0x\0");
        assert_eq!(cut(b""), b"");
    }
}
