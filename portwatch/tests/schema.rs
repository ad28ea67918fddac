//! The schema in `docs/schema/`: it is the one of the types, every line keeps to it, and it
//! refuses what is no such line.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

#[path = "golden/samples.rs"]
#[allow(dead_code, reason = "the goldens use more of it")]
mod samples;

use std::path::Path;

use jsonschema::Validator;
use portwatch::event::{Event, Line};
use portwatch::sink::json::Json;
use schemars::Schema;
use schemars::generate::SchemaSettings;
use schemars::transform::RecursiveTransform;
use serde_json::{Value, json};

const FILE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../docs/schema/portwatch-1.schema.json"
);

/// The schema of what is written, not of what could be read.
fn schema() -> Value {
    SchemaSettings::draft2020_12()
        .for_serialize()
        .with_transform(RecursiveTransform(without_null))
        .into_generator()
        .into_root_schema_for::<Line>()
        .into()
}

/// Takes out the null that an `Option` is said to be: what is not known is an absent key.
fn without_null(schema: &mut Schema) {
    if let Some(Value::Array(types)) = schema.get_mut("type") {
        types.retain(|name| name != "null");
        if let [only] = types.as_slice() {
            let only = only.clone();
            schema.insert("type".to_owned(), only);
        }
    }
    if let Some(Value::Array(choices)) = schema.get_mut("anyOf") {
        choices.retain(|choice| *choice != json!({"type": "null"}));
        if let [Value::Object(only)] = choices.as_slice() {
            let only = only.clone();
            schema.remove("anyOf");
            for (key, value) in only {
                schema.insert(key, value);
            }
        }
    }
}

fn validator() -> Validator {
    jsonschema::validator_for(&schema()).unwrap()
}

fn lines(events: impl IntoIterator<Item = Event>) -> Vec<Value> {
    let mut json = Json::default();
    events
        .into_iter()
        .map(|event| {
            let mut out = Vec::new();
            json.render(&event, &mut out);
            serde_json::from_slice(&out).unwrap()
        })
        .collect()
}

/// The line of a sample, by its name.
fn line(name: &str) -> Value {
    let sample = samples::samples().into_iter().find(|(n, _)| *n == name);
    lines(sample.map(|(_, event)| event)).remove(0)
}

#[test]
fn the_file_is_the_schema_of_the_types() {
    let generated = schema();
    if std::env::var_os("UPDATE_SCHEMA").is_some_and(|value| value == "1") {
        let text = serde_json::to_string_pretty(&generated).unwrap() + "\n";
        std::fs::create_dir_all(Path::new(FILE).parent().unwrap()).unwrap();
        std::fs::write(FILE, text).unwrap();
    }
    let file: Value = match std::fs::read(FILE) {
        Ok(bytes) => serde_json::from_slice(&bytes).unwrap(),
        Err(error) => panic!("{FILE}: {error}; write it with UPDATE_SCHEMA=1"),
    };
    assert!(
        file == generated,
        "{FILE} is not the schema of the types; write it anew with UPDATE_SCHEMA=1"
    );
}

#[test]
fn every_line_keeps_to_the_schema() {
    let validator = validator();
    let (names, events): (Vec<_>, Vec<_>) = samples::samples().into_iter().unzip();
    let lines = lines(events);
    for (name, line) in names.iter().zip(&lines) {
        let errors: Vec<_> = validator.iter_errors(line).map(|e| e.to_string()).collect();
        assert!(errors.is_empty(), "{name}: {errors:#?}\n{line}");
    }
    for kind in [
        "start",
        "bind",
        "listen",
        "release",
        "timewait",
        "lost",
        "end",
        "socket",
        "timewaits",
    ] {
        assert!(lines.iter().any(|line| line["event"] == kind), "no {kind}");
    }
}

/// Consumers ignore keys they do not know, so the schema must.
#[test]
fn unknown_keys_are_allowed_everywhere() {
    let mut line = line("bind dual stack");
    for pointer in [
        "",
        "/socket",
        "/socket/local",
        "/process",
        "/process/container",
    ] {
        line.pointer_mut(pointer).unwrap()["later"] = json!({"any": 1});
    }
    assert!(validator().is_valid(&line), "{line}");
    assert!(!schema().to_string().contains("dditionalProperties\":false"));
}

#[test]
fn what_is_no_line_is_refused() {
    let validator = validator();
    const MISSING: Option<Value> = None;
    // Where in which sample, and what stands there instead.
    for (name, pointer, value) in [
        ("bind failure", "/schema", MISSING),
        ("bind failure", "/schema", Some(json!("portwatch/2"))),
        ("bind failure", "/seq", MISSING),
        ("bind failure", "/seq", Some(json!(-1))),
        ("bind failure", "/time", MISSING),
        ("bind failure", "/time", Some(json!("2026-11-22 12:03:11"))),
        ("bind failure", "/event", MISSING),
        ("bind failure", "/event", Some(json!("connect"))),
        ("bind failure", "/event", Some(json!("listen"))),
        ("bind failure", "/outcome", Some(json!("maybe"))),
        ("bind failure", "/outcome", MISSING),
        ("bind failure", "/socket", MISSING),
        ("bind failure", "/socket/family", Some(json!("ipv5"))),
        ("bind failure", "/socket/local/port", Some(json!(65_536))),
        (
            "bind failure",
            "/socket/options",
            Some(json!(["keepalive"])),
        ),
        ("bind failure", "/socket/netns", Some(Value::Null)),
        ("bind failure", "/socket/local", Some(Value::Null)),
        ("bind failure", "/process", Some(Value::Null)),
        ("bind failure", "/process/pid", MISSING),
        (
            "bind failure",
            "/process/args",
            Some(json!("node server.js")),
        ),
        ("bind failure", "/process/ancestors/0/comm", MISSING),
        ("listen", "/backlog", MISSING),
        ("listen", "/socket/state", Some(json!("LISTEN"))),
        ("release", "/bound_at", Some(json!(1))),
        ("timewait enter", "/phase", Some(json!("stay"))),
        ("timewait expired", "/reason", Some(json!("bored"))),
        ("lost ring", "/where", MISSING),
        ("lost ring", "/count", Some(json!("many"))),
        ("start", "/version", MISSING),
        (
            "socket of two processes",
            "/ownership",
            Some(json!("perhaps")),
        ),
        ("socket of two processes", "/socket", MISSING),
        (
            "socket of two processes",
            "/socket/uid",
            Some(json!("root")),
        ),
        ("socket of two processes", "/processes/0/pid", MISSING),
        ("timewaits", "/count", MISSING),
        ("timewaits", "/port", Some(json!(65_536))),
        ("end", "/counts", MISSING),
    ] {
        let mut line = line(name);
        assert!(validator.is_valid(&line), "{name}");
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        let parent = line.pointer_mut(parent).unwrap().as_object_mut().unwrap();
        assert!(parent.contains_key(key), "{name}: no {pointer}");
        match &value {
            None => parent.remove(key),
            Some(value) => parent.insert(key.to_owned(), value.clone()),
        };
        assert!(
            !validator.is_valid(&line),
            "{name}: {pointer} may be {value:?}: {line}"
        );
    }
}
