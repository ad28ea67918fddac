//! What explains a refusal: as text, as JSON, and in the schema.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

#[path = "golden/samples.rs"]
#[allow(dead_code, reason = "the goldens use more of it")]
mod samples;

use std::sync::Arc;

use jiff::tz::TimeZone;
use portwatch::diagnose::diagnose;
use portwatch::diagnose::facts::{Call, Facts, Held};
use portwatch::event::{
    Actor, Address, Conflict, Evidence, HeldSocket, Holder, Options, Ownership, Process, Publishes,
    Socket, State, Time,
};
use portwatch::sink::text::{Color, Text};
use portwatch_common::record::option;
use serde_json::json;

const MS: i64 = 1_000_000;

fn listener(socket: Socket, processes: Vec<Actor>) -> Holder {
    Holder {
        socket: HeldSocket {
            socket: Socket {
                state: Some(State::Listen),
                ..socket
            },
            uid: Some(1000),
        },
        ownership: Some(Ownership::Verified),
        bound_at: Some(Time(samples::NOON)),
        expires_in_ms: None,
        processes,
        publishes: None,
    }
}

fn server() -> Actor {
    samples::actor(
        3998,
        "node",
        Process {
            args: Some(vec!["node".into(), "server.js".into()]),
            ..samples::contained()
        },
    )
}

/// The newcomer of the contract: node[4312], which wants 0.0.0.0:3000.
fn refused(holders: Vec<Holder>) -> Facts {
    let at = Time(samples::NOON + 2368 * MS);
    let socket = Socket {
        options: Options(option::REUSEADDR),
        ..samples::tcp4([0, 0, 0, 0], 3000)
    };
    let mut facts = Facts::new(Call::Bind, 98, at, socket);
    facts.uid = Some(1000);
    facts.process = Some(samples::actor(4312, "node", samples::runner()));
    facts.evidence = Some(Evidence::Locked);
    facts.holders = holders.into_iter().map(Held::from).collect();
    facts
}

fn dual_stack() -> Conflict {
    diagnose(&refused(vec![listener(
        samples::tcp6("::", 3000, 0),
        vec![server()],
    )]))
}

fn shown(conflict: &Conflict) -> String {
    let mut out = Vec::new();
    let at = Time(samples::NOON + 2368 * MS);
    Text::new(TimeZone::UTC, Color::Off).explain(conflict, at, &mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn text_as_promised() {
    insta::assert_snapshot!(shown(&dual_stack()));
}

#[test]
fn text_of_every_kind_of_holder() {
    let at = samples::tcp4([0, 0, 0, 0], 3000);
    let timewait = Holder {
        socket: HeldSocket {
            socket: Socket {
                remote: Some(Address::v4([127, 0, 0, 1], 51_234)),
                state: Some(State::TimeWait),
                ..samples::tcp4([127, 0, 0, 1], 3000)
            },
            uid: None,
        },
        ownership: Some(Ownership::None),
        bound_at: None,
        expires_in_ms: Some(41_000),
        processes: Vec::new(),
        publishes: None,
    };
    let many: Vec<_> = (1..=5)
        .map(|pid| samples::actor(pid, "nginx", Process::default()))
        .collect();
    let published = Holder {
        publishes: Some(Publishes {
            container: samples::contained().container.unwrap(),
            pod: None,
            port: Some(80),
        }),
        ..listener(
            at.clone(),
            vec![samples::actor(880, "docker-proxy", Process::default())],
        )
    };
    let last_known = Holder {
        ownership: Some(Ownership::LastKnown),
        ..listener(
            at.clone(),
            vec![samples::actor(7, "gone", samples::runner())],
        )
    };
    let bound = Holder {
        socket: HeldSocket {
            socket: Socket {
                state: Some(State::Bound),
                bound_device: Some("eth0".into()),
                ..at.clone()
            },
            uid: Some(0),
        },
        ownership: Some(Ownership::None),
        ..listener(
            at.clone(),
            vec![samples::actor(9, "last", Process::default())],
        )
    };
    let mut text = String::new();
    for holders in [
        vec![timewait.clone()],
        vec![listener(at.clone(), many)],
        vec![published],
        vec![last_known],
        vec![bound],
        vec![timewait; 5],
        vec![],
    ] {
        text.push_str(&shown(&diagnose(&refused(holders))));
    }
    insta::assert_snapshot!(text);
}

/// Whatever names stand in it, each line is one line, and none acts on a terminal.
#[test]
fn text_is_harmless() {
    let process = Process {
        args: Some(vec![samples::HOSTILE.into(), "x".repeat(500).into()]),
        unit: Some(samples::HOSTILE.into()),
        ..Process::default()
    };
    let hostile = samples::actor(666, samples::HOSTILE, process);
    let socket = Socket {
        bound_device: Some("\x1b[2J".into()),
        ..samples::tcp4([0, 0, 0, 0], 3000)
    };
    let text = shown(&diagnose(&refused(vec![listener(socket, vec![hostile])])));
    assert_eq!(text.lines().count(), 3, "{text}");
    assert!(
        !text.replace('\n', "").contains(char::is_control),
        "{text:?}"
    );
}

#[test]
fn json_as_promised() {
    let mut actor = server();
    actor.process = Arc::new(Process {
        args: actor.process.args.clone(),
        container: actor.process.container.clone(),
        ..Process::default()
    });
    let holder = listener(
        Socket {
            cookie: Some(4690),
            options: Options(option::REUSEADDR),
            ..samples::tcp6("::", 3000, 0)
        },
        vec![actor],
    );
    let conflict = diagnose(&refused(vec![holder]));
    let expected = json!({
        "cause": "dual-stack",
        "summary": conflict.summary,
        "advice": conflict.advice,
        "evidence": "locked",
        "holders": [{
            "socket": {
                "transport": "tcp",
                "family": "ipv6",
                "local": {"address": "::", "port": 3000},
                "state": "listen",
                "options": ["reuseaddr"],
                "netns": 4_026_531_840_u32,
                "cookie": 4690,
                "uid": 1000,
            },
            "ownership": "verified",
            "bound_at": "2026-11-22T12:03:09.114907113Z",
            "processes": [{
                "pid": 3998,
                "tid": 3998,
                "comm": "node",
                "uid": 1001,
                "gid": 1001,
                "start_time": "2026-11-22T12:03:08.932907113Z",
                "args": ["node", "server.js"],
                "container": {
                    "runtime": "docker",
                    "id": "3f4e8a1b2c5d60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f9",
                    "name": "web-1",
                    "image": "nginx:1.27",
                    "labels": {"com.docker.compose.project": "shop"},
                },
            }],
        }],
    });
    let object = serde_json::to_value(&conflict).unwrap();
    assert_eq!(object, expected);
    let settings = schemars::generate::SchemaSettings::draft2020_12().for_serialize();
    let schema = settings.into_generator().into_root_schema_for::<Conflict>();
    let validator = jsonschema::validator_for(schema.as_value()).unwrap();
    let errors: Vec<_> = validator
        .iter_errors(&object)
        .map(|e| e.to_string())
        .collect();
    assert!(errors.is_empty(), "{errors:#?}");
}

/// Without holders there are neither an empty list nor the evidence of one.
#[test]
fn json_without_holders() {
    let conflict = diagnose(&refused(Vec::new()));
    let object = serde_json::to_value(&conflict).unwrap();
    let expected = json!({
        "cause": "unknown",
        "summary": "no socket was found that has 0.0.0.0:3000",
        "advice": conflict.advice,
    });
    assert_eq!(object, expected);
}
