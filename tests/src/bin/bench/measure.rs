//! What is measured, and in which order.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use crate::environment::Environment;
use crate::jobs::Timed;
use crate::list::Listed;
use crate::tool::{Cpu, Tool, Variant};
use crate::worker::{self, Job, Operation};

/// bind, listen, and the listener's end.
const EVENTS_OF_LISTEN: u32 = 3;

/// How much is measured.
pub struct Plan {
    /// Operations of each loop in a round.
    pub iterations: u32,
    /// Rounds: in each every variant has its turn.
    pub rounds: u32,
    /// How often portwatch is started to see how soon it is ready.
    pub starts: u32,
    /// Events at a pace that every tool can follow, to see what processor time they take.
    pub paced: u32,
    /// Events as fast as they can be made, to see what is lost and how memory grows.
    pub flood: u32,
    /// Processes with 100 sockets each, of which lists are made.
    pub holders: u32,
    /// How often each tool lists them.
    pub lists: u32,
    /// Processes that the forking job makes.
    pub forks: u32,
    /// How often each job is run, with and without portwatch.
    pub jobs: u32,
}

impl Plan {
    /// What numbers are taken from.
    pub const FULL: Self = Self {
        iterations: 3000,
        rounds: 4,
        starts: 10,
        paced: 120_000,
        flood: 1_000_000,
        holders: 200,
        lists: 9,
        forks: 20_000,
        jobs: 5,
    };

    /// What shows that everything works.
    pub const QUICK: Self = Self {
        iterations: 40,
        rounds: 1,
        starts: 3,
        paced: 3000,
        flood: 20_000,
        holders: 10,
        lists: 1,
        forks: 200,
        jobs: 1,
    };

    /// Operations in a burst: few enough that what they make fits into the buffers of each tool.
    pub const BURST: u32 = 200;

    /// Between two bursts.
    pub const PAUSE: Duration = Duration::from_millis(4);

    /// How many times fewer operations strace gets.
    pub const STRACE_FEWER: u32 = 10;

    fn job(operation: Operation, iterations: u32) -> Job {
        let burst = Self::BURST.min(iterations.div_ceil(2));
        // The bursts of what takes no time are longer, that the clock does not matter.
        let longer = if operation == Operation::Getppid {
            20
        } else {
            1
        };
        Job {
            operation,
            bursts: iterations.div_ceil(burst),
            burst: burst * longer,
            pause: Self::PAUSE,
        }
    }

    fn loops(&self, variant: Variant) -> Vec<Job> {
        let (operations, iterations) = match variant {
            Variant::Strace => (
                &Operation::BINDS[..],
                self.iterations.div_ceil(Self::STRACE_FEWER),
            ),
            _ => (&Operation::ALL[..], self.iterations),
        };
        operations
            .iter()
            .map(|operation| Self::job(*operation, iterations))
            .collect()
    }
}

/// Everything that was measured.
#[derive(Default)]
pub struct Results {
    /// Nanoseconds per operation: the best of the rounds, of each the median of its bursts.
    pub loops: BTreeMap<(Variant, Operation), f64>,
    /// What else there is to tell of a tool.
    pub tools: BTreeMap<Variant, ToolResults>,
    /// How long lists take.
    pub lists: Vec<Listed>,
    /// How long jobs take.
    pub jobs: Vec<Timed>,
}

/// What was measured of a tool itself.
#[derive(Default)]
pub struct ToolResults {
    /// From its start until it saw everything.
    pub ready: Vec<Duration>,
    /// From its start until its `start` line.
    pub started: Vec<Duration>,
    /// In the rounds.
    pub rounds: Counted,
    /// At a pace that it can follow.
    pub paced: Option<Paced>,
    /// As fast as can be.
    pub flood: Option<Flood>,
}

/// Events.
#[derive(Debug, Default, Clone, Copy)]
pub struct Counted {
    /// Lines that the tool has printed.
    pub printed: u64,
    /// What it says it has lost.
    pub lost: u64,
}

/// Events at a pace.
pub struct Paced {
    /// How many.
    pub counted: Counted,
    /// The processor time they took.
    pub cpu: Cpu,
}

/// Events as fast as can be.
pub struct Flood {
    /// How many were made.
    pub made: u64,
    /// How many there were.
    pub counted: Counted,
    /// The processor time they took.
    pub cpu: Cpu,
    /// How long they took to be made.
    pub making: Duration,
    /// From the first until the last had been printed.
    pub draining: Duration,
    /// The most memory the tool had before, in bytes.
    pub peak_before: u64,
    /// The most memory the tool has had, in bytes.
    pub peak: u64,
    /// The memory that it has at the end, in bytes.
    pub resident: u64,
}

/// Measures everything.
pub fn all(plan: &Plan, environment: &Environment) -> anyhow::Result<Results> {
    let mut results = Results::default();
    for round in 0..plan.rounds {
        for variant in Variant::ALL {
            eprintln!(
                "bench: round {} of {}: {}",
                round + 1,
                plan.rounds,
                variant.title()
            );
            one_round(plan, environment, variant, &mut results)?;
        }
    }
    for variant in [Variant::Json, Variant::Text, Variant::Print] {
        eprintln!("bench: processor time of {}", variant.title());
        paced(plan, environment, variant, &mut results)?;
    }
    for variant in [Variant::Text, Variant::Print] {
        eprintln!("bench: a flood for {}", variant.title());
        flood(plan, environment, variant, &mut results)?;
    }
    eprintln!("bench: starts");
    // Only these count: that all are under the same conditions.
    results.tool(Variant::Json).started.clear();
    for _ in 0..plan.starts {
        let tool = start(Variant::Json, environment, &mut results)?;
        results.stop(Variant::Json, tool)?;
    }
    Ok(results)
}

