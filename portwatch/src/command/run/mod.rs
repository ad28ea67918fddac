//! `portwatch run`: a job with its ports watched, and a report when it has ended.

mod child;
mod ci;
mod leftovers;
mod output;
mod signals;
mod user;

use std::ffi::OsString;
use std::fs::File;
use std::io::{Write as _, stderr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use nix::sys::signal::{SigSet, Signal};

use self::child::{Fate, Inherited, follow};
use self::output::{OutputOptions, Outputs};
use self::signals::{Arrived, Signals};
use self::user::runner;
use super::options::{FilterOptions, TraceOptions};
use super::pipeline::{self, Plan, Running, Screen, Sinks};
use super::prepare::{self, prepare};
use super::value;
use crate::attribute::marks::Marks;
use crate::event::{Event, text};
use crate::filter::{self, Filter};
use crate::kernel::clock::{self, Clock};
use crate::kernel::support;
use crate::kernel::tree::Tree;
use crate::report::{Finding, Job, LeftBehind, Report, Tally};
use crate::sink::escape::escape;

/// Exit status of a job that succeeded, and had a finding that it is to fail for.
const FOUND: u8 = 99;

/// The options of `run`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit status: the command's own, or by the signal that ended it; 127 not found, 126 cannot be executed; 99 for --fail-on; 2 usage, 3 cannot be watched."
)]
pub struct Options {
    /// The command, with its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
    command: Vec<OsString>,

    /// Run it as this user, by name or number [default: who called sudo, or who runs this]
    #[arg(long, value_name = "USER", value_parser = value::user)]
    user: Option<u32>,

    /// Run it even if it cannot be watched
    #[arg(long)]
    best_effort: bool,

    /// Also what others do not get because the job has it
    #[arg(long)]
    both: bool,

    /// Exit with 99 if the command succeeds and there was one of these
    #[arg(long, value_name = "FINDINGS", value_delimiter = ',', value_enum)]
    fail_on: Vec<Finding>,

    /// End what the job leaves behind: SIGTERM, then SIGKILL
    #[arg(long)]
    kill_leftovers: bool,

    /// How long it may take to end by SIGTERM
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = value::duration, requires = "kill_leftovers")]
    grace: Duration,

    #[command(flatten)]
    filter: FilterOptions,

    #[command(flatten)]
    output: OutputOptions,

    #[command(flatten)]
    trace: TraceOptions,
}

/// What the job is watched with.
struct Watch {
    running: Running,
    tree: Tree,
    /// By what its containers are known.
    marks: Arc<Marks>,
}

/// How the job went.
struct Went {
    fate: Fate,
    took: Duration,
    left: Option<LeftBehind>,
}

/// Runs `portwatch run`.
///
/// # Errors
///
/// If the job was not started: it cannot be watched, or what was asked for makes no sense.
pub fn run(options: Options) -> anyhow::Result<ExitCode> {
    let inherited = Inherited::now();
    let job = if options.both {
        filter::Job::Both
    } else {
        filter::Job::Own
    };
    let filter = Filter {
        job: Some(job),
        ..options.filter.clone().filter()?
    };
    let runner = runner(options.user)?;
    let owner = runner.as_ref().map(|runner| (runner.uid, runner.gid));
    let mut outputs = Outputs::open(&options.output, owner)?;
    // Before there is a second thread: each inherits it.
    let signals = signals::block().context("cannot block signals")?;
    let program = options.command.first().cloned().unwrap_or_default();
    let words = options.command.iter();
    let command_text = words.map(|word| text(word.as_encoded_bytes()).0).collect();
    let command = child::command(&options.command, runner, inherited);

    let tally = Arc::new(Mutex::new(Tally::new()));
    let watched = watch(&filter, &options, Arc::clone(&tally), outputs.events.take());
    let (plan, unwatched) = match watched {
        Ok(plan) => (Some(plan), None),
        Err(error) if options.best_effort => (None, Some(format!("{error:#}"))),
        Err(error) => {
            let hint = "the command was not run; --best-effort runs it all the same";
            return Err(error.context(hint));
        }
    };
    let ran = pipeline::block_on(supervise(plan, command, &signals, &options, &tally));
    let went = match ran? {
        Ok(went) => went,
        Err(error) => {
            let (why, status) = child::not_started(&program, &error);
            tell(&why);
            return Ok(ExitCode::from(status));
        }
    };
    let tally = std::mem::take(&mut *tally.lock().unwrap_or_else(PoisonError::into_inner));
    let report = Report {
        job: Some(Job {
            command: command_text,
            status: match went.fate {
                Fate::Exited(status) => Some(status),
                Fate::Killed(_) => None,
            },
            signal: match went.fate {
                Fate::Exited(_) => None,
                Fate::Killed(number) => Some(signal_name(number)),
            },
            duration_ms: u64::try_from(went.took.as_millis()).unwrap_or(u64::MAX),
            unwatched,
        }),
        left_behind: went.left,
        ..tally.finish()
    };
    for error in outputs.write(&report, &options.output) {
        tell(&format!("{error:#}"));
    }
    let found = options.fail_on.iter().any(|finding| report.has(*finding));
    Ok(match went.fate {
        Fate::Exited(0) if found => ExitCode::from(FOUND),
        fate => ExitCode::from(follow(fate)),
    })
}

