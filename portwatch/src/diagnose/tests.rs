//! Each cause: facts that give it, and the same facts but for one, which do not.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use portwatch_common::record::option::{REUSEADDR, REUSEPORT, V6ONLY};

use super::diagnose;
use super::facts::{
    AddressFault, Call, Facts, Held, Job, KernelSocket, Origin, PathState, Probe, RangeUse,
};
use crate::event::{
    AbstractText, Actor, Address, Ancestor, Cause, Conflict, Container, Evidence, Family,
    HeldSocket, Holder, Options, Ownership, PathText, Process, Publishes, Socket, State, Time,
    Transport,
};

const MS: i64 = 1_000_000;
/// When the newcomer is refused.
const NOW: Time = Time(1_795_348_991_482_000_000);

fn ago(milliseconds: i64) -> Time {
    Time(NOW.0 - milliseconds * MS)
}

fn tcp(local: &str) -> Socket {
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
    }
}

fn unix(local: Address) -> Socket {
    Socket {
        transport: Some(Transport::Stream),
        family: Some(Family::Unix),
        local: Some(local),
        ..tcp("0.0.0.0:0")
    }
}

fn path(path: &str) -> Socket {
    unix(Address::Path {
        path: PathText {
            path: path.into(),
            path_hex: None,
        },
    })
}

fn abstract_name(name: &str) -> Socket {
    unix(Address::Abstract {
        name: AbstractText {
            name: name.into(),
            name_hex: None,
        },
    })
}

fn actor(pid: u32, comm: &str, process: Process) -> Actor {
    Actor {
        pid,
        tid: None,
        comm: comm.into(),
        comm_hex: None,
        uid: 1000,
        start_time: ago(5000),
        gid: 1000,
        process: Arc::new(process),
    }
}

fn node() -> Actor {
    actor(3998, "node", Process::default())
}

