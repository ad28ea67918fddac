//! Sockets, holders and facts, of which the tests change one thing or another.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::diagnose::facts::{Call, Facts, Held, Job};
use crate::event::{
    AbstractText, Actor, Address, Ancestor, Container, Evidence, Family, HeldSocket, Holder,
    Options, Ownership, PathText, Process, Socket, State, Time, Transport,
};

const MS: i64 = 1_000_000;
/// When the newcomer is refused.
pub(super) const NOW: Time = Time(1_795_348_991_482_000_000);

pub(super) fn ago(milliseconds: i64) -> Time {
    Time(NOW.0 - milliseconds * MS)
}

pub(super) fn tcp(local: &str) -> Socket {
    let address: std::net::SocketAddr = local.parse().unwrap();
    Socket {
        transport: Some(Transport::Tcp),
        family: Some(if address.is_ipv4() {
            Family::Ipv4
        } else {
            Family::Ipv6
        }),
        local: Some(Address::Inet {
            address: address.ip(),
            port: address.port(),
            scope: None,
        }),
        remote: None,
        state: None,
        options: Options::default(),
        bound_device: None,
        netns: Some(4_026_531_840),
        cookie: None,
        inode: None,
        kernel: false,
    }
}

pub(super) fn unix(local: Address) -> Socket {
    Socket {
        transport: Some(Transport::Stream),
        family: Some(Family::Unix),
        local: Some(local),
        ..tcp("0.0.0.0:0")
    }
}

pub(super) fn path(path: &str) -> Socket {
    unix(Address::Path {
        path: PathText {
            path: path.into(),
            path_hex: None,
        },
    })
}

pub(super) fn abstract_name(name: &str) -> Socket {
    unix(Address::Abstract {
        name: AbstractText {
            name: name.into(),
            name_hex: None,
        },
    })
}

pub(super) fn actor(pid: u32, comm: &str, process: Process) -> Actor {
    Actor {
        pid,
        tid: None,
        comm: comm.into(),
        comm_hex: None,
        uid: 1000,
        start_time: ago(5000),
        gid: 1000,
        job: None,
        process: Arc::new(process),
    }
}

pub(super) fn node() -> Actor {
    actor(3998, "node", Process::default())
}

pub(super) fn container() -> Container {
    Container {
        runtime: "docker".into(),
        id: "3f4e8a1b2c5d60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f9".into(),
        name: Some("web-1".into()),
        image: Some("nginx:1.27".into()),
        labels: BTreeMap::from([
            ("com.docker.compose.project".into(), "shop".into()),
            ("com.docker.compose.service".into(), "web".into()),
        ]),
    }
}

/// A holder in a state, which node[3998] has open.
pub(super) fn held(state: State, socket: Socket) -> Held {
    let none = state == State::TimeWait;
    Held::from(Holder {
        socket: HeldSocket {
            socket: Socket {
                state: Some(state),
                ..socket
            },
            uid: (!none).then_some(1000),
        },
        ownership: Some(if none {
            Ownership::None
        } else {
            Ownership::Verified
        }),
        bound_at: (!none).then_some(ago(2400)),
        expires_in_ms: none.then_some(41_200),
        processes: if none { Vec::new() } else { vec![node()] },
        publishes: None,
    })
}

pub(super) fn of(actor: Actor, held: Held) -> Held {
    Held {
        holder: Holder {
            processes: vec![actor],
            ..held.holder
        },
        ..held
    }
}

pub(super) fn with(options: u16, socket: Socket) -> Socket {
    Socket {
        options: Options(options),
        ..socket
    }
}

pub(super) fn to(remote: &str, socket: Socket) -> Socket {
    Socket {
        remote: tcp(remote).local,
        ..socket
    }
}

pub(super) fn on(device: &str, socket: Socket) -> Socket {
    Socket {
        bound_device: Some(device.into()),
        ..socket
    }
}

/// What a bind to this address is refused with, by the holder whose lock was held.
pub(super) fn refused(socket: Socket, holders: Vec<Held>) -> Facts {
    let mut facts = Facts::new(Call::Bind, libc::EADDRINUSE, NOW, socket);
    facts.uid = Some(1000);
    facts.process = Some(actor(4312, "node", Process::default()));
    facts.evidence = Some(Evidence::Locked);
    facts.sysctls.local_port_range = Some(32_768..=60_999);
    facts.sysctls.local_reserved_ports = Some(String::new());
    facts.sysctls.unprivileged_port_start = Some(1024);
    facts.reached_kernel = Some(true);
    facts.holders = holders;
    facts
}

pub(super) fn failed(errno: i32, socket: Socket) -> Facts {
    Facts {
        errno,
        evidence: None,
        ..refused(socket, Vec::new())
    }
}

pub(super) fn listener() -> Facts {
    let at = "0.0.0.0:3000";
    refused(tcp(at), vec![held(State::Listen, tcp(at))])
}

/// The facts with something changed.
pub(super) fn but(mut facts: Facts, change: impl FnOnce(&mut Facts)) -> Facts {
    change(&mut facts);
    facts
}

pub(super) fn time_wait(dead: u16) -> Facts {
    let at = "127.0.0.1:3000";
    let socket = to("127.0.0.1:51234", with(dead, tcp(at)));
    refused(tcp("0.0.0.0:3000"), vec![held(State::TimeWait, socket)])
}

pub(super) fn connection(state: State, port: u16) -> Facts {
    let at = format!("10.0.0.5:{port}");
    let socket = to("93.184.216.34:443", tcp(&at));
    refused(tcp(&format!("0.0.0.0:{port}")), vec![held(state, socket)])
}

pub(super) fn worker(pid: u32) -> Actor {
    let ancestor = Ancestor {
        pid: 4000,
        comm: "jest".into(),
        comm_hex: None,
    };
    let process = Process {
        ancestors: vec![ancestor],
        ..Process::default()
    };
    actor(pid, "node", process)
}

pub(super) fn siblings() -> Facts {
    let at = "0.0.0.0:3000";
    let holder = of(worker(4001), held(State::Listen, tcp(at)));
    but(refused(tcp(at), vec![holder]), |facts| {
        facts.process = Some(worker(4002));
        facts.job = Some(Job {
            pid: 4000,
            started_at: ago(10_000),
        });
    })
}

pub(super) fn stale() -> Facts {
    let init = Ancestor {
        pid: 1,
        comm: "systemd".into(),
        comm_hex: None,
    };
    let left = Actor {
        start_time: ago(3_600_000),
        ..actor(
            900,
            "java",
            Process {
                ancestors: vec![init],
                unit: Some("ci-runner.service".into()),
                ..Process::default()
            },
        )
    };
    but(siblings(), |facts| {
        let holder = held(State::Listen, tcp("0.0.0.0:3000"));
        facts.holders = vec![of(left, holder)];
        facts.process = Some(actor(
            4002,
            "node",
            Process {
                unit: Some("ci-runner.service".into()),
                ..(*worker(4002).process).clone()
            },
        ));
    })
}

pub(super) fn first(facts: &mut Facts) -> &mut Held {
    &mut facts.holders[0]
}

pub(super) fn reuseport(newcomer: u16, holder: u16) -> Facts {
    let at = "0.0.0.0:3000";
    let holder = held(State::Listen, with(holder, tcp(at)));
    refused(with(newcomer, tcp(at)), vec![holder])
}
