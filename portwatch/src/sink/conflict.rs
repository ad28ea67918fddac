//! What explains a refusal in text: lines below the event's own.

use std::fmt::Write as _;

use jiff::tz::TimeZone;

use super::duration::Duration;
use super::escape::escape;
use super::moment::{self, moment};
use crate::event::{
    Actor, Address, Conflict, Container, Holder, Ownership, Pod, State, Time, Transport,
};

/// Where the lines begin: below the columns of the time.
const INDENT: usize = 14;
/// How wide `held by` and the other words are.
const LABEL: usize = 10;
/// How many holders are told of one by one, and how many processes of each.
const TOLD: usize = 3;
/// How many characters of arguments are shown.
const ARGUMENTS: usize = 60;

/// Appends the lines.
pub(super) fn explain(conflict: &Conflict, at: Time, zone: &TimeZone, out: &mut Vec<u8>) {
    let mut line = |label: &str, text: &str| {
        let text = escape(text);
        out.extend_from_slice(format!("{:INDENT$}{label:LABEL$}{text}\n", "").as_bytes());
    };
    if let Some(publishes) = &conflict.publishes {
        let mut text = container(&publishes.container, publishes.pod.as_ref());
        if let Some(port) = publishes.port {
            let _ = write!(text, ", to publish its port {port}");
        }
        line("wanted by", &text);
    }
    let mut label = "held by";
    for holder in conflict.holders.iter().take(TOLD) {
        line(label, &held_by(holder, at, zone));
        label = "";
    }
    match conflict.holders.len().saturating_sub(TOLD) {
        0 => {}
        1 => line("", "and 1 more socket"),
        more => line("", &format!("and {more} more sockets")),
    }
    let cause = conflict.cause.id();
    line("why", &format!("{cause}: {}", conflict.summary));
    line(
        "do",
        &format!("{}    more: portwatch explain {cause}", conflict.advice),
    );
}

pub(super) fn held_by(holder: &Holder, at: Time, zone: &TimeZone) -> String {
    let mut text = owners(holder);
    // Writing to a String cannot fail.
    let _ = write!(text, ", {}", what(holder));
    if let Some(left) = holder.expires_in_ms {
        let _ = write!(text, ", frees in {}", Duration(left));
    }
    if let Some(bound_at) = holder.bound_at {
        let since = moment(bound_at, zone, moment::SECOND);
        let held = at.0.saturating_sub(bound_at.0).max(0).unsigned_abs() / 1_000_000;
        let _ = write!(text, " since {since} ({})", Duration(held));
    }
    if let Some(publishes) = &holder.publishes {
        let container = container(&publishes.container, publishes.pod.as_ref());
        let _ = write!(text, ", published by {container}");
        let local = holder.socket.socket.local.as_ref();
        if let Some((host, port)) = local.and_then(Address::port).zip(publishes.port) {
            let _ = write!(text, " as {host} → {port}");
        }
    } else if let Some(place) = holder.processes.first().and_then(place) {
        let _ = write!(text, " in {place}");
    }
    text
}

fn owners(holder: &Holder) -> String {
    let mut names: Vec<_> = holder.processes.iter().take(TOLD).map(process).collect();
    match holder.processes.len().saturating_sub(TOLD) {
        0 => {}
        more => names.push(format!("{more} more")),
    }
    let names = names.join(", ");
    match (holder.ownership, names.is_empty()) {
        (None, true) => "an unknown process".to_owned(),
        (Some(_), true) => "no process".to_owned(),
        (None | Some(Ownership::Verified), false) => names,
        (Some(Ownership::LastKnown), false) => format!("{names} (when last seen)"),
        (Some(Ownership::None), false) => format!("no process any more, last {names}"),
    }
}

pub(super) fn process(actor: &Actor) -> String {
    let mut text = format!("{}[{}]", actor.comm, actor.pid);
    if let Some(args) = &actor.process.args {
        let args = args.join(" ");
        let (shown, rest) = match args.char_indices().nth(ARGUMENTS) {
            Some((end, _)) => (&args[..end], "…"),
            None => (&*args, ""),
        };
        let _ = write!(text, " `{shown}{rest}`");
    }
    text
}

/// What a holder does with its address.
fn what(holder: &Holder) -> String {
    let socket = &holder.socket.socket;
    let local = socket.local.as_ref();
    let local = local.map_or("an unknown address".to_owned(), Address::to_string);
    let device = socket.bound_device.as_deref();
    let device = device.map_or(String::new(), |device| format!(" on interface {device}"));
    let udp = matches!(socket.transport, Some(Transport::Udp | Transport::Udplite));
    match (socket.state, &socket.remote) {
        (Some(State::Listen), _) => format!("listening on {local}{device}"),
        (_, None) if udp => format!("receiving on {local}{device}"),
        (Some(State::Bound | State::Close) | None, _) => format!("bound to {local}{device}"),
        (Some(state), Some(remote)) => format!("{state} from {local} to {remote}{device}"),
        (Some(state), None) => format!("{state} on {local}{device}"),
    }
}

/// Where a process belongs: to a container, else to a unit.
pub(super) fn place(actor: &Actor) -> Option<String> {
    match &actor.process.container {
        Some(of) => Some(container(of, actor.process.pod.as_ref())),
        None => actor.process.unit.as_deref().map(str::to_owned),
    }
}

pub(super) fn container(container: &Container, pod: Option<&Pod>) -> String {
    let compose = container
        .compose()
        .map(|compose| format!("compose {compose}"));
    let image = container.image.as_deref().map(str::to_owned);
    let pod = pod.map(|pod| format!("pod {}", pod.full_name()));
    let about: Vec<_> = [Some(container.runtime.to_string()), image, compose, pod]
        .into_iter()
        .flatten()
        .collect();
    format!(
        "container {} ({})",
        container.short_name(),
        about.join(", ")
    )
}
