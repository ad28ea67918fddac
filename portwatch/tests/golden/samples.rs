//! One event of every kind and shape, for the tests of the sinks.

use std::collections::BTreeMap;
use std::sync::Arc;

use portwatch::event::{
    AbstractText, Actor, Address, Ancestor, Bind, Body, Cause, Conflict, Container, End, Event,
    Evidence, Family, HeldSocket, Holder, LastUse, LastUser, Listed, Listen, Lost, Missing,
    Newcomer, Options, Outcome, Ownership, PathText, Phase, Place, Pod, PortRange, Process,
    Published, PublishedPort, Publishes, Reason, Release, Result, Socket, Start, State, Step, Time,
    Timewait, Timewaits, Transport, Why,
};
use portwatch_common::record::option;

/// A port that a listener has, a connection that waits, and a container without a socket.
pub fn why() -> Why {
    let listening = Socket {
        state: Some(State::Listen),
        ..tcp6("::", 3000, 0)
    };
    let waiting = Socket {
        state: Some(State::TimeWait),
        remote: Some(Address::v4([127, 0, 0, 1], 51_234)),
        ..tcp4([127, 0, 0, 1], 3000)
    };
    let holder = |socket, ownership, processes| Holder {
        socket: HeldSocket {
            socket,
            uid: Some(1001),
        },
        ownership: Some(ownership),
        bound_at: None,
        expires_in_ms: None,
        processes,
        publishes: None,
    };
    let newcomer = |address: &str, options, cause: Option<Cause>| Newcomer {
        address: address.parse().unwrap(),
        options: Options(options),
        uid: 1001,
        result: cause.map_or_else(ok, |_| failed("EADDRINUSE", 98)),
        cause,
    };
    let dual_stack = Some(Cause::DualStack);
    Why {
        port: 3000,
        held: true,
        places: vec![Place {
            transport: Transport::Tcp,
            netns: 4_026_531_840,
            netns_name: None,
            host: true,
            holders: vec![
                holder(
                    listening,
                    Ownership::Verified,
                    vec![actor(3998, HOSTILE, runner())],
                ),
                Holder {
                    expires_in_ms: Some(41_200),
                    ..holder(waiting, Ownership::None, Vec::new())
                },
            ],
            newcomers: vec![
                newcomer("0.0.0.0", 0, dual_stack),
                newcomer("0.0.0.0", option::REUSEADDR, dual_stack),
                newcomer("::1", 0, Some(Cause::WildcardOverlap)),
                newcomer("::1", option::REUSEADDR, None),
            ],
            conflict: Some(Conflict {
                cause: Cause::DualStack,
                summary: "a listener on [::] without IPV6_V6ONLY also covers 0.0.0.0".into(),
                advice: "stop 3998 (kill 3998)".into(),
                evidence: None,
                holders: Vec::new(),
                publishes: None,
            }),
            range: PortRange {
                ephemeral: true,
                ..PortRange::default()
            },
        }],
        published: vec![Published {
            container: contained().container.unwrap(),
            pod: None,
            protocol: "tcp".into(),
            address: Some([0, 0, 0, 0].into()),
            port: 80,
            by_socket: false,
        }],
        last_use: Some(LastUse {
            time: Time(NOON),
            event: "release".into(),
            transport: Some("tcp".into()),
            process: Some(LastUser {
                pid: 7,
                comm: "node".into(),
                args: vec!["node".into(), HOSTILE.into()],
            }),
        }),
        range: PortRange::default(),
    }
}

/// 2026-11-22T12:03:09.114907113Z
pub const NOON: i64 = 1_795_348_989_114_907_113;

const MS: i64 = 1_000_000;

const CONTAINER_ID: &str = "3f4e8a1b2c5d60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f9";

pub fn ok() -> Result {
    Result {
        outcome: Outcome::Success,
        error: None,
        errno: None,
    }
}

pub fn failed(error: &'static str, errno: i32) -> Result {
    Result {
        outcome: Outcome::Failure,
        error: Some(error.into()),
        errno: Some(errno),
    }
}

