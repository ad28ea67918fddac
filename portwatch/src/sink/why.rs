//! The text of `portwatch why`.

use std::fmt::Write as _;

use jiff::tz::TimeZone;

use super::conflict::{container, held_by};
use super::duration::Duration;
use super::escape::escape;
use crate::event::{
    Holder, LastUse, Newcomer, Outcome, Place, PortRange, Published, State, Time, Why,
};

/// How many holders of a place are told of one by one.
const TOLD: usize = 10;
/// How wide the words before what is told are.
const LABEL: usize = 10;

/// All of it. `looked_at` is the number of network namespaces there are, `now` when that was.
#[must_use]
pub fn render(why: &Why, looked_at: usize, now: Time) -> Vec<u8> {
    let mut out = String::new();
    let namespaces = |count: usize| match count {
        1 => "1 network namespace".to_owned(),
        count => format!("{count} network namespaces"),
    };
    let port = why.port;
    let mut held: Vec<u32> = why.places.iter().map(|place| place.netns).collect();
    held.dedup();
    if !held.is_empty() {
        let of = namespaces(looked_at);
        line(
            &mut out,
            &format!("port {port} is held in {} of {of}", held.len()),
        );
    } else if why.held {
        let what =
            format!("port {port}: no socket has it, but a container's runtime gives it away");
        line(&mut out, &what);
    } else {
        let of = namespaces(looked_at);
        line(
            &mut out,
            &format!("port {port} is free: no socket has it in {of}"),
        );
    }
    for place in &why.places {
        out.push('\n');
        render_place(&mut out, place, now);
    }
    let unheld: Vec<_> = why.published.iter().filter(|one| !one.by_socket).collect();
    if !unheld.is_empty() {
        out.push('\n');
    }
    for published in unheld {
        render_published(&mut out, published, port);
    }
    if let Some(last) = &why.last_use {
        out.push('\n');
        labelled(&mut out, "last used", &last_use(last));
    }
    // A place has said it of its own namespace.
    if why.places.is_empty() {
        notes(&mut out, &why.range);
    }
    out.into_bytes()
}

fn line(out: &mut String, text: &str) {
    out.push_str(&escape(text));
    out.push('\n');
}

fn labelled(out: &mut String, label: &str, text: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "  {label:LABEL$}{}", escape(text));
}

fn render_place(out: &mut String, place: &Place, now: Time) {
    let netns = match (&place.netns_name, place.host) {
        (_, true) => "the host's network namespace".to_owned(),
        (Some(name), false) => format!("the network namespace {name}"),
        (None, false) => format!("the network namespace {}", place.netns),
    };
    line(out, &format!("{} in {netns}", place.transport));
    let waiting = |holder: &&Holder| holder.socket.socket.state == Some(State::TimeWait);
    let others: Vec<_> = place.holders.iter().filter(|h| !waiting(h)).collect();
    let mut label = "held by";
    for holder in others.iter().take(TOLD) {
        labelled(out, label, &held_by(holder, now, &TimeZone::UTC));
        label = "";
    }
    if others.len() > TOLD {
        labelled(
            out,
            "",
            &format!("and {} more sockets", others.len() - TOLD),
        );
    }
    let waits: Vec<_> = place.holders.iter().filter(waiting).collect();
    if let Some(left) = waits.iter().filter_map(|holder| holder.expires_in_ms).max() {
        let text = match waits.len() {
            1 => format!("1, frees in {}", Duration(left)),
            count => format!("{count}, the last frees in {}", Duration(left)),
        };
        labelled(out, "timewait", &text);
    }
    table(out, &place.newcomers);
    if let Some(conflict) = &place.conflict {
        let cause = conflict.cause.id();
        labelled(out, "why", &format!("{cause}: {}", conflict.summary));
        let more = format!("{}    more: portwatch explain {cause}", conflict.advice);
        labelled(out, "do", &more);
    }
    notes(out, &place.range);
}

/// A row an address, a column each set of options.
fn table(out: &mut String, newcomers: &[Newcomer]) {
    let kind = |newcomer: &Newcomer| {
        let names: Vec<_> = newcomer
            .options
            .names()
            .map(|name| format!("SO_{}", name.to_uppercase()))
            .collect();
        if names.is_empty() {
            "plain".to_owned()
        } else {
            names.join("+")
        }
    };
    let mut kinds: Vec<String> = Vec::new();
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut address = None;
    for newcomer in newcomers {
        let title = kind(newcomer);
        if !kinds.contains(&title) {
            kinds.push(title);
        }
        if address != Some(newcomer.address) {
            address = Some(newcomer.address);
            rows.push(vec![newcomer.address.to_string()]);
        }
        let cell = match (newcomer.result.outcome, newcomer.cause) {
            (Outcome::Success, _) => "ok".to_owned(),
            (Outcome::Failure, Some(cause)) => cause.id().to_owned(),
            (Outcome::Failure, None) => "refused".to_owned(),
        };
        if let Some(row) = rows.last_mut() {
            row.push(cell);
        }
    }
    let titles = [vec!["bind to".to_owned()], kinds].concat();
    let columns = titles.len();
    rows.insert(0, titles);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(String::len).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..columns).map(width).collect();
    for row in &rows {
        let mut text = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(text, "{cell:width$}  ");
        }
        let _ = writeln!(out, "  {}", text.trim_end());
    }
}

fn render_published(out: &mut String, published: &Published, port: u16) {
    let address = published.address.map_or("the host".to_owned(), |address| {
        if address.is_unspecified() {
            "all addresses".to_owned()
        } else {
            address.to_string()
        }
    });
    let of = container(&published.container, published.pod.as_ref());
    let text = format!(
        "{of} publishes its port {}/{} as {port} on {address}, by the packet filter and without a socket",
        published.port, published.protocol
    );
    labelled(out, "published", &text);
    let runtime = &published.container.runtime;
    let refuses = format!(
        "another container that wants it is refused by {runtime} itself (\"port is already allocated\"); \
         a process can bind it, and gets no connections from outside"
    );
    labelled(out, "", &refuses);
}

fn last_use(last: &LastUse) -> String {
    let mut text = match &last.process {
        Some(process) => {
            let mut text = format!("{}[{}]", process.comm, process.pid);
            if !process.args.is_empty() {
                let _ = write!(text, " `{}`", process.args.join(" "));
            }
            text
        }
        None => "an unknown process".to_owned(),
    };
    let transport = last.transport.as_deref().unwrap_or("?");
    let _ = write!(
        text,
        ", {} of {transport} at {}",
        last.event,
        last.time.timestamp()
    );
    text
}

/// What the settings say.
fn notes(out: &mut String, range: &PortRange) {
    if range.ephemeral {
        labelled(
            out,
            "note",
            "it lies in net.ipv4.ip_local_port_range: any outgoing connection may get it; a server \
             should use a port below, or have it in net.ipv4.ip_local_reserved_ports",
        );
    }
    if range.reserved {
        labelled(
            out,
            "note",
            "it is in net.ipv4.ip_local_reserved_ports: no outgoing connection gets it",
        );
    }
    if range.privileged {
        labelled(
            out,
            "note",
            "it lies below net.ipv4.ip_unprivileged_port_start: binding it takes root or \
             CAP_NET_BIND_SERVICE",
        );
    }
}
