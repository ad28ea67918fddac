//! From the ring buffer's bytes to records.
//!
//! Lengths are checked and kinds are mapped by a total function; a record that
//! is too short or of an unknown kind is an error, not a guess.

use portwatch_common::record::{
    self, Ancestor, Bind, BindUnix, Fork, Gone, Holder, Listen, ListenUnix, Process, Release, Task,
    Timewait, kind, process_flag,
};
use zerocopy::FromBytes;

/// A record, decoded. Those that come by the hundred thousand are not boxed.
#[derive(Debug, Clone)]
pub enum Record {
    /// A bind(2) has returned, with the path of an AF_UNIX address.
    Bind(Bind, Vec<u8>),
    /// A listen(2) has returned, with the path of an AF_UNIX address.
    Listen(Listen, Vec<u8>),
    /// A bound socket has given its port back.
    Release(Release),
    /// A timewait socket's timer was armed, or cancelled, or has expired.
    Timewait(Timewait),
    /// Who a process is.
    Process(Box<Identity>),
    /// A socket that has the port of a bind or listen that is refused.
    Holder(Holder),
    /// A known process forked.
    Fork(Fork),
    /// A known process executed another program, or was reaped.
    Gone(Gone),
}

/// [`Process`] with its variable parts taken out.
#[derive(Debug, Clone)]
pub struct Identity {
    /// CLOCK_MONOTONIC in nanoseconds.
    pub time: u64,
    /// The process.
    pub task: Task,
    /// Its pid in its own pid namespace.
    pub namespace_pid: u32,
    /// Inode number of its network namespace.
    pub netns: u32,
    /// Inode number of its pid namespace.
    pub pidns: u32,
    /// Inode number of its mount namespace.
    pub mntns: u32,
    /// The process was exiting: it had neither arguments nor executable any more.
    pub no_memory: bool,
    /// The process has executed no program since it was forked.
    pub forked: bool,
    /// The arguments, each with a NUL behind it; nothing if they could not be read.
    pub args: Option<Vec<u8>>,
    /// There were more arguments than that.
    pub args_truncated: bool,
    /// The executable's path, if it has one.
    pub exe: Option<Vec<u8>>,
    /// The cgroup v2 path.
    pub cgroup: Vec<u8>,
    /// The cgroup v1 path; empty where it is the root of every hierarchy.
    pub cgroup_v1: Vec<u8>,
    /// The ancestors, nearest first.
    pub ancestors: Vec<Ancestor>,
}

/// A record that is not what it claims to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Shorter than its kind.
    #[error("a record of kind {kind} has only {length} bytes")]
    Short {
        /// The kind it claims.
        kind: u32,
        /// How long it is.
        length: usize,
    },
    /// Of a kind that does not exist.
    #[error("a record of the unknown kind {0}")]
    Unknown(u32),
}

impl Record {
    /// Decodes one record.
    ///
    /// # Errors
    ///
    /// If it is too short or of an unknown kind.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let kind = u32::read_from_prefix(bytes).map_or(0, |(kind, _)| kind);
        match kind {
            kind::BIND => {
                let (bind, rest) = read::<Bind>(bytes, kind)?;
                let path = tail(
                    rest,
                    bind.path_length,
                    size_of::<BindUnix>() - size_of::<Bind>(),
                );
                Ok(Self::Bind(bind, path))
            }
            kind::LISTEN => {
                let (listen, rest) = read::<Listen>(bytes, kind)?;
                let room = size_of::<ListenUnix>() - size_of::<Listen>();
                let path = tail(rest, listen.path_length, room);
                Ok(Self::Listen(listen, path))
            }
            kind::RELEASE => Ok(Self::Release(read(bytes, kind)?.0)),
            kind::TIMEWAIT_START
            | kind::TIMEWAIT_CANCEL
            | kind::TIMEWAIT_EXPIRE
            | kind::TIMEWAIT_REUSE => Ok(Self::Timewait(read(bytes, kind)?.0)),
            kind::PROCESS => {
                let (process, rest) = read::<Process>(bytes, kind)?;
                Ok(Self::Process(Box::new(identity(&process, rest))))
            }
            kind::HOLDER => Ok(Self::Holder(read(bytes, kind)?.0)),
            kind::FORK => Ok(Self::Fork(read(bytes, kind)?.0)),
            kind::EXEC | kind::REAP => Ok(Self::Gone(read(bytes, kind)?.0)),
            unknown => Err(DecodeError::Unknown(unknown)),
        }
    }

    /// When it was written (CLOCK_MONOTONIC, ns).
    #[must_use]
    pub fn time(&self) -> u64 {
        match self {
            Self::Bind(bind, _) => bind.header.time,
            Self::Listen(listen, _) => listen.header.time,
            Self::Release(release) => release.header.time,
            Self::Timewait(timewait) => timewait.header.time,
            Self::Process(process) => process.time,
            Self::Holder(holder) => holder.header.time,
            Self::Fork(fork) => fork.header.time,
            Self::Gone(gone) => gone.header.time,
        }
    }
}

