//! A report as text: of a CI log's width, without cursor movement.

use std::fmt::Write as _;

use jiff::tz::TimeZone;

use super::{
    counted, ended, findings, is_clean, left_behind, left_timewait, refused, risk, used, who,
};
use crate::event::Time;
use crate::report::{Lane, Report};
use crate::sink::conflict::explain;
use crate::sink::escape::escape;
use crate::sink::moment::{self, moment};
use crate::sink::text::Color;

/// How many lines a list has in text; the rest is in the JSON.
const SHOWN: usize = 40;
/// How many things of a lane of the timeline are shown.
const SHOWN_OF_LANE: usize = 20;

/// How a report is written as text.
#[derive(Debug, Clone)]
pub struct Style {
    /// Times are told in this zone.
    pub zone: TimeZone,
    /// Whether errors are coloured.
    pub color: Color,
    /// Everything, also where there is nothing to complain of.
    pub whole: bool,
}

/// The report as lines.
#[must_use]
pub fn render(report: &Report, style: &Style) -> String {
    let mut out = Out {
        text: String::new(),
        style,
    };
    out.head(report);
    if report.job.is_some() && is_clean(report) && !style.whole {
        return out.text;
    }
    out.refusals(report);
    out.left_behind(report);
    out.section("flake risks", report.risks.iter().map(risk));
    out.comparison(report);
    out.ports(report);
    out.timeline(report);
    out.losses(report);
    out.text
}

struct Out<'a> {
    text: String,
    style: &'a Style,
}

