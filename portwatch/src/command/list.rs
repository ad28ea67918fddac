//! `portwatch list`: every bound port of every network namespace, and who has it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{IsTerminal as _, Write as _, stderr, stdout};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use clap::Args;
use portwatch_common::record::Task;

use super::options::{Format, SocketFilter};
use crate::attribute::container::{Containers, NamedPort, Publication};
use crate::attribute::process::{self, AncestorsByParent, Key};
use crate::attribute::socket;
use crate::event::{
    Actor, Address, Body, Event, HeldSocket, Listed, Ownership, PublishedPort, State, Text,
    Timewaits, Transport,
};
use crate::filter::Filter;
use crate::kernel::clock::{self, Clock};
use crate::kernel::netns;
use crate::kernel::sockets::{self, Owned, Scope, Seen, Sockets};
use crate::sink::escape::escape;
use crate::sink::json::Json;
use crate::sink::list::{self, Columns};

/// The options of `list`.
#[derive(Debug, Args)]
pub struct Options {
    /// Connections too, and each TIME_WAIT
    #[arg(short, long)]
    all: bool,

    #[command(flatten)]
    filter: SocketFilter,

    /// How sockets are written to standard output
    #[arg(short, long, value_enum, default_value_t = Format::Text, help_heading = "Output")]
    output: Format,

    /// Short for --output json
    #[arg(long, conflicts_with = "output", help_heading = "Output")]
    json: bool,

    /// Tell nothing on standard error but errors
    #[arg(short, long, help_heading = "Output")]
    quiet: bool,
}

/// Runs `portwatch list`.
///
/// # Errors
///
/// If standard output cannot be written to.
pub fn run(options: Options) -> anyhow::Result<ExitCode> {
    let scope = if options.all {
        Scope::All
    } else {
        Scope::Bound
    };
    let sockets = sockets::all(scope);
    if !options.quiet {
        for missing in &sockets.missing {
            // Nothing can be told where standard error is closed.
            let _ = writeln!(stderr(), "not seen: {}", escape(missing));
        }
    }
    let rows = rows(&sockets, scope, &options.filter.filter());
    let mut out = Vec::new();
    if options.json || options.output == Format::Json {
        let time = Clock::now().at_monotonic(clock::monotonic());
        let mut json = Json::default();
        for body in rows {
            json.render(&Event { time, body }, &mut out);
        }
    } else {
        let columns = match scope {
            Scope::All => Columns::All,
            Scope::Bound => Columns::Bound,
        };
        let host = netns::host();
        let timewaits = timewaits(&sockets.sockets);
        let counts = timewaits.into_iter().map(|(port, sum)| (port, sum.count));
        out = list::render(
            &rows,
            columns,
            &counts.collect(),
            host,
            stdout().is_terminal(),
        );
    }
    super::print(&out)
}

/// The rows that are wanted, in their order: this host's namespace first, then those with names;
/// within each by port.
fn rows(sockets: &Sockets, scope: Scope, filter: &Filter) -> Vec<Body> {
    let mut actors = Actors::default();
    let host = netns::host();
    let mut rows = Vec::new();
    let mut by_sockets = BTreeSet::new();
    let mut keep = |row: Body| {
        if filter.passes(&row) {
            rows.push(row);
        }
    };
    for owned in &sockets.sockets {
        if is_listed(owned, scope) {
            let seen = sockets.namespaces.get(&owned.socket.netns);
            let row = listed(
                owned,
                seen,
                sockets.is_complete(owned.socket.netns),
                &mut actors,
            );
            // Their numbers are a protocol and an identifier, not ports.
            let transport = &row.socket.socket.transport;
            if !matches!(transport, Some(Transport::Raw | Transport::Icmp)) {
                if let (Some(of), Some(transport)) = (&row.publishes, transport) {
                    let id = Text::clone(&of.container.id);
                    by_sockets.insert((id, transport.clone(), owned.socket.local_port));
                }
                keep(Body::Socket(row));
            }
        }
    }
    for publication in actors.containers.published(Instant::now()) {
        if let Some(published) = published(publication, &by_sockets, sockets) {
            keep(Body::Published(Box::new(published)));
        }
    }
    if scope == Scope::Bound {
        for ((netns, port), sum) in timewaits(&sockets.sockets) {
            let seen = sockets.namespaces.get(&netns);
            keep(Body::Timewaits(Timewaits {
                transport: Transport::Tcp,
                port,
                netns,
                netns_name: name(seen),
                count: sum.count,
                expires_in_ms: sum.expires_in_ms,
                ephemeral: seen
                    .and_then(|seen| seen.sysctls.local_port_range.as_ref())
                    .is_some_and(|range| range.contains(&port)),
            }));
        }
    }
    rows.sort_by_cached_key(|row| place(row, host));
    rows
}