/// Decodes what an iterator has written: records of one kind, without anything in between.
///
/// # Errors
///
/// If the last one is not whole.
pub fn all<T: FromBytes>(bytes: &[u8], kind: u32) -> Result<Vec<T>, DecodeError> {
    bytes
        .chunks(size_of::<T>())
        .map(|chunk| read::<T>(chunk, kind).map(|(record, _)| record))
        .collect()
}

fn read<T: FromBytes>(bytes: &[u8], kind: u32) -> Result<(T, &[u8]), DecodeError> {
    T::read_from_prefix(bytes).map_err(|_| DecodeError::Short {
        kind,
        length: bytes.len(),
    })
}

/// The first `length` bytes, as far as they are there and within `room`.
fn tail(bytes: &[u8], length: u32, room: usize) -> Vec<u8> {
    let length = (length as usize).min(room).min(bytes.len());
    bytes.get(..length).unwrap_or_default().to_vec()
}

fn identity(process: &Process, rest: &[u8]) -> Identity {
    let flags = process.flags;
    let no_memory = flags & process_flag::NO_MEMORY != 0;
    let readable = flags & (process_flag::NO_MEMORY | process_flag::NO_ARGS) == 0;
    let exe = path(
        &process.exe,
        process.exe_length,
        flags & process_flag::EXE_TRUNCATED != 0,
    );
    Identity {
        time: process.header.time,
        task: process.task,
        namespace_pid: process.namespace_pid,
        netns: process.netns,
        pidns: process.pidns,
        mntns: process.mntns,
        no_memory,
        forked: flags & process_flag::FORKED != 0,
        args: readable.then(|| tail(rest, process.args_read, record::ARGS_CAPACITY)),
        args_truncated: readable && process.args_length > process.args_read,
        // A program without a name in the file system (memfd) has the path "/".
        exe: (exe.len() > 1).then_some(exe),
        cgroup: path(
            &process.cgroup,
            process.cgroup_length,
            flags & process_flag::CGROUP_TRUNCATED != 0,
        ),
        cgroup_v1: if process.cgroup_v1_length == 0 {
            Vec::new()
        } else {
            path(
                &process.cgroup_v1,
                process.cgroup_v1_length,
                flags & process_flag::CGROUP_V1_TRUNCATED != 0,
            )
        },
        ancestors: process
            .ancestors
            .iter()
            .take(process.ancestor_count as usize)
            .copied()
            .collect(),
    }
}

/// A path from its components, which the kernel side found from the last to the first.
/// One whose beginning is missing starts with `…`.
fn path(buffer: &[u8], length: u32, truncated: bool) -> Vec<u8> {
    let components = buffer.get(..length as usize).unwrap_or(buffer);
    let mut path = Vec::with_capacity(components.len() + 4);
    if truncated {
        path.extend("…".as_bytes());
    }
    for component in components.split(|byte| *byte == 0).rev() {
        // The last NUL ends the last component and begins none.
        if !component.is_empty() {
            path.push(b'/');
            path.extend(component);
        }
    }
    if path.is_empty() {
        path.push(b'/');
    }
    path
}

#[cfg(test)]
mod tests {
    use portwatch_common::record::SnapshotEntry;
    use proptest::prelude::*;
    use zerocopy::{FromZeros, IntoBytes};

