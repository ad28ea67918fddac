//! The text of `portwatch list`: a table whose columns are as wide as what stands in them.

use std::collections::{BTreeMap, HashMap, HashSet};

use unicode_width::UnicodeWidthStr as _;

use super::cell::{self, UNKNOWN, put};
use super::duration::Duration;
use super::escape::escape;
use crate::event::{
    Address, Body, Listed, Ownership, PublishedPort, Publishes, Socket, State, Timewaits, Transport,
};

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

/// The cells of all rows.
#[derive(Default)]
struct Table {
    /// One behind the other.
    text: String,
    /// Where each of them ends; [`CELLS`] are a row.
    ends: Vec<usize>,
}

impl Table {
    /// Ends the cell whose text was put at the end.
    fn end(&mut self) {
        self.ends.push(self.text.len());
    }

    fn cell(&mut self, text: &str) {
        self.text.push_str(text);
        self.end();
    }

    /// The cells, row by row.
    fn cells(&self) -> impl Iterator<Item = &str> {
        let begins = std::iter::once(&0).chain(&self.ends);
        begins
            .zip(&self.ends)
            .map(|(begin, end)| &self.text[*begin..*end])
    }
}

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
    let mut table = Table::default();
    if header {
        columns.titles().iter().for_each(|title| table.cell(title));
    }
    for body in bodies {
        match body {
            Body::Socket(listed) => socket(&mut table, listed, columns, counts, host),
            Body::Published(port) => published(&mut table, port, host),
            // Their number stands beside the socket.
            Body::Timewaits(sum) if shown.contains(&(sum.netns, sum.port)) => {}
            Body::Timewaits(sum) if sum.ephemeral => {
                ephemeral.entry(sum.netns).or_default().add(sum);
            }
            Body::Timewaits(sum) => {
                let local = format!("*:{}", sum.port);
                let (count, expires_in_ms) = (sum.count, sum.expires_in_ms);
                waiting(&mut table, &local, count, expires_in_ms, None, sum, host);
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
            let (count, expires_in_ms) = (folded.count, folded.expires_in_ms);
            waiting(&mut table, &local, count, expires_in_ms, what, any, host);
        }
    }
    aligned(&table)
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
    table: &mut Table,
    listed: &Listed,
    columns: Columns,
    counts: &HashMap<(u32, u16), u64>,
    host: Option<u32>,
) {
    let socket = &listed.socket.socket;
    let device = socket.bound_device.as_deref();
    cell::protocol(&mut table.text, socket);
    table.end();
    address(table, socket.local.as_ref(), device);
    if columns == Columns::All {
        address(table, socket.remote.as_ref(), None);
    }
    match socket.state {
        Some(state) => put(&mut table.text, format_args!("{state}")),
        None => table.text.push_str(UNKNOWN),
    }
    table.end();
    options(&mut table.text, socket);
    table.end();
    if columns == Columns::Bound {
        match tcp_port_of(listed).and_then(|port| counts.get(&port)) {
            Some(count) => put(&mut table.text, format_args!("{count}")),
            None => table.text.push_str(UNKNOWN),
        }
        table.end();
    }
    let name = listed.netns_name.as_deref();
    namespace(&mut table.text, name, socket.netns, host);
    table.end();
    processes(&mut table.text, listed);
    table.end();
    place(&mut table.text, listed);
    table.end();
}

fn address(table: &mut Table, address: Option<&Address>, device: Option<&str>) {
    match address {
        Some(address) => cell::address(&mut table.text, address, device),
        None => table.text.push_str(UNKNOWN),
    }
    table.end();
}

fn options(text: &mut String, socket: &Socket) {
    let mut names = socket.options.names();
    text.push_str(names.next().unwrap_or(UNKNOWN));
    for name in names {
        text.push(',');
        text.push_str(name);
    }
}

/// A port without a socket.
fn published(table: &mut Table, port: &PublishedPort, host: Option<u32>) {
    let socket = port.socket();
    cell::protocol(&mut table.text, &socket);
    table.end();
    match port.address {
        Some(_) => address(table, socket.local.as_ref(), None),
        None => table.cell(&format!("*:{}", port.port)),
    }
    // State, options, and a peer or a number of TIME_WAITs.
    (0..3).for_each(|_| table.cell(UNKNOWN));
    let name = port.netns_name.as_deref();
    namespace(&mut table.text, name, port.netns, host);
    table.end();
    table.cell(UNKNOWN);
    publishes(&mut table.text, &port.publishes);
    table.text.push_str(", no socket");
    table.end();
}

