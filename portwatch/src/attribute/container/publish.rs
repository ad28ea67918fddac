//! From a port of the host to the container that publishes it.

use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use super::proxy::Proxy;
use super::stores::{Stores, below};
use super::{Containers, FRESH, Kept, MISSED, Named, containerd, docker, libpod};
use crate::attribute::cgroup::{ContainerRef, is_id};
use crate::attribute::process;
use crate::event::{Actor, Address, Publishes, Socket, Transport};

/// A port of the host that leads to a port of a container while it runs, by its runtime's record.
///
/// No socket of the host need have it: the packet filter alone may do the work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publication {
    /// The container.
    pub named: Named,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// The address of the host, which may be a wildcard; none if the record does not tell.
    pub host_address: Option<IpAddr>,
    /// The port of the host.
    pub host_port: u16,
    /// The port of the container.
    pub port: u16,
    /// The container's own addresses.
    pub addresses: Vec<IpAddr>,
    /// Inode number of the network namespace in which the daemon publishes, where one was seen
    /// running.
    pub netns: Option<u32>,
    /// Whether the container runs. Of one that does not, it is what it is to publish.
    pub running: bool,
}

/// A port of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedPort {
    /// The container.
    pub named: Named,
    /// The port, if that is known.
    pub port: Option<u16>,
}

impl From<NamedPort> for Publishes {
    fn from(of: NamedPort) -> Self {
        Self {
            container: of.named.container,
            pod: of.named.pod,
            port: of.port,
        }
    }
}

impl Containers {
    /// What publishes a port of the host, by the records of all runtimes that keep them in files:
    /// of every protocol, address and network namespace.
    ///
    /// They are read anew if that was not done in the last second, and at once if the port is not
    /// found.
    pub fn publishing(&mut self, port: u16, now: Instant) -> Vec<Publication> {
        self.look(now, |publication| {
            publication.running && publication.host_port == port
        })
    }

    /// All that is published, as [`Containers::publishing`] has it.
    pub fn published(&mut self, now: Instant) -> Vec<Publication> {
        self.look(now, |publication| publication.running)
    }

    /// Those wanted. Others on the same port, of another daemon, do not make up for them.
    fn look(&mut self, now: Instant, is: impl Fn(&Publication) -> bool) -> Vec<Publication> {
        for fresh in [FRESH, MISSED.max(self.publications.took)] {
            let (root, docker_data) = (&self.root, self.docker_data.as_deref());
            let stores = &mut self.stores;
            let publications = self.publications.refresh(now, fresh, || {
                // Wherever they are by now: a daemon may have come, and the podman through whose root
                // the records were found have ended.
                let stores = stores.refresh(now, Duration::ZERO, || Stores::of(root, docker_data));
                stores.publications()
            });
            let found: Vec<_> = publications.iter().filter(|one| is(one)).cloned().collect();
            if !found.is_empty() {
                return found;
            }
        }
        Vec::new()
    }

    /// The port of a container that a socket of the host stands for, if one of the processes that
    /// have it is a container runtime's.
    pub fn publishes(
        &mut self,
        socket: &Socket,
        processes: &[Actor],
        now: Instant,
    ) -> Option<NamedPort> {
        processes.iter().find_map(|actor| {
            let proxy = Proxy::of(actor)?;
            // A container that went a moment ago may have published the same port.
            let own = self.published_by(socket, actor, &proxy, now);
            own.or_else(|| {
                let running = self.look(now, |one| one.running && one.is_of(&proxy, socket));
                best(running, socket)
            })
        })
    }

    /// The containers for which a process may have wanted a socket, if it is a container runtime's:
    /// those that do not run, and where it was `granted` those that do by now.
    pub fn wanting(
        &mut self,
        socket: &Socket,
        process: &Actor,
        granted: bool,
        now: Instant,
    ) -> Vec<Publication> {
        let Some(proxy) = Proxy::of(process) else {
            return Vec::new();
        };
        let is = |one: &Publication| (granted || !one.running) && one.is_of(&proxy, socket);
        // What was read a moment ago may not have the container yet: its runtime tells where it is.
        let ancestors = process
            .process
            .ancestors
            .iter()
            .map(|ancestor| ancestor.pid);
        let mut of = std::iter::once(process.pid)
            .chain(ancestors)
            .find_map(|pid| Stores::told_by(&self.root.join("proc").join(pid.to_string())))
            .map(|stores| stores.publications())
            .unwrap_or_default();
        of.retain(is);
        if of.is_empty() {
            of = self.look(now, is);
        }
        if of.is_empty() {
            // A user's podman may have ended by now.
            of = Stores::of_user(&self.root, process.uid).publications();
            of.retain(is);
        }
        only(&mut of, |publication| publication.is_named(process));
        of
    }

