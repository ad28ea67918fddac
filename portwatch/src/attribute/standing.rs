//! How processes stand to each other: of one job, or left over of an earlier one.
//!
//! By what `/proc` says of living processes: their process groups, sessions and ancestors. A
//! process group is what a shell, and a runner of jobs, calls a job (setpgid(2)).

use std::path::Path;

use procfs::process::Process;

/// `task->flags` as `/proc/PID/stat` has them: include/linux/sched.h, 5.10 to 7.3.
const PF_EXITING: u32 = 0x4;
/// Killed by a signal: set before the exit begins (`get_signal`, kernel/signal.c, 5.10 to 7.3).
const PF_SIGNALED: u32 = 0x400;
const SIGKILL: u64 = 1 << (libc::SIGKILL - 1);
/// `Seccomp:` of `/proc/PID/status`: a filter is in force.
const SECCOMP_MODE_FILTER: u32 = 2;
const CAP_NET_BIND_SERVICE: u32 = 10;
/// How many ancestors are looked at.
const ANCESTORS: usize = 16;

/// A process and where it is among the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Its pid.
    pub pid: u32,
    /// When it was started, in ticks of `/proc/PID/stat`.
    pub start_tick: u64,
    /// Its process group.
    pub group: u32,
    /// Its session.
    pub session: u32,
}

impl Member {
    fn leads_session(&self) -> bool {
        self.session == self.pid
    }
}

/// How a process stands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Standing {
    /// The process, then its ancestors, the nearest first.
    pub line: Vec<Member>,
    /// It is ending: exiting, or killed.
    pub exiting: bool,
    /// The nearest of the line that lost the parent which started it, and made no session of its own
    /// as a daemon does.
    pub left_over: Option<Member>,
    /// It has no CAP_NET_BIND_SERVICE.
    pub lacks_low_ports: bool,
    /// A seccomp filter is in force.
    pub filtered: bool,
}

impl Standing {
    /// Whether it is that of this process, and not of an ancestor in its place.
    #[must_use]
    pub fn is_of(&self, pid: u32) -> bool {
        self.line.first().is_some_and(|first| first.pid == pid)
    }
}

/// What two processes have to do with each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    /// One of them started the other, and both are of one process group.
    Line,
    /// Both are of one process group.
    Group,
    /// The holder was left over before the newcomer's job was started, at this tick.
    LeftOver {
        /// When the job was started, in ticks of `/proc/PID/stat`.
        job_tick: u64,
    },
}

/// What a newcomer has to do with a holder. The newcomer itself may be gone: then its line begins
/// with an ancestor, which had it in its own group.
pub fn relation(newcomer: &Standing, pid: u32, holder: &Standing) -> Option<Relation> {
    let (Some(first), Some(own)) = (newcomer.line.first(), holder.line.first()) else {
        return None;
    };
    let is_of = |line: &[Member], of: &Member| {
        let mut line = line.iter();
        line.any(|member| (member.pid, member.start_tick) == (of.pid, of.start_tick))
    };
    let descends = is_of(&newcomer.line, own);
    // What both come from was left over before either.
    let left_over = holder
        .left_over
        .filter(|member| !is_of(&newcomer.line, member));
    if left_over.is_some() {
        // Whatever was started since is of a later job: the eldest of them is its first process.
        let itself = first.pid == pid;
        let job = newcomer.line.iter().enumerate().filter(|(place, member)| {
            (*place != 0 || !itself || member.leads_session()) && member.start_tick > own.start_tick
        });
        let job_tick = job.map(|(_, member)| member.start_tick).min();
        if let Some(job_tick) = job_tick {
            return Some(Relation::LeftOver { job_tick });
        }
    }
    if first.group != own.group || left_over.is_some() {
        return None;
    }
    let begets = holder.line.iter().any(|member| member.pid == pid);
    Some(if descends || begets {
        Relation::Line
    } else {
        Relation::Group
    })
}

