//! What the sinks make of every kind of event, and of whatever stands in one.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

#[path = "golden/samples.rs"]
mod samples;

use std::borrow::Cow;
use std::sync::Arc;

use jiff::tz::TimeZone;
use portwatch::event::{
    AbstractText, Actor, Address, Bind, Body, Container, Event, Family, Line, Options, Outcome,
    PathText, Process, Result, SCHEMA, Socket, Time, Transport,
};
use portwatch::sink::json::Json;
use portwatch::sink::text::{self, Color, Text};
use proptest::prelude::*;
use serde_json::{Value, json};

/// A stream of these events as somebody would see it, standard error included.
fn stream(events: &[(&str, Event)], zone: TimeZone, color: Color) -> String {
    let mut text = Text::new(zone, color);
    let mut seen = text.header().into_bytes();
    for (_, event) in events {
        text.render(event, &mut seen);
        match &event.body {
            Body::Start(start) => seen.extend(text::start_lines(start).into_bytes()),
            Body::Lost(lost) => seen.extend(text::lost_line(lost).into_bytes()),
            Body::End(end) => seen.extend(text::end_line(end).into_bytes()),
            _ => {}
        }
    }
    String::from_utf8(seen).unwrap()
}

/// Some of the samples, by their names.
fn some(names: &[&str]) -> Vec<(&'static str, Event)> {
    let events: Vec<_> = samples::samples()
        .into_iter()
        .filter(|(name, _)| names.contains(name))
        .collect();
    assert_eq!(events.len(), names.len(), "a name of {names:?} is unknown");
    events
}

/// The event as `serde_json` writes its line.
fn line(event: &Event, seq: u64) -> Vec<u8> {
    let line = Line {
        schema: SCHEMA,
        seq,
        time: event.time,
        body: Cow::Borrowed(&event.body),
    };
    let mut bytes = serde_json::to_vec(&line).unwrap();
    bytes.push(b'\n');
    bytes
}

#[test]
fn text_of_every_event() {
    insta::assert_snapshot!(stream(&samples::samples(), TimeZone::UTC, Color::Off));
}

