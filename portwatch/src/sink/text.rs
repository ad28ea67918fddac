//! Text: a table with a line per event, for people.
//!
//! Whatever stands in an event, its line is one line without a control
//! character: the strings of others are escaped, on a terminal or not.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::net::IpAddr;

use jiff::tz::TimeZone;
use unicode_width::UnicodeWidthStr;

use super::duration::Duration;
use super::escape::escape;
use crate::event::{
    Actor, Address, Bind, Body, End, Event, Family, Listen, Lost, Outcome, Phase, Reason, Release,
    Result, Socket, Start, Time, Timewait, Transport,
};

/// A column of the table, other than the last.
struct Column {
    title: &'static str,
    /// How wide it is at first.
    least: usize,
    /// How wide it becomes for the sake of a wide value, which else reaches over.
    most: usize,
}

/// A value that is not known.
const UNKNOWN: &str = "-";

const COLUMNS: [Column; 7] = [
    column("TIME", 12, 12),
    column("PID", 6, 10),
    // The kernel's TASK_COMM_LEN is 16 with the NUL; only escapes make it longer.
    column("COMM", 12, 15),
    column("EVENT", 8, 8),
    column("PROTO", 5, 10),
    // The longest IPv6 address in brackets, with its port.
    column("LOCAL", 19, 47),
    column("RESULT", 10, 15),
];

/// The last column, which nothing follows.
const WHERE: &str = "WHERE";
const GAP: usize = 2;

const fn column(title: &'static str, least: usize, most: usize) -> Column {
    Column { title, least, most }
}

/// Whether the output is coloured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Color {
    /// The outcome is.
    On,
    /// It is not.
    Off,
}

/// What a colour says of an outcome.
#[derive(Clone, Copy)]
enum Mark {
    Good,
    Bad,
    Neither,
}

/// Renders events as lines of a table whose columns grow with what they hold.
pub struct Text {
    zone: TimeZone,
    color: Color,
    widths: [usize; COLUMNS.len()],
    line: String,
}

/// A line of the table.
struct Row<'a> {
    cells: [Cow<'a, str>; COLUMNS.len()],
    mark: Mark,
    place: String,
}

impl Text {
    /// A table with its times in this zone.
    #[must_use]
    pub fn new(zone: TimeZone, color: Color) -> Self {
        Self {
            zone,
            color,
            widths: COLUMNS.map(|column| column.least),
            line: String::new(),
        }
    }

    /// The line above the columns, with its newline.
    #[must_use]
    pub fn header(&self) -> String {
        let mut header = String::new();
        for (column, width) in COLUMNS.iter().zip(self.widths) {
            let width = width + GAP;
            // Writing to a String cannot fail.
            let _ = write!(header, "{:width$}", column.title);
        }
        header.push_str(WHERE);
        header.push('\n');
        header
    }

    /// Appends the event's line, if it is one of the table: of `start`, `lost` and `end` it appends
    /// nothing, see [`start_lines`], [`lost_line`] and [`end_line`].
    pub fn render(&mut self, event: &Event, out: &mut Vec<u8>) {
        let time = self.time(event.time);
        let row = match &event.body {
            Body::Bind(bind) => bind_row(time, bind),
            Body::Listen(listen) => listen_row(time, listen),
            Body::Release(release) => release_row(time, release),
            Body::Timewait(timewait) => timewait_row(time, timewait),
            Body::Start(_) | Body::Lost(_) | Body::End(_) => return,
        };
        self.lay_out(&row);
        out.extend_from_slice(self.line.as_bytes());
        out.push(b'\n');
    }

    fn time(&self, time: Time) -> String {
        let time = self.zone.to_datetime(time.timestamp());
        let (hour, minute, second) = (time.hour(), time.minute(), time.second());
        let millisecond = time.millisecond();
        format!("{hour:02}:{minute:02}:{second:02}.{millisecond:03}")
    }

    fn lay_out(&mut self, row: &Row<'_>) {
        self.line.clear();
        let result = COLUMNS.len() - 1;
        for (number, (cell, column)) in row.cells.iter().zip(&COLUMNS).enumerate() {
            let width = cell.width();
            let wanted = &mut self.widths[number];
            *wanted = (*wanted).max(width.min(column.most));
            let (on, off) = match (self.color, row.mark) {
                (Color::On, Mark::Good) if number == result => ("\x1b[32m", "\x1b[0m"),
                (Color::On, Mark::Bad) if number == result => ("\x1b[1;31m", "\x1b[0m"),
                _ => ("", ""),
            };
            let padding = wanted.saturating_sub(width) + GAP;
            // Writing to a String cannot fail.
            let _ = write!(self.line, "{on}{cell}{off}{:padding$}", "");
        }
        self.line.push_str(&row.place);
        self.line.truncate(self.line.trim_end_matches(' ').len());
    }
}

