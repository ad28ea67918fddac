//! Text: a table with a line per event, for people.
//!
//! Whatever stands in an event, its line is one line without a control
//! character: the strings of others are escaped, on a terminal or not.

use std::borrow::Cow;
use std::fmt::Write as _;

use jiff::tz::TimeZone;
use unicode_width::UnicodeWidthStr;

use super::cell::{self, UNKNOWN};
use super::conflict;
use super::duration::Duration;
use super::escape::escape;
use super::moment::{self, moment};
use crate::event::{
    Actor, Address, Body, Conflict, End, Event, Lost, Outcome, Phase, Reason, Result, Socket,
    Start, Time, Timewait,
};

/// A column of the table, other than the last.
struct Column {
    title: &'static str,
    /// How wide it is at first.
    least: usize,
    /// How wide it becomes for the sake of a wide value, which else reaches over.
    most: usize,
}

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
    /// The last second that was shown, and how.
    second: Option<(i64, String)>,
    line: String,
}

/// A line of the table that is being written, cell by cell.
struct Row<'a> {
    line: &'a mut String,
    widths: &'a mut [usize; COLUMNS.len()],
    /// The cell's number, and where it begins.
    cell: (usize, usize),
}

impl Text {
    /// A table with its times in this zone.
    #[must_use]
    pub fn new(zone: TimeZone, color: Color) -> Self {
        Self {
            zone,
            color,
            widths: COLUMNS.map(|column| column.least),
            second: None,
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
        let (socket, actor) = match &event.body {
            Body::Bind(bind) => (&bind.socket, &bind.process),
            Body::Listen(listen) => (&listen.socket, &listen.process),
            Body::Release(release) => (&release.socket, &release.process),
            Body::Timewait(timewait) => (&timewait.socket, &timewait.process),
            Body::Start(_)
            | Body::Lost(_)
            | Body::End(_)
            | Body::Socket(_)
            | Body::Timewaits(_)
            | Body::Published(_)
            | Body::Why(_) => return,
        };
        let actor = actor.as_ref();
        self.line.clear();
        self.time(event.time);
        let mut row = Row {
            line: &mut self.line,
            widths: &mut self.widths,
            cell: (0, 0),
        };
        row.end_cell();
        match actor {
            Some(actor) => {
                row.put(format_args!("{}", actor.pid));
                row.end_cell();
                row.push(&escape(&actor.comm));
            }
            None => {
                row.push(UNKNOWN);
                row.end_cell();
                row.push(UNKNOWN);
            }
        }
        row.end_cell();
        row.push(event.body.name());
        row.end_cell();
        row.protocol(socket);
        row.end_cell();
        match &socket.local {
            Some(local) => row.address(local, socket.bound_device.as_deref()),
            None => row.push(UNKNOWN),
        }
        row.end_cell();
        row.result(&event.body, self.color);
        row.place(&event.body, actor);
        self.line.truncate(self.line.trim_end_matches(' ').len());
        out.extend_from_slice(self.line.as_bytes());
        out.push(b'\n');
        let conflict = match &event.body {
            Body::Bind(bind) => bind.conflict.as_ref(),
            Body::Listen(listen) => listen.conflict.as_ref(),
            _ => None,
        };
        if let Some(conflict) = conflict {
            self.explain(conflict, event.time, out);
        }
    }

    /// Appends what explains a refusal, below its line: who holds the port, why, what to do. `at`
    /// is the time of the event.
    pub fn explain(&self, conflict: &Conflict, at: Time, out: &mut Vec<u8>) {
        conflict::explain(conflict, at, &self.zone, out);
    }

    fn time(&mut self, time: Time) {
        let second = time.0.div_euclid(1_000_000_000);
        if self
            .second
            .as_ref()
            .is_none_or(|(shown, _)| *shown != second)
        {
            self.second = Some((second, moment(time, &self.zone, moment::SECOND)));
        }
        if let Some((_, shown)) = &self.second {
            self.line.push_str(shown);
        }
        let millisecond = time.0.rem_euclid(1_000_000_000) / 1_000_000;
        // Writing to a String cannot fail.
        let _ = write!(self.line, ".{millisecond:03}");
    }
}

impl Row<'_> {
    fn push(&mut self, text: &str) {
        self.line.push_str(text);
    }

    fn put(&mut self, text: std::fmt::Arguments<'_>) {
        // Writing to a String cannot fail.
        let _ = self.line.write_fmt(text);
    }

    /// Ends a cell: the column grows with it, or it is padded.
    fn end_cell(&mut self) {
        self.end_cell_with("");
    }

    /// Ends a cell behind which something stands that takes no room.
    fn end_cell_with(&mut self, code: &str) {
        let (number, begin) = self.cell;
        let text = &self.line[begin..];
        // Controls were escaped, so every ASCII character is one wide.
        let width = if text.is_ascii() {
            text.len()
        } else {
            text.width()
        };
        let wanted = &mut self.widths[number];
        *wanted = (*wanted).max(width.min(COLUMNS[number].most));
        self.line.push_str(code);
        for _ in 0..wanted.saturating_sub(width) + GAP {
            self.line.push(' ');
        }
        self.cell = (number + 1, self.line.len());
    }

