//! Each cause: facts that give it, and others like them, which do not.

use std::sync::Arc;

use portwatch_common::record::option::{REUSEADDR, REUSEPORT, V6ONLY};

use super::fixture::*;
use crate::diagnose::facts::{
    AddressFault, Call, Facts, KernelSocket, Origin, PathState, Probe, RangeUse,
};
use crate::event::{
    Cause, Evidence, Options, Ownership, Process, Publishes, Socket, State, Transport,
};

/// Facts that give a cause, the cause, and facts that differ a little, with what they give.
pub(super) fn table_of_causes() -> Vec<(Cause, Facts, Cause, Facts)> {
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
                first(facts).holder.ownership = Some(Ownership::None);
                first(facts).holder.processes.clear();
            }),
            Cause::Listener,
            but(listener(), |facts| {
                first(facts).holder.ownership = Some(Ownership::LastKnown);
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
                    pod: None,
                    port: Some(80),
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
                first(facts).holder.ownership = Some(Ownership::None);
                first(facts).holder.processes.clear();
                first(facts).kernel = Some(KernelSocket {
                    protocol: None,
                    interface: Some("wg0".into()),
                });
            }),
            Cause::NoProcess,
            but(listener(), |facts| {
                first(facts).holder.ownership = Some(Ownership::None);
                first(facts).holder.processes.clear();
            }),
        ),
        (
            Cause::PortRangeExhausted,
            but(refused(tcp("0.0.0.0:0"), Vec::new()), |facts| {
                facts.range = Some(RangeUse {
                    used: 28_232,
                    timewait: 27_900,
                    most: vec![(node(), 210), (actor(4100, "curl", Process::default()), 12)],
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