fn row<'a>(
    time: String,
    event: &'static str,
    socket: &Socket,
    actor: Option<&'a Actor>,
    (result, mark): (Cow<'a, str>, Mark),
    place: impl IntoIterator<Item = String>,
) -> Row<'a> {
    let (pid, comm) = match actor {
        Some(actor) => (actor.pid.to_string().into(), escape(&actor.comm)),
        None => (UNKNOWN.into(), UNKNOWN.into()),
    };
    let local = match &socket.local {
        Some(local) => show(local, socket.bound_device.as_deref()).into(),
        None => UNKNOWN.into(),
    };
    Row {
        cells: [
            time.into(),
            pid,
            comm,
            event.into(),
            protocol(socket),
            local,
            result,
        ],
        mark,
        place: place.into_iter().collect::<Vec<_>>().join(", "),
    }
}

fn bind_row(time: String, bind: &Bind) -> Row<'_> {
    let actor = bind.process.as_ref();
    let asked = bind
        .requested
        .as_ref()
        .map(|requested| asked(requested, bind.socket.local.as_ref()));
    let autobind = bind.autobind.then(|| match &bind.socket.remote {
        Some(remote) => format!("no port left to connect to {}", show(remote, None)),
        None => "no port left to choose from".to_owned(),
    });
    let kernel = bind.socket.kernel.then(|| "kernel socket".to_owned());
    let place = home(actor)
        .into_iter()
        .chain(asked)
        .chain(kernel)
        .chain(autobind);
    row(
        time,
        "bind",
        &bind.socket,
        actor,
        outcome(&bind.result),
        place,
    )
}

fn listen_row(time: String, listen: &Listen) -> Row<'_> {
    let actor = listen.process.as_ref();
    let result = outcome(&listen.result);
    row(time, "listen", &listen.socket, actor, result, home(actor))
}

fn release_row(time: String, release: &Release) -> Row<'_> {
    let actor = release.process.as_ref();
    let held = release
        .held_ms
        .map(|held| format!("held {}", Duration(held)));
    let binder = release
        .binder
        .as_ref()
        .map(|binder| format!("bound by {}[{}]", escape(&binder.comm), binder.pid));
    let place = home(actor).into_iter().chain(held).chain(binder);
    let result = ("ok".into(), Mark::Good);
    row(time, "release", &release.socket, actor, result, place)
}

/// The peer stands where other events have the container: two connections differ in nothing else.
fn timewait_row(time: String, timewait: &Timewait) -> Row<'_> {
    let peer = timewait
        .socket
        .remote
        .as_ref()
        .map(|remote| format!("→ {}", show(remote, None)));
    let (phase, rest) = match timewait.phase {
        Phase::Enter => {
            let frees = timewait
                .expires_in_ms
                .map(|left| format!("frees in {}", Duration(left)));
            let waited = timewait
                .fin_wait2_ms
                .map(|waited| format!("after {} in FIN_WAIT2", Duration(waited)));
            ("enter", [frees, waited])
        }
        Phase::Exit => {
            let after = timewait
                .lasted_ms
                .map(|lasted| format!("after {}", Duration(lasted)));
            let how = [timewait.reason.map(reason).map(str::to_owned), after];
            let how: Vec<_> = how.into_iter().flatten().collect();
            ("exit", [(!how.is_empty()).then(|| how.join(" ")), None])
        }
    };
    let actor = timewait.process.as_ref();
    let place = peer.into_iter().chain(rest.into_iter().flatten());
    let result = (phase.into(), Mark::Neither);
    row(time, "timewait", &timewait.socket, actor, result, place)
}

fn reason(reason: Reason) -> &'static str {
    match reason {
        Reason::Expired => "expired",
        Reason::Reused => "reused",
        Reason::Reset => "reset",
        Reason::Purged => "purged",
    }
}

fn outcome(result: &Result) -> (Cow<'_, str>, Mark) {
    match (result.outcome, &result.error, result.errno) {
        (Outcome::Success, ..) => ("ok".into(), Mark::Good),
        (Outcome::Failure, Some(name), _) => (escape(name), Mark::Bad),
        (Outcome::Failure, None, Some(errno)) => (format!("errno {errno}").into(), Mark::Bad),
        (Outcome::Failure, None, None) => ("failed".into(), Mark::Bad),
    }
}

fn protocol(socket: &Socket) -> Cow<'static, str> {
    let Some(transport) = &socket.transport else {
        return UNKNOWN.into();
    };
    let digit = match socket.family {
        Some(Family::Unix) => return "unix".into(),
        Some(Family::Ipv4) => "4",
        Some(Family::Ipv6) => "6",
        None => "",
    };
    match transport {
        Transport::Tcp if digit == "4" => "tcp4".into(),
        Transport::Tcp if digit == "6" => "tcp6".into(),
        // The digit must not become part of the number.
        Transport::Other(_) if !digit.is_empty() => format!("{transport}/{digit}").into(),
        _ => format!("{transport}{digit}").into(),
    }
}