/// Reads how a process stands; nothing if it is gone or another has its pid by now. `root` is
/// `/proc`.
#[must_use]
pub fn read(root: &Path, pid: u32, start_tick: u64) -> Option<Standing> {
    let process = open(root, pid)?;
    let stat = process.stat().ok()?;
    if stat.starttime != start_tick {
        return None;
    }
    let status = process.status().ok()?;
    let line = line(root, &stat);
    Some(Standing {
        exiting: is_exiting(root, &stat) || (status.sigpnd | status.shdpnd) & SIGKILL != 0,
        left_over: left_over(root, &line),
        lacks_low_ports: status.capeff >> CAP_NET_BIND_SERVICE & 1 == 0,
        filtered: status.seccomp == Some(SECCOMP_MODE_FILTER),
        line,
    })
}

fn open(root: &Path, pid: u32) -> Option<Process> {
    Process::new_with_root(root.join(pid.to_string())).ok()
}

fn line(root: &Path, stat: &procfs::process::Stat) -> Vec<Member> {
    let member = |stat: &procfs::process::Stat| Member {
        pid: stat.pid.unsigned_abs(),
        start_tick: stat.starttime,
        group: stat.pgrp.unsigned_abs(),
        session: stat.session.unsigned_abs(),
    };
    let mut line = vec![member(stat)];
    let mut parent = stat.ppid;
    while parent > 0 && line.len() <= ANCESTORS {
        let read = open(root, parent.unsigned_abs()).and_then(|process| process.stat().ok());
        let Some(stat) = read else {
            break;
        };
        line.push(member(&stat));
        parent = stat.ppid;
    }
    line
}

/// Whether all threads are on their way out. A leader may end before its threads.
fn is_exiting(root: &Path, stat: &procfs::process::Stat) -> bool {
    let ends = |stat: &procfs::process::Stat| {
        matches!(stat.state, 'Z' | 'X') || stat.flags & (PF_EXITING | PF_SIGNALED) != 0
    };
    if !ends(stat) {
        return false;
    }
    if stat.num_threads <= 1 {
        return true;
    }
    let tasks = open(root, stat.pid.unsigned_abs()).and_then(|process| process.tasks().ok());
    tasks.is_some_and(|tasks| {
        let mut stats = tasks.flatten().filter_map(|task| task.stat().ok());
        stats.all(|stat| ends(&stat))
    })
}

/// The nearest of a line that was given to another parent. fork(2) hands the session down, so whoever
/// neither leads its session nor shares its parent's was started by somebody else, who is gone.
///
/// A daemon that forks twice looks like that too, but its session's leader is gone and was the leader
/// of its group: that is left undecided.
fn left_over(root: &Path, line: &[Member]) -> Option<Member> {
    let mut pairs = line.windows(2).map(|pair| (&pair[0], &pair[1]));
    let (member, _) = pairs.find(|(member, parent)| {
        let given_away =
            member.session != 0 && !member.leads_session() && member.session != parent.session;
        given_away && (member.group != member.session || lives(root, member))
    })?;
    Some(*member)
}