    /// By the container that the process itself tells, and what its record says by now.
    fn published_by(
        &mut self,
        socket: &Socket,
        actor: &Actor,
        proxy: &Proxy,
        now: Instant,
    ) -> Option<NamedPort> {
        let (_, host_port) = inet(socket)?;
        let protocol = protocol(socket.transport.as_ref()?)?;
        let mut mapped = None;
        let candidates = match proxy {
            Proxy::Conmon(id) => podman(id),
            Proxy::Slirp4netns { id: Some(id), .. } => podman(id),
            Proxy::Slirp4netns { path, .. } => self.in_netns_at(actor, path),
            Proxy::Pasta { path, tcp, udp } => {
                let mappings = if protocol == "udp" { udp } else { tcp };
                mapped = mappings.iter().find_map(|mapping| mapping.port(host_port));
                self.in_netns_at(actor, path)
            }
            // It was in the host's when it bound its socket.
            Proxy::InNetns => match self.netns_of(actor) {
                Some(own) if Some(own) != socket.netns => self.in_netns(own),
                _ => Vec::new(),
            },
            _ => Vec::new(),
        };
        // It comes before their records are read, as it looks for new stores.
        let first = self.get(candidates.first()?, now);
        let mut recorded = Vec::new();
        for store in &self.stores.found.storage {
            for candidate in &candidates {
                libpod::all(store, Some(&candidate.id), &mut recorded);
            }
        }
        let is = |one: &Publication| one.host_port == host_port && one.protocol == protocol;
        let mut recorded = recorded.into_iter().flat_map(|kept| kept.publications);
        Some(match recorded.find(is) {
            Some(publication) => publication.into(),
            None => NamedPort {
                named: first,
                port: mapped,
            },
        })
    }

    /// The network namespace that a process is in now.
    fn netns_of(&self, actor: &Actor) -> Option<u32> {
        let link = self.root.join("proc").join(actor.pid.to_string());
        let netns = std::fs::metadata(link.join("ns/net")).ok()?;
        u32::try_from(netns.ino()).ok()
    }

    /// The containers whose network namespace is at a path as a process sees it.
    fn in_netns_at(&self, actor: &Actor, path: &str) -> Vec<ContainerRef> {
        let proc = self.root.join("proc").join(actor.pid.to_string());
        let netns = std::fs::metadata(below(&proc.join("root"), Path::new(path)));
        let netns = netns.ok().and_then(|netns| u32::try_from(netns.ino()).ok());
        netns.map(|netns| self.in_netns(netns)).unwrap_or_default()
    }

    /// The containers whose processes are in a network namespace: several of a pod.
    fn in_netns(&self, netns: u32) -> Vec<ContainerRef> {
        let proc = self.root.join("proc");
        let mut containers = Vec::new();
        for entry in std::fs::read_dir(&proc).into_iter().flatten().flatten() {
            let of = std::fs::metadata(entry.path().join("ns/net"));
            if of.is_ok_and(|of| of.ino() == u64::from(netns))
                && let Some(pid) = entry.file_name().to_str().and_then(|pid| pid.parse().ok())
                && let Some(found) = process::from_proc(&proc, pid)
                && let Some(container) = found.container()
                && !containers.contains(container)
            {
                containers.push(container.clone());
            }
        }
        containers
    }
}

/// A container of podman, if that is an id.
fn podman(id: &str) -> Vec<ContainerRef> {
    let reference = || ContainerRef {
        runtime: "podman",
        id: id.to_owned(),
    };
    is_id(id).then(reference).into_iter().collect()
}

