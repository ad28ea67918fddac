//! `portwatch why`: who has a port, what a bind to it would get, and what to do.

mod recording;

use std::collections::BTreeMap;
use std::io::{Write as _, stderr};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Instant;

use clap::Args;
use nix::errno::Errno;
use portwatch_common::record::option;

use self::recording::last_use;
use super::list::{Actors, listed, name};
use super::options::Format;
use super::{Usage, value};
use crate::diagnose::facts::{Call, Facts, Held, KernelSocket};
use crate::diagnose::foresee;
use crate::event::{
    Address, Body, Cause, Conflict, Event, Evidence, Family, Holder, Newcomer,
    Options as SocketOptions, Outcome, Place, Published, Result as Outcomes, Socket, State, Time,
    Transport, Why,
};
use crate::kernel::clock::{self, Clock};
use crate::kernel::netns;
use crate::kernel::sockets::{self, Owned, Scope, Seen, Sockets};
use crate::sink::escape::escape;
use crate::sink::json::Json;
use crate::sink::why::render;

/// Exit status: somebody has the port.
const HELD: u8 = 1;
/// How many specific addresses of holders are tried, beside the usual ones.
const ADDRESSES: usize = 3;

/// The options of `why`.
#[derive(Debug, Args)]
#[command(after_help = "Exit status: 0 free, 1 held, 2 usage.")]
pub struct Options {
    /// The port, and the protocol if only one is meant: 3000, 3000/tcp, 53/udp
    port: Wanted,

    /// What a bind to this address would get, instead of the usual ones
    #[arg(short, long, value_name = "ADDRESS", help_heading = "The newcomer")]
    address: Option<IpAddr>,

    /// ... with SO_REUSEADDR
    #[arg(long, help_heading = "The newcomer")]
    reuseaddr: bool,

    /// ... with SO_REUSEPORT
    #[arg(long, help_heading = "The newcomer")]
    reuseport: bool,

    /// ... by this user, by name or number [default: who runs this]
    #[arg(short, long, value_name = "USER", value_parser = value::user, help_heading = "The newcomer")]
    uid: Option<u32>,

    /// Only this network namespace: name as of `ip netns`, path, or inode number
    #[arg(long, value_name = "NETNS", value_parser = value::netns)]
    netns: Option<u32>,

    /// A recording of `portwatch trace --json`, to tell who used the port last
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,

    /// How it is written to standard output
    #[arg(short, long, value_enum, default_value_t = Format::Text, help_heading = "Output")]
    output: Format,

    /// Short for --output json
    #[arg(long, conflicts_with = "output", help_heading = "Output")]
    json: bool,

    /// Tell nothing on standard error but errors
    #[arg(short, long, help_heading = "Output")]
    quiet: bool,
}

/// A port, of one protocol or of both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wanted {
    port: u16,
    protocol: Option<Protocol>,
}

/// The protocols whose ports are told of: a table of ports each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Protocol {
    Tcp,
    Udp,
}

impl FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (port, protocol) = match text.split_once('/') {
            None => (text, None),
            Some((port, "tcp")) => (port, Some(Protocol::Tcp)),
            Some((port, "udp")) => (port, Some(Protocol::Udp)),
            Some((_, other)) => {
                return Err(format!("{other:?} is no protocol: tcp and udp have ports"));
            }
        };
        match port.parse() {
            Ok(port) if port != 0 => Ok(Self { port, protocol }),
            _ => Err(format!(
                "{port:?} is no port: a port is a number from 1 to 65535"
            )),
        }
    }
}

impl Protocol {
    /// That of a socket, by the table that its port is in.
    fn of(transport: Option<&Transport>) -> Option<Self> {
        match transport? {
            Transport::Tcp | Transport::Mptcp | Transport::Smc => Some(Self::Tcp),
            Transport::Udp => Some(Self::Udp),
            _ => None,
        }
    }

    fn transport(self) -> Transport {
        match self {
            Self::Tcp => Transport::Tcp,
            Self::Udp => Transport::Udp,
        }
    }
}

