//! The job's first process: as it would be without portwatch before it.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus};

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, pthread_sigmask, raise, signal};
use nix::unistd::{setgid, setgroups, setresuid};

use super::user::Runner;

/// Exit status of a shell: there is no such command.
pub(super) const NOT_FOUND: u8 = 127;
/// Exit status of a shell: it cannot be executed.
pub(super) const NOT_EXECUTABLE: u8 = 126;

/// What a process inherits and portwatch changes for itself.
pub(super) struct Inherited {
    ignored: Vec<Signal>,
    mask: SigSet,
    locked: Option<(u64, u64)>,
}

impl Inherited {
    /// As it is now: before anything is changed.
    pub(super) fn now() -> Self {
        Self {
            ignored: Signal::iterator()
                .filter(|signal| is_ignored(*signal))
                .collect(),
            mask: SigSet::thread_get_mask().unwrap_or_else(|_| SigSet::empty()),
            locked: getrlimit(Resource::RLIMIT_MEMLOCK).ok(),
        }
    }
}

fn is_ignored(signal: Signal) -> bool {
    // Rust's runtime ignores it before main, and the child's is reset.
    if signal == Signal::SIGPIPE {
        return false;
    }
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: `action` is written to only, and read only where that has succeeded.
    unsafe {
        libc::sigaction(signal as i32, std::ptr::null(), action.as_mut_ptr()) == 0
            && action.assume_init().sa_sigaction == libc::SIG_IGN
    }
}

/// The command, ready to be started.
pub(super) fn command(words: &[OsString], runner: Option<Runner>, inherited: Inherited) -> Command {
    let (program, arguments) = words
        .split_first()
        .map_or((OsStr::new(""), &[][..]), |(program, arguments)| {
            (program.as_os_str(), arguments)
        });
    let mut command = Command::new(program);
    command.args(arguments);
    for (name, value) in runner.iter().flat_map(|runner| &runner.environment) {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let prepare = move || -> io::Result<()> {
        for ignored in &inherited.ignored {
            // SAFETY: no handler is installed.
            unsafe { signal(*ignored, SigHandler::SigIgn) }?;
        }
        pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&inherited.mask), None)?;
        if let Some((soft, hard)) = inherited.locked {
            setrlimit(Resource::RLIMIT_MEMLOCK, soft, hard)?;
        }
        if let Some(runner) = &runner {
            setgroups(&runner.groups)?;
            setgid(runner.gid)?;
            setresuid(runner.uid, runner.uid, runner.uid)?;
        }
        Ok(())
    };
    // SAFETY: after the fork it makes system calls only: nothing is allocated, no lock is taken.
    unsafe { command.pre_exec(prepare) };
    command
}

/// Why a command could not be started, as a shell tells it, and the shell's exit status.
pub(super) fn not_started(program: &OsStr, error: &io::Error) -> (String, u8) {
    let program = crate::sink::escape::escape(&program.to_string_lossy()).into_owned();
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT) if !program.contains('/') => {
            (format!("{program}: command not found"), NOT_FOUND)
        }
        Some(Errno::ENOENT) => (
            format!("{program}: no such file, or the interpreter in its first line does not exist"),
            NOT_FOUND,
        ),
        Some(errno) => (
            format!("cannot execute {program}: {}", errno.desc()),
            NOT_EXECUTABLE,
        ),
        None => (format!("cannot execute {program}: {error}"), NOT_EXECUTABLE),
    }
}

/// The job's first process: what has become of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Exited(i32),
    Killed(i32),
}

impl From<ExitStatus> for Fate {
    fn from(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(code), _) => Self::Exited(code),
            (None, signal) => Self::Killed(signal.unwrap_or(libc::SIGKILL)),
        }
    }
}

/// Ends portwatch as the job ended: with its exit status, or by the signal that ended it.
pub(super) fn follow(fate: Fate) -> u8 {
    match fate {
        // An exit status has eight bits.
        Fate::Exited(status) => status.to_le_bytes()[0],
        Fate::Killed(number) => {
            if let Ok(number) = Signal::try_from(number) {
                // The job's core is the one that is wanted.
                let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
                // SAFETY: no handler is installed.
                let _ = unsafe { signal(number, SigHandler::SigDfl) };
                let _ = SigSet::from(number).thread_unblock();
                let _ = raise(number);
            }
            // It was one that cannot be raised, such as one of real time: as a shell tells it.
            128_u8.wrapping_add(number.to_le_bytes()[0])
        }
    }
}

/// Whether a child has stopped itself, where the terminal has not stopped portwatch as well.
pub(super) fn has_stopped_itself(child: &Child) -> bool {
    use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
    let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
    let flags = WaitPidFlag::WSTOPPED | WaitPidFlag::WNOHANG;
    let status = waitid(Id::Pid(pid), flags);
    matches!(status, Ok(WaitStatus::Stopped(_, Signal::SIGSTOP)))
}
