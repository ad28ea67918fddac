//! Whole events, and why one is not another.
//!
//! What varies from run to run stands under a name that begins with a dollar
//! sign: `$netns`, `$inode`, `$self`.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::netns::FinWait2;
use crate::socket::address;
use crate::trace::shown;
use crate::{Identity, patience};

/// Key that says why a process is none of those known with its pid.
const WHY: &str = "$why";

/// The names that values have in a scenario.
#[derive(Default)]
pub struct Names {
    /// Processes.
    pub processes: Vec<(String, Identity)>,
    /// Network namespaces, by inode number.
    pub namespaces: Vec<(String, u32)>,
}

impl Names {
    /// The event with names for what varies.
    pub fn normalise(&self, event: &Value) -> Value {
        let mut event = event.clone();
        let Some(object) = event.as_object_mut() else {
            return event;
        };
        // Why something was refused is told apart: see `tests/host/conflict.rs`.
        for key in ["schema", "seq", "time", "conflict"] {
            object.remove(key);
        }
        for key in ["process", "binder"] {
            if let Some(process) = object.get_mut(key) {
                *process = self.process(process);
            }
        }
        if let Some(socket) = object.get_mut("socket").and_then(Value::as_object_mut) {
            // Anybody may ask a socket for its cookie at any time: it is there from then on.
            socket.remove("cookie");
            if let Some(netns) = socket.get_mut("netns") {
                let known = self.namespaces.iter().find(|(_, inode)| *netns == *inode);
                if let Some((name, _)) = known {
                    *netns = json!(name);
                }
            }
            if let Some(inode) = socket.get_mut("inode").filter(|inode| inode.is_u64()) {
                *inode = json!("$inode");
            }
        }
        if let Some(time) = object.get_mut("bound_at") {
            *time = json!("$time");
        }
        for key in ["held_ms", "lasted_ms", "fin_wait2_ms"] {
            if let Some(duration) = object.get_mut(key).filter(|value| value.is_u64()) {
                *duration = json!("$ms");
            }
        }
        // What is found by asking is found the later the slower the machine is.
        let slack = 400 * u64::from(patience());
        if let Some(left) = object.get_mut("expires_in_ms")
            && left
                .as_u64()
                .is_some_and(|left| (60_000 - slack..=60_000).contains(&left))
        {
            *left = json!("$60s");
        }
        event
    }

    fn process(&self, process: &Value) -> Value {
        let pid = process["pid"].as_u64().unwrap_or_default();
        let mut differences = Vec::new();
        for (name, identity) in &self.processes {
            if u64::from(identity.pid) == pid {
                match identity.differs(process) {
                    None => return json!(name),
                    Some(difference) => differences.push(format!("not {name}: {difference}")),
                }
            }
        }
        let mut process = process.clone();
        if !differences.is_empty() {
            process[WHY] = json!(differences);
        }
        process
    }
}

/// The first place where two values differ, and how.
pub fn difference(expected: &Value, seen: &Value) -> Option<String> {
    let (place, expected, seen) = first_difference(String::new(), expected, seen)?;
    let text = |value: Option<&Value>| match value {
        None => "nothing".to_owned(),
        // A process that is not the one expected: why.
        Some(value) => value.get(WHY).unwrap_or(value).to_string(),
    };
    Some(format!(
        "{}: expected {}, seen {}",
        if place.is_empty() { "all" } else { &place },
        text(expected),
        text(seen)
    ))
}

type Difference<'a> = (String, Option<&'a Value>, Option<&'a Value>);

fn first_difference<'a>(
    place: String,
    expected: &'a Value,
    seen: &'a Value,
) -> Option<Difference<'a>> {
    let within = |key: &str| {
        if place.is_empty() {
            key.to_owned()
        } else {
            format!("{place}.{key}")
        }
    };
    match (expected, seen) {
        (Value::Object(left), Value::Object(right)) => {
            let absent = right.keys().filter(|key| !left.contains_key(*key));
            left.keys()
                .chain(absent)
                .find_map(|key| match (left.get(key), right.get(key)) {
                    (Some(left), Some(right)) => first_difference(within(key), left, right),
                    (left, right) => Some((within(key), left, right)),
                })
        }
        (Value::Array(left), Value::Array(right)) if left.len() == right.len() => left
            .iter()
            .zip(right)
            .enumerate()
            .find_map(|(index, (left, right))| {
                first_difference(within(&index.to_string()), left, right)
            }),
        _ => (expected != seen).then_some((place, Some(expected), Some(seen))),
    }
}

/// Whether the order counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// It does.
    Same,
    /// Two of the events may come in either order.
    Any,
}