/// Tells something that is no part of the report.
fn tell(what: &str) {
    // Nothing can be told where standard error is closed.
    let _ = writeln!(stderr(), "portwatch: {}", escape(what));
}

fn signal_name(number: i32) -> String {
    match Signal::try_from(number) {
        Ok(signal) => signal.as_str().to_owned(),
        Err(_) => format!("signal {number}"),
    }
}

/// Puts the hooks in place, and proves that they fire and that forks are followed.
fn watch(
    filter: &Filter,
    options: &Options,
    tally: Arc<Mutex<Tally>>,
    events: Option<(PathBuf, File)>,
) -> anyhow::Result<(Plan, Tree)> {
    support::preflight(Path::new("/"))?;
    let mut prepared = prepare(filter, options.trace, options.output.verbose > 0)?;
    let tree = prepare::tree(&mut prepared.side)?;
    let watcher = move |event: &Event| {
        let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
        tally.take(event.time, &event.body);
    };
    let plan = Plan {
        prepared,
        filter: filter.clone(),
        marks: None,
        count: None,
        explain_within: options.trace.explain_within,
        sinks: Sinks {
            screen: Screen::Nothing,
            file: events,
            quiet: true,
            watcher: Some(Box::new(watcher)),
        },
    };
    Ok((plan, tree))
}

/// Runs the job to its end. The inner error is that of starting it.
async fn supervise(
    plan: Option<(Plan, Tree)>,
    mut command: Command,
    signals: &SigSet,
    options: &Options,
    tally: &Mutex<Tally>,
) -> anyhow::Result<std::io::Result<Went>> {
    let mut signals = Signals::new(signals).context("cannot wait for signals")?;
    let mut watch = match plan {
        Some((plan, tree)) => {
            let marks = Arc::new(marks());
            let plan = Plan {
                marks: Some(Arc::clone(&marks)),
                ..plan
            };
            Some(Watch {
                running: pipeline::start(plan)?,
                tree,
                marks,
            })
        }
        None => None,
    };
    let begin = Instant::now();
    let spawned = match &mut watch {
        Some(watch) => watch.tree.rooted_here(|| command.spawn())?,
        None => command.spawn(),
    };
    // What it had of the command's environment is of no more use.
    drop(command);
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => return Ok(Err(error)),
    };
    let fate = wait(&mut child, &mut signals, watch.as_ref()).await?;
    let took = begin.elapsed();
    let left = match watch {
        Some(watch) => Some(end(watch, options, tally).await),
        None => None,
    };
    Ok(Ok(Went { fate, took, left }))
}

/// By what containers of a job are known that begins now.
fn marks() -> Marks {
    let now = Clock::now().at_monotonic(clock::monotonic());
    let folder = std::env::current_dir().ok();
    Marks::new(now, folder.as_deref(), |name| std::env::var(name).ok())
}

/// Waits for the job's first process, and passes on what is sent to portwatch and meant for it.
async fn wait(
    child: &mut Child,
    signals: &mut Signals,
    watch: Option<&Watch>,
) -> anyhow::Result<Fate> {
    let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
    let members = || watch.map_or_else(Default::default, |watch| watch.tree.members());
    loop {
        if let Some(status) = child.try_wait().context("cannot wait for the command")? {
            return Ok(status.into());
        }
        if child::has_stopped_itself(child) {
            // As the shell expects of what it has started; continued, both go on.
            let _ = nix::sys::signal::raise(Signal::SIGSTOP);
            let _ = nix::sys::signal::kill(pid, Signal::SIGCONT);
        }
        match signals
            .next(members)
            .await
            .context("cannot wait for signals")?
        {
            Arrived::Child => {}
            // It may be gone by now.
            Arrived::PassOn(signal) => drop(nix::sys::signal::kill(pid, signal)),
        }
    }
}

/// Looks at what is left, ends it if that is wanted, and ends the watching.
async fn end(watch: Watch, options: &Options, tally: &Mutex<Tally>) -> LeftBehind {
    let tally = || tally.lock().unwrap_or_else(PoisonError::into_inner);
    // Forks are followed for as long as it is there.
    let side = watch.running.side();
    // What is looked for depends on all that the job has done.
    if let Err(error) = watch.running.finish().await {
        tell(&format!("watching the job ended early: {error:#}"));
    }
    let alive = leftovers::alive(&watch.tree.members());
    let mut left = leftovers::look(&alive, &watch.marks, &mut tally());
    if options.kill_leftovers {
        leftovers::end(alive, || watch.tree.members(), options.grace, &mut left);
    }
    drop(side);
    left
}