/// Where a row stands among the others.
fn place(row: &Body, host: Option<u32>) -> impl Ord + use<> {
    let address = |address: Option<&Address>| match address {
        Some(Address::Inet { address, port, .. }) => Some((*port, *address)),
        _ => None,
    };
    let (netns, name, local, transport, remote, inode) = match row {
        Body::Socket(listed) => {
            let socket = &listed.socket.socket;
            (
                socket.netns,
                listed.netns_name.clone(),
                address(socket.local.as_ref()),
                socket.transport.clone(),
                address(socket.remote.as_ref()),
                socket.inode,
            )
        }
        Body::Timewaits(timewaits) => (
            Some(timewaits.netns),
            timewaits.netns_name.clone(),
            None,
            None,
            None,
            None,
        ),
        Body::Published(published) => (
            published.netns,
            published.netns_name.clone(),
            published.address.map(|address| (published.port, address)),
            Some(published.transport.clone()),
            None,
            None,
        ),
        _ => (None, None, None, None, None, None),
    };
    let port = match row {
        Body::Timewaits(timewaits) => Some(timewaits.port),
        Body::Published(published) => Some(published.port),
        _ => local.map(|(port, _)| port),
    };
    let unnamed = name.is_none();
    (
        netns != host,
        (unnamed, name, netns),
        port,
        transport,
        local,
        remote,
        inode,
    )
}

fn is_listed(owned: &Owned, scope: Scope) -> bool {
    const ESTABLISHED: u8 = 1;
    const CLOSE: u8 = 7;
    const LISTEN: u8 = 10;
    let datagrams = i32::from(owned.socket.sock_type) == libc::SOCK_DGRAM;
    scope == Scope::All
        || match owned.socket.state {
            CLOSE | LISTEN => true,
            // A server's UDP socket may be connected and hold its port all the same.
            ESTABLISHED => datagrams && owned.bound,
            _ => false,
        }
}

/// `complete` says that no process has the socket but those that are known.
pub(super) fn listed(
    owned: &Owned,
    seen: Option<&Seen>,
    complete: bool,
    actors: &mut Actors,
) -> Listed {
    let device = owned.device.as_deref().unwrap_or("\0");
    let mut socket = socket(&owned.socket, device.as_bytes());
    let waiting = socket.state == Some(State::TimeWait);
    // The kernel tells of no inode where there is none.
    socket.inode = socket.inode.filter(|_| !waiting);
    let processes: Vec<_> = owned.tasks.iter().map(|task| actors.actor(task)).collect();
    let publishes = (actors.containers).publishes(&socket, &processes, Instant::now());
    Listed {
        socket: HeldSocket {
            socket,
            uid: owned.uid,
        },
        ownership: match processes.is_empty() {
            false => Some(Ownership::Verified),
            // A TIME_WAIT never has one.
            true => (waiting || complete).then_some(Ownership::None),
        },
        expires_in_ms: owned.expires_in_ms.map(u64::from),
        processes,
        publishes: publishes.map(Into::into),
        netns_name: name(seen),
    }
}