/// Of which container a port of the host is one.
fn publishes(text: &mut String, of: &Publishes) {
    text.push_str("published by ");
    cell::container(text, &of.container, of.pod.as_ref());
    if let Some(port) = of.port {
        put(text, format_args!(" → {port}"));
    }
}

fn waiting(
    table: &mut Table,
    local: &str,
    count: u64,
    expires_in_ms: u64,
    what: Option<&str>,
    sum: &Timewaits,
    host: Option<u32>,
) {
    put(&mut table.text, format_args!("{}", sum.transport));
    table.end();
    table.cell(local);
    put(&mut table.text, format_args!("{}", State::TimeWait));
    table.end();
    table.cell(UNKNOWN);
    put(&mut table.text, format_args!("{count}"));
    table.end();
    let name = sum.netns_name.as_deref();
    namespace(&mut table.text, name, Some(sum.netns), host);
    table.end();
    table.cell(UNKNOWN);
    if let Some(what) = what {
        put(&mut table.text, format_args!("{what}, "));
    }
    let last = if count == 1 { "" } else { "the last " };
    let left = Duration(expires_in_ms);
    put(&mut table.text, format_args!("{last}frees in {left}"));
    table.end();
}

fn namespace(text: &mut String, name: Option<&str>, netns: Option<u32>, host: Option<u32>) {
    match (name, netns) {
        (Some(name), _) => text.push_str(&escape(name)),
        (None, Some(netns)) if host == Some(netns) => text.push_str("host"),
        (None, Some(netns)) => put(text, format_args!("{netns}")),
        (None, None) => text.push_str(UNKNOWN),
    }
}

fn processes(text: &mut String, listed: &Listed) {
    let processes = &listed.processes;
    for (number, actor) in processes.iter().take(NAMED).enumerate() {
        if number != 0 {
            text.push_str(", ");
        }
        put(text, format_args!("{}[{}]", escape(&actor.comm), actor.pid));
    }
    match processes.len() {
        0 => text.push_str(UNKNOWN),
        count if count > NAMED => put(text, format_args!(" +{}", count - NAMED)),
        _ => {}
    }
}

/// The last column: where its first process belongs, and what is special about the socket.
fn place(text: &mut String, listed: &Listed) {
    let socket = &listed.socket.socket;
    let begin = text.len();
    let part = |text: &mut String, part: std::fmt::Arguments<'_>| {
        if text.len() != begin {
            text.push_str(", ");
        }
        put(text, part);
    };
    if let Some(actor) = listed.processes.first() {
        cell::home(text, actor);
    }
    if let Some(of) = &listed.publishes {
        part(text, format_args!(""));
        publishes(text, of);
    }
    if tcp_port_of(listed).is_some() && socket.state == Some(State::Bound) {
        part(text, format_args!("bound-not-listening"));
    }
    match (listed.ownership, listed.expires_in_ms) {
        (_, Some(left)) => part(text, format_args!("frees in {}", Duration(left))),
        (Some(Ownership::None), None) => part(text, format_args!("no process")),
        _ => {}
    }
}

/// The rows below each other, each a line.
fn aligned(table: &Table) -> Vec<u8> {
    let width = |cell: &str| {
        if cell.is_ascii() {
            cell.len()
        } else {
            cell.width()
        }
    };
    let mut widths = [0; CELLS];
    for (number, cell) in table.cells().enumerate() {
        let most = &mut widths[number % CELLS];
        *most = (*most).max(width(cell).min(WIDEST));
    }
    let mut out = Vec::with_capacity(2 * table.text.len());
    for (number, cell) in table.cells().enumerate() {
        out.extend_from_slice(cell.as_bytes());
        if number % CELLS == CELLS - 1 {
            while out.last() == Some(&b' ') {
                out.pop();
            }
            out.push(b'\n');
        } else {
            let gap = widths[number % CELLS].saturating_sub(width(cell)) + GAP;
            out.resize(out.len() + gap, b' ');
        }
    }
    out
}