    fn result(&mut self, body: &Body, color: Color) {
        let outcome = match body {
            Body::Bind(bind) => Some(&bind.result),
            Body::Listen(listen) => Some(&listen.result),
            _ => None,
        };
        let (result, mark) = match (body, outcome) {
            (_, Some(result)) => shown(result),
            (Body::Timewait(timewait), _) => match timewait.phase {
                Phase::Enter => ("enter".into(), Mark::Neither),
                Phase::Exit => ("exit".into(), Mark::Neither),
            },
            _ => ("ok".into(), Mark::Good),
        };
        let (on, off) = match (color, mark) {
            (Color::On, Mark::Good) => ("\x1b[32m", "\x1b[0m"),
            (Color::On, Mark::Bad) => ("\x1b[1;31m", "\x1b[0m"),
            _ => ("", ""),
        };
        self.push(on);
        self.cell.1 = self.line.len();
        self.push(&result);
        self.end_cell_with(off);
    }

    /// The last column: parts with commas between them.
    fn place(&mut self, body: &Body, actor: Option<&Actor>) {
        match body {
            Body::Bind(bind) => {
                self.home(actor);
                if let Some(requested) = &bind.requested {
                    self.part();
                    self.asked(requested, bind.socket.local.as_ref());
                }
                if bind.socket.kernel {
                    self.part();
                    self.push("kernel socket");
                }
                if bind.autobind {
                    self.part();
                    self.push("no port left");
                    if let Some(remote) = &bind.socket.remote {
                        self.push(" to connect to ");
                        self.address(remote, None);
                    }
                }
            }
            Body::Release(release) => {
                self.home(actor);
                if let Some(held) = release.held_ms {
                    self.part();
                    self.put(format_args!("held {}", Duration(held)));
                }
                if let Some(binder) = &release.binder {
                    self.part();
                    self.put(format_args!(
                        "bound by {}[{}]",
                        escape(&binder.comm),
                        binder.pid
                    ));
                }
            }
            Body::Timewait(timewait) => self.timewait(timewait),
            _ => self.home(actor),
        }
    }

    /// Begins a part of the last column.
    fn part(&mut self) {
        if self.line.len() != self.cell.1 {
            self.push(", ");
        }
    }

    /// The peer stands where other events have the container: two connections differ in nothing else.
    fn timewait(&mut self, timewait: &Timewait) {
        if let Some(remote) = &timewait.socket.remote {
            self.push("→ ");
            self.address(remote, None);
        }
        if let (Phase::Enter, Some(left)) = (timewait.phase, timewait.expires_in_ms) {
            self.part();
            self.put(format_args!("frees in {}", Duration(left)));
        }
        if let (Phase::Enter, Some(waited)) = (timewait.phase, timewait.fin_wait2_ms) {
            self.part();
            self.put(format_args!("after {} in FIN_WAIT2", Duration(waited)));
        }
        if timewait.phase == Phase::Exit {
            let why = timewait.reason.map(reason);
            let lasted = timewait.lasted_ms.map(Duration);
            match (why, lasted) {
                (Some(why), Some(lasted)) => {
                    self.part();
                    self.put(format_args!("{why} after {lasted}"));
                }
                (Some(why), None) => {
                    self.part();
                    self.push(why);
                }
                (None, Some(lasted)) => {
                    self.part();
                    self.put(format_args!("after {lasted}"));
                }
                (None, None) => {}
            }
        }
    }

    fn protocol(&mut self, socket: &Socket) {
        cell::protocol(self.line, socket);
    }

    fn address(&mut self, address: &Address, device: Option<&str>) {
        cell::address(self.line, address, device);
    }

    /// What was asked for, where it is not what the socket got.
    fn asked(&mut self, requested: &Address, got: Option<&Address>) {
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
        self.push("asked for ");
        if port_only {
            self.push("port 0");
        } else {
            self.address(requested, None);
        }
    }

    fn home(&mut self, actor: Option<&Actor>) {
        if let Some(actor) = actor {
            cell::home(self.line, actor);
        }
    }
}

fn reason(reason: Reason) -> &'static str {
    match reason {
        Reason::Expired => "expired",
        Reason::Reused => "reused",
        Reason::Reset => "reset",
        Reason::Purged => "purged",
    }
}

fn shown(result: &Result) -> (Cow<'_, str>, Mark) {
    match (result.outcome, &result.error, result.errno) {
        (Outcome::Success, ..) => ("ok".into(), Mark::Good),
        (Outcome::Failure, Some(name), _) => (escape(name), Mark::Bad),
        (Outcome::Failure, None, Some(errno)) => (format!("errno {errno}").into(), Mark::Bad),
        (Outcome::Failure, None, None) => ("failed".into(), Mark::Bad),
    }
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
        "tree" => format!(
            "{count} of the job's processes (more than can be followed: they and what they start are not watched)"
        ),
        "lookup" => format!(
            "{} (who has a port, or why, was not asked in time)",
            counted(count, "look-up")
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
        if end.without_holder != 0 {
            let _ = write!(line, ", {} without a holder", end.without_holder);
        }
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
