//! The text of `portwatch list`: a table whose columns are as wide as what stands in them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write as _;

use unicode_width::UnicodeWidthStr as _;

use super::cell::{self, UNKNOWN};
use super::duration::Duration;
use super::escape::escape;
use crate::event::{Body, Listed, Ownership, State, Timewaits, Transport};

/// Which columns there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Columns {
    /// Those of ports: how many TIME_WAITs are on each.
    Bound,
    /// Those of connections: the peer of each.
    All,
}

impl Columns {
    fn titles(self) -> [&'static str; CELLS] {
        match self {
            Self::Bound => [
                "PROTO", "LOCAL", "STATE", "OPTIONS", "TIMEWAIT", "NETNS", "PROCESS", "WHERE",
            ],
            Self::All => [
                "PROTO", "LOCAL", "PEER", "STATE", "OPTIONS", "NETNS", "PROCESS", "WHERE",
            ],
        }
    }
}

const CELLS: usize = 8;
const GAP: usize = 2;
/// How many processes of a socket are named.
const NAMED: usize = 3;
/// A longer cell reaches over, lest one row make the table as wide.
const WIDEST: usize = 47;

type Row = [String; CELLS];

/// The whole table. `counts` is the number of TIME_WAITs by namespace and local port, `host` the
/// namespace that is called so, `header` whether the columns are named.
#[must_use]
pub fn render(
    bodies: &[Body],
    columns: Columns,
    counts: &HashMap<(u32, u16), u64>,
    host: Option<u32>,
    header: bool,
) -> Vec<u8> {
    let shown: HashSet<_> = bodies.iter().filter_map(tcp_port).collect();
    let mut ephemeral = BTreeMap::<u32, Folded>::new();
    let mut rows: Vec<Row> = Vec::with_capacity(bodies.len() + 1);
    if header {
        rows.push(columns.titles().map(str::to_owned));
    }
    for body in bodies {
        match body {
            Body::Socket(listed) => rows.push(socket(listed, columns, counts, host)),
            // Their number stands beside the socket.
            Body::Timewaits(sum) if shown.contains(&(sum.netns, sum.port)) => {}
            Body::Timewaits(sum) if sum.ephemeral => {
                ephemeral.entry(sum.netns).or_default().add(sum);
            }
            Body::Timewaits(sum) => {
                let local = format!("*:{}", sum.port);
                rows.push(waiting(
                    local,
                    sum.count,
                    sum.expires_in_ms,
                    None,
                    sum,
                    host,
                ));
            }
            _ => {}
        }
    }
    for folded in ephemeral.values() {
        if let Some(any) = &folded.any {
            let local = match folded.ports {
                1 => format!("*:{}", any.port),
                ports => format!("{ports} ports"),
            };
            let what = Some("ephemeral");
            rows.push(waiting(
                local,
                folded.count,
                folded.expires_in_ms,
                what,
                any,
                host,
            ));
        }
    }
    aligned(&rows)
}

/// TIME_WAITs on ephemeral ports, which nobody looks for one by one.
#[derive(Default)]
struct Folded {
    any: Option<Timewaits>,
    ports: u64,
    count: u64,
    expires_in_ms: u64,
}

impl Folded {
    fn add(&mut self, sum: &Timewaits) {
        self.any.get_or_insert_with(|| sum.clone());
        self.ports += 1;
        self.count += sum.count;
        self.expires_in_ms = self.expires_in_ms.max(sum.expires_in_ms);
    }
}

/// The namespace and port of a row that has TIME_WAITs beside it.
fn tcp_port(body: &Body) -> Option<(u32, u16)> {
    match body {
        Body::Socket(listed) => tcp_port_of(listed),
        _ => None,
    }
}

fn tcp_port_of(listed: &Listed) -> Option<(u32, u16)> {
    let socket = &listed.socket.socket;
    let tcp = matches!(
        socket.transport,
        Some(Transport::Tcp | Transport::Mptcp | Transport::Smc)
    );
    let port = socket.local.as_ref()?.port()?;
    tcp.then_some((socket.netns?, port))
}

