//! What a job has left behind when its first process ends: processes, their ports, and TIME_WAITs.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use crate::attribute::container::Kept;
use crate::attribute::marks::Marks;
use crate::attribute::process::from_proc;
use crate::command::list::{Actors, listed};
use crate::diagnose::remove_container;
use crate::event::{Actor, HeldSocket, Membership, Transport};
use crate::kernel::clock::TICK;
use crate::kernel::netns;
use crate::kernel::sockets::{self, Owned, Scope, Sockets, task_of};
use crate::report::{Killed, LeftBehind, LeftContainer, LeftPort, LeftTimewait, Leftover, Tally};

/// How long a process may take to end once the job's first one has: what ends meanwhile was not left
/// behind.
const SETTLE: Duration = Duration::from_millis(200);
/// How many processes are looked at, and how many containers told of.
const MOST: usize = 1000;
/// How often it is looked for what was started meanwhile while leftovers are ended.
const ROUNDS: usize = 5;

/// A process that is still there.
pub(super) struct Alive {
    pid: u32,
    /// `start_boottime` in nanoseconds.
    start: u64,
    descriptor: OwnedFd,
}

impl Alive {
    /// The process that has the pid, if it is the one that was started then.
    fn open(pid: u32, start: u64) -> Option<Self> {
        // SAFETY: takes no pointers; the descriptor is checked.
        let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        let descriptor = i32::try_from(descriptor)
            .ok()
            .filter(|descriptor| *descriptor >= 0)?;
        // SAFETY: it was just opened, and nobody else has it.
        let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
        // Looked up behind the opening: if the pid is this process's now, the descriptor is as well.
        let stat = procfs::process::Process::new(pid.cast_signed())
            .ok()?
            .stat()
            .ok()?;
        (stat.starttime == start / TICK && stat.state != 'Z').then_some(Self {
            pid,
            start,
            descriptor,
        })
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        let descriptor = self.descriptor.as_raw_fd();
        // SAFETY: a null pointer is allowed: the kernel fills in what kill(2) would.
        let result = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                descriptor,
                signal as i32,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

/// Waits until they have ended, at most so long, and gives those that have not.
fn wait(mut alive: Vec<Alive>, limit: Duration) -> Vec<Alive> {
    let begin = Instant::now();
    loop {
        let left = limit.saturating_sub(begin.elapsed());
        let mut polled: Vec<_> = alive
            .iter()
            .map(|one| PollFd::new(one.descriptor.as_fd(), PollFlags::POLLIN))
            .collect();
        // Rounded up, so that it never spins.
        let timeout = PollTimeout::try_from(left + Duration::from_millis(1));
        if left.is_zero() || alive.is_empty() {
            return alive;
        }
        let _ = poll(&mut polled, timeout.unwrap_or(PollTimeout::MAX));
        let ended: Vec<_> = polled
            .iter()
            .map(|one| one.revents().is_some_and(|is| !is.is_empty()))
            .collect();
        let mut ended = ended.into_iter();
        alive.retain(|_| !ended.next().unwrap_or(false));
    }
}

/// Those of the job's processes that do not end with it.
pub(super) fn alive(members: &BTreeMap<u32, u64>) -> Vec<Alive> {
    let alive = members.iter().take(MOST);
    let alive = alive.filter_map(|(pid, start)| Alive::open(*pid, *start));
    wait(alive.collect(), SETTLE)
}

/// What is left of the job, and what it did in namespaces that can still be looked at. Sockets, of which
/// there may be many, are not looked at where nobody needs them.
pub(super) fn look(alive: &[Alive], marks: &Marks, tally: &mut Tally) -> LeftBehind {
    let mut actors = Actors::default();
    let mut containers = left_containers(&mut actors, marks);
    let own = netns::own();
    let fixed: Vec<_> = tally.bound_by_number().collect();
    let strict: BTreeSet<_> = fixed
        .iter()
        .filter(|port| port.transport == Transport::Tcp && !port.options.has_reuseaddr())
        .filter_map(|port| port.netns.zip(port.port))
        .collect();
    let elsewhere = fixed.iter().any(|port| port.netns != own);
    if alive.is_empty() && strict.is_empty() && !elsewhere {
        return LeftBehind {
            containers,
            ..LeftBehind::default()
        };
    }
    let sockets = sockets::all(Scope::Bound);
    for (netns, seen) in &sockets.namespaces {
        tally.settle(*netns, seen.sysctls.clone());
    }
    let processes = leftovers(alive, &sockets, &mut actors);
    for left in &mut containers {
        let mut of = processes.iter().map(|left| &left.process.process.container);
        if of.any(|of| of.as_ref() == Some(&left.container)) {
            left.job = Membership::Descendant;
        }
    }
    LeftBehind {
        processes,
        containers,
        timewaits: timewaits(&sockets, &strict),
    }
}

fn leftovers(alive: &[Alive], sockets: &Sockets, actors: &mut Actors) -> Vec<Leftover> {
    let alive = alive.iter();
    alive
        .filter_map(|one| leftover(one, sockets, actors))
        .collect()
}

fn leftover(one: &Alive, sockets: &Sockets, actors: &mut Actors) -> Option<Leftover> {
    let process = procfs::process::Process::new(one.pid.cast_signed()).ok()?;
    let mut task = task_of(&process)?;
    task.start = one.start;
    let held = |owned: &&Owned| {
        let mut tasks = owned.tasks.iter();
        tasks.any(|task| task.tgid == one.pid)
    };
    let held: Vec<HeldSocket> = sockets
        .sockets
        .iter()
        .filter(held)
        .map(|owned| listed(owned, None, false, actors).socket)
        .collect();
    Some(Leftover {
        process: Actor {
            job: Some(Membership::Descendant),
            ..actors.actor(&task)
        },
        sockets: held,
        killed: None,
    })
}

/// The containers that the job leaves behind.
fn left_containers(actors: &mut Actors, marks: &Marks) -> Vec<LeftContainer> {
    let all = actors.containers.all(Instant::now()).into_iter();
    let left = all.filter_map(|kept| left_container(kept, marks));
    let mut left: Vec<_> = left.take(MOST).collect();
    if !left.is_empty() {
        // Docker writes down that one has ended after it has told its client.
        let living = living();
        left.retain(|left| living.contains(&*left.container.id));
    }
    left
}

/// The ids of the containers that processes are in.
fn living() -> HashSet<String> {
    let processes = procfs::process::all_processes().into_iter().flatten();
    let pids = processes
        .flatten()
        .map(|process| process.pid.unsigned_abs());
    let found = pids.filter_map(|pid| from_proc(Path::new("/proc"), pid));
    found
        .filter_map(|found| Some(found.container()?.id.clone()))
        .collect()
}

/// A container, if the job leaves it behind.
fn left_container(kept: Kept, marks: &Marks) -> Option<LeftContainer> {
    let job = marks.left(&kept.named).filter(|_| kept.running)?;
    let mut ports = Vec::new();
    for publication in kept.publications {
        let port = LeftPort {
            protocol: publication.protocol,
            address: publication.host_address,
            host_port: publication.host_port,
            port: publication.port,
        };
        if !ports.contains(&port) {
            ports.push(port);
        }
    }
    let named = kept.named;
    Some(LeftContainer {
        advice: remove_container(&named.container, named.pod.as_ref()),
        container: named.container,
        pod: named.pod,
        job,
        created: named.life.created,
        ports,
    })
}

/// The TIME_WAITs on ports that were bound without SO_REUSEADDR.
fn timewaits(sockets: &Sockets, strict: &BTreeSet<(u32, u16)>) -> Vec<LeftTimewait> {
    let mut sums = BTreeMap::<(u32, u16), (u64, u64)>::new();
    for owned in &sockets.sockets {
        let place = (owned.socket.netns, owned.socket.local_port);
        if let Some(expires_in_ms) = owned.expires_in_ms.filter(|_| strict.contains(&place)) {
            let (count, last) = sums.entry(place).or_default();
            *count += 1;
            *last = (*last).max(expires_in_ms.into());
        }
    }
    let told = |((netns, port), (count, expires_in_ms))| LeftTimewait {
        transport: Transport::Tcp,
        port,
        netns,
        count,
        expires_in_ms,
    };
    sums.into_iter().map(told).collect()
}

/// Ends what is left, and what that starts meanwhile.
pub(super) fn end(
    mut alive: Vec<Alive>,
    members: impl Fn() -> BTreeMap<u32, u64>,
    grace: Duration,
    left: &mut LeftBehind,
) {
    // One that could not be ended is told of once, and left alone.
    let mut known = BTreeSet::new();
    for _ in 0..ROUNDS {
        known.extend(alive.iter().map(|one| (one.pid, one.start)));
        kill(alive, grace, left);
        let mut new = members();
        new.retain(|pid, start| !known.contains(&(*pid, *start)));
        alive = self::alive(&new);
        if alive.is_empty() {
            return;
        }
        let sockets = sockets::all(Scope::Bound);
        let more = leftovers(&alive, &sockets, &mut Actors::default());
        left.processes.extend(more);
    }
}

/// SIGTERM, and SIGKILL to those that still run when the time is up.
fn kill(alive: Vec<Alive>, grace: Duration, left: &mut LeftBehind) {
    let mut fates = BTreeMap::new();
    let mut asked = Vec::new();
    for one in alive {
        match one.signal(Signal::SIGTERM) {
            Ok(()) => {
                fates.insert(one.pid, Killed::Term);
                asked.push(one);
            }
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {
                fates.insert(one.pid, Killed::Ended);
            }
            Err(_) => {
                fates.insert(one.pid, Killed::Failed);
            }
        }
    }
    let stubborn = wait(asked, grace);
    for one in &stubborn {
        let killed = one.signal(Signal::SIGKILL).is_ok();
        fates.insert(one.pid, if killed { Killed::Kill } else { Killed::Failed });
    }
    for one in wait(stubborn, SETTLE) {
        fates.insert(one.pid, Killed::Failed);
    }
    for leftover in &mut left.processes {
        let fate = fates.get(&leftover.process.pid).copied();
        leftover.killed = leftover.killed.or(fate);
    }
}
