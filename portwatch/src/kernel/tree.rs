//! The tree of a job's processes, which the kernel side follows from fork to fork.

use std::collections::BTreeMap;
use std::io;

use aya::maps::{HashMap, MapData, MapError};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork};

use super::support::Unsupported;

/// Stands for the start of whichever process has the pid.
const ANY_START: u64 = 0;

/// The processes of a tree: those put in, and all of their descendants.
#[derive(Debug)]
pub struct Tree(HashMap<MapData, u32, u64>);

impl Tree {
    pub(super) fn new(map: HashMap<MapData, u32, u64>) -> Self {
        Self(map)
    }

    /// Does something with portwatch's own process as the root: whatever it forks meanwhile is of the
    /// tree before it runs, and portwatch itself is not afterwards.
    ///
    /// # Errors
    ///
    /// If the map cannot be written.
    pub fn rooted_here<T>(&mut self, act: impl FnOnce() -> T) -> Result<T, MapError> {
        let own = std::process::id();
        self.0.insert(own, ANY_START, 0)?;
        let result = act();
        self.0.remove(&own)?;
        Ok(result)
    }

    /// Proves that a process which is forked is followed.
    ///
    /// # Errors
    ///
    /// If it is not.
    pub fn prove(&mut self) -> Result<(), Unsupported> {
        let cannot = |why: String| {
            Unsupported::new(
                "cannot follow the processes of a job",
                why,
                "run portwatch in the initial pid namespace (in a container: --pid=host); see \
                 portwatch doctor",
            )
        };
        let forked = self.rooted_here(fork_and_exit);
        let child = forked
            .map_err(|error| cannot(error.to_string()))?
            .map_err(|error| cannot(error.to_string()))?;
        // Until it is waited for it is a zombie, and a member.
        let followed = self.0.get(&child.as_raw().unsigned_abs(), 0).is_ok();
        waitpid(child, None).map_err(|error| cannot(error.to_string()))?;
        if followed {
            Ok(())
        } else {
            Err(cannot(
                "the kernel side does not see a fork of portwatch's own".to_owned(),
            ))
        }
    }

    /// The members by pid, each with its `start_boottime` in nanoseconds. Those that have ended and
    /// are not freed yet are among them.
    #[must_use]
    pub fn members(&self) -> BTreeMap<u32, u64> {
        // One that ends meanwhile may be there or not.
        self.0.iter().flatten().collect()
    }
}

fn fork_and_exit() -> io::Result<nix::unistd::Pid> {
    // SAFETY: the child calls nothing but _exit(2).
    match unsafe { fork() }? {
        ForkResult::Child => {
            // SAFETY: has no preconditions.
            unsafe { libc::_exit(0) }
        }
        ForkResult::Parent { child } => Ok(child),
    }
}
