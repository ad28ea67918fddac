//! Which events are wanted.
//!
//! The kernel side applies the filters it can; here all of them are applied,
//! to whole events.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use portwatch_common::map::filter;

use crate::event::{
    Actor, Address, Body, Conflict, Container, Family, Outcome, Pod, Publishes, Socket, Timewaits,
    Transport,
};

/// A kind of event that can be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Kind {
    /// bind(2), granted and refused
    Bind,
    /// listen(2), granted and refused
    Listen,
    /// Bound sockets giving their ports back
    Release,
    /// Connections entering and leaving TIME_WAIT
    Timewait,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Bind, Self::Listen, Self::Release, Self::Timewait];

    fn name(self) -> &'static str {
        match self {
            Self::Bind => "bind",
            Self::Listen => "listen",
            Self::Release => "release",
            Self::Timewait => "timewait",
        }
    }
}

/// The filters, empty ones letting everything pass. What is given of one kind is any-of, and all
/// kinds must pass.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Processes, by pid in the initial pid namespace.
    pub pids: BTreeSet<u32>,
    /// Local ports.
    pub ports: Vec<RangeInclusive<u16>>,
    /// Effective uids.
    pub uids: BTreeSet<u32>,
    /// Containers, by name, by the beginning of their id, or by a label (`key=value`).
    pub containers: BTreeSet<String>,
    /// Names of threads.
    pub comms: BTreeSet<String>,
    /// Network namespaces, by inode number.
    pub netns: BTreeSet<u32>,
    /// IPv4.
    pub ipv4: bool,
    /// IPv6.
    pub ipv6: bool,
    /// TCP and what is built on it.
    pub tcp: bool,
    /// UDP and UDP-Lite.
    pub udp: bool,
    /// Failures only.
    pub failed: bool,
    /// AF_UNIX too.
    pub unix: bool,
    /// Kinds of events.
    pub events: BTreeSet<Kind>,
    /// The job that `portwatch run` watches.
    pub job: Option<Job>,
}

/// What of a job is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Job {
    /// What its processes do.
    Own,
    /// That which others do not get because the job has it as well.
    Both,
}

impl Filter {
    /// The filters the kernel side can apply: bits of [`portwatch_common::map::filter`].
    #[must_use]
    pub fn in_kernel(&self) -> u32 {
        [
            (!self.pids.is_empty(), filter::PID),
            (!self.ports.is_empty(), filter::PORT),
            (!self.uids.is_empty(), filter::UID),
            (!self.netns.is_empty(), filter::NETNS),
            (self.unix, filter::UNIX),
            (self.failed, filter::FAILED),
        ]
        .into_iter()
        .filter(|(set, _)| *set)
        .fold(0, |bits, (_, bit)| bits | bit)
    }

    /// Whether this kind of event can pass at all.
    #[must_use]
    pub fn wants(&self, kind: Kind) -> bool {
        (self.events.is_empty() || self.events.contains(&kind))
            && !(self.failed && matches!(kind, Kind::Release | Kind::Timewait))
    }

    /// Whether an event passes. What is no event of a socket always does.
    #[must_use]
    pub fn passes(&self, body: &Body) -> bool {
        match body {
            Body::Bind(bind) => {
                self.wants(Kind::Bind)
                    && (!self.failed || bind.result.outcome == Outcome::Failure)
                    && self.passes_socket(&bind.socket, bind.requested.as_ref())
                    && self
                        .passes_caller(bind.process.as_ref(), wanted_for(bind.conflict.as_deref()))
                    && self.passes_job(bind.process.as_ref(), bind.conflict.as_deref())
            }
            Body::Listen(listen) => {
                self.wants(Kind::Listen)
                    && (!self.failed || listen.result.outcome == Outcome::Failure)
                    && self.passes_socket(&listen.socket, None)
                    && self.passes_caller(
                        listen.process.as_ref(),
                        wanted_for(listen.conflict.as_deref()),
                    )
                    && self.passes_job(listen.process.as_ref(), listen.conflict.as_deref())
            }
            Body::Release(release) => {
                self.wants(Kind::Release)
                    && self.passes_socket(&release.socket, None)
                    && self.passes_actor(release.process.as_ref())
                    && (self.passes_job(release.process.as_ref(), None)
                        || self.passes_job(release.binder.as_ref(), None))
            }
            Body::Timewait(timewait) => {
                self.wants(Kind::Timewait)
                    && self.passes_socket(&timewait.socket, None)
                    && self.passes_actor(timewait.process.as_ref())
                    && self.passes_job(timewait.process.as_ref(), None)
            }
            Body::Socket(listed) => {
                let processes = &listed.processes;
                let publishes = listed.publishes.as_ref();
                let mut actors = processes.iter().map(Some);
                self.passes_socket(&listed.socket.socket, None)
                    && (self.passes_caller(None, None)
                        || actors.any(|actor| self.passes_caller(actor, publishes)))
            }
            Body::Timewaits(timewaits) => {
                self.passes_timewaits(timewaits) && self.passes_actor(None)
            }
            Body::Published(published) => {
                self.passes_socket(&published.socket(), None)
                    && self.passes_caller(None, Some(&published.publishes))
            }
            Body::Start(_) | Body::Lost(_) | Body::End(_) | Body::Why(_) => true,
        }
    }