fn container() -> Container {
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
fn held(state: State, socket: Socket) -> Held {
    let none = state == State::TimeWait;
    Held::from(Holder {
        socket: HeldSocket {
            socket: Socket {
                state: Some(state),
                ..socket
            },
            uid: (!none).then_some(1000),
        },
        ownership: if none {
            Ownership::None
        } else {
            Ownership::Verified
        },
        bound_at: (!none).then_some(ago(2400)),
        expires_in_ms: none.then_some(41_200),
        processes: if none { Vec::new() } else { vec![node()] },
        publishes: None,
    })
}

fn of(actor: Actor, held: Held) -> Held {
    Held {
        holder: Holder {
            processes: vec![actor],
            ..held.holder
        },
        ..held
    }
}

fn with(options: u16, socket: Socket) -> Socket {
    Socket {
        options: Options(options),
        ..socket
    }
}

fn to(remote: &str, socket: Socket) -> Socket {
    Socket {
        remote: tcp(remote).local,
        ..socket
    }
}

fn on(device: &str, socket: Socket) -> Socket {
    Socket {
        bound_device: Some(device.into()),
        ..socket
    }
}

/// What a bind to this address is refused with, by the holder whose lock was held.
fn refused(socket: Socket, holders: Vec<Held>) -> Facts {
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

fn failed(errno: i32, socket: Socket) -> Facts {
    Facts {
        errno,
        evidence: None,
        ..refused(socket, Vec::new())
    }
}

fn listener() -> Facts {
    let at = "0.0.0.0:3000";
    refused(tcp(at), vec![held(State::Listen, tcp(at))])
}

/// The facts with something changed.
fn but(mut facts: Facts, change: impl FnOnce(&mut Facts)) -> Facts {
    change(&mut facts);
    facts
}

fn time_wait(dead: u16) -> Facts {
    let at = "127.0.0.1:3000";
    let socket = to("127.0.0.1:51234", with(dead, tcp(at)));
    refused(tcp("0.0.0.0:3000"), vec![held(State::TimeWait, socket)])
}

fn connection(state: State, port: u16) -> Facts {
    let at = format!("10.0.0.5:{port}");
    let socket = to("93.184.216.34:443", tcp(&at));
    refused(tcp(&format!("0.0.0.0:{port}")), vec![held(state, socket)])
}

fn worker(pid: u32) -> Actor {
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

fn siblings() -> Facts {
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

fn stale() -> Facts {
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

fn first(facts: &mut Facts) -> &mut Held {
    &mut facts.holders[0]
}

fn reuseport(newcomer: u16, holder: u16) -> Facts {
    let at = "0.0.0.0:3000";
    let holder = held(State::Listen, with(holder, tcp(at)));
    refused(with(newcomer, tcp(at)), vec![holder])
}

/// Facts that give a cause, the cause, and facts that differ a little, with what they give.
fn table() -> Vec<(Cause, Facts, Cause, Facts)> {
    let at = "0.0.0.0:3000";
    let specific = "127.0.0.1:3000";
    vec![
        (
            Cause::Listener,
            listener(),
            Cause::Unknown,
            but(listener(), |facts| facts.holders.clear()),
        ),
        (
            Cause::EphemeralCollision,
            connection(State::Established, 45_000),
            Cause::LingeringConnection,
            but(connection(State::Established, 45_000), |facts| {
                first(facts).origin = Some(Origin::Accepted);
            }),
        ),
        (
            Cause::TimeWait,
            time_wait(REUSEADDR),
            Cause::TimeWaitNoReuse,
            time_wait(0),
        ),
        (
            Cause::TimeWaitNoReuse,
            but(time_wait(0), |facts| {
                facts.socket.options = Options(REUSEADDR);
            }),
            Cause::TimeWait,
            time_wait(REUSEADDR),
        ),
        (
            Cause::LingeringConnection,
            connection(State::CloseWait, 3000),
            // The listener is there: it is what has to go.
            Cause::Listener,
            but(connection(State::CloseWait, 3000), |facts| {
                facts.holders.push(held(State::Listen, tcp(at)));
            }),
        ),
        (
            Cause::BoundNotListening,
            refused(tcp(at), vec![held(State::Bound, tcp(at))]),
            Cause::Listener,
            listener(),
        ),
        (
            Cause::InheritedListener,
            but(listener(), |facts| {
                first(facts).binder = Some(actor(3990, "sh", Process::default()));
            }),
            Cause::Listener,
            but(listener(), |facts| first(facts).binder = Some(node())),
        ),
        (
            Cause::NoProcess,
            but(listener(), |facts| {
                first(facts).holder.ownership = Ownership::None;
                first(facts).holder.processes.clear();
            }),
            Cause::Listener,
            but(listener(), |facts| {
                first(facts).holder.ownership = Ownership::LastKnown;
            }),
        ),
        (
            Cause::ExitingHolder,
            but(listener(), |facts| first(facts).exiting = true),
            Cause::Listener,
            listener(),
        ),
        (
            Cause::LostRace,
            but(listener(), |facts| {
                facts.probe = Some(Probe {
                    process: actor(4312, "node", Process::default()),
                    released_at: ago(2600),
                });
            }),
            // The holder was there before the port was found free: on another address.
            Cause::Listener,
            but(listener(), |facts| {
                facts.probe = Some(Probe {
                    process: actor(4312, "node", Process::default()),
                    released_at: ago(200),
                });
            }),
        ),
        (
            Cause::Sibling,
            siblings(),
            Cause::Listener,
            but(siblings(), |facts| facts.job = None),
        ),
        (
            Cause::ListenConflict,
            but(reuseport(REUSEADDR, REUSEADDR), |facts| {
                facts.call = Call::Listen;
            }),
            Cause::Listener,
            reuseport(REUSEADDR, REUSEADDR),
        ),
        (
            Cause::DualStack,
            refused(tcp(at), vec![held(State::Listen, tcp("[::]:3000"))]),
            // The kernel would not have been in the way of it, and it was not asked under its lock.
            Cause::Unknown,
            but(
                refused(
                    tcp(at),
                    vec![held(State::Listen, with(V6ONLY, tcp("[::]:3000")))],
                ),
                |facts| facts.evidence = Some(Evidence::Walked),
            ),
        ),
        (
            Cause::WildcardOverlap,
            refused(tcp(specific), vec![held(State::Listen, tcp(at))]),
            Cause::Listener,
            refused(tcp(specific), vec![held(State::Listen, tcp(specific))]),
        ),
        (
            Cause::ReuseportUid,
            but(reuseport(REUSEPORT, REUSEPORT), |facts| facts.uid = Some(0)),
            Cause::ReuseportOneSided,
            but(reuseport(REUSEPORT, 0), |facts| facts.uid = Some(0)),
        ),
        (
            Cause::ReuseportOneSided,
            reuseport(0, REUSEPORT),
            Cause::Listener,
            reuseport(0, 0),
        ),
        (
            Cause::SocketActivation,
            but(listener(), |facts| {
                let systemd = actor(1, "systemd", Process::default());
                facts.holders = vec![of(systemd, held(State::Listen, tcp(at)))];
                first(facts).socket_unit = Some("cups.socket".into());
            }),
            Cause::Listener,
            listener(),
        ),
        (
            Cause::PublishedPort,
            but(listener(), |facts| {
                let proxy = actor(880, "docker-proxy", Process::default());
                facts.holders = vec![of(proxy, held(State::Listen, tcp(at)))];
                first(facts).holder.publishes = Some(Publishes {
                    container: container(),
                    port: 80,
                });
            }),
            Cause::Listener,
            listener(),
        ),
        (
            Cause::HostNetwork,
            but(listener(), |facts| {
                facts.host_netns = Some(4_026_531_840);
                let process = Process {
                    container: Some(container()),
                    ..Process::default()
                };
                first(facts).holder.processes = vec![actor(3998, "nginx", process)];
            }),
            // A network of its own.
            Cause::Listener,
            but(listener(), |facts| {
                facts.host_netns = Some(1);
                let process = Process {
                    container: Some(container()),
                    ..Process::default()
                };
                first(facts).holder.processes = vec![actor(3998, "nginx", process)];
            }),
        ),
        (
            Cause::StaleJob,
            stale(),
            // A service of its own is an orphan too.
            Cause::Listener,
            but(stale(), |facts| {
                let process = Process {
                    unit: Some("tomcat.service".into()),
                    ..(*first(facts).holder.processes[0].process).clone()
                };
                first(facts).holder.processes[0].process = Arc::new(process);
            }),
        ),
        (
            Cause::KernelSocket,
            but(listener(), |facts| {
                let udp = Socket {
                    transport: Some(Transport::Udp),
                    ..tcp("0.0.0.0:51820")
                };
                facts.socket = udp.clone();
                facts.holders = vec![held(State::Bound, udp)];
                first(facts).holder.ownership = Ownership::None;
                first(facts).holder.processes.clear();
                first(facts).kernel = Some(KernelSocket {
                    protocol: None,
                    interface: Some("wg0".into()),
                });
            }),
            Cause::NoProcess,
            but(listener(), |facts| {
                first(facts).holder.ownership = Ownership::None;
                first(facts).holder.processes.clear();
            }),
        ),
        (
            Cause::PortRangeExhausted,
            but(refused(tcp("0.0.0.0:0"), Vec::new()), |facts| {
                facts.range = Some(RangeUse {
                    used: 28_232,
                    timewait: 27_900,
                    most: Some((node(), 210)),
                });
            }),
            Cause::Unknown,
            refused(tcp("0.0.0.0:40000"), Vec::new()),
        ),
        (
            Cause::BoundDevice,
            refused(tcp(at), vec![held(State::Listen, on("eth0", tcp(at)))]),
            Cause::Listener,
            refused(
                on("eth0", tcp(at)),
                vec![held(State::Listen, on("eth0", tcp(at)))],
            ),
        ),
        (
            Cause::UnixPath,
            but(refused(path("/run/app.sock"), Vec::new()), |facts| {
                facts.path = Some(PathState::Stale);
            }),
            Cause::UnixAbstract,
            refused(abstract_name("app"), Vec::new()),
        ),
        (
            Cause::UnixAbstract,
            refused(
                abstract_name("app"),
                vec![held(State::Listen, abstract_name("app"))],
            ),
            Cause::UnixPath,
            refused(
                path("/run/app.sock"),
                vec![held(State::Listen, path("/run/app.sock"))],
            ),
        ),
        (
            Cause::SyscallFiltered,
            but(refused(tcp(at), Vec::new()), |facts| {
                facts.reached_kernel = Some(false);
            }),
            Cause::Unknown,
            refused(tcp(at), Vec::new()),
        ),
        (
            Cause::PrivilegedPort,
            but(failed(libc::EACCES, tcp("0.0.0.0:80")), |facts| {
                facts.may_bind_low = Some(false);
            }),
            Cause::SecurityPolicy,
            but(failed(libc::EACCES, tcp("0.0.0.0:80")), |facts| {
                facts.may_bind_low = Some(true);
            }),
        ),
        (
            Cause::SecurityPolicy,
            failed(libc::EPERM, tcp(at)),
            Cause::Unknown,
            failed(libc::EACCES, path("/run/app.sock")),
        ),
        (
            Cause::AddressNotLocal,
            but(failed(libc::EADDRNOTAVAIL, tcp("10.9.9.9:3000")), |facts| {
                let has = ["127.0.0.1", "10.0.0.5"].map(|text| text.parse().unwrap());
                facts.address_fault = Some(AddressFault::Absent(has.to_vec()));
            }),
            Cause::Unknown,
            failed(libc::EAFNOSUPPORT, tcp(at)),
        ),
        (
            Cause::AlreadyBound,
            but(failed(libc::EINVAL, tcp(at)), |facts| {
                facts.already = tcp("0.0.0.0:8080").local;
            }),
            Cause::Unknown,
            failed(libc::EINVAL, tcp(at)),
        ),
        (
            Cause::Unknown,
            but(refused(tcp(at), Vec::new()), |facts| {
                facts.no_holder = Some("the table of ports could not be read".into());
            }),
            Cause::Listener,
            listener(),
        ),
    ]
}

#[test]
fn every_cause_by_its_facts() {
    let mut seen = BTreeSet::new();
    for (cause, facts, other, others_facts) in table() {
        assert_eq!(diagnose(&facts).cause, cause, "{facts:#?}");
        assert_eq!(
            diagnose(&others_facts).cause,
            other,
            "not {cause:?}: {others_facts:#?}"
        );
        assert!(seen.insert(cause), "{cause:?} twice");
        assert_ne!(cause, other);
    }
    assert_eq!(seen.len(), Cause::ALL.len());
}

#[test]
fn the_words_of_every_cause() {
    let mut words = String::new();
    for (_, facts, _, others_facts) in table() {
        for facts in [facts, others_facts] {
            let Conflict {
                cause,
                summary,
                advice,
                ..
            } = diagnose(&facts);
            words.push_str(&format!("{}\n  {summary}\n  {advice}\n", cause.id()));
        }
    }
    insta::assert_snapshot!(words);
}

#[test]
fn no_advice_misleads() {
    for (_, facts, _, others_facts) in table() {
        for facts in [facts, others_facts] {
            let conflict = diagnose(&facts);
            assert!(!conflict.advice.contains("kill -9"), "{conflict:?}");
            assert!(!conflict.advice.contains("SIGKILL"), "{conflict:?}");
            if conflict.cause == Cause::TimeWaitNoReuse {
                assert!(!conflict.advice.contains("SO_REUSEADDR"), "{conflict:?}");
            }
            for text in [&conflict.summary, &conflict.advice] {
                assert!(!text.is_empty() && !text.ends_with('.') && !text.contains('\n'));
            }
        }
    }
}

/// A closed connection's socket that had SO_REUSEPORT lets one with it in, of whatever user.
#[test]
fn reuseport_of_a_dead_socket_is_advised() {
    let conflict = diagnose(&time_wait(REUSEPORT));
    assert_eq!(conflict.cause, Cause::TimeWaitNoReuse);
    assert_eq!(
        conflict.advice,
        "set SO_REUSEPORT on the new socket before bind, as the closed one had it, or wait 41.2 s"
    );
}

#[test]
fn reserved_ports_are_added_to() {
    let facts = but(connection(State::SynSent, 45_000), |facts| {
        facts.sysctls.local_reserved_ports = Some("8080,9000-9005\n".into());
    });
    let advice = diagnose(&facts).advice;
    let expected =
        "sysctl -w net.ipv4.ip_local_reserved_ports=8080,9000-9005,45000 (now 8080,9000-9005)";
    assert!(advice.ends_with(expected), "{advice}");
}

/// The longest of the waits is the one that counts.
#[test]
fn many_timewaits_free_the_port_together() {
    let facts = but(time_wait(REUSEADDR), |facts| {
        let mut later = facts.holders[0].clone();
        later.holder.expires_in_ms = Some(59_000);
        facts.holders.push(later);
    });
    let conflict = diagnose(&facts);
    assert!(conflict.summary.starts_with("2 closed connections wait on"));
    assert!(
        conflict.advice.ends_with("or wait 59 s"),
        "{}",
        conflict.advice
    );
}

/// What stands in the way comes first; what does not is told after it.
#[test]
fn the_holder_that_decided_comes_first() {
    let other = held(State::Listen, tcp("10.0.0.5:3000"));
    let decider = held(State::Listen, tcp("127.0.0.1:3000"));
    let mut facts = refused(tcp("127.0.0.1:3000"), vec![other.clone(), decider.clone()]);
    facts.evidence = Some(Evidence::Walked);
    let conflict = diagnose(&facts);
    assert_eq!(conflict.cause, Cause::Listener);
    assert_eq!(conflict.holders, [decider.holder, other.holder.clone()]);
    assert_eq!(conflict.evidence, Some(Evidence::Walked));
    // A wrong holder is worse than none.
    facts.holders = vec![other];
    let conflict = diagnose(&facts);
    assert_eq!(conflict.cause, Cause::Unknown);
    assert_eq!((conflict.holders, conflict.evidence), (Vec::new(), None));
}

/// A name that a shell would act on is not put into a command.
#[test]
fn hostile_names_make_no_commands() {
    let facts = but(listener(), |facts| {
        let hostile = Container {
            name: Some("x; rm -rf ~".into()),
            image: None,
            labels: BTreeMap::new(),
            ..container()
        };
        let process = Process {
            container: Some(hostile),
            ..Process::default()
        };
        first(facts).holder.processes = vec![actor(3998, "node", process)];
    });
    assert_eq!(
        diagnose(&facts).advice,
        "stop container x; rm -rf ~ (docker stop 3f4e8a1b2c5d), or use another port"
    );
}
