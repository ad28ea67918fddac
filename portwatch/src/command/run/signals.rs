//! Signals that somebody sends to portwatch and means for the job.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, RawFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Those that are passed on. The ones that stop and continue are left to the terminal, which sends
/// them to the job as well; SIGKILL cannot be had.
const PASSED_ON: [Signal; 8] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGWINCH,
];

/// What has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arrived {
    /// A child has changed its state.
    Child,
    /// A signal for the job.
    PassOn(Signal),
}

/// The signals that are for the job, and SIGCHLD.
pub(super) struct Signals(AsyncFd<Descriptor>);

struct Descriptor(SignalFd);

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Keeps the signals from ending portwatch, in this thread and those that it starts.
///
/// # Errors
///
/// If the kernel refuses.
pub(super) fn block() -> nix::Result<SigSet> {
    let mut signals = SigSet::from_iter(PASSED_ON);
    signals.add(Signal::SIGCHLD);
    signals.thread_block()?;
    Ok(signals)
}

impl Signals {
    /// Of signals that are blocked; on a runtime.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub(super) fn new(signals: &SigSet) -> std::io::Result<Self> {
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let descriptor = Descriptor(SignalFd::with_flags(signals, flags)?);
        // SAFETY: the descriptor is the value's own and closed with it.
        let watched = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) };
        watched.map(Self).map_err(Into::into)
    }

    /// The next one that matters. `members` are the processes of the job.
    ///
    /// # Errors
    ///
    /// If it cannot be waited for.
    pub(super) async fn next(
        &mut self,
        members: impl Fn() -> BTreeMap<u32, u64>,
    ) -> std::io::Result<Arrived> {
        loop {
            let mut ready = self.0.ready_mut(Interest::READABLE).await?;
            let read = ready.get_inner_mut().0.read_signal()?;
            let Some(info) = read else {
                ready.clear_ready();
                continue;
            };
            let Ok(signal) = Signal::try_from(info.ssi_signo.cast_signed()) else {
                continue;
            };
            if signal == Signal::SIGCHLD {
                return Ok(Arrived::Child);
            }
            if is_for_job(info.ssi_code, info.ssi_pid, &members) {
                return Ok(Arrived::PassOn(signal));
            }
        }
    }
}

/// Whether a signal is passed on: the terminal sends its own to the whole process group, and what the
/// job sends to its group it gets itself.
fn is_for_job(code: i32, sender: u32, members: impl Fn() -> BTreeMap<u32, u64>) -> bool {
    let by_kernel = code > 0;
    !by_kernel && !members().contains_key(&sender)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whose_signals_are_passed_on() {
        let members = || BTreeMap::from([(70, 1)]);
        assert!(is_for_job(libc::SI_USER, 5, members), "by a runner");
        assert!(is_for_job(libc::SI_QUEUE, 5, members), "by sigqueue");
        assert!(!is_for_job(libc::SI_USER, 70, members), "by the job");
        assert!(!is_for_job(libc::SI_KERNEL, 0, members), "by the terminal");
    }
}
