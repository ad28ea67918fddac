//! A holder and a newcomer.

use std::net::IpAddr;

use portwatch::diagnose::rules::{Conflict, Endpoint, Search, verdict};
use portwatch::event::State;
use proptest::prelude::*;
use proptest::sample::select;

use crate::kernel::{Holding, Kept, Kernel, OTHER, Plan, Said, mapped};

/// What a newcomer does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ask {
    /// Binds the holder's port, and listens there if that is granted.
    Named,
    /// Binds port 0 where there is no other port than the holder's.
    Any { autobind_reuse: bool },
    /// Binds before the holder listens, and listens after it.
    ListenLast,
}

/// A case.
#[derive(Debug, Clone)]
pub struct Pair {
    holder: Plan,
    holding: Holding,
    /// Whether a dual-stack holder's connection is one of IPv4.
    over_v4: bool,
    newcomer: Plan,
    ask: Ask,
}

/// How many kinds of pairs there are.
pub const KINDS: usize = 17;

/// What a case is counted as.
pub fn kind(pair: &Pair) -> String {
    let transport = if pair.holder.tcp { "tcp" } else { "udp" };
    let ask = match pair.ask {
        Ask::Named => String::new(),
        Ask::Any { autobind_reuse } if pair.holder.tcp => {
            return format!("tcp any port, autobind_reuse {autobind_reuse}");
        }
        Ask::Any { .. } => " any port".to_owned(),
        Ask::ListenLast => " both listen".to_owned(),
    };
    format!("{transport} {:?}{ask}", pair.holding)
}

/// An address; the rules speak of wildcards, equality, families and v4-mapped ones.
fn address() -> impl Strategy<Value = IpAddr> {
    let v6 = |text: &str| IpAddr::V6(text.parse().unwrap());
    select(vec![
        [0, 0, 0, 0].into(),
        [127, 0, 0, 1].into(),
        [127, 0, 0, 2].into(),
        // LOOPBACK4_IPV6, by which the kernel stands for an address of IPv6.
        [127, 0, 0, 6].into(),
        v6("::"),
        v6("::1"),
        v6("fd00::1"),
        v6("fd00::2"),
        mapped([0, 0, 0, 0]),
        mapped([127, 0, 0, 1]),
    ])
}

prop_compose! {
    fn plan()(
        address in address(),
        v6only in any::<bool>(),
        reuseaddr in any::<bool>(),
        reuseport in any::<bool>(),
        uid in select(vec![0, 1000]),
        device in select(vec![None, None, None, Some("lo"), Some(OTHER)]),
    ) -> Plan {
        let is_mapped = matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
        // ::1 is on lo alone, which __inet6_bind knows.
        let local = address == IpAddr::V6(std::net::Ipv6Addr::LOCALHOST);
        Plan {
            tcp: true,
            address,
            // An address of IPv4 and v6only are refused with EINVAL.
            v6only: v6only && address.is_ipv6() && !is_mapped,
            reuseaddr,
            reuseport,
            uid,
            device: device.filter(|device| !(local && *device == OTHER)),
        }
    }
}