/// A port that a container publishes, unless it is a port of one of these sockets.
fn published(
    publication: Publication,
    by_sockets: &BTreeSet<(Text, Transport, u16)>,
    sockets: &Sockets,
) -> Option<PublishedPort> {
    let transport = match &*publication.protocol {
        "tcp" => Transport::Tcp,
        "udp" => Transport::Udp,
        "sctp" => Transport::Sctp,
        _ => return None,
    };
    let id = Text::clone(&publication.named.container.id);
    let by_socket = by_sockets.contains(&(id, transport.clone(), publication.host_port));
    let seen = publication
        .netns
        .and_then(|netns| sockets.namespaces.get(&netns));
    (!by_socket).then(|| PublishedPort {
        transport,
        address: publication.host_address,
        port: publication.host_port,
        netns: publication.netns,
        netns_name: name(seen),
        publishes: NamedPort::from(publication).into(),
    })
}

pub(super) fn name(seen: Option<&Seen>) -> Option<Text> {
    seen.and_then(|seen| seen.name.as_deref()).map(Text::from)
}

/// The TIME_WAITs on a port.
#[derive(Default)]
struct Sum {
    count: u64,
    expires_in_ms: u64,
}

/// TIME_WAITs by namespace and local port.
fn timewaits(sockets: &[Owned]) -> BTreeMap<(u32, u16), Sum> {
    let mut sums = BTreeMap::<_, Sum>::new();
    for owned in sockets {
        if let Some(expires_in_ms) = owned.expires_in_ms {
            let place = (owned.socket.netns, owned.socket.local_port);
            let sum = sums.entry(place).or_default();
            sum.count += 1;
            sum.expires_in_ms = sum.expires_in_ms.max(expires_in_ms.into());
        }
    }
    sums
}

/// Processes, each looked up once.
pub(super) struct Actors {
    clock: Clock,
    pub(super) containers: Containers,
    known: HashMap<Key, Actor>,
    ancestors: AncestorsByParent,
}

impl Default for Actors {
    fn default() -> Self {
        Self {
            clock: Clock::now(),
            containers: Containers::new(Path::new("/")),
            known: HashMap::new(),
            ancestors: AncestorsByParent::new(),
        }
    }
}

impl Actors {
    pub(super) fn actor(&mut self, task: &Task) -> Actor {
        let (clock, containers) = (self.clock, &mut self.containers);
        let ancestors = &mut self.ancestors;
        let actor = self.known.entry(Key::of(task)).or_insert_with(|| {
            process::brief(Path::new("/proc"), task, clock, ancestors, |reference| {
                containers.get(reference, Instant::now())
            })
        });
        actor.clone()
    }
}

#[cfg(test)]
mod tests {
    use portwatch_common::record::Socket;
    use zerocopy::FromZeros as _;

    use super::*;
    use crate::event::Container;

    fn owned(state: u8, sock_type: i32, port: u16, netns: u32) -> Owned {
        let mut socket = Socket::new_zeroed();
        socket.family = libc::AF_INET as u16;
        socket.sock_type = sock_type as u16;
        socket.protocol = if sock_type == libc::SOCK_STREAM {
            6
        } else {
            17
        };
        socket.state = state;
        socket.local_port = port;
        socket.netns = netns;
        Owned {
            socket,
            device: None,
            bound: false,
            uid: None,
            expires_in_ms: (state == 6).then_some(u32::from(port) * 100),
            tasks: Vec::new(),
        }
    }

    const TCP: i32 = libc::SOCK_STREAM;
    const UDP: i32 = libc::SOCK_DGRAM;

