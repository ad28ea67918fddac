//! What is told of the results.

use std::fmt::Write as _;
use std::time::Duration;

use crate::environment::Environment;
use crate::measure::{Plan, Results, ToolResults, median};
use crate::table::Table;
use crate::tool::Variant;
use crate::worker::Operation;
use crate::{jobs, list};

/// A bind may cost this part of what bpftrace makes of it.
const GOAL_BIND: f64 = 1.0 / 3.0;

/// An event may take this part of the processor time that bpftrace takes for it.
const GOAL_CPU: f64 = 1.0 / 5.0;

/// All of it, as text or as Markdown.
pub fn render(plan: &Plan, environment: &Environment, results: &Results, markdown: bool) -> String {
    let mut text = head(plan, environment, markdown);
    for table in [
        loops(results),
        added(results),
        tools(results),
        processor(results),
        flood(results),
        list::table(&results.lists),
        jobs::table(&results.jobs),
    ] {
        text.push_str(&table.render(markdown));
    }
    for goal in goals(results)
        .into_iter()
        .chain(list::goals(&results.lists))
        .chain(jobs::goals(&results.jobs))
    {
        let bullet = if markdown { "- " } else { "" };
        let _ = writeln!(text, "{bullet}{goal}");
    }
    text
}

/// A table by itself.
pub fn alone(environment: &Environment, table: &Table, goals: &[String], markdown: bool) -> String {
    let Environment { kernel, model, .. } = environment;
    let mut text = format!("Linux {kernel}, {model}\n\n");
    text.push_str(&table.render(markdown));
    for goal in goals {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{goal}");
    }
    text
}

fn head(plan: &Plan, environment: &Environment, markdown: bool) -> String {
    let Environment {
        kernel,
        model,
        cores,
        worker,
        tool,
        ..
    } = environment;
    let mut lines = vec![format!("Linux {kernel}, {model}, {cores} cores")];
    lines.push(if worker == tool {
        format!("worker and tool on core {worker}")
    } else {
        format!("worker on core {worker}, tool on core {tool}")
    });
    lines.push(format!(
        "{} interleaved rounds of {} operations each ({} for strace), in bursts of {} with {} ms between",
        plan.rounds,
        plan.iterations,
        plan.iterations.div_ceil(Plan::STRACE_FEWER),
        Plan::BURST.min(plan.iterations.div_ceil(2)),
        Plan::PAUSE.as_millis(),
    ));
    lines.push("a number is the best round's median burst".to_owned());
    let end = if markdown { "  \n" } else { "\n" };
    lines.join(end) + "\n\n"
}

fn header<'a>(
    first: &'a str,
    variants: &'a [Variant],
    rest: &'a [&'a str],
) -> impl Iterator<Item = &'a str> {
    std::iter::once(first)
        .chain(variants.iter().map(|variant| variant.title()))
        .chain(rest.iter().copied())
}

fn loops(results: &Results) -> Table {
    let mut table = Table::new(
        "Nanoseconds per operation",
        header("operation", &Variant::ALL, &[]),
    );
    for operation in Operation::ALL {
        let cells = Variant::ALL.map(|variant| {
            let value = results.loops.get(&(variant, operation));
            value.map_or_else(none, |value| format!("{value:.0}"))
        });
        table.row([operation.title().to_owned()].into_iter().chain(cells));
    }
    table
}

fn added(results: &Results) -> Table {
    let variants = &Variant::ALL[1..];
    let mut table = Table::new(
        "Nanoseconds added per operation",
        header(
            "operation",
            variants,
            &["json / bpftrace print", "text / bpftrace print"],
        ),
    );
    let mut row = |title: &str, operations: &[Operation]| {
        let cells = variants.iter().map(|variant| {
            let value = added_by(results, *variant, operations);
            value.map_or_else(none, |value| format!("{value:.0}"))
        });
        let ratios = [Variant::Json, Variant::Text].map(|variant| {
            ratio_added(results, variant, operations)
                .map_or_else(none, |ratio| format!("{ratio:.2}"))
        });
        table.row([title.to_owned()].into_iter().chain(cells).chain(ratios));
    };
    for operation in Operation::ALL {
        row(operation.title(), &[operation]);
    }
    row("bind, mean of four", &Operation::BINDS);
    table
}

fn tools(results: &Results) -> Table {
    let mut table = Table::new(
        "Readiness (ms, median) and losses in the rounds",
        [
            "tool",
            "`start` line",
            "sees everything",
            "of starts",
            "lines",
            "lost",
        ],
    );
    for (variant, tool) in &results.tools {
        if tool.ready.is_empty() {
            continue;
        }
        table.row([
            variant.title().to_owned(),
            if tool.started.is_empty() {
                none()
            } else {
                milliseconds(median(&tool.started))
            },
            milliseconds(median(&tool.ready)),
            tool.ready.len().to_string(),
            match variant {
                Variant::Count => none(),
                _ => tool.rounds.printed.to_string(),
            },
            tool.rounds.lost.to_string(),
        ]);
    }
    table
}