/// Whether the leader of a session lives.
fn lives(root: &Path, member: &Member) -> bool {
    let stat = open(root, member.session).and_then(|process| process.stat().ok());
    stat.is_some_and(|stat| {
        stat.session.unsigned_abs() == member.session && stat.starttime <= member.start_tick
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// pid, parent, group, session, start
    type Line = (u32, u32, u32, u32, u64);

    fn write(root: &Path, (pid, parent, group, session, start): Line, rest: (&str, u32, &str)) {
        let (state, flags, status) = rest;
        let directory = root.join(pid.to_string());
        fs::create_dir_all(&directory).unwrap();
        let stat = format!(
            "{pid} (x y) {state} {parent} {group} {session} 0 -1 {flags} 0 0 0 0 0 0 0 0 20 0 1 0 \
             {start} 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 17 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n"
        );
        fs::write(directory.join("stat"), stat).unwrap();
        let status = format!(
            "Name:\tx y\nUmask:\t0022\nState:\tS (sleeping)\nTgid:\t{pid}\nNgid:\t0\nPid:\t{pid}\n\
             PPid:\t{parent}\nTracerPid:\t0\nUid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\nFDSize:\t64\n\
             Groups:\t0\nThreads:\t1\nSigQ:\t0/1\n{status}SigBlk:\t0\nSigIgn:\t0\n\
             SigCgt:\t0\nCapInh:\t0\nCapPrm:\t0\nCapEff:\t400\nCapBnd:\t0\n"
        );
        fs::write(directory.join("status"), status).unwrap();
    }

    const PLAIN: (&str, u32, &str) = ("S", 0, "SigPnd:\t0\nShdPnd:\t0\n");

    /// A host of these processes beside init.
    fn host(lines: &[Line]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), (1, 0, 1, 1, 0), PLAIN);
        for line in lines {
            write(root.path(), *line, PLAIN);
        }
        root
    }

    fn of(root: &tempfile::TempDir, line: Line) -> Standing {
        read(root.path(), line.0, line.4).unwrap()
    }

    #[test]
    fn who_ends() {
        let cases = [
            (PLAIN, false),
            (("Z", 0, PLAIN.2), true),
            (("S", 0x40_0000 | PF_EXITING, PLAIN.2), true),
            (("t", PF_SIGNALED, PLAIN.2), true),
            (("D", 0, "SigPnd:\t0\nShdPnd:\t100\n"), true),
            // SIGTERM may be handled.
            (("D", 0, "SigPnd:\t0\nShdPnd:\t4000\n"), false),
        ];
        for (rest, exiting) in cases {
            let root = tempfile::tempdir().unwrap();
            write(root.path(), (7, 1, 7, 7, 50), rest);
            let standing = read(root.path(), 7, 50).unwrap();
            assert_eq!(standing.exiting, exiting, "{rest:?}");
            assert!(!standing.lacks_low_ports);
            assert_eq!(read(root.path(), 7, 51), None, "another process");
        }
    }

    /// A shell with its jobs; a worker that starts another one; a second job.
    #[test]
    fn workers_of_one_job() {
        let shell = (10, 1, 10, 10, 100);
        let jest = (20, 10, 20, 10, 200);
        let (one, two) = ((21, 20, 20, 10, 210), (22, 20, 20, 10, 211));
        let beside = (30, 10, 30, 10, 300);
        let root = host(&[shell, jest, one, two, beside]);
        let between = |newcomer: Line, holder: Line| {
            relation(&of(&root, newcomer), newcomer.0, &of(&root, holder))
        };
        assert_eq!(between(one, two), Some(Relation::Group));
        assert_eq!(between(one, jest), Some(Relation::Line));
        assert_eq!(between(jest, one), Some(Relation::Line));
        assert_eq!(between(beside, one), None, "another job of one shell");
        assert_eq!(
            between(jest, shell),
            None,
            "the shell is no part of the job"
        );
        // It has exited by the time it is looked at: what its parent tells counts.
        assert_eq!(
            relation(&of(&root, jest), 23, &of(&root, one)),
            Some(Relation::Group)
        );
    }

    #[test]
    fn what_an_earlier_job_left() {
        // Its shell has ended, and its session's leader with it.
        let left = (20, 1, 20, 10, 200);
        let its_child = (21, 20, 20, 10, 201);
        let runner = (5, 1, 5, 5, 50);
        let (job, newcomer) = ((40, 5, 5, 5, 400), (41, 40, 5, 5, 410));
        let daemon = (60, 1, 60, 60, 60);
        // It forked twice: nobody can say whether on purpose.
        let twice = (62, 1, 61, 61, 62);
        // Left over of a runner that started it without a session of its own.
        let runners = (70, 1, 5, 5, 70);
        let root = host(&[
            left, its_child, runner, job, newcomer, daemon, twice, runners,
        ]);
        let between = |holder: Line| relation(&of(&root, newcomer), newcomer.0, &of(&root, holder));
        let later = Some(Relation::LeftOver { job_tick: 400 });
        assert_eq!(between(left), later);
        assert_eq!(between(its_child), later);
        assert_eq!(between(runners), later);
        assert_eq!(between(daemon), None);
        assert_eq!(between(twice), None);
        assert_eq!(between(job), Some(Relation::Line));
        // All of what a runner does that lost its own parent is no worse for that.
        let (first, second) = ((42, 40, 42, 5, 420), (43, 40, 42, 5, 421));
        for line in [first, second, (5, 1, 4, 4, 50), (4, 1, 4, 4, 40)] {
            write(root.path(), line, PLAIN);
        }
        let both = relation(&of(&root, first), first.0, &of(&root, second));
        assert_eq!(both, Some(Relation::Group));
        // What is older than the holder is of no later job.
        assert_eq!(relation(&of(&root, job), job.0, &of(&root, left)), None);
    }
}
