//! From facts to causes and their words.

mod fixture;
mod table;

use std::collections::{BTreeMap, BTreeSet};

use jiff::tz::TimeZone;
use portwatch_common::record::option::{REUSEADDR, REUSEPORT};
use proptest::prelude::*;
use proptest::sample::select;

use self::fixture::*;
use self::table::table_of_causes;
use super::diagnose;
use super::facts::{Call, Facts, RangeUse, Tie};
use crate::event::{
    Actor, Cause, Conflict, Container, Evidence, Holder, Process, Socket, State, Transport,
};
use crate::kernel::sysctls::Sysctls;
use crate::sink::text::{Color, Text};

#[test]
fn every_cause_by_its_facts() {
    let mut seen = BTreeSet::new();
    for (cause, facts, other, others_facts) in table_of_causes() {
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

/// What stands below the refusal's line, for each cause.
#[test]
fn the_text_of_every_cause() {
    let table = Text::new(TimeZone::UTC, Color::Off);
    let mut text = Vec::new();
    for (_, facts, _, _) in table_of_causes() {
        table.explain(&diagnose(&facts), NOW, &mut text);
        text.push(b'\n');
    }
    insta::assert_snapshot!(String::from_utf8(text).unwrap());
}

/// Facts of the table with some of them exchanged, left out, or another's.
fn mixed() -> impl Strategy<Value = Facts> {
    let facts = || {
        let all: Vec<_> = table_of_causes()
            .into_iter()
            .flat_map(|(_, facts, _, others_facts)| [facts, others_facts])
            .collect();
        select(all)
    };
    let errno = select(vec![
        libc::EADDRINUSE,
        libc::EADDRINUSE,
        libc::EADDRINUSE,
        libc::EACCES,
        libc::EPERM,
        libc::EINVAL,
        libc::EADDRNOTAVAIL,
    ]);
    let evidence = select(vec![
        None,
        Some(Evidence::Locked),
        Some(Evidence::Walked),
        Some(Evidence::Userspace),
    ]);
    let call = select(vec![Call::Bind, Call::Listen]);
    let uid = select(vec![None, Some(0), Some(1000)]);
    (
        facts(),
        facts(),
        facts(),
        errno,
        evidence,
        call,
        uid,
        any::<bool>(),
    )
        .prop_map(
            |(base, other, third, errno, evidence, call, uid, bare)| Facts {
                errno,
                evidence,
                call,
                uid,
                holders: [base.holders.clone(), other.holders, third.holders.clone()].concat(),
                sysctls: if bare {
                    Sysctls::default()
                } else {
                    third.sysctls
                },
                job: other.job,
                probe: third.probe,
                process: if bare { None } else { base.process.clone() },
                ..base
            },
        )
}

proptest! {
    #[test]
    fn no_advice_misleads(facts in mixed()) {
        let conflict = diagnose(&facts);
        prop_assert!(!conflict.advice.contains("kill -9"), "{conflict:?}");
        prop_assert!(!conflict.advice.contains("SIGKILL"), "{conflict:?}");
        if conflict.cause == Cause::TimeWaitNoReuse {
            prop_assert!(!conflict.advice.contains("SO_REUSEADDR"), "{conflict:?}");
        }
        for text in [&conflict.summary, &conflict.advice] {
            prop_assert!(!text.is_empty() && !text.ends_with('.') && !text.contains('\n'));
        }
        prop_assert_eq!(conflict.evidence.is_some(), evidence_is_told(&facts, &conflict));
        // A socket that is told of was among the facts, once as often.
        for holder in &conflict.holders {
            let count = |all: &mut dyn Iterator<Item = &Holder>| all.filter(|h| *h == holder).count();
            let told = count(&mut conflict.holders.iter());
            prop_assert_eq!(told, count(&mut facts.holders.iter().map(|held| &held.holder)));
        }
    }
}

fn evidence_is_told(facts: &Facts, conflict: &Conflict) -> bool {
    facts.evidence.is_some() && !conflict.holders.is_empty()
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

/// Where a server forked and went on, FD_CLOEXEC would have changed nothing.
#[test]
fn a_daemon_is_not_told_of_close_on_exec() {
    let nginx = |pid, exe: &str| {
        let exe = Some(exe.into());
        let process = Process {
            exe,
            ..Process::default()
        };
        actor(pid, "nginx", process)
    };
    let advice = |holder| {
        let facts = but(listener(), |facts| {
            first(facts).binder = Some(nginx(3997, "/usr/sbin/nginx"));
            first(facts).holder.processes = vec![nginx(3998, holder)];
        });
        let conflict = diagnose(&facts);
        assert_eq!(conflict.cause, Cause::InheritedListener);
        conflict.advice
    };
    assert_eq!(
        advice("/usr/sbin/nginx"),
        "stop nginx[3998] (kill 3998): a daemon that went to the background, or a worker that \
         outlived its parent"
    );
    assert_eq!(
        advice("/usr/bin/sleep"),
        "stop nginx[3998] (kill 3998); open sockets with SOCK_CLOEXEC, so that no child gets them"
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

/// The kernel met a closed connection first, but a listener is there too: to wait would be in vain.
#[test]
fn what_is_hardest_to_get_around_is_told() {
    let at = "0.0.0.0:3000";
    let mut facts = time_wait(REUSEADDR);
    facts.holders.push(time_wait(0).holders.remove(0));
    assert_eq!(diagnose(&facts).cause, Cause::TimeWaitNoReuse);
    facts
        .holders
        .push(connection(State::CloseWait, 3000).holders.remove(0));
    assert_eq!(diagnose(&facts).cause, Cause::LingeringConnection);
    facts.holders.push(held(State::Listen, tcp(at)));
    let conflict = diagnose(&facts);
    assert_eq!(conflict.cause, Cause::Listener);
    let states: Vec<_> = conflict
        .holders
        .iter()
        .map(|h| h.socket.socket.state)
        .collect();
    use State::{CloseWait, Listen, TimeWait};
    assert_eq!(states, [Listen, TimeWait, TimeWait, CloseWait].map(Some));
}

/// The kernel's own word counts, even where the rules would have said otherwise.
#[test]
fn what_was_found_under_the_lock_is_believed() {
    let other = held(State::Listen, tcp("10.0.0.5:3000"));
    let facts = refused(tcp("127.0.0.1:3000"), vec![other]);
    assert_eq!(diagnose(&facts).cause, Cause::Listener);
}

#[test]
fn a_client_of_udp_has_an_ephemeral_port_and_a_server_has_not() {
    for (port, cause) in [(45_000, Cause::EphemeralCollision), (3000, Cause::Listener)] {
        let udp = Socket {
            transport: Some(Transport::Udp),
            ..tcp(&format!("127.0.0.1:{port}"))
        };
        let client = held(State::Established, to("127.0.0.53:53", udp.clone()));
        assert_eq!(diagnose(&refused(udp, vec![client])).cause, cause);
    }
}

/// Below 1024, but nobody knows whether the process had the capability.
#[test]
fn a_capability_that_is_not_known_is_not_missed() {
    let facts = failed(libc::EACCES, tcp("0.0.0.0:80"));
    assert_eq!(diagnose(&facts).cause, Cause::Unknown);
    let high = failed(libc::EACCES, tcp("0.0.0.0:8080"));
    assert_eq!(diagnose(&high).cause, Cause::SecurityPolicy);
}

/// A user's process that tries port 80 has mostly ended by the time it is looked at.
#[test]
fn a_capability_that_a_user_can_hardly_have_had() {
    let of = |uid| {
        let mut facts = failed(libc::EACCES, tcp("0.0.0.0:80"));
        facts.uid = Some(uid);
        facts.unseen = true;
        diagnose(&facts)
    };
    let conflict = of(1000);
    assert_eq!(conflict.cause, Cause::PrivilegedPort);
    assert_eq!(
        conflict.summary,
        "port 80 is below net.ipv4.ip_unprivileged_port_start (1024) and the process, of user 1000, \
         most likely lacked CAP_NET_BIND_SERVICE: it could not be looked at any more"
    );
    assert_eq!(of(0).cause, Cause::Unknown);
}

#[test]
fn the_last_of_an_odd_number_of_ports_is_never_tried() {
    let of = |last, used, reserved: &str| {
        let mut facts = refused(tcp("127.0.0.1:0"), Vec::new());
        facts.sysctls.local_port_range = Some(40_000..=last);
        facts.sysctls.local_reserved_ports = Some(reserved.to_owned());
        facts.range = Some(RangeUse {
            used,
            timewait: 0,
            most: Vec::new(),
        });
        diagnose(&facts).summary
    };
    let said = ": 2 of 3 are in use, and TCP never tries the last of an odd number, 0 in TIME_WAIT";
    assert!(of(40_002, 2, "").ends_with(said), "{}", of(40_002, 2, ""));
    for other in [
        of(40_003, 3, ""),
        of(40_002, 3, ""),
        of(40_002, 2, "40001\n"),
    ] {
        assert!(!other.contains("odd"), "{other}");
    }
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

/// What sock_diag tells has no options: none is blamed that was not seen.
#[test]
fn options_that_are_not_known_are_not_blamed() {
    let unknown = |mut facts: Facts| {
        first(&mut facts).options_unknown = true;
        diagnose(&facts)
    };
    assert_eq!(unknown(reuseport(REUSEPORT, 0)).cause, Cause::Listener);
    let waiting = unknown(time_wait(0));
    assert_eq!(waiting.cause, Cause::Unknown);
    assert!(
        waiting.summary.ends_with("with options that are not known"),
        "{waiting:?}"
    );
    let with_reuse = but(time_wait(0), |facts| {
        facts.socket.options = crate::event::Options(REUSEADDR);
    });
    assert_eq!(unknown(with_reuse).cause, Cause::TimeWaitNoReuse);
}

/// An unknown process is none that is not there.
#[test]
fn who_could_not_be_asked_for_is_not_said_to_be_nobody() {
    let facts = but(listener(), |facts| {
        first(facts).holder.ownership = None;
        first(facts).holder.processes.clear();
    });
    let conflict = diagnose(&facts);
    assert_eq!(conflict.cause, Cause::Listener);
    assert_eq!(
        conflict.summary,
        "an unknown process listens on 0.0.0.0:3000"
    );
}

/// With SO_REUSEADDR, as Node sets it, two workers may both get as far as listen(2): which of the two
/// calls is refused is a matter of who is faster, and no matter to whoever started them.
#[test]
fn listen_between_processes_of_one_job() {
    let refused_listen = |facts: Facts, tie| {
        let facts = but(facts, |facts| {
            facts.call = Call::Listen;
            first(facts).tie = tie;
        });
        diagnose(&facts).cause
    };
    let left = Tie::LeftOver {
        job_started_at: ago(1000),
    };
    assert_eq!(refused_listen(siblings(), None), Cause::Sibling);
    assert_eq!(
        refused_listen(listener(), Some(Tie::Sibling)),
        Cause::Sibling
    );
    assert_eq!(refused_listen(listener(), Some(left)), Cause::StaleJob);
    assert_eq!(refused_listen(listener(), None), Cause::ListenConflict);
}

/// A worker of the same program, and what was left over of an earlier job, as a live trace tells them.
#[test]
fn ties_between_processes_decide() {
    let tied = |tie| {
        let facts = but(listener(), |facts| first(facts).tie = Some(tie));
        diagnose(&facts)
    };
    assert_eq!(tied(Tie::Sibling).cause, Cause::Sibling);
    // Whoever has it itself, and a child that has not executed its program yet.
    let own = but(listener(), |facts| {
        let newcomer = facts.process.clone().unwrap();
        first(facts).holder.processes.push(newcomer);
        first(facts).tie = Some(Tie::Sibling);
    });
    assert_eq!(diagnose(&own).cause, Cause::Listener);
    // A container runtime binds for a container, whoever has started it.
    let publishing = but(listener(), |facts| {
        first(facts).tie = Some(Tie::Sibling);
        facts.publishes = Some(crate::event::Publishes {
            container: container(),
            pod: None,
            port: Some(80),
        });
    });
    assert_eq!(diagnose(&publishing).cause, Cause::Listener);
    let left = tied(Tie::LeftOver {
        job_started_at: ago(1000),
    });
    assert_eq!(left.cause, Cause::StaleJob);
    assert_eq!(
        left.summary,
        "node[3998], which has 0.0.0.0:3000, was started 4 s before this job and has lost its \
         parent"
    );
    // A service has no parent by its nature.
    let facts = but(listener(), |facts| {
        first(facts).tie = Some(Tie::LeftOver {
            job_started_at: ago(1000),
        });
        let process = Process {
            unit: Some("tomcat.service".into()),
            ..Process::default()
        };
        first(facts).holder.processes = vec![actor(3998, "java", process)];
    });
    assert_eq!(diagnose(&facts).cause, Cause::Listener);
}

/// Its runtime's shim has lost the parent that started it.
#[test]
fn a_container_is_not_left_over_but_within_itself() {
    let in_container = |pid: u32| {
        let process = Process {
            container: Some(container()),
            ..Process::default()
        };
        actor(pid, "java", process)
    };
    let left = |newcomer: Option<Actor>| {
        let facts = but(listener(), |facts| {
            first(facts).tie = Some(Tie::LeftOver {
                job_started_at: ago(1000),
            });
            first(facts).holder.processes = vec![in_container(3998)];
            facts.process = newcomer.or(facts.process.take());
        });
        diagnose(&facts).cause
    };
    assert_eq!(left(None), Cause::Listener);
    assert_eq!(left(Some(in_container(4002))), Cause::StaleJob);
}

/// When a connection got the port is not known; another socket's time decides.
#[test]
fn a_race_is_lost_to_who_came_after_the_port_was_free() {
    let race = |change: &dyn Fn(&mut Facts)| {
        let facts = but(connection(State::Established, 45_000), |facts| {
            facts.probe = Some(super::facts::Probe {
                process: node(),
                released_at: ago(2600),
            });
            first(facts).holder.bound_at = None;
            change(facts);
        });
        diagnose(&facts).cause
    };
    assert_eq!(race(&|_| {}), Cause::EphemeralCollision);
    let out = |facts: &mut Facts| {
        first(facts).origin = Some(super::facts::Origin::Autobound);
    };
    assert_eq!(race(&out), Cause::LostRace);
}

/// Units of a user's own systemd, which the system's does not know.
#[test]
fn a_users_units_are_stopped_by_its_own_systemd() {
    let advice = |group: &str, socket_unit: Option<&str>| {
        let facts = but(listener(), |facts| {
            let process = Process {
                unit: Some("web.service".into()),
                cgroup: Some(group.into()),
                ..Process::default()
            };
            first(facts).holder.processes = vec![actor(3998, "web", process)];
            first(facts).socket_unit = socket_unit.map(Into::into);
        });
        diagnose(&facts).advice
    };
    let system = "/system.slice/web.service";
    let user = "/user.slice/user-1000.slice/user@1000.service/app.slice/web.service";
    let stops = |group, socket, how: &str| {
        let advice = advice(group, socket);
        assert!(advice.contains(how), "{advice}");
    };
    stops(system, None, "(systemctl stop web.service)");
    stops(user, None, "(systemctl --user stop web.service)");
    stops(system, Some("web.socket"), "systemctl stop web.socket,");
    stops(
        user,
        Some("web.socket"),
        "systemctl --user stop web.socket,",
    );
}
