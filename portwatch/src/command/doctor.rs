//! `portwatch doctor`: what this kernel offers, what of it is used, and whether it works.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use clap::Args;

use crate::kernel::backend::{Backend, HOOKS, Part, TRACEPOINT};
use crate::kernel::self_test;
use crate::kernel::support;

/// The options of `doctor`.
#[derive(Debug, Args)]
pub struct Options {
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
    let parts = HOOKS.map(|hook| hook.part);
    let mut backend = match Backend::load(&parts, 1 << 20) {
        Ok(backend) => backend,
        Err(unsupported) => {
            writeln!(report, "FAIL  {unsupported}")?;
            writeln!(report, "\nportwatch trace cannot run here.")?;
            return Ok(super::UNSUPPORTED);
        }
    };
    writeln!(
        report,
        "ok    backend: {TRACEPOINT} (the only one this version has)"
    )?;
    degraded |= hooks(options, &backend, report)?;
    if options.verbose {
        for absent in backend.absent() {
            writeln!(report, "      absent field: {absent}")?;
        }
    }
    let Some(mut ring) = backend.take_ring() else {
        anyhow::bail!("the object has no ring buffer");
    };
    match self_test::run(&backend, &mut ring) {
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
        Err(error) => {
            degraded = true;
            writeln!(report, "warn  self-test: {error:#}")?;
        }
    }
    match backend.snapshot() {
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

fn hooks(options: &Options, backend: &Backend, report: &mut String) -> anyhow::Result<bool> {
    let instructions = backend.verified_instructions();
    let mut degraded = false;
    for status in backend.statuses() {
        let hook = status.hook;
        match &status.failure {
            None => {
                write!(report, "ok    hook {}/{}: in place", hook.attach, hook.name)?;
                if let (true, Some(count)) = (options.verbose, instructions.get(hook.name)) {
                    write!(report, ", {count} instructions verified")?;
                }
                writeln!(report)?;
            }
            Some(failure) => {
                degraded = true;
                writeln!(
                    report,
                    "warn  hook {}/{}: {failure}",
                    hook.attach, hook.name
                )?;
                if hook.part != Part::Bind {
                    writeln!(report, "        not seen without it: {}", hook.part.loss())?;
                }
            }
        }
    }
    Ok(degraded)
}