fn processor(results: &Results) -> Table {
    let mut table = Table::new(
        "Processor time of the tool (user and kernel) per 100,000 events, at a pace it can follow",
        [
            "tool",
            "events",
            "lost",
            "ms",
            "of it in the kernel",
            "of bpftrace print's",
        ],
    );
    let peer = results.tools.get(&Variant::Print).and_then(cost);
    for (variant, tool) in &results.tools {
        let (Some(paced), Some(cost)) = (&tool.paced, cost(tool)) else {
            continue;
        };
        let system = per_100_000(paced.cpu.system, paced.counted.printed);
        table.row([
            variant.title().to_owned(),
            paced.counted.printed.to_string(),
            paced.counted.lost.to_string(),
            format!("{cost:.1}"),
            format!("{system:.0}"),
            peer.map_or_else(none, |peer| format!("{:.2}", cost / peer)),
        ]);
    }
    table
}

fn flood(results: &Results) -> Table {
    let mut table = Table::new(
        "A flood: events made as fast as one core can",
        [
            "tool",
            "made",
            "made in ms",
            "printed",
            "lost",
            "printed after ms",
            "processor ms per 100,000",
            "peak MiB before",
            "peak MiB",
            "MiB at the end",
        ],
    );
    for (variant, tool) in &results.tools {
        let Some(flood) = &tool.flood else { continue };
        table.row([
            variant.title().to_owned(),
            flood.made.to_string(),
            format!("{:.0}", flood.making.as_secs_f64() * 1e3),
            flood.counted.printed.to_string(),
            flood.counted.lost.to_string(),
            format!("{:.0}", flood.draining.as_secs_f64() * 1e3),
            format!("{:.1}", per_100_000(flood.cpu.total, flood.counted.printed)),
            mebibytes(flood.peak_before),
            mebibytes(flood.peak),
            mebibytes(flood.resident),
        ]);
    }
    table
}

fn goals(results: &Results) -> Vec<String> {
    let peer = results.tools.get(&Variant::Print).and_then(cost);
    [Variant::Json, Variant::Text]
        .into_iter()
        .flat_map(|variant| {
            let bind = ratio_added(results, variant, &Operation::BINDS);
            let cpu = results
                .tools
                .get(&variant)
                .and_then(cost)
                .zip(peer)
                .map(|(cost, peer)| cost / peer);
            [
                goal(
                    &format!("{}: added to a bind", variant.title()),
                    bind,
                    GOAL_BIND,
                ),
                goal(
                    &format!("{}: processor time per event", variant.title()),
                    cpu,
                    GOAL_CPU,
                ),
            ]
        })
        .collect()
}

fn goal(what: &str, ratio: Option<f64>, most: f64) -> String {
    let (ratio, verdict) = match ratio {
        Some(ratio) if ratio <= most => (format!("{ratio:.2}"), "met"),
        Some(ratio) => (format!("{ratio:.2}"), "not met"),
        None => ("unknown".to_owned(), "not met"),
    };
    format!("goal {what} <= {most:.2} of bpftrace print's: {ratio}, {verdict}")
}

/// What a variant adds to these operations, on average.
fn added_by(results: &Results, variant: Variant, operations: &[Operation]) -> Option<f64> {
    let mut sum = 0.0;
    for operation in operations {
        let with = results.loops.get(&(variant, *operation))?;
        let without = results.loops.get(&(Variant::None, *operation))?;
        sum += with - without;
    }
    Some(sum / operations.len() as f64)
}

/// What a variant adds, as a part of what bpftrace adds; nothing if that is no cost at all.
fn ratio_added(results: &Results, variant: Variant, operations: &[Operation]) -> Option<f64> {
    let peer = added_by(results, Variant::Print, operations).filter(|peer| *peer > 0.0)?;
    Some(added_by(results, variant, operations)? / peer)
}

/// Milliseconds of processor time per 100,000 events.
fn cost(tool: &ToolResults) -> Option<f64> {
    let paced = tool.paced.as_ref()?;
    Some(per_100_000(paced.cpu.total, paced.counted.printed))
}

fn per_100_000(time: Duration, events: u64) -> f64 {
    time.as_secs_f64() * 1e3 * 1e5 / events as f64
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64() * 1e3)
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 20))
}

fn none() -> String {
    "–".to_owned()
}
