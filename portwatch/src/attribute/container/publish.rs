//! From a port of the host to the container that publishes it.

use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use super::proxy::Proxy;
use super::stores::{Stores, below};
use super::{Containers, FRESH, docker};
use crate::attribute::cgroup::{ContainerRef, is_id};
use crate::attribute::process;
use crate::event::{Actor, Address, Container, Publishes, Socket, Transport};

/// How long it is not looked again for a port that was not found, at least: as long as a look takes,
/// lest nothing else be done.
const MISSED: Duration = Duration::from_millis(5);

/// A port of the host that leads to a port of a running container, by its runtime's record.
///
/// No socket of the host need have it: the packet filter alone may do the work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publication {
    /// The container.
    pub container: Container,
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
}

impl Containers {
    /// What publishes a port of the host, by the records of all runtimes that keep them in files:
    /// of every protocol, address and network namespace.
    ///
    /// They are read anew if that was not done in the last second, and at once if the port is not
    /// found.
    pub fn publishing(&mut self, port: u16, now: Instant) -> Vec<Publication> {
        self.look(now, |publication| publication.host_port == port)
    }

    /// Those wanted. Others on the same port, of another daemon, do not make up for them.
    fn look(&mut self, now: Instant, is: impl Fn(&Publication) -> bool) -> Vec<Publication> {
        for fresh in [FRESH, MISSED.max(self.publications.took)] {
            let (root, docker_data) = (&self.root, self.docker_data.as_deref());
            let stores = &mut self.stores;
            let publications = self.publications.refresh(now, fresh, || {
                let stores = stores.refresh(now, fresh, || Stores::of(root, docker_data));
                let mut found = Vec::new();
                for store in &stores.docker {
                    docker::publications(store, &mut found);
                }
                found
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
    ) -> Option<Publishes> {
        let proxies = processes.iter().filter_map(|actor| {
            let proxy = Proxy::of(actor)?;
            Some((actor, proxy))
        });
        proxies
            .filter_map(|(actor, proxy)| self.published_by(socket, actor, &proxy, now))
            .next()
    }

    fn published_by(
        &mut self,
        socket: &Socket,
        actor: &Actor,
        proxy: &Proxy,
        now: Instant,
    ) -> Option<Publishes> {
        let (address, port) = match socket.local {
            Some(Address::Inet { address, port, .. }) => (address, port),
            _ => return None,
        };
        let protocol = protocol(socket.transport.as_ref()?)?;
        let mut publication = |is: &dyn Fn(&Publication) -> bool| {
            let mut of = self.look(now, |publication| {
                publication.host_port == port && publication.protocol == protocol && is(publication)
            });
            of.sort_by_key(|publication| publication.host_address != Some(address));
            of.into_iter().next().map(|publication| Publishes {
                container: publication.container,
                port: Some(publication.port),
            })
        };
        let same_netns = |publication: &Publication| {
            publication.netns.is_none() || publication.netns == socket.netns
        };
        match proxy {
            Proxy::Docker {
                address: container,
                port,
            } => publication(&|publication| {
                publication.port == *port
                    && publication.addresses.contains(container)
                    && same_netns(publication)
            }),
            Proxy::Daemon => publication(&|publication| {
                publication.host_address == Some(address) && same_netns(publication)
            }),
            // The daemon's namespace is not the host's; which address the host's socket has is
            // rootlesskit's choice.
            Proxy::Rootlesskit => publication(&|_| true),
            Proxy::Conmon(id) if is_id(id) => {
                let podman = ContainerRef {
                    runtime: "podman",
                    id: id.clone(),
                };
                let container = self.get(&podman, now);
                Some(Publishes {
                    container,
                    port: None,
                })
            }
            Proxy::Conmon(_) => None,
            Proxy::Netns { path, tcp, udp } => {
                let proc = self.root.join("proc").join(actor.pid.to_string());
                let netns = std::fs::metadata(below(&proc.join("root"), Path::new(path))).ok()?;
                let container = self.in_netns(u32::try_from(netns.ino()).ok()?, now)?;
                let mappings = if protocol == "udp" { udp } else { tcp };
                Some(Publishes {
                    container,
                    port: (mappings.iter()).find_map(|mapping| mapping.port(port)),
                })
            }
            Proxy::InNetns => {
                let netns = actor
                    .process
                    .netns
                    .filter(|own| Some(*own) != socket.netns)?;
                Some(Publishes {
                    container: self.in_netns(netns, now)?,
                    port: None,
                })
            }
        }
    }

    /// The container whose processes are in a network namespace.
    fn in_netns(&mut self, netns: u32, now: Instant) -> Option<Container> {
        let entries = std::fs::read_dir(self.root.join("proc")).ok()?;
        let reference = entries.flatten().find_map(|entry| {
            let process = entry.path();
            let of = std::fs::metadata(process.join("ns/net")).ok()?;
            (of.ino() == u64::from(netns)).then(|| process::container_of(&process))?
        })?;
        Some(self.get(&reference, now))
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