/// An address as `ss` shows it, with the interface that the socket is bound to.
fn show(address: &Address, device: Option<&str>) -> String {
    match address {
        Address::Inet {
            address,
            port,
            scope,
        } => {
            // A link-local address belongs to the interface that its socket is bound to: one of
            // the two is enough.
            let zone = match (device, scope) {
                (Some(device), _) => format!("%{}", escape(device)),
                (None, Some(scope)) => format!("%{scope}"),
                (None, None) => String::new(),
            };
            match address {
                IpAddr::V4(address) => format!("{address}{zone}:{port}"),
                IpAddr::V6(address) => format!("[{address}]{zone}:{port}"),
            }
        }
        Address::Path { path } => escape(&path.path).into_owned(),
        Address::Abstract { name } => format!("@{}", escape(&name.name)),
        Address::Unnamed { .. } => "any name".to_owned(),
    }
}

/// What was asked for, where it is not what the socket got.
fn asked(requested: &Address, got: Option<&Address>) -> String {
    let port_only = match (requested, got) {
        (
            Address::Inet {
                address,
                port: 0,
                scope,
            },
            Some(Address::Inet {
                address: got,
                scope: got_scope,
                ..
            }),
        ) => address == got && scope == got_scope,
        _ => false,
    };
    if port_only {
        "asked for port 0".to_owned()
    } else {
        format!("asked for {}", show(requested, None))
    }
}

/// Where a process belongs: to a container, else to a unit.
fn home(actor: Option<&Actor>) -> Option<String> {
    let process = &actor?.process;
    if let Some(container) = &process.container {
        let name = match &container.name {
            Some(name) => escape(name),
            // As many digits as `docker ps` shows.
            None => match container.id.char_indices().nth(12) {
                Some((end, _)) => escape(&container.id[..end]),
                None => escape(&container.id),
            },
        };
        return Some(format!("{name} ({})", escape(&container.runtime)));
    }
    process
        .unit
        .as_deref()
        .map(|unit| escape(unit).into_owned())
}

/// What to tell at the start: what traces, and a line for each thing that cannot be seen.
#[must_use]
pub fn start_lines(start: &Start) -> String {
    let mut lines = format!(
        "portwatch {}: tracing with the {} backend on {}; Ctrl-C to stop\n",
        escape(&start.version),
        escape(&start.backend),
        escape(&start.kernel),
    );
    for missing in &start.missing {
        let (what, why) = (escape(&missing.what), escape(&missing.why));
        // Writing to a String cannot fail.
        let _ = writeln!(lines, "not seen: {what} ({why})");
    }
    lines
}

/// What to tell when something was lost.
#[must_use]
pub fn lost_line(lost: &Lost) -> String {
    let mut line = format!("portwatch: lost {}", loss(&lost.place, lost.count));
    for (number, (name, count)) in lost.of.iter().enumerate() {
        let before = if number == 0 { ":" } else { "," };
        // Writing to a String cannot fail.
        let _ = write!(line, "{before} {count} {}", escape(name));
    }
    line.push('\n');
    line
}

/// A number of things lost at a place.
fn loss(place: &str, count: u64) -> String {
    match place {
        "ring" => format!("{} (ring buffer full)", counted(count, "record")),
        "recursion" => format!(
            "{} (the same program was running already)",
            counted(count, "run")
        ),
        "bound" => format!(
            "{} (more than can be followed: their release will not be seen)",
            counted(count, "bound socket")
        ),
        "decode" => format!("{} (not understood)", counted(count, "record")),
        _ => format!("{count} ({})", escape(place)),
    }
}

fn counted(count: u64, thing: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {thing}{plural}")
}

/// What to tell at the end: how many events there were, and what was lost.
#[must_use]
pub fn end_line(end: &End) -> String {
    let counts: Vec<_> = ["bind", "listen", "release", "timewait"]
        .into_iter()
        .filter_map(|kind| Some((kind, *end.counts.get(kind)?)))
        .collect();
    let events = counted(counts.iter().map(|(_, count)| count).sum(), "event");
    let mut line = format!("portwatch: {events} in {}", Duration(end.duration_ms));
    for (number, (kind, count)) in counts.iter().enumerate() {
        let before = if number == 0 { ":" } else { "," };
        // Writing to a String cannot fail.
        let _ = write!(line, "{before} {count} {kind}");
    }
    if end.failed != 0 {
        let _ = write!(line, "; {} failed", end.failed);
    }
    let losses: Vec<_> = end
        .lost
        .iter()
        .filter(|(_, count)| **count != 0)
        .map(|(place, count)| loss(place, *count))
        .collect();
    if losses.is_empty() {
        line.push_str("; nothing lost\n");
    } else {
        let _ = writeln!(line, "; lost {}", losses.join(", "));
    }
    line
}