impl Stores {
    /// All their containers.
    pub(super) fn all(&self) -> Vec<Kept> {
        let mut found = Vec::new();
        for store in &self.docker {
            docker::all(store, &mut found);
        }
        for store in &self.storage {
            libpod::all(store, None, &mut found);
        }
        for store in &self.containerd {
            containerd::all(store, &mut found);
        }
        found
    }

    /// The ports that these publish, or would if they ran.
    fn publications(&self) -> Vec<Publication> {
        let all = self.all().into_iter();
        all.flat_map(|kept| kept.publications).collect()
    }
}

impl Publication {
    /// Whether a runtime's process has a socket for it, or wants one.
    fn is_of(&self, proxy: &Proxy, socket: &Socket) -> bool {
        let Some((address, port)) = inet(socket) else {
            return false;
        };
        let transport = socket.transport.as_ref().and_then(protocol);
        self.host_port == port
            && transport == Some(&*self.protocol)
            && self.is_by(proxy, address)
            // Of rootlesskit's daemon it is another than the host's.
            && (matches!(proxy, Proxy::Rootlesskit)
                || self.netns.is_none_or(|netns| Some(netns) == socket.netns))
    }

    /// Whether a runtime's process has its socket.
    fn is_by(&self, proxy: &Proxy, address: IpAddr) -> bool {
        let container = &self.named.container;
        match proxy {
            Proxy::Docker {
                address: inner,
                port,
            } => {
                // That of a container which does not run yet may not be recorded yet.
                let unknown = !self.running && self.addresses.is_empty();
                self.port == *port && (unknown || self.addresses.contains(inner))
            }
            Proxy::Daemon => {
                &*container.runtime == "docker"
                    && match self.host_address {
                        Some(host_address) => host_address == address,
                        None => !self.running,
                    }
            }
            // Which address the host's socket has is rootlesskit's choice.
            Proxy::Rootlesskit => &*container.runtime != "podman",
            Proxy::Conmon(id) => *container.id == **id,
            Proxy::Podman | Proxy::InNetns | Proxy::Pasta { .. } | Proxy::Slirp4netns { .. } => {
                &*container.runtime == "podman"
            }
        }
    }

    /// Whether a command names it, its pod or its id.
    fn is_named(&self, actor: &Actor) -> bool {
        let container = &self.named.container;
        let pod = self.named.pod.as_ref().map(|pod| &pod.name);
        let mut words = actor.process.args.iter().flatten().skip(1);
        words.any(|word| {
            let value = word.split_once('=').map_or(&**word, |(_, value)| value);
            [container.name.as_ref(), pod, Some(&container.id)]
                .into_iter()
                .flatten()
                .any(|name| **name == *value)
        })
    }
}

impl From<Publication> for NamedPort {
    fn from(publication: Publication) -> Self {
        Self {
            named: publication.named,
            port: Some(publication.port),
        }
    }
}

/// The one for which a socket is wanted, if there is no doubt which one.
#[must_use]
pub fn agreed(wanting: Vec<Publication>, socket: &Socket) -> Option<NamedPort> {
    let container = &wanting.first()?.named.container;
    if (wanting.iter()).any(|other| other.named.container != *container) {
        return None;
    }
    best(wanting, socket)
}

/// The one on the very address of a socket, else another.
fn best(of: Vec<Publication>, socket: &Socket) -> Option<NamedPort> {
    let address = inet(socket).map(|(address, _)| address);
    let of = of.into_iter();
    of.min_by_key(|one| one.host_address != address)
        .map(Into::into)
}

/// The address and port of a socket that has such.
fn inet(socket: &Socket) -> Option<(IpAddr, u16)> {
    match socket.local {
        Some(Address::Inet { address, port, .. }) => Some((address, port)),
        _ => None,
    }
}

/// Leaves those that are, if there are some.
pub fn only(of: &mut Vec<Publication>, are: impl Fn(&Publication) -> bool) {
    if of.iter().any(&are) {
        of.retain(are);
    }
}

/// The word for a transport protocol in the records.
fn protocol(transport: &Transport) -> Option<&'static str> {
    match transport {
        Transport::Tcp | Transport::Mptcp => Some("tcp"),
        Transport::Udp => Some("udp"),
        Transport::Sctp => Some("sctp"),
        _ => None,
    }
}