/// A socket with nothing but what a column of text needs.
pub fn socket(transport: Transport, family: Family, local: Address) -> Socket {
    Socket {
        transport: Some(transport),
        family: Some(family),
        local: Some(local),
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

/// A socket of a list.
pub fn listed(socket: Socket, processes: Vec<Actor>) -> Listed {
    Listed {
        socket: HeldSocket {
            socket,
            uid: Some(0),
        },
        ownership: Some(if processes.is_empty() {
            Ownership::None
        } else {
            Ownership::Verified
        }),
        expires_in_ms: None,
        processes,
        publishes: None,
        netns_name: None,
    }
}

/// A port of a container.
pub fn web() -> Publishes {
    Publishes {
        container: container(Some("web-1")),
        pod: None,
        port: Some(80),
    }
}

/// An IPv4 TCP socket.
pub fn tcp4(address: [u8; 4], port: u16) -> Socket {
    socket(Transport::Tcp, Family::Ipv4, Address::v4(address, port))
}

/// An IPv6 TCP socket.
pub fn tcp6(address: &str, port: u16, scope: u32) -> Socket {
    let address: std::net::Ipv6Addr = address.parse().unwrap();
    socket(
        Transport::Tcp,
        Family::Ipv6,
        Address::v6(address.octets(), port, scope),
    )
}

fn container(name: Option<&str>) -> Container {
    Container {
        runtime: "docker".into(),
        id: CONTAINER_ID.into(),
        name: name.map(Into::into),
        image: Some("nginx:1.27".into()),
        labels: BTreeMap::from([("com.docker.compose.project".into(), "shop".into())]),
    }
}

/// A process and its thread, in a container or a unit.
pub fn actor(pid: u32, comm: &str, process: Process) -> Actor {
    Actor {
        pid,
        tid: Some(pid),
        comm: comm.into(),
        comm_hex: None,
        uid: 1001,
        start_time: Time(NOON - 182 * MS),
        gid: 1001,
        job: None,
        process: Arc::new(process),
    }
}

/// A process of which everything usual is known.
pub fn runner() -> Process {
    let ancestor = |pid, comm: &str| Ancestor {
        pid,
        comm: comm.into(),
        comm_hex: None,
    };
    Process {
        args: Some(vec![
            "node".into(),
            "--enable-source-maps".into(),
            "/srv/app/server.js".into(),
            "--port=3000".into(),
        ]),
        exe: Some("/usr/bin/node".into()),
        netns: Some(4_026_531_840),
        pidns: Some(4_026_531_836),
        mntns: Some(4_026_531_841),
        ancestors: vec![
            ancestor(4300, "npm"),
            ancestor(4290, "bash"),
            ancestor(812, "Runner.Worker"),
            ancestor(640, "Runner.Listener"),
            ancestor(1, "systemd"),
        ],
        cgroup: Some("/system.slice/ci-runner.service".into()),
        unit: Some("ci-runner.service".into()),
        ..Process::default()
    }
}

pub fn contained() -> Process {
    Process {
        namespace_pid: Some(7),
        container: Some(container(Some("web-1"))),
        unit: Some("docker.service".into()),
        ..Process::default()
    }
}

/// A process of a pod of Kubernetes.
pub fn in_pod() -> Process {
    Process {
        container: Some(Container {
            runtime: "containerd".into(),
            labels: BTreeMap::new(),
            ..container(Some("nginx"))
        }),
        pod: Some(Pod {
            namespace: Some("shop".into()),
            name: "web-7d9f".into(),
            uid: Some("2f9e1a7c-6b0d-4c57-9e58-0d6f3b1f2a11".into()),
            container: Some("nginx".into()),
        }),
        ..Process::default()
    }
}

fn unit(name: &str) -> Process {
    Process {
        unit: Some(name.into()),
        ..Process::default()
    }
}

/// A bind that is refused: the usual event.
pub fn bind_failure() -> Body {
    Body::Bind(Bind {
        result: failed("EADDRINUSE", 98),
        socket: Socket {
            options: Options(option::REUSEADDR),
            cookie: Some(4711),
            inode: Some(88_321),
            ..tcp4([0, 0, 0, 0], 3000)
        },
        requested: None,
        autobind: false,
        conflict: None,
        process: Some(actor(4312, "node", runner())),
    })
}

/// A granted bind.
fn bind(socket: Socket, process: Option<Actor>) -> Body {
    Body::Bind(Bind {
        result: ok(),
        socket,
        requested: None,
        autobind: false,
        conflict: None,
        process,
    })
}

/// What a bind got, having asked for something else.
fn bind_requested(socket: Socket, requested: Address) -> Body {
    Body::Bind(Bind {
        result: ok(),
        socket,
        requested: Some(requested),
        autobind: false,
        conflict: None,
        process: Some(actor(4400, "curl", unit("user@1000.service"))),
    })
}

/// A connection in TIME_WAIT.
fn timewait() -> Timewait {
    Timewait {
        phase: Phase::Enter,
        socket: Socket {
            remote: Some(Address::v4([127, 0, 0, 1], 51_234)),
            state: Some(State::TimeWait),
            ..tcp4([127, 0, 0, 1], 3000)
        },
        expires_in_ms: Some(60_000),
        fin_wait2_ms: None,
        reason: None,
        lasted_ms: None,
        process: Some(actor(3998, "node", contained())),
    }
}

fn timewait_exit(reason: Option<Reason>, lasted_ms: Option<u64>) -> Body {
    Body::Timewait(Timewait {
        phase: Phase::Exit,
        expires_in_ms: None,
        reason,
        lasted_ms,
        ..timewait()
    })
}

/// A name that would move the cursor, turn the reading direction and forge a line.
pub const HOSTILE: &str = "\x1b[2J\u{202e}a\r\n\t\\b";

fn hostile() -> Process {
    Process {
        args: Some(vec![HOSTILE.into(), "".into(), "\u{fffd}".into()]),
        args_hex: Some(vec!["1b5b324a".into(), String::new(), "ff".into()]),
        args_truncated: true,
        exe: Some("/tmp/\u{7f} (deleted)".into()),
        unit: Some("evil\u{85}\u{2028}.service".into()),
        ..Process::default()
    }
}

/// Every kind and shape of event with a name, in the order of a stream.
pub fn samples() -> Vec<(&'static str, Event)> {
    let unix = |local| Socket {
        transport: Some(Transport::Stream),
        ..socket(Transport::Stream, Family::Unix, local)
    };
    let path = |path: &str, hex: Option<&str>| Address::Path {
        path: PathText {
            path: path.into(),
            path_hex: hex.map(Into::into),
        },
    };
    let bodies = [
        (
            "start",
            Body::Start(Start {
                version: "0.1.0".into(),
                backend: "tracepoint".into(),
                parts: BTreeMap::from([
                    ("bind".into(), "tracepoint".into()),
                    ("timewait".into(), "fentry".into()),
                ]),
                steps: vec![Step {
                    part: "bind".into(),
                    backend: "fentry".into(),
                    why: "did not fire in the self-test: bind".into(),
                }],
                kernel: "6.18.44".into(),
                boot_id: Some("6cbdd4f4-30a2-4a6f-8c5c-6d0ab7a0b1c2".into()),
                netns: Some(4_026_531_840),
                local_port_range: Some((32_768, 60_999)),
                local_reserved_ports: Some("8080,9000-9010".to_owned()),
                filters: BTreeMap::from([("port".into(), vec!["3000".into(), "8000-8100".into()])]),
                missing: vec![Missing {
                    what: "binds of 32-bit programs".into(),
                    why: "CONFIG_COMPAT is off".into(),
                }],
            }),
        ),
        (
            "bind dual stack",
            bind(tcp6("::", 3000, 0), Some(actor(3998, "node", contained()))),
        ),
        ("bind failure", bind_failure()),
        (
            "bind refused by permission",
            Body::Bind(Bind {
                result: failed("EACCES", 13),
                socket: socket(Transport::Udp, Family::Ipv4, Address::v4([0, 0, 0, 0], 53)),
                requested: None,
                autobind: false,
                conflict: None,
                process: Some(actor(77, "dnsmasq", Process::default())),
            }),
        ),
        (
            "bind port 0",
            bind_requested(tcp4([127, 0, 0, 1], 43_211), Address::v4([127, 0, 0, 1], 0)),
        ),
        (
            "bind other address",
            bind_requested(tcp4([127, 0, 0, 1], 8080), Address::v4([0, 0, 0, 0], 8080)),
        ),
        (
            "bind to device",
            bind(
                Socket {
                    bound_device: Some("eth0".into()),
                    ..tcp4([127, 0, 0, 1], 3000)
                },
                None,
            ),
        ),
        (
            "bind to device on IPv6",
            bind(
                Socket {
                    bound_device: Some("eth0".into()),
                    transport: Some(Transport::Mptcp),
                    ..tcp6("fe80::1", 3000, 3)
                },
                None,
            ),
        ),
        ("bind link-local", bind(tcp6("fe80::1", 3000, 3), None)),
        (
            "bind not a socket",
            Body::Bind(Bind {
                result: failed("ENOTSOCK", 88),
                socket: Socket {
                    transport: None,
                    family: None,
                    local: None,
                    netns: None,
                    ..tcp4([0; 4], 0)
                },
                requested: Some(Address::v4([127, 0, 0, 1], 22)),
                autobind: false,
                conflict: None,
                process: Some(actor(1_234_567, "a comm with sp", unit("cron.service"))),
            }),
        ),
        (
            "bind raw",
            bind(
                socket(
                    Transport::Raw,
                    Family::Ipv6,
                    Address::v6(std::net::Ipv6Addr::LOCALHOST.octets(), 0, 0),
                ),
                None,
            ),
        ),
        (
            "bind unknown protocol",
            bind(
                socket(
                    Transport::Other(255),
                    Family::Ipv4,
                    Address::v4([10, 0, 0, 1], 1),
                ),
                None,
            ),
        ),
        (
            "bind long address",
            bind(
                tcp6("2001:db8:1111:2222:3333:4444:5555:6666", 65_535, 0),
                Some(actor(
                    3998,
                    "node",
                    Process {
                        container: Some(container(None)),
                        ..Process::default()
                    },
                )),
            ),
        ),
        ("bind after the long address", bind_failure()),
        (
            "bind unix path",
            bind(
                unix(path("/run/app.sock", None)),
                Some(actor(51, "app", unit("app.service"))),
            ),
        ),
        (
            "bind unix long path",
            bind(
                unix(path(
                    "/var/lib/kubelet/plugins/kubernetes.io/csi/registration-a/csi.sock",
                    None,
                )),
                Some(actor(51, "app", unit("app.service"))),
            ),
        ),
        (
            "bind unix abstract",
            bind(
                unix(Address::Abstract {
                    name: AbstractText {
                        name: "/tmp/.X11-unix/X0".into(),
                        name_hex: None,
                    },
                }),
                Some(actor(900, "Xorg", Process::default())),
            ),
        ),
        (
            "bind unix autobind",
            bind_requested(
                unix(Address::Abstract {
                    name: AbstractText {
                        name: "00001".into(),
                        name_hex: None,
                    },
                }),
                Address::Unnamed { unnamed: true },
            ),
        ),
        (
            "bind hostile",
            bind(
                unix(path(
                    "/tmp/\u{fffd}\u{1b}]0;pwned\u{7}",
                    Some("2f746d702fff1b5d303b70776e656407"),
                )),
                Some(Actor {
                    comm_hex: Some("1b5b324a".into()),
                    ..actor(666, HOSTILE, hostile())
                }),
            ),
        ),
        (
            "listen",
            Body::Listen(Listen {
                result: ok(),
                socket: Socket {
                    state: Some(State::Listen),
                    options: Options(option::REUSEADDR | option::V6ONLY),
                    ..tcp6("::", 3000, 0)
                },
                backlog: 511,
                conflict: None,
                process: Some(actor(3998, "node", contained())),
            }),
        ),
        (
            "listen failure",
            Body::Listen(Listen {
                result: failed("EADDRINUSE", 98),
                socket: tcp4([0, 0, 0, 0], 3000),
                backlog: 128,
                conflict: None,
                process: Some(actor(4312, "node", runner())),
            }),
        ),
        (
            "release",
            Body::Release(Release {
                socket: tcp4([0, 0, 0, 0], 3000),
                bound_at: Some(Time(NOON - 2400 * MS)),
                held_ms: Some(2400),
                binder: Some(actor(3998, "node", contained())),
                process: Some(actor(4001, "worker", contained())),
            }),
        ),
        (
            "release of unknown beginning",
            Body::Release(Release {
                socket: tcp4([0, 0, 0, 0], 3000),
                bound_at: None,
                held_ms: None,
                binder: None,
                process: None,
            }),
        ),
        ("timewait enter", Body::Timewait(timewait())),
        (
            "timewait enter after FIN_WAIT2",
            Body::Timewait(Timewait {
                fin_wait2_ms: Some(850),
                process: None,
                ..timewait()
            }),
        ),
        (
            "timewait expired",
            timewait_exit(Some(Reason::Expired), Some(60_004)),
        ),
        (
            "timewait reused",
            timewait_exit(Some(Reason::Reused), Some(12_300)),
        ),
        ("timewait reset", timewait_exit(Some(Reason::Reset), None)),
        (
            "timewait purged",
            timewait_exit(Some(Reason::Purged), Some(999)),
        ),
        ("timewait left", timewait_exit(None, Some(12_345))),
        (
            "lost ring",
            Body::Lost(Lost {
                count: 120,
                place: "ring".into(),
                of: BTreeMap::from([("bind".into(), 100), ("release".into(), 20)]),
            }),
        ),
        (
            "lost bound",
            Body::Lost(Lost {
                count: 1,
                place: "bound".into(),
                of: BTreeMap::new(),
            }),
        ),
        (
            "end",
            Body::End(End {
                counts: [("bind", 4), ("listen", 2), ("lost", 1), ("release", 6)]
                    .map(|(kind, count)| (kind.into(), count))
                    .into(),
                failed: 1,
                without_holder: 0,
                lost: BTreeMap::new(),
                duration_ms: 3200,
            }),
        ),
        (
            "end with losses",
            Body::End(End {
                counts: BTreeMap::from([("timewait".into(), 1)]),
                failed: 9,
                without_holder: 2,
                lost: BTreeMap::from([
                    ("lookup".into(), 7),
                    ("recursion".into(), 3),
                    ("ring".into(), 120),
                ]),
                duration_ms: 720_000,
            }),
        ),
        (
            "bind rewritten by a cgroup program",
            Body::Bind(Bind {
                result: failed("EADDRINUSE", 98),
                socket: tcp4([127, 0, 0, 2], 8081),
                requested: Some(Address::v4([0, 0, 0, 0], 8080)),
                autobind: false,
                conflict: None,
                process: Some(actor(4400, "web", Process::default())),
            }),
        ),
        (
            "bind of the kernel's own",
            bind(
                Socket {
                    kernel: true,
                    ..socket(Transport::Udp, Family::Ipv4, Address::v4([0; 4], 4789))
                },
                Some(actor(4401, "ip", Process::default())),
            ),
        ),
        (
            "autobind",
            Body::Bind(Bind {
                result: failed("EADDRNOTAVAIL", 99),
                socket: Socket {
                    remote: Some(Address::v4([127, 0, 0, 1], 5432)),
                    ..tcp4([127, 0, 0, 1], 0)
                },
                requested: None,
                autobind: true,
                conflict: None,
                process: Some(actor(4402, "psql", Process::default())),
            }),
        ),
        (
            "bind with the holder",
            Body::Bind(Bind {
                result: failed("EADDRINUSE", 98),
                socket: tcp4([0, 0, 0, 0], 3000),
                requested: None,
                autobind: false,
                conflict: Some(Box::new(Conflict {
                    cause: Cause::DualStack,
                    summary: "node[3998] listens on [::] without IPV6_V6ONLY".into(),
                    advice: "stop it".into(),
                    evidence: Some(Evidence::Locked),
                    holders: vec![Holder {
                        socket: HeldSocket {
                            socket: Socket {
                                state: Some(State::Listen),
                                ..tcp6("::", 3000, 0)
                            },
                            uid: Some(1000),
                        },
                        ownership: Some(Ownership::Verified),
                        bound_at: Some(Time(NOON)),
                        expires_in_ms: None,
                        processes: vec![actor(3998, "node", contained())],
                        publishes: None,
                    }],
                    publishes: None,
                })),
                process: Some(actor(4312, "node", runner())),
            }),
        ),
        (
            "bind of a runtime for a container, refused by a pod",
            Body::Bind(Bind {
                result: failed("EADDRINUSE", 98),
                socket: tcp4([0, 0, 0, 0], 3000),
                requested: None,
                autobind: false,
                conflict: Some(Box::new(Conflict {
                    cause: Cause::DualStack,
                    summary: "node[3998] listens on [::] without IPV6_V6ONLY".into(),
                    advice: "stop it".into(),
                    evidence: Some(Evidence::Locked),
                    holders: vec![Holder {
                        socket: HeldSocket {
                            socket: Socket {
                                state: Some(State::Listen),
                                ..tcp6("::", 3000, 0)
                            },
                            uid: Some(1000),
                        },
                        ownership: Some(Ownership::Verified),
                        bound_at: Some(Time(NOON)),
                        expires_in_ms: None,
                        processes: vec![actor(3998, "nginx", in_pod())],
                        publishes: None,
                    }],
                    publishes: Some(web()),
                })),
                process: Some(actor(4312, "node", runner())),
            }),
        ),
        (
            "socket of two processes",
            Body::Socket(listed(
                Socket {
                    state: Some(State::Listen),
                    options: Options(option::REUSEADDR | option::V6ONLY),
                    inode: Some(88_012),
                    ..tcp6("::", 443, 0)
                },
                vec![
                    actor(
                        812,
                        "nginx",
                        Process {
                            container: Some(container(Some("web-1"))),
                            ..Process::default()
                        },
                    ),
                    actor(813, HOSTILE, Process::default()),
                ],
            )),
        ),
        (
            "socket in TIME_WAIT",
            Body::Socket(Listed {
                netns_name: Some("blue".into()),
                expires_in_ms: Some(42_000),
                ..listed(
                    Socket {
                        state: Some(State::TimeWait),
                        remote: Some(Address::v4([127, 0, 0, 1], 5432)),
                        ..tcp4([127, 0, 0, 1], 40_000)
                    },
                    Vec::new(),
                )
            }),
        ),
        (
            "timewaits",
            Body::Timewaits(Timewaits {
                transport: Transport::Tcp,
                port: 3000,
                netns: 4_026_531_840,
                netns_name: None,
                count: 12,
                expires_in_ms: 59_000,
                ephemeral: false,
            }),
        ),
        (
            "socket of a published port",
            Body::Socket(Listed {
                publishes: Some(web()),
                ..listed(
                    tcp4([0, 0, 0, 0], 8080),
                    vec![actor(900, "docker-proxy", Process::default())],
                )
            }),
        ),
        (
            "published without a socket",
            Body::Published(Box::new(PublishedPort {
                transport: Transport::Tcp,
                address: Some([0, 0, 0, 0].into()),
                port: 8081,
                netns: Some(4_026_531_840),
                netns_name: None,
                publishes: Publishes {
                    container: container(Some(HOSTILE)),
                    ..web()
                },
            })),
        ),
        ("why", Body::Why(Box::new(why()))),
    ];
    bodies
        .into_iter()
        .zip(0..)
        .map(|((name, body), place)| {
            let time = Time(NOON + place * 17 * MS);
            (name, Event { time, body })
        })
        .collect()
}