    fn passes_socket(&self, socket: &Socket, requested: Option<&Address>) -> bool {
        let unix = socket.family == Some(Family::Unix);
        if unix && !self.unix {
            return false;
        }
        let family = !(self.ipv4 || self.ipv6)
            || match socket.family {
                Some(Family::Ipv4) => self.ipv4,
                Some(Family::Ipv6) => self.ipv6,
                // Asked for by its own option.
                Some(Family::Unix) => true,
                None => false,
            };
        let transport = !(self.tcp || self.udp)
            || unix
            || match socket.transport {
                Some(Transport::Tcp | Transport::Mptcp | Transport::Smc) => self.tcp,
                Some(Transport::Udp | Transport::Udplite) => self.udp,
                _ => false,
            };
        let port = |address: Option<&Address>| {
            address
                .and_then(Address::port)
                .is_some_and(|port| self.ports.iter().any(|range| range.contains(&port)))
        };
        let port = self.ports.is_empty() || port(socket.local.as_ref()) || port(requested);
        let netns = self.netns.is_empty()
            || socket
                .netns
                .is_some_and(|netns| self.netns.contains(&netns));
        family && transport && port && netns
    }

    /// They are of one port, and of every address and family.
    fn passes_timewaits(&self, timewaits: &Timewaits) -> bool {
        let port = timewaits.port;
        (self.ports.is_empty() || self.ports.iter().any(|range| range.contains(&port)))
            && (self.netns.is_empty() || self.netns.contains(&timewaits.netns))
            && (self.tcp || !self.udp)
    }

    fn passes_actor(&self, actor: Option<&Actor>) -> bool {
        self.passes_caller(actor, None)
    }

    /// What a runtime has, or is refused, for a container counts as that container's.
    fn passes_caller(&self, actor: Option<&Actor>, publishes: Option<&Publishes>) -> bool {
        let is = |wanted: bool, test: &dyn Fn(&Actor) -> bool| !wanted || actor.is_some_and(test);
        is(!self.pids.is_empty(), &|actor| {
            self.pids.contains(&actor.pid)
        }) && is(!self.uids.is_empty(), &|actor| {
            self.uids.contains(&actor.uid)
        }) && is(!self.comms.is_empty(), &|actor| {
            self.comms.contains(&*actor.comm)
        }) && (self.containers.is_empty() || {
            let own = actor.and_then(|actor| {
                let container = actor.process.container.as_ref()?;
                Some((container, actor.process.pod.as_ref()))
            });
            let published = publishes.map(|of| (&of.container, of.pod.as_ref()));
            [own, published]
                .into_iter()
                .flatten()
                .any(|(container, pod)| {
                    let mut wanted = self.containers.iter();
                    wanted.any(|wanted| is_of(container, pod, wanted))
                })
        })
    }

    fn passes_job(&self, actor: Option<&Actor>, conflict: Option<&Conflict>) -> bool {
        let own = |actor: &Actor| actor.job.is_some();
        let held = || {
            let holders = conflict.map_or(&[][..], |conflict| &conflict.holders);
            holders
                .iter()
                .any(|holder| holder.processes.iter().any(own))
        };
        match self.job {
            None => true,
            Some(job) => actor.is_some_and(own) || (job == Job::Both && held()),
        }
    }

