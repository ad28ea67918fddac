//! `portwatch trace`: the whole stream.

use std::io::{IsTerminal as _, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgAction, Args};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{SignalKind, signal};

use super::options::{FilterOptions, Format, StyleOptions, TraceOptions, create_private};
use super::pipeline::{self, Plan, Screen, Sinks};
use super::prepare::prepare;
use super::value;
use crate::kernel::support;
use crate::sink::text::Text;

/// The options of `trace`.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    filter: FilterOptions,

    #[command(flatten)]
    output: OutputOptions,

    /// Stop after this long (500ms, 30s, 5m, 2h)
    #[arg(long, value_name = "TIME", value_parser = value::duration)]
    duration: Option<Duration>,

    /// Stop after this many events
    #[arg(short = 'n', long, value_name = "N", value_parser = value::count)]
    count: Option<u64>,

    #[command(flatten)]
    trace: TraceOptions,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Output")]
struct OutputOptions {
    /// How events are written to standard output
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,

    /// Short for --output json
    #[arg(long, conflicts_with = "output")]
    json: bool,

    /// Write JSON to this file as well (mode 0600)
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,

    #[command(flatten)]
    style: StyleOptions,

    /// Tell nothing on standard error but errors and losses
    #[arg(short, long)]
    quiet: bool,

    /// Tell more on standard error
    #[arg(short, long, action = ArgAction::Count, conflicts_with = "quiet")]
    verbose: u8,
}

impl OutputOptions {
    fn text(&self) -> Text {
        Text::new(self.style.zone(), self.style.color(&stdout()))
    }
}

/// Runs `portwatch trace`.
///
/// # Errors
///
/// If tracing is not possible here, or fails.
pub fn run(options: Options) -> anyhow::Result<ExitCode> {
    let filter = options.filter.filter()?;
    let output = &options.output;
    support::preflight(Path::new("/"))?;
    let file = match &output.write {
        Some(path) => Some((path.clone(), create_private(path)?)),
        None => None,
    };
    let prepared = prepare(&filter, options.trace, output.verbose > 0)?;
    let screen = if output.json || output.output == Format::Json {
        Screen::Json
    } else {
        Screen::Text {
            text: Box::new(output.text()),
            header: stdout().is_terminal(),
        }
    };
    let sinks = Sinks {
        screen,
        file,
        quiet: output.quiet,
        watcher: None,
    };
    let plan = Plan {
        prepared,
        filter,
        marks: None,
        count: options.count,
        explain_within: options.trace.explain_within,
        sinks,
    };
    pipeline::block_on(stream(plan, options.duration))
}

/// Streams until the end: a signal, the duration, the count, or that nobody reads any more.
async fn stream(plan: Plan, duration: Option<Duration>) -> anyhow::Result<ExitCode> {
    // Before the start event says that signals are heeded.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut running = pipeline::start(plan)?;
    let deadline = async {
        match duration {
            Some(duration) => tokio::time::sleep(duration).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        () = deadline => {}
        () = output_closed() => {}
        () = running.stopped() => {}
    }
    // A second signal ends it at once.
    tokio::select! {
        result = running.finish() => result.map(|()| ExitCode::SUCCESS),
        _ = interrupt.recv() => Ok(ExitCode::from(130)),
    }
}

/// Returns once standard output is a pipe or socket whose reader has gone, also if there is nothing
/// to write.
async fn output_closed() {
    // SAFETY: standard output's descriptor is never closed or exchanged.
    let watched = unsafe { AsyncFd::register_with_interest(stdout(), Interest::ERROR) };
    match watched {
        Ok(output) => {
            let _ = output.ready(Interest::ERROR).await;
        }
        // A file, which has no reader.
        Err(_) => std::future::pending().await,
    }
}