/// The lines of the contract, which need no column to grow.
#[test]
fn text_as_promised() {
    let events = some(&["bind dual stack", "bind failure", "timewait enter"]);
    insta::assert_snapshot!(stream(&events, TimeZone::UTC, Color::Off), @"
    TIME          PID     COMM          EVENT     PROTO  LOCAL                RESULT      WHERE
    12:03:09.131  3998    node          bind      tcp6   [::]:3000            ok          web-1 (docker)
    12:03:09.148  4312    node          bind      tcp4   0.0.0.0:3000         EADDRINUSE  ci-runner.service
    12:03:09.505  3998    node          timewait  tcp4   127.0.0.1:3000       enter       → 127.0.0.1:51234, frees in 60 s
    ");
}

/// Colour changes nothing but the outcome, and no column for it.
#[test]
fn text_in_colour() {
    let events = samples::samples();
    let colored = stream(&events, TimeZone::UTC, Color::On);
    let plain = stream(&events, TimeZone::UTC, Color::Off);
    let mut stripped = colored.clone();
    for code in ["\x1b[32m", "\x1b[1;31m", "\x1b[0m"] {
        stripped = stripped.replace(code, "");
    }
    assert_eq!(stripped, plain);

    let some = some(&[
        "bind dual stack",
        "bind failure",
        "release",
        "timewait enter",
    ]);
    let colored = stream(&some, TimeZone::UTC, Color::On);
    insta::assert_snapshot!(colored.replace('\x1b', "ESC"), @"
    TIME          PID     COMM          EVENT     PROTO  LOCAL                RESULT      WHERE
    12:03:09.131  3998    node          bind      tcp6   [::]:3000            ESC[32mokESC[0m          web-1 (docker)
    12:03:09.148  4312    node          bind      tcp4   0.0.0.0:3000         ESC[1;31mEADDRINUSEESC[0m  ci-runner.service
    12:03:09.471  4001    worker        release   tcp4   0.0.0.0:3000         ESC[32mokESC[0m          web-1 (docker), held 2.4 s, bound by node[3998]
    12:03:09.505  3998    node          timewait  tcp4   127.0.0.1:3000       enter       → 127.0.0.1:51234, frees in 60 s
    ");
}

#[test]
fn text_has_the_time_of_its_zone() {
    let zone =
        TimeZone::fixed(jiff::tz::offset(-5).saturating_sub(jiff::SignedDuration::from_mins(30)));
    let seen = stream(&some(&["bind failure"]), zone, Color::Off);
    assert!(seen.contains("\n06:33:09.148  "), "{seen}");
}

#[test]
fn json_of_every_event() {
    let mut json = Json::default();
    let mut out = Vec::new();
    for (_, event) in samples::samples() {
        json.render(&event, &mut out);
    }
    insta::assert_snapshot!(String::from_utf8(out).unwrap());
}

/// What is kept of a process is no other's, even where one's memory becomes the other's.
#[test]
fn json_is_what_serde_makes_of_a_line() {
    let mut json = Json::default();
    let mut seq = 0;
    let mut render_and_compare = |name: &str, event: &Event| {
        let mut out = Vec::new();
        json.render(event, &mut out);
        let (got, wanted) = (String::from_utf8(out), String::from_utf8(line(event, seq)));
        assert_eq!(got.unwrap(), wanted.unwrap(), "{name}");
        seq += 1;
    };
    for _ in 0..2 {
        for (name, event) in samples::samples() {
            render_and_compare(name, &event);
        }
    }
    // More than are kept.
    for number in 0..1000_u32 {
        let process = Process {
            unit: Some(format!("{number}.service").into()),
            ..samples::runner()
        };
        let Body::Bind(bind) = samples::bind_failure() else {
            unreachable!("it is a bind");
        };
        let event = Event {
            time: Time(samples::NOON),
            body: Body::Bind(Bind {
                process: Some(samples::actor(number, "node", process)),
                ..bind
            }),
        };
        render_and_compare("many", &event);
    }
}

/// What is kept of a process does not hide what its next event says otherwise.
#[test]
fn json_tells_what_changes_of_a_process() {
    let process = Arc::new(samples::runner());
    let first = samples::actor(7, "node", Process::default());
    let first = Actor { process, ..first };
    let changes: [fn(&mut Actor); 7] = [
        |_| {},
        |actor| actor.tid = Some(8),
        |actor| actor.comm = "other".into(),
        |actor| actor.comm_hex = Some("ff".to_owned()),
        |actor| actor.uid = 1,
        |actor| actor.gid = 2,
        |actor| actor.start_time = Time(samples::NOON + 1),
    ];
    let mut json = Json::default();
    for (seq, change) in changes.into_iter().enumerate() {
        let mut actor = first.clone();
        change(&mut actor);
        let Body::Bind(bind) = samples::bind_failure() else {
            unreachable!("it is a bind");
        };
        let process = Some(actor);
        let event = Event {
            time: Time(samples::NOON),
            body: Body::Bind(Bind { process, ..bind }),
        };
        let mut out = Vec::new();
        json.render(&event, &mut out);
        let wanted = String::from_utf8(line(&event, seq as u64)).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), wanted);
    }
}

#[test]
fn json_has_its_keys_in_the_order_of_the_contract() {
    let mut out = Vec::new();
    let event = Event {
        time: Time(samples::NOON),
        body: samples::bind_failure(),
    };
    Json::default().render(&event, &mut out);
    let line = String::from_utf8(out).unwrap();
    let places: Vec<_> = [
        "schema", "seq", "time", "event", "outcome", "error", "errno", "socket", "process", "args",
    ]
    .iter()
    .map(|key| line.find(&format!("\"{key}\":")).unwrap())
    .collect();
    assert!(places.is_sorted(), "{line}");
}

/// Characters that a terminal or a reader of lines would act on, among others.
fn outside() -> impl Strategy<Value = String> {
    prop_oneof![
        r"[\x00-\x20\\\x7f-\xad\u{202a}-\u{202e}\u{2028}\u{2029}\u{2060}-\u{2069}]{0,8}",
        any::<String>(),
        ".{0,60}",
        Just(samples::HOSTILE.to_owned()),
    ]
}

fn socket() -> impl Strategy<Value = Socket> {
    let local = prop_oneof![
        outside().prop_map(|path| Address::Path {
            path: PathText {
                path: path.into(),
                path_hex: None
            }
        }),
        outside().prop_map(|name| Address::Abstract {
            name: AbstractText {
                name: name.into(),
                name_hex: None
            }
        }),
        any::<([u8; 16], u16, u32)>()
            .prop_map(|(address, port, scope)| Address::v6(address, port, scope)),
        any::<([u8; 4], u16)>().prop_map(|(address, port)| Address::v4(address, port)),
    ];
    (local, proptest::option::of(outside())).prop_map(|(local, device)| {
        let family = match local {
            Address::Inet { .. } => Family::Ipv6,
            _ => Family::Unix,
        };
        Socket {
            bound_device: device.map(Into::into),
            options: Options(0x3f),
            ..samples::socket(Transport::Dgram, family, local)
        }
    })
}

prop_compose! {
    fn process()(
        args in proptest::option::of(proptest::collection::vec(outside(), 0..5)),
        exe in proptest::option::of(outside()),
        unit in proptest::option::of(outside()),
        container in proptest::option::of((
            outside(),
            outside(),
            proptest::option::of(outside()),
            proptest::collection::btree_map(outside(), outside(), 0..3),
        )),
    ) -> Process {
        Process {
            args: args.map(|args| args.into_iter().map(Into::into).collect()),
            exe: exe.map(Into::into),
            unit: unit.map(Into::into),
            container: container.map(|(runtime, id, name, labels)| Container {
                runtime: runtime.into(),
                id: id.into(),
                name: name.map(Into::into),
                image: None,
                labels,
            }),
            ..Process::default()
        }
    }
}

prop_compose! {
    fn event()(
        time in any::<i64>(),
        socket in socket(),
        requested in proptest::option::of(socket()),
        error in proptest::option::of(outside()),
        comm in outside(),
        process in proptest::option::of(process()),
    ) -> Event {
        Event {
            time: Time(time),
            body: Body::Bind(Bind {
                result: Result {
                    outcome: if error.is_some() { Outcome::Failure } else { Outcome::Success },
                    error: error.map(Cow::Owned),
                    errno: None,
                },
                socket,
                requested: requested.and_then(|socket| socket.local),
                autobind: false,
                conflict: None,
                process: process.map(|process| Actor {
                    process: Arc::new(process),
                    ..samples::actor(1, &comm, Process::default())
                }),
            }),
        }
    }
}

proptest! {
    /// One line an event, without a control character, and nothing that turns or hides the rest.
    #[test]
    fn text_is_one_harmless_line(event in event(), colored in any::<bool>()) {
        let color = if colored { Color::On } else { Color::Off };
        let mut out = Vec::new();
        Text::new(TimeZone::UTC, color).render(&event, &mut out);
        let seen = String::from_utf8(out).unwrap();
        let line = seen.strip_suffix('\n').unwrap();
        prop_assert!(!line.ends_with(' '), "{}", line);
        let mut line = line.to_owned();
        if colored {
            for code in ["\x1b[32m", "\x1b[1;31m", "\x1b[0m"] {
                prop_assert!(line.matches(code).count() <= 1);
                line = line.replacen(code, "", 1);
            }
        }
        let harmful = |c: char| {
            c.is_control()
                || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
        };
        prop_assert!(!line.contains(harmful), "{}", line.escape_debug());
    }

    /// One line an event, which is the one of the types, and from which the strings come back.
    #[test]
    fn json_is_one_line_that_keeps_the_strings(event in event()) {
        let mut out = Vec::new();
        Json::default().render(&event, &mut out);
        prop_assert_eq!(&out, &line(&event, 0));
        prop_assert_eq!(out.iter().filter(|byte| **byte == b'\n').count(), 1);
        let value: Value = serde_json::from_slice(&out).unwrap();
        let Body::Bind(bind) = &event.body else { unreachable!("it is a bind") };
        prop_assert_eq!(&value["error"], &json!(bind.result.error));
        prop_assert_eq!(&value["socket"]["bound_device"], &json!(bind.socket.bound_device));
        match &bind.socket.local {
            Some(Address::Path { path }) => {
                prop_assert_eq!(&value["socket"]["local"]["path"], &json!(path.path));
            }
            Some(Address::Abstract { name }) => {
                prop_assert_eq!(&value["socket"]["local"]["abstract"], &json!(name.name));
            }
            _ => {}
        }
        let Some(actor) = &bind.process else {
            prop_assert!(value.get("process").is_none());
            return Ok(());
        };
        let seen = &value["process"];
        prop_assert_eq!(&seen["comm"], &json!(actor.comm));
        prop_assert_eq!(&seen["args"], &json!(actor.process.args));
        prop_assert_eq!(&seen["exe"], &json!(actor.process.exe));
        prop_assert_eq!(&seen["unit"], &json!(actor.process.unit));
        prop_assert_eq!(&seen["container"], &json!(actor.process.container));
    }

    /// The time that is written by hand is the one that `jiff` writes.
    #[test]
    fn time_is_what_jiff_makes_of_it(time in any::<i64>()) {
        let time = Time(time);
        prop_assert_eq!(time.to_string(), format!("{:.9}", time.timestamp()));
    }
}

#[test]
fn time_is_right_at_the_edges() {
    const SECOND: i64 = 1_000_000_000;
    for (seconds, shown) in [
        (0, "1970-01-01T00:00:00.000000000Z"),
        (-1, "1969-12-31T23:59:59.000000000Z"),
        (951_782_399, "2000-02-28T23:59:59.000000000Z"),
        (951_782_400, "2000-02-29T00:00:00.000000000Z"),
        (951_868_800, "2000-03-01T00:00:00.000000000Z"),
        (4_107_542_400, "2100-03-01T00:00:00.000000000Z"),
        (4_107_542_399, "2100-02-28T23:59:59.000000000Z"),
    ] {
        assert_eq!(Time(seconds * SECOND).to_string(), shown);
    }
    for edge in [i64::MIN, i64::MIN + 1, -1, 1, i64::MAX] {
        let time = Time(edge);
        assert_eq!(time.to_string(), format!("{:.9}", time.timestamp()));
    }
}
