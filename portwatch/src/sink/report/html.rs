//! A report as one page of HTML that needs nothing else: no script, no font, no picture from elsewhere.

mod timeline;

use jiff::tz::TimeZone;
use maud::{DOCTYPE, Markup, html};

use super::{ended, findings, left_timewait, refused, risk, used, who};
use crate::event::Time;
use crate::report::{Refusal, Report};
use crate::sink::conflict::held_by;
use crate::sink::escape::escape;
use crate::sink::moment::{self, moment};

const STYLE: &str = include_str!("html/style.css");
/// How many rows a table has; the JSON has them all.
const ROWS: usize = 500;

/// The page; times are told in this zone.
#[must_use]
pub fn render(report: &Report, zone: &TimeZone) -> String {
    let said = findings(report);
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                // Whatever a process calls itself, the page loads and runs nothing.
                meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'";
                title { "portwatch: " (headline(report)) }
                style { (maud::PreEscaped(STYLE)) }
            }
            body {
                header {
                    h1 { "portwatch" }
                    p { (headline(report)) }
                    (span_of_time(report, zone))
                    @if said.is_empty() {
                        p.good { "no conflicts" @if report.left_behind.is_some() { ", nothing left behind" } }
                    } @else {
                        ul.findings { @for one in &said { li { (one) } } }
                    }
                }
                (timeline::render(report, zone))
                (refusals(report, zone))
                (left_behind(report))
                (list("Flake risks", report.risks.iter().map(risk)))
                (comparison(report))
                (ports(report, zone))
                (sources(report))
            }
        }
    };
    page.into_string()
}

/// A text from outside, with what is not seen as itself shown by its code.
fn text(text: &str) -> String {
    escape(text).into_owned()
}

fn headline(report: &Report) -> String {
    match &report.job {
        Some(job) => text(&ended(job)),
        None => {
            let events: u64 = report.events.values().sum();
            let recordings = report.sources.len() as u64;
            format!(
                "{} in {}",
                super::counted(events, "event", "events"),
                super::counted(recordings, "recording", "recordings")
            )
        }
    }
}

fn span_of_time(report: &Report, zone: &TimeZone) -> Markup {
    html! {
        @if let (Some(from), Some(until)) = (report.from, report.until) {
            p.quiet { (date(from, zone)) " to " (date(until, zone)) }
        }
        @for host in &report.hosts {
            @if let (Some(kernel), Some(boot_id)) = (&host.kernel, &host.boot_id) {
                p.quiet { "Linux " (text(kernel)) ", boot " (text(boot_id)) }
            }
        }
    }
}

fn refusals(report: &Report, zone: &TimeZone) -> Markup {
    html! {
        @if !report.refusals.is_empty() {
            section {
                h2 { "Conflicts" }
                @for refusal in report.refusals.iter().take(ROWS) { (one_refusal(refusal, zone)) }
                (rest(report.refusals.len()))
            }
        }
    }
}

fn one_refusal(refusal: &Refusal, zone: &TimeZone) -> Markup {
    html! {
        article {
            p {
                time { (date(refusal.first, zone)) } " "
                code { (text(&refused(refusal))) }
                @if refusal.count > 1 {
                    " " span.count { (refusal.count) " times, last at " (clock(refusal.last, zone)) }
                }
            }
            @if let Some(conflict) = &refusal.conflict {
                dl {
                    @for holder in &conflict.holders {
                        dt { "held by" }
                        dd { code { (text(&held_by(holder, refusal.first, zone))) } }
                    }
                    dt { "why" }
                    dd { b { (conflict.cause.id()) } ": " (text(&conflict.summary)) }
                    dt { "do" }
                    dd { (text(&conflict.advice)) }
                }
            }
        }
    }
}

fn left_behind(report: &Report) -> Markup {
    html! {
        @if let Some(left) = &report.left_behind {
            (list("Left behind", super::left_behind(left).into_iter()))
            (list("Kept by TIME_WAIT", left.timewaits.iter().map(left_timewait)))
        }
    }
}