impl Out<'_> {
    /// A line, whatever stands in it.
    fn line(&mut self, indent: usize, text: &str) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "{:indent$}{}", "", escape(text));
    }

    /// A list under a title, if there is anything in it.
    fn section(&mut self, title: &str, items: impl ExactSizeIterator<Item = String>) {
        let count = items.len();
        if count == 0 {
            return;
        }
        self.line(0, title);
        for item in items.take(SHOWN) {
            self.line(2, &item);
        }
        self.rest(2, count, SHOWN);
    }

    fn rest(&mut self, indent: usize, count: usize, shown: usize) {
        if count > shown {
            self.line(indent, &format!("and {} more", count - shown));
        }
    }

    fn head(&mut self, report: &Report) {
        let said = findings(report);
        let mut head = match &report.job {
            Some(job) => ended(job),
            None => {
                let events: u64 = report.events.values().sum();
                let recordings = report.sources.len() as u64;
                format!(
                    "{} in {}",
                    counted(events, "event", "events"),
                    counted(recordings, "recording", "recordings")
                )
            }
        };
        if let (None, Some(from), Some(until)) = (&report.job, report.from, report.until) {
            let day = |time| moment(time, &self.style.zone, moment::DATE_SECOND);
            let (from, until) = (day(from), day(until));
            let _ = write!(head, ", {from} to {until}");
        }
        if let Some(why) = report.job.as_ref().and_then(|job| job.unwatched.as_deref()) {
            return self.line(0, &format!("portwatch: {head}; not watched: {why}"));
        }
        let said = match (said.is_empty(), &report.left_behind) {
            (true, Some(_)) => "no conflicts, nothing left behind".to_owned(),
            (true, None) => "no conflicts".to_owned(),
            (false, _) => said.join(", "),
        };
        self.line(0, &format!("portwatch: {head}: {said}"));
    }

    fn refusals(&mut self, report: &Report) {
        for (title, conflicts) in [("conflicts", true), ("other refusals", false)] {
            let refusals = report.refusals.iter();
            let refusals: Vec<_> = refusals
                .filter(|refusal| refusal.is_conflict() == conflicts)
                .collect();
            if refusals.is_empty() {
                continue;
            }
            self.line(0, title);
            for refusal in refusals.iter().take(SHOWN) {
                let mut line = format!("{}  {}", self.clock(refusal.first), refused(refusal));
                if refusal.count > 1 {
                    let last = self.clock(refusal.last);
                    let _ = write!(line, " ({} times, last at {last})", refusal.count);
                }
                let line = escape(&line).into_owned();
                let line = match (self.style.color, &refusal.error) {
                    (Color::On, Some(error)) => {
                        line.replacen(&**error, &format!("\x1b[1;31m{error}\x1b[0m"), 1)
                    }
                    _ => line,
                };
                let _ = writeln!(self.text, "  {line}");
                if let Some(conflict) = &refusal.conflict {
                    let mut lines = Vec::new();
                    explain(conflict, refusal.first, &self.style.zone, &mut lines);
                    self.text.push_str(&String::from_utf8_lossy(&lines));
                }
            }
            self.rest(2, refusals.len(), SHOWN);
        }
        if let Some(omitted) = report.omitted.get("refusals") {
            self.line(
                2,
                &format!("and {omitted} more, for which there was no room"),
            );
        }
    }

    fn left_behind(&mut self, report: &Report) {
        let Some(left) = &report.left_behind else {
            return;
        };
        self.section("left behind", left_behind(left).into_iter());
        self.section(
            "kept by TIME_WAIT",
            left.timewaits.iter().map(left_timewait),
        );
    }

    /// What many recordings have in common; of one job there is nothing to compare.
    fn comparison(&mut self, report: &Report) {
        if report.job.is_some() || report.refusals.is_empty() {
            return;
        }
        let times = |count: u64| counted(count, "time", "times");
        let causes = |causes: &std::collections::BTreeMap<&'static str, u64>| {
            let mut causes: Vec<_> = causes.iter().collect();
            causes.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
            let causes = causes
                .iter()
                .map(|(cause, count)| format!("{cause} {count}"));
            causes.collect::<Vec<_>>().join(", ")
        };
        self.section(
            "ports most refused",
            report.contested.iter().map(|port| {
                let (number, transport) = (port.port, &port.transport);
                let (count, causes) = (times(port.count), causes(&port.causes));
                format!("{number}/{transport}: {count} ({causes})")
            }),
        );
        self.section("causes", [causes(&report.causes)].into_iter());
        self.section(
            "who is in whose way",
            report.collisions.iter().map(|pair| {
                let holder = pair.holder.as_deref().unwrap_or("no process");
                format!(
                    "{}: kept out by {holder}, {}",
                    pair.newcomer,
                    times(pair.count)
                )
            }),
        );
    }

    fn ports(&mut self, report: &Report) {
        if report.ports.is_empty() {
            return;
        }
        let rows: Vec<[String; 5]> = report
            .ports
            .iter()
            .take(SHOWN)
            .map(|port| {
                let (protocol, address) = used(port);
                let from = self.clock(port.from);
                let time = match port.until {
                    Some(until) => format!("{from} to {}", self.clock(until)),
                    None => format!("from {from} on"),
                };
                let times = match port.count {
                    1 => String::new(),
                    count => format!("{count} times"),
                };
                let by = who(port.process.as_ref(), "-");
                [protocol, address, by, time, times].map(|cell| escape(&cell).into_owned())
            })
            .collect();
        self.line(0, "ports used");
        let width = |column: usize| {
            let cells = rows
                .iter()
                .map(|row| unicode_width::UnicodeWidthStr::width(&*row[column]));
            cells.max().unwrap_or_default()
        };
        let widths = [0, 1, 2, 3].map(width);
        for row in &rows {
            let mut line = String::from("  ");
            for (cell, wanted) in row.iter().zip(widths) {
                let pad = wanted.saturating_sub(unicode_width::UnicodeWidthStr::width(&**cell)) + 2;
                let _ = write!(line, "{cell}{:pad$}", "");
            }
            line.push_str(&row[4]);
            self.text.push_str(line.trim_end());
            self.text.push('\n');
        }
        self.rest(2, report.ports.len(), SHOWN);
    }

    /// Of recordings: what happened on the ports that were refused.
    fn timeline(&mut self, report: &Report) {
        let lanes: Vec<_> = report
            .timeline
            .iter()
            .filter(|lane| report.job.is_none() && !lane.marks.is_empty())
            .collect();
        if lanes.is_empty() {
            return;
        }
        self.line(0, "timeline");
        for lane in lanes.iter().take(SHOWN) {
            let netns = lane
                .netns
                .map_or(String::new(), |netns| format!(" in netns {netns}"));
            let host = lane
                .host
                .map_or(String::new(), |host| format!(" on host {host}"));
            self.line(2, &format!("{}/{}{netns}{host}", lane.port, lane.transport));
            let lines = self.lane(lane);
            for line in lines.iter().take(SHOWN_OF_LANE) {
                self.line(4, line);
            }
            self.rest(4, lines.len(), SHOWN_OF_LANE);
        }
        self.rest(2, lanes.len(), SHOWN);
    }

    fn lane(&self, lane: &Lane) -> Vec<String> {
        let who = |name: Option<&str>, pid: Option<u32>| match (name, pid) {
            (Some(name), Some(pid)) => format!("{name}[{pid}]"),
            _ => "no process".to_owned(),
        };
        let mut lines = Vec::new();
        for span in &lane.spans {
            let until = match span.until {
                Some(until) => format!("holds it to {}", self.clock(until)),
                None => "holds it from then on".to_owned(),
            };
            let holder = who(span.holder.as_deref(), span.pid);
            let from = self.clock(span.from);
            lines.push((span.from, false, format!("{from}  {holder} {until}")));
        }
        for mark in &lane.marks {
            let newcomer = who(mark.newcomer.as_deref(), mark.pid);
            let error = mark.error.as_deref().unwrap_or("refused");
            let (time, cause) = (self.clock(mark.time), mark.cause.id());
            lines.push((
                mark.time,
                true,
                format!("{time}  {newcomer} gets {error}: {cause}"),
            ));
        }
        lines.sort();
        lines.into_iter().map(|(_, _, line)| line).collect()
    }

    fn losses(&mut self, report: &Report) {
        let lost = report.lost.iter().filter(|(_, count)| **count != 0);
        let lost: Vec<_> = lost
            .map(|(place, count)| format!("{count} ({place})"))
            .collect();
        if !lost.is_empty() {
            self.line(0, &format!("lost: {}", lost.join(", ")));
        }
        if self.style.whole {
            let missing = report.missing.iter();
            let missing = missing.map(|missing| format!("{} ({})", missing.what, missing.why));
            self.section("not seen", missing);
        } else if !report.missing.is_empty() {
            let missing: Vec<_> = report
                .missing
                .iter()
                .map(|missing| &*missing.what)
                .collect();
            let missing = missing.join("; ");
            self.line(0, &format!("not seen: {missing} (why: portwatch doctor)"));
        }
        let flaws = report.sources.iter().flat_map(|source| {
            let file = &source.file;
            source
                .flaws
                .iter()
                .map(move |flaw| format!("{file}: {flaw}"))
        });
        self.section("not read", flaws.collect::<Vec<_>>().into_iter());
        let omitted = report
            .omitted
            .iter()
            .filter(|(list, _)| **list != "refusals");
        let omitted: Vec<_> = omitted
            .map(|(list, count)| format!("{count} {list}"))
            .collect();
        if !omitted.is_empty() {
            self.line(0, &format!("no room for: {}", omitted.join(", ")));
        }
    }

    fn clock(&self, time: Time) -> String {
        moment(time, &self.style.zone, moment::MILLISECOND)
    }
}