    use super::*;

    fn process() -> Vec<u8> {
        let mut process = Process::new_zeroed();
        process.header.kind = kind::PROCESS;
        process.exe[..9].copy_from_slice(b"node\0usr\0");
        process.exe_length = 9;
        process.cgroup[..15].copy_from_slice(b"x.service\0sys\0z");
        process.cgroup_length = 14;
        process.args_length = 9;
        process.args_read = 9;
        process.ancestor_count = 1;
        process.ancestors[0].tgid = 7;
        let mut bytes = process.as_bytes().to_vec();
        bytes.extend(b"node\0x.js\0and more");
        bytes
    }

    #[test]
    fn a_process_is_taken_apart() {
        let Ok(Record::Process(identity)) = Record::decode(&process()) else {
            panic!("not a process");
        };
        assert_eq!(identity.exe.as_deref(), Some(&b"/usr/node"[..]));
        assert_eq!(identity.cgroup, b"/sys/x.service");
        assert_eq!(identity.cgroup_v1, b"");
        assert_eq!(identity.args.as_deref(), Some(&b"node\0x.js"[..]));
        assert!(!identity.args_truncated);
        assert_eq!(identity.ancestors.len(), 1);
        assert_eq!(identity.ancestors[0].tgid, 7);
    }

    #[test]
    fn the_root_is_a_path() {
        assert_eq!(path(&[0; 8], 0, false), b"/");
        assert_eq!(path(b"c\0b\0", 4, true), "…/b/c".as_bytes());
    }

    #[test]
    fn a_record_too_short_is_refused() {
        for length in 0..size_of::<Process>() {
            assert!(Record::decode(&process()[..length]).is_err(), "{length}");
        }
        let mut bind = Bind::new_zeroed();
        bind.header.kind = kind::BIND;
        let bytes = bind.as_bytes();
        assert!(Record::decode(bytes).is_ok());
        assert_eq!(
            Record::decode(&bytes[..bytes.len() - 1]).err(),
            Some(DecodeError::Short {
                kind: kind::BIND,
                length: bytes.len() - 1
            })
        );
    }

    #[test]
    fn a_kind_of_its_own_is_refused() {
        assert_eq!(
            Record::decode(&99u32.to_ne_bytes()).err(),
            Some(DecodeError::Unknown(99))
        );
        assert_eq!(Record::decode(&[]).err(), Some(DecodeError::Unknown(0)));
    }

    #[test]
    fn a_length_beyond_the_record_takes_what_is_there() {
        let mut bind = Bind::new_zeroed();
        bind.header.kind = kind::BIND;
        bind.path_length = u32::MAX;
        let mut bytes = bind.as_bytes().to_vec();
        bytes.extend(b"/run/x");
        let Ok(Record::Bind(_, path)) = Record::decode(&bytes) else {
            panic!("not a bind");
        };
        assert_eq!(path, b"/run/x");
    }

    proptest! {
        #[test]
        fn whatever_the_bytes_nothing_panics(
            kind in 0u32..16,
            mut bytes in prop::collection::vec(any::<u8>(), 0..8192),
        ) {
            if let Some(head) = bytes.get_mut(..4) {
                head.copy_from_slice(&kind.to_ne_bytes());
            }
            let _ = Record::decode(&bytes);
            let _ = all::<SnapshotEntry>(&bytes, kind::SNAPSHOT);
        }

        #[test]
        fn hostile_lengths_of_a_process_do_no_harm(
            lengths in prop::array::uniform5(any::<u32>()),
            flags in any::<u32>(),
        ) {
            let mut record = Process::new_zeroed();
            record.header.kind = kind::PROCESS;
            record.flags = flags;
            [
                record.exe_length,
                record.cgroup_length,
                record.cgroup_v1_length,
                record.args_read,
                record.ancestor_count,
            ] = lengths;
            let Ok(Record::Process(identity)) = Record::decode(record.as_bytes()) else {
                panic!("not a process");
            };
            prop_assert!(identity.ancestors.len() <= record::ANCESTORS);
            prop_assert!(identity.args.unwrap_or_default().is_empty());
        }
    }
}
