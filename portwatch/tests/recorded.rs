//! What is written can be read: a line of JSON is the event that it was made of.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

#[path = "golden/samples.rs"]
#[allow(dead_code, reason = "the goldens use more of it")]
mod samples;

use portwatch::event::{Body, Cause, Event, Recorded};
use portwatch::sink::json::Json;

fn read(line: &[u8]) -> serde_json::Result<Recorded> {
    serde_json::from_slice(line)
}

fn written(event: &Event) -> Vec<u8> {
    let mut line = Vec::new();
    Json::default().render(event, &mut line);
    line
}

#[test]
fn a_line_is_the_event_it_was_made_of() {
    let mut seen = 0;
    for (name, event) in samples::samples() {
        let recorded = read(&written(&event));
        if matches!(
            event.body,
            Body::Socket(_) | Body::Timewaits(_) | Body::Published(_) | Body::Why(_)
        ) {
            // What is and not what happens: not of a stream.
            assert!(recorded.is_err(), "{name}");
            continue;
        }
        let recorded = recorded.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(
            (recorded.time, recorded.body),
            (event.time, event.body),
            "{name}"
        );
        seen += 1;
    }
    assert!(seen > 10);
}

#[test]
fn what_a_later_version_adds_does_not_matter() {
    let (_, event) = samples::samples()
        .into_iter()
        .find(|(_, event)| matches!(&event.body, Body::Bind(bind) if bind.conflict.is_some()))
        .unwrap();
    let Body::Bind(bind) = &event.body else {
        unreachable!()
    };
    let cause = bind.conflict.as_ref().unwrap().cause.id();
    let line = String::from_utf8(written(&event)).unwrap();
    let line = line
        .replacen('{', r#"{"added":[{"x":null}],"#, 1)
        .replace(&format!(r#""cause":"{cause}""#), r#""cause":"of-tomorrow""#);
    let Body::Bind(recorded) = read(line.as_bytes()).unwrap().body else {
        panic!("{line}")
    };
    assert_eq!(recorded.conflict.unwrap().cause, Cause::Unknown);
}