fn list(title: &str, items: impl ExactSizeIterator<Item = String>) -> Markup {
    let count = items.len();
    html! {
        @if count != 0 {
            section {
                h2 { (title) }
                ul { @for item in items.take(ROWS) { li { (text(&item)) } } }
                (rest(count))
            }
        }
    }
}

fn comparison(report: &Report) -> Markup {
    let of_recordings = report.job.is_none() && !report.refusals.is_empty();
    html! {
        @if of_recordings {
            section.columns {
                div {
                    h2 { "Ports most refused" }
                    table {
                        tr { th { "port" } th.number { "times" } th { "causes" } }
                        @for port in report.contested.iter().take(ROWS) {
                            tr {
                                td { (port.port) "/" (port.transport) }
                                td.number { (port.count) }
                                td { @for (cause, count) in &port.causes { (cause) " " (count) " " } }
                            }
                        }
                    }
                }
                div {
                    h2 { "Causes" }
                    table {
                        tr { th { "cause" } th.number { "times" } }
                        @for (cause, count) in &report.causes {
                            tr { td { (cause) } td.number { (count) } }
                        }
                    }
                }
                div {
                    h2 { "Who is in whose way" }
                    table {
                        tr { th { "refused" } th { "holder" } th.number { "times" } }
                        @for pair in report.collisions.iter().take(ROWS) {
                            tr {
                                td { (text(&pair.newcomer)) }
                                td { (text(pair.holder.as_deref().unwrap_or("no process"))) }
                                td.number { (pair.count) }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn ports(report: &Report, zone: &TimeZone) -> Markup {
    html! {
        @if !report.ports.is_empty() {
            section {
                h2 { "Ports used" }
                table {
                    tr { th { "protocol" } th { "address" } th { "by" } th { "from" } th { "until" } th.number { "times" } }
                    @for port in report.ports.iter().take(ROWS) {
                        @let (protocol, address) = used(port);
                        tr {
                            td { (protocol) }
                            td { code { (address) } }
                            td { code { (text(&who(port.process.as_ref(), "-"))) } }
                            td { (date(port.from, zone)) }
                            td {
                                @match port.until {
                                    Some(until) => (clock(until, zone)),
                                    None => "held at the end",
                                }
                            }
                            td.number { (port.count) }
                        }
                    }
                }
                (rest(report.ports.len()))
            }
        }
    }
}

fn sources(report: &Report) -> Markup {
    let lost = report.lost.iter().filter(|(_, count)| **count != 0);
    let lost: Vec<_> = lost.collect();
    html! {
        @if !lost.is_empty() || !report.missing.is_empty() || !report.omitted.is_empty() || !report.sources.is_empty() {
            section {
                h2 { "What this is made of" }
                ul {
                    @for source in &report.sources {
                        li {
                            code { (text(&source.file)) } ": " (super::counted(source.events, "event", "events"))
                            @for flaw in &source.flaws { "; " (text(&flaw.to_string())) }
                        }
                    }
                    @for (place, count) in lost { li.bad { "lost: " (count) " (" (text(place)) ")" } }
                    @for missing in &report.missing {
                        li { "not seen: " (text(&missing.what)) " (" (text(&missing.why)) ")" }
                    }
                    @for (list, count) in &report.omitted { li { "no room for: " (count) " " (list) } }
                }
            }
        }
    }
}

fn rest(count: usize) -> Markup {
    html! {
        @if count > ROWS { p.quiet { "and " (count - ROWS) " more" } }
    }
}

fn clock(time: Time, zone: &TimeZone) -> String {
    moment(time, zone, moment::MILLISECOND)
}

fn date(time: Time, zone: &TimeZone) -> String {
    moment(time, zone, moment::DATE_MILLISECOND)
}
