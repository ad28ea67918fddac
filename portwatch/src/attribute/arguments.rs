//! The arguments of processes that could not say them: their page was not there.
//!
//! A freshly forked process has its parent's memory, but not always the right to
//! look at it yet: where the processor does not note by itself that a page was
//! used (arm64 before 8.1), the first look is a fault, which a program in the
//! kernel cannot wait for.

use std::path::Path;

use super::process::{self, Key};
use crate::event::Process;
use crate::kernel::decode::Identity;

/// Takes them from `/proc`: from the process, or if that is gone from its parent, whose they were.
pub(super) fn find(identity: &Identity, process: &mut Process, proc: &Path) {
    let own = Key::of(&identity.task);
    let look = |key: Key| process::from_proc(proc, key.tgid).filter(|found| found.is(key));
    let found = look(own).or_else(|| {
        let parent = identity.ancestors.first().filter(|_| identity.forked)?;
        let parent = look(Key {
            tgid: parent.tgid,
            start: parent.start,
        })?;
        // It may have executed another program since.
        (parent.process().exe == process.exe).then_some(parent)
    });
    if let Some(found) = found {
        let found = found.process();
        process.args.clone_from(&found.args);
        process.args_hex.clone_from(&found.args_hex);
        process.args_truncated = found.args_truncated;
    }
}

#[cfg(test)]
mod tests {
    use portwatch_common::record::{self, kind, process_flag};
    use zerocopy::{FromZeros as _, IntoBytes as _};

    use super::*;
    use crate::kernel::decode::Record;

    /// A process without arguments that says this process is its parent, or that it is this one.
    fn identity(tgid: u32, start: u64, flags: u32) -> Identity {
        let mut record = record::Process::new_zeroed();
        record.header.kind = kind::PROCESS;
        record.task.tgid = tgid;
        record.task.start = start;
        record.flags = flags | process_flag::NO_ARGS;
        record.ancestor_count = 1;
        record.ancestors[0].tgid = std::process::id();
        record.ancestors[0].start = own_start();
        match Record::decode(record.as_bytes()) {
            Ok(Record::Process(identity)) => *identity,
            other => panic!("{other:?}"),
        }
    }

    fn own_start() -> u64 {
        let own = procfs::process::Process::myself().unwrap();
        own.stat().unwrap().starttime * 10_000_000
    }

    /// Its arguments, if its program is this one's.
    fn found(identity: &Identity, exe: &str) -> Option<usize> {
        let mut process = Process {
            exe: Some(exe.into()),
            ..Process::default()
        };
        find(identity, &mut process, Path::new("/proc"));
        process.args.map(|args| args.len())
    }

    #[test]
    fn they_are_those_of_the_process_or_of_who_forked_it() {
        let exe = std::env::current_exe().unwrap();
        let exe = exe.to_str().unwrap();
        let own = std::env::args_os().count();
        // No pid is as high as that.
        let gone = 1 << 23;
        let child = identity(gone, 1, process_flag::FORKED);
        assert_eq!(found(&child, exe), Some(own));
        assert_eq!(found(&child, "/another"), None);
        assert_eq!(found(&identity(gone, 1, 0), exe), None);
        let itself = identity(std::process::id(), own_start(), 0);
        assert_eq!(found(&itself, "/another"), Some(own));
        let another = identity(std::process::id(), 1, 0);
        assert_eq!(found(&another, exe), None);
    }
}