/// Asserts that these events were seen and no others.
pub fn compare(seen: &[Value], expected: &[Value], order: Order) {
    let mut unmatched: Vec<_> = seen.iter().collect();
    let mut missing = Vec::new();
    for event in expected {
        match unmatched.iter().position(|seen| *seen == event) {
            Some(index) => {
                unmatched.remove(index);
            }
            None => missing.push(event),
        }
    }
    if missing.is_empty() && unmatched.is_empty() {
        assert!(
            order == Order::Any || seen == expected,
            "the events came in another order:\n{}expected:\n{}",
            shown(seen),
            shown(expected)
        );
        return;
    }
    let mut report = format!("events seen:\n{}", shown(seen));
    for event in &missing {
        // Writing to a String cannot fail.
        let _ = writeln!(report, "expected but not seen:\n  {event}");
        let of_the_kind = |seen: &&&Value| seen["event"] == event["event"];
        for seen in unmatched.iter().filter(of_the_kind) {
            let why = difference(event, seen).unwrap_or_default();
            let _ = writeln!(report, "    not {} because of {why}", seen["event"]);
        }
    }
    for event in &unmatched {
        let _ = writeln!(report, "seen but not expected:\n  {event}");
    }
    panic!("{report}");
}

/// A value with another value at a place (`/socket/state`); null takes the key away.
#[must_use]
pub fn with(mut event: Value, place: &str, value: Value) -> Value {
    let (within, key) = place.rsplit_once('/').unwrap_or_default();
    let Some(object) = event.pointer_mut(within).and_then(Value::as_object_mut) else {
        panic!("{event} has no {place}");
    };
    if value.is_null() {
        object.remove(key);
    } else {
        object.insert(key.to_owned(), value);
    }
    event
}

/// An address with its port, as `127.0.0.1:80` or `[::1]:80`.
pub fn inet(text: &str) -> Value {
    let address = address(text);
    json!({"address": address.ip().to_string(), "port": address.port()})
}

/// A socket in the scenario's namespace with a local address.
pub fn socket(transport: &str, local: &str, options: &[&str]) -> Value {
    let family = if address(local).is_ipv4() {
        "ipv4"
    } else {
        "ipv6"
    };
    json!({
        "transport": transport,
        "family": family,
        "local": inet(local),
        "options": options,
        "netns": "$netns",
        "inode": "$inode",
    })
}

/// A bind that was granted.
pub fn bind(socket: Value, process: &str) -> Value {
    json!({"event": "bind", "outcome": "success", "socket": socket, "process": process})
}

/// A bind that was refused.
pub fn bind_failed(socket: Value, error: &str, errno: i32, process: &str) -> Value {
    json!({
        "event": "bind",
        "outcome": "failure",
        "error": error,
        "errno": errno,
        "socket": socket,
        "process": process,
    })
}

/// A listen that was granted.
pub fn listen(socket: Value, backlog: i32, process: &str) -> Value {
    let socket = with(socket, "/state", json!("listen"));
    json!({
        "event": "listen",
        "outcome": "success",
        "socket": socket,
        "backlog": backlog,
        "process": process,
    })
}

/// A listen that was refused.
pub fn listen_failed(socket: Value, backlog: i32, error: &str, errno: i32, process: &str) -> Value {
    json!({
        "event": "listen",
        "outcome": "failure",
        "error": error,
        "errno": errno,
        "socket": socket,
        "backlog": backlog,
        "process": process,
    })
}

/// The release of a socket that was bound during the trace.
pub fn release(socket: Value, process: &str) -> Value {
    json!({
        "event": "release",
        "socket": socket,
        "bound_at": "$time",
        "held_ms": "$ms",
        "process": process,
    })
}

/// A connection in TIME_WAIT.
pub fn waiting(local: &str, remote: &str) -> Value {
    let socket = socket("tcp", local, &[]);
    let socket = with(socket, "/remote", inet(remote));
    let socket = with(socket, "/state", json!("time-wait"));
    with(socket, "/inode", Value::Null)
}

/// A connection enters TIME_WAIT straight from a socket.
pub fn enter(socket: Value, process: &str) -> Value {
    json!({
        "event": "timewait",
        "phase": "enter",
        "socket": socket,
        "expires_in_ms": "$60s",
        "process": process,
    })
}

/// A connection enters TIME_WAIT that waited so for its peer's close.
pub fn enter_after(waited: FinWait2, socket: Value, process: &str) -> Value {
    let entered = enter(socket, process);
    match waited {
        FinWait2::Socket => entered,
        FinWait2::Timewait => with(entered, "/fin_wait2_ms", json!("$ms")),
    }
}

/// A connection leaves TIME_WAIT.
pub fn exit(socket: Value, reason: &str, process: &str) -> Value {
    json!({
        "event": "timewait",
        "phase": "exit",
        "socket": socket,
        "reason": reason,
        "lasted_ms": "$ms",
        "process": process,
    })
}