/// Any pair; the newcomer's address is often the holder's.
pub fn pair() -> impl Strategy<Value = Pair> {
    use Holding::{
        Accepted, Autobound, Bound, CloseWait, Connected, FinWait2, Listening, TimeWait,
    };
    let holding = select(vec![
        Bound, Listening, Connected, Autobound, Accepted, FinWait2, CloseWait, TimeWait,
    ]);
    let ask = prop_oneof![
        6 => Just(Ask::Named),
        2 => any::<bool>().prop_map(|autobind_reuse| Ask::Any { autobind_reuse }),
        1 => Just(Ask::ListenLast),
    ];
    let flags = (
        proptest::bool::weighted(0.8),
        any::<bool>(),
        proptest::bool::weighted(0.2),
    );
    (plan(), plan(), holding, ask, flags).prop_map(
        |(mut holder, mut newcomer, holding, ask, (tcp, over_v4, same_address))| {
            (holder.tcp, newcomer.tcp) = (tcp, tcp);
            if same_address {
                newcomer = Plan {
                    address: holder.address,
                    v6only: holder.v6only,
                    device: None,
                    ..newcomer
                };
            }
            let holding = match (ask, holding) {
                (Ask::ListenLast, _) if tcp => Listening,
                (_, Connected | Autobound) if !tcp => holding,
                (_, _) if !tcp => Bound,
                _ => holding,
            };
            let connected = !matches!(holding, Bound | Listening);
            holder.device = holder
                .device
                .filter(|device| !connected || *device != OTHER);
            Pair {
                over_v4: over_v4 && !holder.v6only,
                holder,
                holding,
                newcomer,
                ask: if tcp || ask != Ask::ListenLast {
                    ask
                } else {
                    Ask::Named
                },
            }
        },
    )
}

/// LOOPBACK4_IPV6 of net/ipv6/tcp_ipv6.c: what a socket of AF_INET6 has for an address of IPv4.
const LOOPBACK4_IPV6: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 6));

/// What a kernel is known to do wrong, found out by provoking it.
pub struct Flaws {
    /// It keeps a newcomer from 127.0.0.6 because of a connection of IPv6: up to 6.0 what stands for an
    /// address is compared with one.
    loopback4_meets_ipv6: bool,
    /// It grants a v4-mapped address beside the v4-mapped wildcard: Debian's 6.1.
    mapped_wildcard_overlooked: bool,
}

impl Flaws {
    /// Those of the running kernel.
    pub fn find(kernel: &mut Kernel) -> Self {
        let plan = |address| Plan {
            tcp: true,
            address,
            v6only: false,
            reuseaddr: false,
            reuseport: false,
            uid: 0,
            device: None,
        };
        let mut is_granted = |holder: IpAddr, holding, newcomer: IpAddr| {
            let mut kept = Kept::default();
            let holder = kernel.hold(&plan(holder), holding, false, &mut kept);
            let newcomer = plan(newcomer);
            newcomer.bind(&newcomer.open(), holder.port) == Said::Granted
        };
        let any = IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED);
        let (mapped_any, mapped_one) = (mapped([0, 0, 0, 0]), mapped([127, 0, 0, 1]));
        Self {
            loopback4_meets_ipv6: !is_granted(any, Holding::Autobound, LOOPBACK4_IPV6),
            mapped_wildcard_overlooked: is_granted(mapped_any, Holding::Bound, mapped_one),
        }
    }

    /// Whether the kernel may be wrong about a pair.
    fn concern(&self, pair: &Pair) -> bool {
        let (holder, newcomer) = (pair.holder.address, pair.newcomer.address);
        let is_mapped =
            |address: IpAddr| matches!(address, IpAddr::V6(of) if of.to_ipv4_mapped().is_some());
        let loopback4 = newcomer == LOOPBACK4_IPV6 && holder.is_ipv6();
        let wildcard = is_mapped(newcomer) && holder == mapped([0, 0, 0, 0]);
        self.loopback4_meets_ipv6 && loopback4 || self.mapped_wildcard_overlooked && wildcard
    }
}

impl std::fmt::Display for Flaws {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.loopback4_meets_ipv6 {
            writeln!(f, "pair: this kernel takes IPv6 for 127.0.0.6; excepted")?;
        }
        if self.mapped_wildcard_overlooked {
            writeln!(f, "pair: this kernel overlooks ::ffff:0.0.0.0; excepted")?;
        }
        Ok(())
    }
}

/// Does it, and tells what the kernel said, if the rules say the same or it is known to be wrong.
pub fn agree(kernel: &mut Kernel, pair: &Pair, flaws: &Flaws) -> Result<Said, String> {
    match hold_and_ask(kernel, pair) {
        Err(_) if flaws.concern(pair) => Ok(Said::Refused),
        result => result,
    }
}

