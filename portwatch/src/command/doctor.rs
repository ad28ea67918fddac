//! `portwatch doctor`: what this kernel offers, what of it is used, and whether it works.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use clap::Args;

use super::value::BackendChoice;
use crate::kernel::hook::Part;
use crate::kernel::self_test;
use crate::kernel::side::{Choice, KernelSide};
use crate::kernel::support::{self, Unsupported};

/// The options of `doctor`.
#[derive(Debug, Args)]
pub struct Options {
    /// How to hook into the kernel
    #[arg(long, value_enum, default_value_t = BackendChoice::Auto)]
    backend: BackendChoice,

    /// Tell the number of verified instructions of each program and the kernel's absent fields
    #[arg(short, long)]
    verbose: bool,
}

/// Runs `portwatch doctor`. Exit status 0 if `trace` would see everything, 1 if it would see some
/// things only, 3 if it would not run.
///
/// # Errors
///
/// If standard output cannot be written to.
pub fn run(options: Options) -> anyhow::Result<ExitCode> {
    let mut report = String::new();
    let verdict = examine(&options, &mut report)?;
    super::print(report.as_bytes())?;
    Ok(ExitCode::from(verdict))
}

fn examine(options: &Options, report: &mut String) -> anyhow::Result<u8> {
    let kernel = nix::sys::utsname::uname()
        .map(|name| name.release().to_string_lossy().into_owned())
        .unwrap_or_default();
    writeln!(
        report,
        "portwatch {} on Linux {kernel}",
        env!("CARGO_PKG_VERSION")
    )?;
    let mut fatal = false;
    let mut degraded = false;
    for check in support::checks(Path::new("/")) {
        let mark = match &check.problem {
            None => "ok  ",
            Some(problem) if problem.fatal => "FAIL",
            Some(_) => "warn",
        };
        writeln!(report, "{mark}  {}: {}", check.name, check.found)?;
        if let Some(problem) = check.problem {
            writeln!(report, "        why: {}", problem.why)?;
            writeln!(report, "        do:  {}", problem.remedy)?;
            fatal |= problem.fatal;
            degraded = true;
        }
    }
    if fatal {
        writeln!(report, "\nportwatch trace cannot run here.")?;
        return Ok(super::UNSUPPORTED);
    }
    let choice = Choice {
        tree: false,
        backend: options.backend.into(),
        parts: Part::ALL.to_vec(),
        buffer: 1 << 20,
    };
    let mut side = match KernelSide::load(&choice) {
        Ok(side) => side,
        Err(unsupported) => return cannot_run(report, &unsupported),
    };
    let Some(mut ring) = side.take_ring() else {
        anyhow::bail!("the object has no ring buffer");
    };
    let proven = self_test::run(&mut side, &mut ring);
    degraded |= parts(&side, report)?;
    degraded |= hooks(options, &side, report)?;
    if options.verbose {
        for absent in side.absent() {
            writeln!(report, "      absent field: {absent}")?;
        }
    }
    match proven {
        Ok(found) => {
            writeln!(
                report,
                "self-test ({} ms): each kind of event provoked on loopback, in a network namespace of its own",
                found.took.as_millis()
            )?;
            for proof in &found.proofs {
                let mark = if proof.seen { "ok  " } else { "FAIL" };
                let seen = if proof.seen { "seen" } else { "not seen" };
                writeln!(report, "{mark}  {}: {seen}", proof.name)?;
                degraded |= !proof.seen;
            }
            fatal |= found.failed().contains(&"bind");
        }
        Err(error) => match error.downcast::<Unsupported>() {
            Ok(unsupported) => return cannot_run(report, &unsupported),
            Err(error) => {
                degraded = true;
                writeln!(report, "warn  self-test: {error:#}")?;
            }
        },
    }
    match side.snapshot() {
        Ok(entries) => writeln!(
            report,
            "ok    snapshot: {} open sockets with a port",
            entries.len()
        )?,
        Err(error) => {
            degraded = true;
            writeln!(report, "warn  snapshot: {error:#}")?;
            writeln!(
                report,
                "        /proc is read instead; releases of older sockets are not seen"
            )?;
        }
    }
    Ok(if fatal {
        writeln!(report, "\nportwatch trace cannot run here.")?;
        super::UNSUPPORTED
    } else if degraded {
        writeln!(
            report,
            "\nportwatch trace runs here, but does not see everything."
        )?;
        super::FAILED
    } else {
        writeln!(report, "\nportwatch trace sees everything here.")?;
        0
    })
}

fn cannot_run(report: &mut String, unsupported: &Unsupported) -> anyhow::Result<u8> {
    writeln!(report, "FAIL  {unsupported}")?;
    writeln!(report, "\nportwatch trace cannot run here.")?;
    Ok(super::UNSUPPORTED)
}

/// Each part of the work with its backend, and why the better ones were not taken. Whether something
/// is not seen.
fn parts(side: &KernelSide, report: &mut String) -> anyhow::Result<bool> {
    let mut degraded = false;
    writeln!(report, "ok    backend: {}", side.backend())?;
    for (part, backend) in side.parts() {
        let name = part.name();
        match backend {
            Some(backend) => writeln!(report, "ok    {name}: by {backend}")?,
            None => {
                degraded = true;
                writeln!(report, "warn  {name}: by no backend")?;
                writeln!(report, "        not seen without it: {}", part.loss())?;
            }
        }
        for step in side.steps().iter().filter(|step| step.part == part) {
            writeln!(report, "        not by {}: {}", step.backend, step.why)?;
        }
        if let Some(what) = backend.and_then(|backend| part.blind_spot(backend)) {
            degraded = true;
            writeln!(report, "        not seen by it: {what}")?;
        }
    }
    Ok(degraded)
}

fn hooks(options: &Options, side: &KernelSide, report: &mut String) -> anyhow::Result<bool> {
    let instructions = side.verified_instructions();
    let mut degraded = false;
    for (part, status) in side.statuses() {
        let hook = status.hook;
        match &status.failure {
            None => {
                write!(report, "ok    hook {hook}: in place")?;
                if let (true, Some(count)) = (options.verbose, instructions.get(hook.program)) {
                    write!(report, ", {count} instructions verified")?;
                }
                writeln!(report)?;
            }
            Some(failure) => {
                degraded = true;
                writeln!(report, "warn  hook {hook}: {failure}")?;
                writeln!(report, "        not seen without it: {}", part.loss())?;
            }
        }
    }
    Ok(degraded)
}