fn socket(
    listed: &Listed,
    columns: Columns,
    counts: &HashMap<(u32, u16), u64>,
    host: Option<u32>,
) -> Row {
    let socket = &listed.socket.socket;
    let device = socket.bound_device.as_deref();
    let address = |address: Option<_>, device| {
        let mut text = String::new();
        match address {
            Some(address) => cell::address(&mut text, address, device),
            None => text.push_str(UNKNOWN),
        }
        text
    };
    let mut protocol = String::new();
    cell::protocol(&mut protocol, socket);
    let local = address(socket.local.as_ref(), device);
    let state = socket
        .state
        .map_or_else(|| UNKNOWN.to_owned(), |state| state.to_string());
    let options: Vec<_> = socket.options.names().collect();
    let options = if options.is_empty() {
        UNKNOWN.to_owned()
    } else {
        options.join(",")
    };
    let netns = namespace(listed.netns_name.as_deref(), socket.netns, host);
    let process = processes(listed);
    let place = place(listed);
    match columns {
        Columns::Bound => {
            let body = tcp_port_of(listed).and_then(|port| counts.get(&port));
            let count = body.map_or_else(|| UNKNOWN.to_owned(), ToString::to_string);
            [
                protocol, local, state, options, count, netns, process, place,
            ]
        }
        Columns::All => {
            let remote = address(socket.remote.as_ref(), None);
            [
                protocol, local, remote, state, options, netns, process, place,
            ]
        }
    }
}

fn waiting(
    local: String,
    count: u64,
    expires_in_ms: u64,
    what: Option<&str>,
    sum: &Timewaits,
    host: Option<u32>,
) -> Row {
    let frees = match count {
        1 => format!("frees in {}", Duration(expires_in_ms)),
        _ => format!("the last frees in {}", Duration(expires_in_ms)),
    };
    [
        sum.transport.to_string(),
        local,
        State::TimeWait.to_string(),
        UNKNOWN.to_owned(),
        count.to_string(),
        namespace(sum.netns_name.as_deref(), Some(sum.netns), host),
        UNKNOWN.to_owned(),
        what.into_iter()
            .chain([&*frees])
            .collect::<Vec<_>>()
            .join(", "),
    ]
}

fn namespace(name: Option<&str>, netns: Option<u32>, host: Option<u32>) -> String {
    match (name, netns) {
        (Some(name), _) => escape(name).into_owned(),
        (None, Some(netns)) if host == Some(netns) => "host".to_owned(),
        (None, Some(netns)) => netns.to_string(),
        (None, None) => UNKNOWN.to_owned(),
    }
}

fn processes(listed: &Listed) -> String {
    let processes = &listed.processes;
    let mut text = String::new();
    for (number, actor) in processes.iter().take(NAMED).enumerate() {
        if number != 0 {
            text.push_str(", ");
        }
        // Writing to a String cannot fail.
        let _ = write!(text, "{}[{}]", escape(&actor.comm), actor.pid);
    }
    match processes.len() {
        0 => text.push_str(UNKNOWN),
        count if count > NAMED => {
            let _ = write!(text, " +{}", count - NAMED);
        }
        _ => {}
    }
    text
}

/// The last column: where its first process belongs, and what is special about the socket.
fn place(listed: &Listed) -> String {
    let socket = &listed.socket.socket;
    let mut parts = Vec::new();
    if let Some(actor) = listed.processes.first() {
        let mut home = String::new();
        cell::home(&mut home, actor);
        parts.extend((!home.is_empty()).then_some(home));
    }
    if tcp_port_of(listed).is_some() && socket.state == Some(State::Bound) {
        parts.push("bound-not-listening".to_owned());
    }
    match (listed.ownership, listed.expires_in_ms) {
        (_, Some(left)) => parts.push(format!("frees in {}", Duration(left))),
        (Some(Ownership::None), None) => parts.push("no process".to_owned()),
        _ => {}
    }
    parts.join(", ")
}

/// The rows below each other, each a line.
fn aligned(rows: &[Row]) -> Vec<u8> {
    let width = |cell: &str| {
        if cell.is_ascii() {
            cell.len()
        } else {
            cell.width()
        }
    };
    let mut widths = [0; CELLS];
    for row in rows {
        for (most, cell) in widths.iter_mut().zip(row) {
            *most = (*most).max(width(cell).min(WIDEST));
        }
    }
    let mut out = Vec::new();
    for row in rows {
        for (cell, most) in row.iter().zip(widths) {
            out.extend_from_slice(cell.as_bytes());
            let gap = most.saturating_sub(width(cell)) + GAP;
            out.resize(out.len() + gap, b' ');
        }
        while out.last() == Some(&b' ') {
            out.pop();
        }
        out.push(b'\n');
    }
    out
}
