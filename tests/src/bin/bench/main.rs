//! What portwatch costs, beside the tools people use now: `cargo xtask bench`.
//!
//! Everything is measured in one run and in interleaved rounds, on one core
//! while the tool has another, in network namespaces that nobody else uses. No
//! number decides the exit status: it fails only if something did not work.

mod environment;
mod jobs;
mod list;
mod measure;
mod report;
mod table;
mod tool;
mod worker;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::{Context as _, bail};

use crate::measure::Plan;

const HELP: &str = "\
What portwatch costs, beside bpftrace, strace, ss and lsof. Needs root.

Usage: bench [--quick] [--iterations N] [--markdown] [--list] [--jobs]

  --quick         a few iterations of everything, to see that it works
  --iterations N  operations of each loop in a round (default 3000)
  --markdown      tables as Markdown
  --list          nothing but how long lists take
  --jobs          nothing but what portwatch run adds to jobs";

fn main() -> ExitCode {
    match run(std::env::args_os().skip(1).collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Vec<OsString>) -> anyhow::Result<()> {
    let arguments: Vec<String> = arguments
        .into_iter()
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect();
    match arguments
        .split_first()
        .map(|(first, rest)| (first.as_str(), rest))
    {
        Some((worker::COMMAND, jobs)) => return worker::run(jobs),
        Some((list::COMMAND, number)) => return list::hold(number),
        _ => {}
    }
    let mut plan = Plan::FULL;
    let mut markdown = false;
    let mut lists_only = false;
    let mut jobs_only = false;
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "--quick" => plan = Plan::QUICK,
            "--iterations" => {
                let value = rest.next().context("--iterations wants a number")?;
                plan.iterations = value
                    .parse()
                    .ok()
                    .filter(|number| *number > 0)
                    .with_context(|| format!("--iterations {value}: not a number above 0"))?;
            }
            "--markdown" => markdown = true,
            "--list" => lists_only = true,
            "--jobs" => jobs_only = true,
            "-h" | "--help" => {
                println!("{HELP}");
                return Ok(());
            }
            other => bail!("{other}: unknown argument\n\n{HELP}"),
        }
    }
    let environment = environment::enter()?;
    let jobs = || environment.on_all_cores(|| jobs::measure(&environment, plan.forks, plan.jobs));
    if jobs_only {
        let jobs = jobs()?;
        let (table, goals) = (jobs::table(&jobs), jobs::goals(&jobs));
        print!("{}", report::alone(&environment, &table, &goals, markdown));
        return Ok(());
    }
    let lists = list::measure(&environment, plan.holders, plan.lists)?;
    if lists_only {
        let (table, goals) = (list::table(&lists), list::goals(&lists));
        print!("{}", report::alone(&environment, &table, &goals, markdown));
        return Ok(());
    }
    let results = measure::Results {
        lists,
        jobs: jobs()?,
        ..measure::all(&plan, &environment)?
    };
    print!(
        "{}",
        report::render(&plan, &environment, &results, markdown)
    );
    Ok(())
}