/// Runs `portwatch why`.
///
/// # Errors
///
/// If the recording cannot be read, or standard output cannot be written to.
pub fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let port = options.port.port;
    let last_use = match &options.from {
        // That it failed while running has the status of a port that is held.
        Some(path) => last_use(path, options.port).map_err(|error| Usage(format!("{error:#}")))?,
        None => None,
    };
    let sockets = sockets::all(Scope::All);
    let tell = |line: String| {
        if !options.quiet {
            // Nothing can be told where standard error is closed.
            let _ = writeln!(stderr(), "{}", escape(&line));
        }
    };
    for missing in &sockets.missing {
        tell(format!("not seen: {missing}"));
    }
    let mut actors = Actors::default();
    let time = Clock::now().at_monotonic(clock::monotonic());
    let places = places(&sockets, options, time, &mut actors);
    let published = published(&mut actors, options, &places);
    let host = netns::host();
    let seen = host.and_then(|host| sockets.namespaces.get(&host));
    let sysctls = seen.map(|seen| seen.sysctls.clone()).unwrap_or_default();
    let why = Why {
        port,
        held: !places.is_empty() || !published.is_empty(),
        places,
        published,
        last_use,
        range: sysctls.place(port),
    };
    let held = why.held;
    let looked_at = sockets.namespaces.len();
    let mut out = Vec::new();
    if options.json || options.output == Format::Json {
        let body = Body::Why(Box::new(why));
        Json::default().render(&Event { time, body }, &mut out);
    } else {
        out = render(&why, looked_at, time);
    }
    super::print(&out)?;
    Ok(ExitCode::from(if held { HELD } else { 0 }))
}

/// Where the port is held, the host's own namespace first.
fn places(sockets: &Sockets, options: &Options, time: Time, actors: &mut Actors) -> Vec<Place> {
    let host = netns::host();
    let mut held = BTreeMap::<(bool, u32, Protocol), Vec<Held>>::new();
    for owned in &sockets.sockets {
        let netns = owned.socket.netns;
        if owned.socket.local_port != options.port.port
            || options.netns.is_some_and(|wanted| wanted != netns)
        {
            continue;
        }
        let holder = holder(owned, sockets, actors);
        let socket = &holder.holder.socket.socket;
        let Some(protocol) = Protocol::of(socket.transport.as_ref()) else {
            continue;
        };
        if options
            .port
            .protocol
            .is_none_or(|wanted| wanted == protocol)
        {
            let place = (host != Some(netns), netns, protocol);
            held.entry(place).or_default().push(holder);
        }
    }
    let places = held
        .into_iter()
        .map(|((elsewhere, netns, protocol), mut held)| {
            held.sort_by_key(|held| rank(&held.holder));
            let seen = sockets.namespaces.get(&netns);
            place(options, time, (!elsewhere, netns, protocol), seen, held)
        });
    places.collect()
}

/// What serves comes before what is connected, and that before what waits.
fn rank(holder: &Holder) -> u8 {
    match holder.socket.socket.state {
        Some(State::Listen) => 0,
        Some(State::Bound | State::Close) => 1,
        Some(State::TimeWait) => 3,
        _ => 2,
    }
}

fn holder(owned: &Owned, sockets: &Sockets, actors: &mut Actors) -> Held {
    let seen = sockets.namespaces.get(&owned.socket.netns);
    let row = listed(owned, seen, sockets.is_complete(owned.socket.netns), actors);
    let kernel = row.socket.socket.kernel;
    let mut held = Held::from(Holder {
        socket: row.socket,
        ownership: row.ownership,
        bound_at: None,
        expires_in_ms: row.expires_in_ms,
        processes: row.processes,
        publishes: row.publishes,
    });
    held.kernel = kernel.then(KernelSocket::default);
    held
}

fn place(
    options: &Options,
    time: Time,
    (host, netns, protocol): (bool, u32, Protocol),
    seen: Option<&Seen>,
    held: Vec<Held>,
) -> Place {
    let port = options.port.port;
    let sysctls = seen.map(|seen| seen.sysctls.clone()).unwrap_or_default();
    let range = sysctls.place(port);
    let uid = options.uid.unwrap_or_else(caller);
    let mut first = None;
    let newcomers = kinds(options, &held).into_iter().map(|(address, kind)| {
        let mut facts = Facts::new(
            Call::Bind,
            libc::EADDRINUSE,
            time,
            newcomer(protocol, address, port, kind, netns),
        );
        facts.uid = Some(uid);
        facts.sysctls = sysctls.clone();
        facts.host_netns = netns::host();
        facts.evidence = Some(Evidence::Userspace);
        facts.holders.clone_from(&held);
        let refusal = foresee(&facts);
        let cause = refusal.as_ref().map(|conflict| conflict.cause);
        if first.is_none() {
            first = refusal;
        }
        // The kernel asks for the right before it looks for a conflict.
        let errno = if range.privileged && uid != 0 {
            Some((Errno::EACCES, Some(Cause::PrivilegedPort)))
        } else {
            cause.map(|cause| (Errno::EADDRINUSE, Some(cause)))
        };
        Newcomer {
            address,
            options: kind,
            uid,
            result: outcome(errno.map(|(errno, _)| errno)),
            cause: errno.and_then(|(_, cause)| cause),
        }
    });
    let newcomers: Vec<_> = newcomers.collect();
    Place {
        transport: protocol.transport(),
        netns,
        netns_name: name(seen),
        host,
        newcomers,
        conflict: first.map(|conflict| Conflict {
            // They are told of once.
            holders: Vec::new(),
            evidence: None,
            ..conflict
        }),
        range,
        holders: held.into_iter().map(|held| held.holder).collect(),
    }
}

