//! What is of the job that is watched though it does not descend from it: containers, and what runtimes have
//! for them.

use std::time::Instant;

use portwatch_common::record::{self, task_flag};

use super::Attribution;
use super::container::{Named, agreed, only};
use super::refusal::Refusal;
use crate::event::{Actor, Membership, Publishes, Socket};
use crate::filter;

impl Attribution {
    /// Whether a container is of the job that is watched, and how.
    pub(super) fn membership(&self, named: &Named) -> Option<Membership> {
        self.marks.as_ref()?.membership(named)
    }

    /// Whether nothing is wanted but what a job does.
    pub(super) fn wants_own(&self) -> bool {
        self.filter.job == Some(filter::Job::Own)
    }

    /// Whether a refusal's event may be wanted, by what is known of it when it arrives. `containers` says
    /// whether its process may be a container's, which only a job's own depends on.
    pub(super) fn may_want(&self, refusal: &Refusal, containers: impl FnOnce() -> bool) -> bool {
        refusal.may_pass(&self.filter)
            && (!self.wants_own() || refusal.task.flags & task_flag::IN_TREE != 0 || containers())
    }

    /// What a runtime binds for a container of the job is of the job as well, until it is released.
    pub(super) fn claim(
        &mut self,
        raw: &record::Socket,
        socket: &Socket,
        process: Option<&mut Actor>,
    ) {
        let Some(process) = process.filter(|process| process.job.is_none()) else {
            return;
        };
        if self.marks.is_none() {
            return;
        }
        let wanting = (self.containers).wanting(socket, process, true, Instant::now());
        let mut wanting = wanting.iter();
        process.job = wanting.find_map(|one| self.membership(&one.named));
        if let Some(job) = process.job {
            self.published.put(raw.address, job);
        }
    }

    /// The container for which a process, a runtime's, was refused a socket. If it is the job's, so is the
    /// process; of several that may have wanted it, the job's did.
    pub(super) fn wanted(&mut self, socket: &Socket, process: &mut Actor) -> Option<Publishes> {
        let mut wanting = (self.containers).wanting(socket, process, false, Instant::now());
        only(&mut wanting, |one| self.membership(&one.named).is_some());
        let job = wanting.first().and_then(|one| self.membership(&one.named));
        process.job = process.job.or(job);
        agreed(wanting, socket).map(Into::into)
    }
}
