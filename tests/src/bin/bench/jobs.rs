//! What `portwatch run` adds to a job: to one that does nothing, one that compiles and one that forks.

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::environment::Environment;
use crate::measure::median;
use crate::table::Table;

/// What `run` may add to a job that does nothing.
const GOAL_START: Duration = Duration::from_millis(300);
/// How many times as long a job may take while it is watched.
const GOAL_JOB: f64 = 1.02;

/// A job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Job {
    Nothing,
    Compile,
    Fork,
}

impl Job {
    const ALL: [Self; 3] = [Self::Nothing, Self::Compile, Self::Fork];

    fn title(self, forks: u32) -> String {
        match self {
            Self::Nothing => "true".to_owned(),
            Self::Compile => "rustc of a crate".to_owned(),
            Self::Fork => format!("sh, {forks} processes one after another"),
        }
    }

    fn line(self, folder: &Path, forks: u32) -> Vec<String> {
        let words: Vec<String> = match self {
            Self::Nothing => vec!["true".into()],
            Self::Compile => [
                "rustc",
                "--edition=2024",
                "--crate-type=lib",
                "-Copt-level=2",
                "--emit=obj",
                "-o",
                "crate.o",
                "crate.rs",
            ]
            .map(str::to_owned)
            .into(),
            Self::Fork => vec![
                "sh".into(),
                "-c".into(),
                format!("i=0; while [ $i -lt {forks} ]; do /bin/true; i=$((i+1)); done"),
            ],
        };
        words
            .into_iter()
            .map(|word| match &*word {
                "crate.o" | "crate.rs" => folder.join(word).display().to_string(),
                _ => word,
            })
            .collect()
    }
}

/// How long a job took: by itself, and of one that was watched the whole and its own part.
pub struct Timed {
    job: Job,
    title: String,
    plain: Vec<Duration>,
    whole: Vec<Duration>,
    watched: Vec<Duration>,
}

/// Runs each job so many times, with and without portwatch in turn.
pub fn measure(environment: &Environment, forks: u32, rounds: u32) -> anyhow::Result<Vec<Timed>> {
    let folder = &environment.outputs;
    std::fs::write(folder.join("crate.rs"), source(300))?;
    let mut all = Vec::new();
    for job in Job::ALL {
        let line = job.line(folder, forks);
        let report = folder.join("report.json");
        let mut timed = Timed {
            job,
            title: job.title(forks),
            plain: Vec::new(),
            whole: Vec::new(),
            watched: Vec::new(),
        };
        for _ in 0..rounds {
            timed
                .plain
                .push(run(Command::new(&line[0]).args(&line[1..]))?);
            let mut command = Command::new(portwatch_tests::portwatch());
            command
                .args(["run", "--quiet", "--user", "0", "--report"])
                .arg(&report)
                .arg("--")
                .args(&line);
            timed.whole.push(run(&mut command)?);
            let told: Value = serde_json::from_slice(&std::fs::read(&report)?)?;
            ensure!(
                told["lost"].as_object().is_some_and(|lost| lost.is_empty()),
                "something was lost: {}",
                told["lost"]
            );
            let own = told["job"]["duration_ms"].as_u64();
            let own = own.context("the report tells no duration")?;
            timed.watched.push(Duration::from_millis(own));
        }
        all.push(timed);
    }
    Ok(all)
}

fn run(command: &mut Command) -> anyhow::Result<Duration> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let begin = Instant::now();
    let status = command
        .status()
        .with_context(|| format!("starting {command:?}"))?;
    let took = begin.elapsed();
    ensure!(status.success(), "{command:?}: {status}");
    Ok(took)
}

/// A crate that keeps a compiler busy for some seconds.
fn source(functions: u32) -> String {
    let mut text = String::from("use std::collections::BTreeMap;\n");
    for number in 0..functions {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "pub fn f{number}(words: &[String]) -> BTreeMap<String, Vec<usize>> {{
    let mut seen = BTreeMap::<String, Vec<usize>>::new();
    for (at, word) in words.iter().enumerate().filter(|(at, _)| at % {} != 0) {{
        seen.entry(word.to_lowercase()).or_default().push(at * {number});
    }}
    seen.retain(|_, at| at.len() > {});
    seen
}}",
            number + 2,
            number % 7
        );
    }
    text
}

fn seconds(all: &[Duration]) -> f64 {
    let seconds: Vec<_> = all.iter().map(Duration::as_secs_f64).collect();
    median(&seconds)
}

/// A row a job.
pub fn table(all: &[Timed]) -> Table {
    let mut table = Table::new(
        "A job under portwatch run, medians",
        [
            "job",
            "alone, ms",
            "watched, ms",
            "times",
            "whole run, ms",
            "added, ms",
        ],
    );
    for timed in all {
        let (plain, watched) = (seconds(&timed.plain), seconds(&timed.watched));
        let whole = seconds(&timed.whole);
        table.row([
            timed.title.clone(),
            format!("{:.1}", plain * 1e3),
            format!("{:.0}", watched * 1e3),
            match timed.job {
                Job::Nothing => "-".to_owned(),
                _ => format!("{:.3}", watched / plain),
            },
            format!("{:.1}", whole * 1e3),
            format!("{:.1}", (whole - plain) * 1e3),
        ]);
    }
    table
}

/// Whether the goals were met.
pub fn goals(all: &[Timed]) -> Vec<String> {
    let met = |met: bool| if met { "met" } else { "not met" };
    let goal = |timed: &Timed| match timed.job {
        Job::Nothing => {
            let added = (seconds(&timed.whole) - seconds(&timed.plain)) * 1e3;
            let goal = GOAL_START.as_secs_f64() * 1e3;
            format!(
                "goal portwatch run: adds at most {goal:.0} ms to a job: {added:.0} ms, {}",
                met(added <= goal)
            )
        }
        Job::Compile | Job::Fork => {
            let times = seconds(&timed.watched) / seconds(&timed.plain);
            format!(
                "goal portwatch run: {} takes at most {GOAL_JOB} times as long: {times:.3}, {}",
                timed.title,
                met(times <= GOAL_JOB)
            )
        }
    };
    all.iter().map(goal).collect()
}
