//! The timeline: a lane for each port, a bar for each who held it, a mark for each who was refused.

use jiff::tz::TimeZone;
use maud::{Markup, html};

use super::{clock, date, text};
use crate::event::Time;
use crate::report::{Lane, Mark, Report, Span};

/// How many lanes are drawn: those on which somebody was refused come first.
const LANES: usize = 200;
/// Pixels.
const LABELS: f64 = 170.0;
const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 26.0;
const AXIS: f64 = 24.0;
/// A bar is as wide as this at least.
const LEAST: f64 = 2.0;
/// How wide a character of a bar's label is, about.
const CHARACTER: f64 = 7.0;
/// How many colours holders have: see style.css.
const COLORS: u32 = 8;

/// From time to place.
struct Scale {
    from: i64,
    until: i64,
}

impl Scale {
    fn x(&self, time: Time) -> f64 {
        let length = (self.until - self.from).max(1) as f64;
        let since = (time.0.clamp(self.from, self.until) - self.from) as f64;
        LABELS + WIDTH * since / length
    }
}

pub(super) fn render(report: &Report, zone: &TimeZone) -> Markup {
    let (Some(from), Some(until)) = (report.from, report.until) else {
        return html! {};
    };
    let mut lanes: Vec<_> = report.timeline.iter().collect();
    lanes.sort_by_key(|lane| lane.marks.is_empty());
    let omitted = lanes.len().saturating_sub(LANES);
    lanes.truncate(LANES);
    if lanes.is_empty() {
        return html! {};
    }
    // A holder may have had its port long before anything else happened.
    let scale = Scale {
        from: from.0,
        until: until.0,
    };
    let height = AXIS + HEIGHT * lanes.len() as f64;
    html! {
        section {
            h2 { "Timeline" }
            p.quiet { "A bar: somebody holds the port. A red mark: somebody was refused it. Point at one to read more." }
            div.scroll {
                svg width=(LABELS + WIDTH + 10.0) height=(height) role="img" aria-label="who held which port when" {
                    (axis(&scale, height, zone))
                    @for (number, one) in lanes.iter().enumerate() {
                        (lane(one, AXIS + HEIGHT * number as f64, &scale, zone))
                    }
                }
            }
            @if omitted != 0 { p.quiet { "and " (omitted) " more ports" } }
        }
    }
}

fn axis(scale: &Scale, height: f64, zone: &TimeZone) -> Markup {
    let ticks = 5_i64;
    let tick = |number: i64| Time(scale.from + (scale.until - scale.from) / ticks * number);
    // Of more than a day the clock does not tell enough.
    let long = scale.until - scale.from > 86_400_000_000_000;
    html! {
        @for number in 0..=ticks {
            @let x = scale.x(tick(number));
            @let anchor = if number == ticks { "end" } else { "start" };
            line x1=(x) x2=(x) y1=(AXIS - 6.0) y2=(height) class="grid" {}
            text x=(x) y="12" class="tick" text-anchor=(anchor) {
                @if long { (date(tick(number), zone).get(..16).unwrap_or_default()) }
                @else { (clock(tick(number), zone)) }
            }
        }
    }
}

fn lane(lane: &Lane, y: f64, scale: &Scale, zone: &TimeZone) -> Markup {
    let host = lane
        .host
        .map_or(String::new(), |host| format!(" host {host}"));
    let netns = lane.netns.map_or(String::new(), |netns| {
        format!(", network namespace {netns}")
    });
    html! {
        line x1="0" x2=(LABELS + WIDTH) y1=(y + HEIGHT) y2=(y + HEIGHT) class="grid" {}
        text x="0" y=(y + 20.0) class="label" {
            title { (lane.port) "/" (lane.transport) (netns) (host) }
            (lane.port) "/" (lane.transport) (host)
        }
        @for span in &lane.spans { (bar(span, y, scale, zone)) }
        @for mark in &lane.marks { (one_mark(mark, y, scale, zone)) }
    }
}

fn bar(span: &Span, y: f64, scale: &Scale, zone: &TimeZone) -> Markup {
    let (left, right) = (
        scale.x(span.from),
        scale.x(span.until.unwrap_or(Time(scale.until))),
    );
    let width = (right - left).max(LEAST);
    let holder = match (&span.holder, span.pid) {
        (Some(holder), Some(pid)) => format!("{holder}[{pid}]"),
        _ => "no process".to_owned(),
    };
    let holder = text(&holder);
    let color = color(span.holder.as_deref().unwrap_or_default());
    let address = span
        .address
        .map_or(String::new(), |address| format!(" on {address}"));
    let until = match span.until {
        Some(until) => format!("to {}", clock(until, zone)),
        None => "and held it at the end".to_owned(),
    };
    let shown = holder.chars().count() as f64 * CHARACTER + 8.0 < width;
    html! {
        rect x=(left) y=(y + 9.0) width=(width) height=(HEIGHT - 10.0) rx="2" class={ "bar c" (color) } {
            title { (holder) (address) ", from " (date(span.from, zone)) " " (until) }
        }
        @if shown { text x=(left + 4.0) y=(y + 20.0) class="holder" { (holder) } }
    }
}

fn one_mark(mark: &Mark, y: f64, scale: &Scale, zone: &TimeZone) -> Markup {
    let x = scale.x(mark.time);
    let newcomer = match (&mark.newcomer, mark.pid) {
        (Some(newcomer), Some(pid)) => format!("{newcomer}[{pid}]"),
        _ => "a process".to_owned(),
    };
    let error = mark.error.as_deref().unwrap_or("refused");
    html! {
        path d=(format!("M{x:.1} {:.1} l5 -8 l-10 0 z", y + 9.0)) class="mark" {
            title { (date(mark.time, zone)) ": " (text(&newcomer)) " gets " (error) ": " (mark.cause.id()) }
        }
    }
}

/// The number of a holder's colour: the same for the same name, wherever it stands (FNV-1a).
fn color(name: &str) -> u32 {
    let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    hash % COLORS
}