    /// The filters by the names of their options, as the `start` event tells them.
    #[must_use]
    pub fn describe(&self) -> BTreeMap<String, Vec<String>> {
        let mut described = BTreeMap::new();
        let mut tell = |name: &str, values: Vec<String>| {
            if !values.is_empty() {
                described.insert(name.to_owned(), values);
            }
        };
        let strings = |set: &BTreeSet<u32>| set.iter().map(ToString::to_string).collect();
        tell("pid", strings(&self.pids));
        tell("uid", strings(&self.uids));
        tell("netns", strings(&self.netns));
        tell("container", self.containers.iter().cloned().collect());
        tell("comm", self.comms.iter().cloned().collect());
        tell(
            "port",
            self.ports
                .iter()
                .map(|range| {
                    if range.start() == range.end() {
                        range.start().to_string()
                    } else {
                        format!("{}-{}", range.start(), range.end())
                    }
                })
                .collect(),
        );
        tell(
            "events",
            self.events
                .iter()
                .map(|kind| kind.name().to_owned())
                .collect(),
        );
        for (name, set) in [
            ("ipv4", self.ipv4),
            ("ipv6", self.ipv6),
            ("tcp", self.tcp),
            ("udp", self.udp),
            ("failed", self.failed),
            ("unix", self.unix),
            ("job", self.job.is_some()),
            ("both", self.job == Some(Job::Both)),
        ] {
            if set {
                tell(name, vec!["true".to_owned()]);
            }
        }
        described
    }
}

/// The container for which what was refused was wanted.
fn wanted_for(conflict: Option<&Conflict>) -> Option<&Publishes> {
    conflict?.publishes.as_ref()
}

/// Whether a container is the one wanted: by its name or the beginning of its id, by a label, or by its pod.
fn is_of(container: &Container, pod: Option<&Pod>, wanted: &str) -> bool {
    if let Some((key, value)) = wanted.split_once('=') {
        return container
            .labels
            .get(key)
            .is_some_and(|label| label == value);
    }
    container.id.starts_with(wanted)
        || container.name.as_deref() == Some(wanted)
        || pod.is_some_and(|pod| *pod.name == *wanted || pod.full_name() == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::PublishedPort;

    #[test]
    fn a_published_port_passes_by_what_is_known_of_it() {
        let published = PublishedPort {
            transport: Transport::Tcp,
            address: Some([127, 0, 0, 1].into()),
            port: 8080,
            netns: Some(7),
            netns_name: None,
            publishes: Publishes {
                container: Container {
                    runtime: "docker".into(),
                    id: "3f4e8a1b2c5d".into(),
                    name: Some("web-1".into()),
                    image: None,
                    labels: BTreeMap::new(),
                },
                pod: None,
                port: Some(80),
            },
        };
        let passes = |choose: &dyn Fn(&mut Filter)| {
            let mut filter = Filter::default();
            choose(&mut filter);
            filter.passes(&Body::Published(Box::new(published.clone())))
        };
        assert!(passes(&|_| {}));
        assert!(passes(&|filter| filter.ports = vec![8000..=9000]));
        assert!(!passes(&|filter| filter.ports = vec![80..=80]));
        assert!(passes(&|filter| filter.netns = [7].into()));
        assert!(!passes(&|filter| filter.netns = [8].into()));
        assert!(passes(&|filter| filter.tcp = true));
        assert!(!passes(&|filter| filter.udp = true));
        assert!(passes(&|filter| filter.ipv4 = true));
        assert!(!passes(&|filter| filter.ipv6 = true));
        let named = |name: &str| [name.to_owned()].into();
        assert!(passes(&|filter| filter.containers = named("web-1")));
        assert!(!passes(&|filter| filter.containers = named("web-2")));
        assert!(!passes(&|filter| filter.pids = [1].into()), "no process");
        assert!(!passes(&|filter| filter.comms = named("docker-proxy")));
    }

    #[test]
    fn containers_by_what_is_known_of_them() {
        let container = Container {
            runtime: "containerd".into(),
            id: "3f4e8a1b2c5d".into(),
            name: Some("nginx".into()),
            image: Some("nginx:1.27".into()),
            labels: [("app", "web"), ("empty", "")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
        };
        let pod = Pod {
            namespace: Some("shop".into()),
            name: "web-7d9f".into(),
            uid: None,
            container: None,
        };
        let wanted = [
            "nginx",
            "3f4e",
            "app=web",
            "empty=",
            "web-7d9f",
            "shop/web-7d9f",
        ];
        for wanted in wanted {
            assert!(is_of(&container, Some(&pod), wanted), "{wanted}");
        }
        for other in [
            "ngin", "f4e8", "app=we", "app", "web", "none=", "shop", "shop/",
        ] {
            assert!(!is_of(&container, Some(&pod), other), "{other}");
        }
        assert!(!is_of(&container, None, "web-7d9f"));
    }
}
