//! A bind or listen that was refused, and what has to be asked for it.

use std::collections::BTreeSet;

use portwatch_common::record::{self, Task, socket_flag};

use super::conflict::{has_binder, is_owned};
use super::lookup::{Place, Question, Subject};
use super::process::{Key, comm};
use crate::diagnose::facts::Call;
use crate::filter::Filter;
use crate::kernel::decode::Record;

/// A bind or listen that came back with an error.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// The system call.
    pub call: Call,
    /// What it returned, as a positive number.
    pub errno: i32,
    /// When (CLOCK_MONOTONIC, ns).
    pub time: u64,
    /// The newcomer.
    pub task: Task,
    /// Its socket.
    pub socket: record::Socket,
    /// The port that the kernel tried.
    pub port: u16,
    /// The port that was asked for, before a program of a cgroup made another of it.
    pub requested: u16,
    /// `sun_path` that was asked for.
    pub name: Vec<u8>,
}

impl Refusal {
    /// That of a record; nothing if it is of something else. That no port was left for connect(2) and
    /// the like is not explained.
    pub fn of(record: &Record) -> Option<Self> {
        match record {
            Record::Bind(bind, name) => {
                let autobind = bind.socket.flags & socket_flag::AUTOBIND != 0;
                (bind.result < 0 && !autobind).then(|| Self::bind(bind, name))
            }
            Record::Listen(listen, name) => (listen.result < 0).then(|| Self::listen(listen, name)),
            _ => None,
        }
    }

    pub(super) fn bind(bind: &record::Bind, name: &[u8]) -> Self {
        Self {
            call: Call::Bind,
            errno: bind.result.saturating_neg(),
            time: bind.header.time,
            task: bind.task,
            socket: bind.socket,
            port: match bind.rewritten.is {
                0 => bind.requested.port,
                _ => bind.rewritten.port,
            },
            requested: bind.requested.port,
            name: name.to_vec(),
        }
    }

    pub(super) fn listen(listen: &record::Listen, name: &[u8]) -> Self {
        Self {
            call: Call::Listen,
            errno: listen.result.saturating_neg(),
            time: listen.header.time,
            task: listen.task,
            socket: listen.socket,
            port: listen.socket.local_port,
            requested: listen.socket.local_port,
            name: name.to_vec(),
        }
    }

    /// Whether its event may pass a filter, by what its record tells. Before the kernel side's filters are
    /// in force it lets everything through.
    pub(super) fn may_pass(&self, filter: &Filter) -> bool {
        let any = |of: &BTreeSet<u32>, one| of.is_empty() || of.contains(&one);
        let mut ports = [self.port, self.requested, self.socket.local_port].into_iter();
        let port = |port| filter.ports.iter().any(|range| range.contains(&port));
        any(&filter.pids, self.task.tgid)
            && any(&filter.uids, self.task.uid)
            && any(&filter.netns, self.socket.netns)
            && (filter.ports.is_empty() || ports.any(port))
            && (filter.comms.is_empty() || filter.comms.contains(&*comm(&self.task.comm).0))
    }

    pub(super) fn key(&self) -> Key {
        Key::of(&self.task)
    }

    /// What asks for the settings of its network namespace.
    pub(super) fn settings(&self) -> Subject {
        Subject::Settings {
            netns: self.socket.netns,
            by: self.key(),
        }
    }

    pub(super) fn place(&self) -> Option<Place> {
        Place::of(&self.socket, self.port)
    }

    pub(super) fn is_unix(&self) -> bool {
        i32::from(self.socket.family) == libc::AF_UNIX
    }

    /// What has to be asked for it. `via` are the newcomer's ancestors, `subflow` gives the user's
    /// socket behind one of the kernel's.
    pub fn questions<'a>(
        &self,
        holders: impl Iterator<Item = &'a record::Holder>,
        via: &[Key],
        subflow: impl Fn(&record::Socket) -> Option<record::Socket>,
    ) -> Vec<Question> {
        let question = |subject, socket| Question {
            subject,
            via: std::iter::once(self.key())
                .chain(via.iter().copied())
                .collect(),
            tid: self.task.tid,
            socket,
        };
        let netns = self.socket.netns;
        let settings = self.settings();
        let mut questions = Vec::new();
        let mut ask = |subject, socket| questions.push(question(subject, socket));
        match (self.errno, self.place()) {
            (libc::EADDRINUSE, _) if self.is_unix() => {
                let (by, name) = (self.key(), self.name.clone());
                ask(Subject::Name { netns, by, name }, None);
            }
            (libc::EADDRINUSE, Some(place)) if self.port == 0 => {
                ask(settings.clone(), None);
                ask(Subject::Range(place), None);
            }
            (libc::EADDRINUSE, Some(place)) => {
                ask(settings.clone(), None);
                ask(Subject::Process(self.key()), None);
                let mut none = true;
                for holder in holders {
                    none = false;
                    let socket = match subflow(&holder.socket) {
                        Some(socket) => socket,
                        None if is_owned(holder) => holder.socket,
                        None => continue,
                    };
                    ask(subject_of(&socket), Some(socket));
                    if has_binder(holder) {
                        ask(Subject::Process(Key::of(&holder.binder)), None);
                    }
                }
                if none {
                    ask(Subject::Port(place), None);
                }
            }
            (libc::EACCES | libc::EPERM, Some(_)) => {
                ask(settings.clone(), None);
                ask(Subject::Process(self.key()), None);
                ask(Subject::Denials(self.key()), None);
            }
            _ => {}
        }
        questions
    }
}

/// A socket as it is asked about.
pub(super) fn subject_of(socket: &record::Socket) -> Subject {
    Subject::Socket {
        address: socket.address,
        inode: socket.inode,
    }
}