/// The binds that are told of: addresses, each with options.
fn kinds(options: &Options, held: &[Held]) -> Vec<(IpAddr, SocketOptions)> {
    let addresses = match options.address {
        Some(address) => vec![address],
        None => {
            let mut addresses: Vec<IpAddr> = vec![
                Ipv4Addr::UNSPECIFIED.into(),
                Ipv4Addr::LOCALHOST.into(),
                Ipv6Addr::UNSPECIFIED.into(),
                Ipv6Addr::LOCALHOST.into(),
            ];
            let usual = addresses.len();
            for held in held {
                if let Some(Address::Inet { address, .. }) = held.holder.socket.socket.local
                    && !addresses.contains(&address)
                    && addresses.len() < usual + ADDRESSES
                {
                    addresses.push(address);
                }
            }
            addresses
        }
    };
    let kinds = if options.reuseaddr || options.reuseport {
        let mut kind = 0;
        kind |= if options.reuseaddr {
            option::REUSEADDR
        } else {
            0
        };
        kind |= if options.reuseport {
            option::REUSEPORT
        } else {
            0
        };
        vec![kind]
    } else {
        vec![0, option::REUSEADDR, option::REUSEPORT]
    };
    let of = |address| {
        kinds
            .iter()
            .map(move |kind| (address, SocketOptions(*kind)))
    };
    addresses.into_iter().flat_map(of).collect()
}

/// The socket of a bind that is not tried.
fn newcomer(
    protocol: Protocol,
    address: IpAddr,
    port: u16,
    options: SocketOptions,
    netns: u32,
) -> Socket {
    Socket {
        transport: Some(protocol.transport()),
        family: Some(match address {
            IpAddr::V4(_) => Family::Ipv4,
            IpAddr::V6(_) => Family::Ipv6,
        }),
        local: Some(Address::Inet {
            address,
            port,
            scope: None,
        }),
        remote: None,
        state: None,
        options,
        bound_device: None,
        netns: Some(netns),
        cookie: None,
        inode: None,
        kernel: false,
    }
}

fn outcome(errno: Option<Errno>) -> Outcomes {
    Outcomes {
        outcome: match errno {
            None => Outcome::Success,
            Some(_) => Outcome::Failure,
        },
        error: errno.map(|errno| format!("{errno:?}").into()),
        errno: errno.map(|errno| errno as i32),
    }
}

/// Who runs this, also through sudo.
fn caller() -> u32 {
    let invoking = std::env::var("SUDO_UID").ok();
    let invoking = invoking.and_then(|uid| uid.parse().ok());
    invoking.unwrap_or_else(|| nix::unistd::getuid().as_raw())
}

/// The containers that publish the port.
fn published(actors: &mut Actors, options: &Options, places: &[Place]) -> Vec<Published> {
    let all = actors
        .containers
        .publishing(options.port.port, Instant::now());
    let wanted = all.into_iter().filter(|publication| {
        let protocol = match options.port.protocol {
            None => true,
            Some(Protocol::Tcp) => publication.protocol == "tcp",
            Some(Protocol::Udp) => publication.protocol == "udp",
        };
        let netns = options
            .netns
            .is_none_or(|netns| publication.netns.is_none_or(|published| published == netns));
        protocol && netns
    });
    let mut published: Vec<Published> = Vec::new();
    for publication in wanted {
        let mut holders = places.iter().flat_map(|place| &place.holders);
        let by_socket = holders.any(|holder| {
            let publishes = holder.publishes.as_ref();
            publishes.is_some_and(|of| of.container.id == publication.named.container.id)
        });
        let one = Published {
            container: publication.named.container,
            pod: publication.named.pod,
            protocol: publication.protocol,
            address: publication.host_address,
            port: publication.port,
            by_socket,
        };
        if !published.contains(&one) {
            published.push(one);
        }
    }
    published
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for() {
        let wanted = |text: &str| text.parse::<Wanted>();
        let of = |port, protocol| Ok(Wanted { port, protocol });
        assert_eq!(wanted("3000"), of(3000, None));
        assert_eq!(wanted("53/udp"), of(53, Some(Protocol::Udp)));
        assert_eq!(wanted("53/tcp"), of(53, Some(Protocol::Tcp)));
        for text in [
            "",
            "0",
            "65536",
            "-1",
            "x",
            "80/",
            "80/sctp",
            "/tcp",
            "80/tcp/udp",
        ] {
            assert!(wanted(text).is_err(), "{text}");
        }
    }
}