impl Results {
    fn tool(&mut self, variant: Variant) -> &mut ToolResults {
        self.tools.entry(variant).or_default()
    }

    /// Ends a tool and returns what it lost.
    fn stop(&mut self, variant: Variant, tool: Option<Tool>) -> anyhow::Result<u64> {
        let Some(tool) = tool else { return Ok(0) };
        let lost = tool
            .stop()
            .with_context(|| format!("ending {}", variant.title()))?;
        Ok(lost)
    }
}

fn start(
    variant: Variant,
    environment: &Environment,
    results: &mut Results,
) -> anyhow::Result<Option<Tool>> {
    let tool = Tool::start(variant, environment)
        .with_context(|| format!("starting {}", variant.title()))?;
    if let Some(tool) = &tool {
        results.tool(variant).ready.push(tool.ready);
        results.tool(variant).started.extend(tool.started);
    }
    Ok(tool)
}

fn one_round(
    plan: &Plan,
    environment: &Environment,
    variant: Variant,
    results: &mut Results,
) -> anyhow::Result<()> {
    let mut tool = start(variant, environment, results)?;
    let measured = work(environment, variant, &plan.loops(variant))?;
    for (operation, bursts) in measured {
        let round = median(&bursts);
        results
            .loops
            .entry((variant, operation))
            .and_modify(|best| *best = best.min(round))
            .or_insert(round);
    }
    if let Some(tool) = &mut tool {
        tool.drain()?;
        results.tool(variant).rounds.printed += tool.printed()?;
    }
    let lost = results.stop(variant, tool)?;
    results.tool(variant).rounds.lost += lost;
    Ok(())
}

fn paced(
    plan: &Plan,
    environment: &Environment,
    variant: Variant,
    results: &mut Results,
) -> anyhow::Result<()> {
    let burst = Plan::BURST / 2;
    let job = Job {
        operation: Operation::Listen,
        bursts: plan.paced.div_ceil(burst * EVENTS_OF_LISTEN),
        burst,
        pause: Plan::PAUSE,
    };
    let Some(mut tool) = start(variant, environment, results)? else {
        return Ok(());
    };
    let (printed, before) = (tool.printed()?, tool.cpu()?);
    work(environment, variant, &[job])?;
    tool.drain()?;
    let cpu = tool.cpu()?.since(before);
    let printed = tool.printed()? - printed;
    let lost = results.stop(variant, Some(tool))?;
    ensure!(printed > 0, "{} printed nothing", variant.title());
    results.tool(variant).paced = Some(Paced {
        counted: Counted { printed, lost },
        cpu,
    });
    Ok(())
}

fn flood(
    plan: &Plan,
    environment: &Environment,
    variant: Variant,
    results: &mut Results,
) -> anyhow::Result<()> {
    let job = Job {
        operation: Operation::Listen,
        bursts: 1,
        burst: plan.flood.div_ceil(EVENTS_OF_LISTEN),
        pause: Duration::ZERO,
    };
    let Some(mut tool) = start(variant, environment, results)? else {
        return Ok(());
    };
    let (printed, peak_before) = (tool.printed()?, tool.memory("VmHWM")?);
    let before = tool.cpu()?;
    let begin = Instant::now();
    work(environment, variant, &[job])?;
    let making = begin.elapsed();
    tool.drain()?;
    let draining = begin.elapsed();
    let cpu = tool.cpu()?.since(before);
    let printed = tool.printed()? - printed;
    let (peak, resident) = (tool.memory("VmHWM")?, tool.memory("VmRSS")?);
    let lost = results.stop(variant, Some(tool))?;
    results.tool(variant).flood = Some(Flood {
        made: u64::from(job.burst * EVENTS_OF_LISTEN),
        counted: Counted { printed, lost },
        cpu,
        making,
        draining,
        peak_before,
        peak,
        resident,
    });
    Ok(())
}

/// Lets a worker do these jobs.
fn work(
    environment: &Environment,
    variant: Variant,
    jobs: &[Job],
) -> anyhow::Result<Vec<(Operation, Vec<f64>)>> {
    let myself = std::env::current_exe().context("where this program lies")?;
    let mut command = match variant {
        Variant::Strace => {
            let mut command = Command::new("strace");
            command
                .args(["-f", "--seccomp-bpf", "-e", "trace=bind,listen", "-o"])
                .arg(environment.outputs.join("output"))
                .arg(myself);
            command
        }
        _ => Command::new(myself),
    };
    // A pause only leaves the core alone that the tool does not run on.
    let spin = environment.worker != environment.tool;
    command.args(worker::arguments(environment.worker, spin, jobs));
    let output = command
        .output()
        .with_context(|| format!("cannot start {}", command.get_program().display()))?;
    ensure!(
        output.status.success(),
        "the worker failed under {} ({}):\n{}",
        variant.title(),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    let lines = String::from_utf8(output.stdout)?;
    let measured: Vec<_> = lines.lines().map(worker::parse).collect::<Result<_, _>>()?;
    ensure!(
        measured.len() == jobs.len(),
        "the worker did {} of {} jobs",
        measured.len(),
        jobs.len()
    );
    Ok(measured)
}

/// The median; of an even number of values the lower of the two.
pub fn median<T: Copy + PartialOrd + Default>(values: &[T]) -> T {
    let mut values = values.to_vec();
    values.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
    let middle = values.len().saturating_sub(1) / 2;
    values.get(middle).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn the_median_is_one_of_them() {
        assert_eq!(median(&[3, 1, 2]), 2);
        assert_eq!(median(&[4, 1, 2, 3]), 2);
        assert_eq!(median::<u8>(&[]), 0);
    }
}