    #[test]
    fn what_is_listed() {
        let listed = |state, sock_type, bound| {
            let owned = Owned {
                bound,
                ..owned(state, sock_type, 80, 1)
            };
            (
                is_listed(&owned, Scope::Bound),
                is_listed(&owned, Scope::All),
            )
        };
        assert_eq!(listed(10, TCP, true), (true, true), "a listener");
        assert_eq!(listed(7, TCP, true), (true, true), "bound, not listening");
        assert_eq!(listed(1, TCP, true), (false, true), "a connection");
        assert_eq!(listed(6, TCP, true), (false, true), "a TIME_WAIT");
        assert_eq!(listed(7, UDP, false), (true, true), "UDP");
        assert_eq!(listed(1, UDP, false), (false, true), "a UDP client");
        assert_eq!(listed(1, UDP, true), (true, true), "a connected UDP server");
    }

    #[test]
    fn rows_are_sorted_and_timewaits_summed() {
        let sockets = Sockets {
            sockets: vec![
                owned(10, TCP, 9000, 7),
                owned(10, TCP, 80, 7),
                owned(7, UDP, 80, 7),
                owned(6, TCP, 80, 7),
                owned(6, TCP, 80, 7),
                owned(6, TCP, 33, 7),
            ],
            ..Sockets::default()
        };
        let shown = |scope| -> Vec<String> {
            let rows = rows(&sockets, scope, &Filter::default());
            let row = |body: &Body| match body {
                Body::Socket(listed) => {
                    let socket = &listed.socket.socket;
                    let transport = socket.transport.as_ref().unwrap();
                    let port = socket.local.as_ref().and_then(Address::port).unwrap();
                    format!("{transport} {port}")
                }
                Body::Timewaits(sum) => {
                    format!("{}x {} {}", sum.count, sum.port, sum.expires_in_ms)
                }
                other => panic!("{other:?}"),
            };
            rows.iter().map(row).collect()
        };
        assert_eq!(
            shown(Scope::Bound),
            ["1x 33 3300", "2x 80 8000", "tcp 80", "udp 80", "tcp 9000"]
        );
        assert_eq!(
            shown(Scope::All),
            ["tcp 33", "tcp 80", "tcp 80", "tcp 80", "udp 80", "tcp 9000"]
        );
    }

    /// By its protocol too: a socket of TCP is none of UDP.
    #[test]
    fn a_published_port_is_told_unless_a_socket_has_it() {
        let web = || Container {
            runtime: "docker".into(),
            id: "3f4e8a1b2c5d".into(),
            name: None,
            image: None,
            labels: BTreeMap::new(),
        };
        let publication = |protocol: &str, host_port| Publication {
            named: web().into(),
            protocol: protocol.to_owned(),
            host_address: None,
            host_port,
            port: 53,
            addresses: Vec::new(),
            netns: None,
            running: true,
        };
        let by_sockets = BTreeSet::from([(web().id, Transport::Tcp, 5353)]);
        let told = |protocol, port| {
            let publication = publication(protocol, port);
            published(publication, &by_sockets, &Sockets::default()).is_some()
        };
        assert!(!told("tcp", 5353));
        assert!(told("udp", 5353));
        assert!(told("tcp", 5354));
        assert!(!told("icmp", 5354), "no port");
    }

    #[test]
    fn filters_choose_rows() {
        let sockets = Sockets {
            sockets: vec![
                owned(10, TCP, 80, 7),
                owned(7, UDP, 81, 7),
                owned(6, TCP, 82, 8),
            ],
            ..Sockets::default()
        };
        let count = |filter: Filter| rows(&sockets, Scope::Bound, &filter).len();
        assert_eq!(count(Filter::default()), 3);
        let tcp = Filter {
            tcp: true,
            ..Filter::default()
        };
        assert_eq!(count(tcp), 2);
        let netns = Filter {
            netns: [8].into(),
            ..Filter::default()
        };
        assert_eq!(count(netns), 1);
        let port = Filter {
            ports: vec![80..=81],
            ..Filter::default()
        };
        assert_eq!(count(port), 2);
        let pid = Filter {
            pids: [1].into(),
            ..Filter::default()
        };
        assert_eq!(count(pid), 0);
    }
}