fn hold_and_ask(kernel: &mut Kernel, pair: &Pair) -> Result<Said, String> {
    let mut kept = Kept::default();
    if pair.ask == Ask::ListenLast {
        return both_listen(kernel, pair, &mut kept);
    }
    let holder = kernel.hold(&pair.holder, pair.holding, pair.over_v4, &mut kept);
    let socket = pair.newcomer.open();
    let (said, newcomer, search) = match pair.ask {
        Ask::Any { autobind_reuse } => {
            let only = Only::port(holder.port, autobind_reuse);
            let said = pair.newcomer.bind(&socket, 0);
            drop(only);
            let search = Search::Any { autobind_reuse };
            (said, pair.newcomer.wants(0), search)
        }
        _ => {
            let said = pair.newcomer.bind(&socket, holder.port);
            (said, pair.newcomer.wants(holder.port), Search::Named)
        }
    };
    compare("bind", said, &newcomer, &holder, search)?;
    if said == Said::Granted {
        assert_eq!(socket.local().port(), holder.port);
        if pair.newcomer.tcp {
            let newcomer = pair.newcomer.has(&socket, State::Bound);
            let said = Said::of(socket.listen(16));
            compare("listen", said, &newcomer, &holder, Search::Named)?;
        }
    }
    kept.keep(socket);
    Ok(said)
}

/// Both are bound; the holder listens, then the newcomer.
fn both_listen(kernel: &mut Kernel, pair: &Pair, kept: &mut Kept) -> Result<Said, String> {
    let (first, last) = (pair.holder.open(), pair.newcomer.open());
    let port = kernel.port();
    assert_eq!(pair.holder.bind(&first, port), Said::Granted);
    let holder = pair.holder.has(&first, State::Bound);
    let mut said = pair.newcomer.bind(&last, port);
    let newcomer = pair.newcomer.wants(port);
    compare("bind", said, &newcomer, &holder, Search::Named)?;
    if said == Said::Granted {
        let newcomer = pair.newcomer.has(&last, State::Bound);
        let of_first = Said::of(first.listen(16));
        compare(
            "listen of the holder",
            of_first,
            &holder,
            &newcomer,
            Search::Named,
        )?;
        assert_eq!(of_first, Said::Granted, "nothing listens");
        let holder = pair.holder.has(&first, State::Listen);
        said = Said::of(last.listen(16));
        compare("listen", said, &newcomer, &holder, Search::Named)?;
    }
    kept.keep(first);
    kept.keep(last);
    Ok(said)
}

/// What both say, in words, if it is not the same.
fn compare(
    call: &str,
    said: Said,
    newcomer: &Endpoint,
    holder: &Endpoint,
    search: Search,
) -> Result<(), String> {
    let conflict: Option<Conflict> = verdict(newcomer, holder, search);
    let expected = if conflict.is_some() {
        Said::Refused
    } else {
        Said::Granted
    };
    if said == expected {
        return Ok(());
    }
    Err(format!(
        "{call}: the kernel said {said:?}, the rules {conflict:?}\n  \
         newcomer {newcomer:?}\n  holder {holder:?}\n  {search:?}"
    ))
}

/// While it lives, the kernel has one port to choose from.
struct Only;

const RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";

impl Only {
    fn port(port: u16, autobind_reuse: bool) -> Self {
        std::fs::write(RANGE, format!("{port} {port}")).unwrap();
        let reuse = if autobind_reuse { "1" } else { "0" };
        std::fs::write("/proc/sys/net/ipv4/ip_autobind_reuse", reuse).unwrap();
        Self
    }
}

impl Drop for Only {
    fn drop(&mut self) {
        std::fs::write(RANGE, crate::kernel::EPHEMERAL).unwrap();
    }
}
