//! `cargo xtask vm`: the scenarios on the kernels of the matrix, each in a
//! guest of its own, two at a time.

mod apt;
pub mod bench;
mod build;
mod cpio;
mod guest;
mod initramfs;
mod kernel;
mod lock;
mod report;
mod suite;
pub mod systemd;
mod verified;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::package::{Provided, provide};
use crate::process::{say, target_folder};
use crate::tally::Tally;
use guest::{Clock, End, Guest};
use kernel::{Store, Unpacked};
use lock::{Arch, Kernel, MATRIX};
use report::{Line, Report};

/// Guests at a time.
const AT_ONCE: usize = 2;
/// How many times as long as usual a guest's tests wait before they give up.
const PATIENCE: u32 = 12;

const PROGRAMS: &[Provided] = &[Provided {
    program: "xz",
    package: "xz-utils",
}];
const QEMU: Provided = Provided {
    program: "qemu-system-x86_64",
    package: "qemu-system-x86",
};

/// The arguments of `cargo xtask vm`.
#[derive(clap::Args)]
pub struct Args {
    /// Only kernels of this series, such as 6.1; may be repeated
    #[arg(long = "kernel", value_name = "SERIES")]
    kernels: Vec<String>,
    /// The architecture
    #[arg(long, value_enum, default_value = "x86_64")]
    arch: Arch,
    /// Only this backend; may be repeated
    #[arg(long = "backend", value_name = "BACKEND")]
    backends: Vec<String>,
    /// Write the newest kernels of the matrix to the lock file, and run nothing
    #[arg(long)]
    update_lock: bool,
    /// Real containers and units instead, in a guest with systemd
    #[arg(long, conflicts_with_all = ["kernels", "arch", "backends", "record"])]
    systemd: bool,
    /// Record how many instructions the verifier went through
    #[arg(long)]
    record: bool,
    /// Show what portwatch doctor says in each guest
    #[arg(short, long)]
    verbose: bool,
    /// Only tests whose names contain one of these
    #[arg(last = true, value_name = "FILTER")]
    filters: Vec<String>,
}

/// What a level of tests, or a guest's, came to.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The tests, with what else went wrong counted as failed.
    pub tally: Tally,
    /// What has to be told at the end.
    pub remarks: Vec<String>,
}

/// Runs `cargo xtask vm`.
pub fn vm(args: &Args) -> Result<ExitCode> {
    if args.update_lock {
        let kernels = Store::new()?.newest()?;
        lock::write(&kernels)?;
        say(&format!("{} kernels and tools are locked", kernels.len()));
        return Ok(ExitCode::SUCCESS);
    }
    let outcome = if args.systemd {
        systemd::run(&args.filters)?
    } else {
        run(args)?
    };
    for remark in &outcome.remarks {
        say(remark);
    }
    println!("{}", outcome.tally);
    Ok(if outcome.tally.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Has cargo build tests for this machine as it does for guests.
pub fn choose_tests(command: &mut Command) -> Result<()> {
    build::choose(command, Arch::here()?)
}

/// Runs the whole matrix of x86_64, as a level of `cargo xtask test`.
pub fn level(filters: &[String]) -> Result<Outcome> {
    run(&Args {
        kernels: Vec::new(),
        arch: Arch::X86_64,
        backends: Vec::new(),
        update_lock: false,
        systemd: false,
        record: false,
        verbose: false,
        filters: filters.to_vec(),
    })
}

fn run(args: &Args) -> Result<Outcome> {
    for series in &args.kernels {
        let known: Vec<_> = MATRIX.iter().map(|known| known.name).collect();
        ensure!(
            known.contains(&&**series),
            "there is no kernel {series}: {}",
            known.join(", ")
        );
    }
    provide(PROGRAMS)?;
    provide(&[match args.arch {
        Arch::X86_64 => QEMU,
        Arch::Aarch64 => Provided {
            program: "qemu-system-aarch64",
            package: "qemu-system-arm",
        },
    }])?;
    let programs = build::programs(args.arch)?;
    let mut store = Store::new()?;
    let busybox = store.busybox(args.arch)?;
    let mut kernels = Vec::new();
    for locked in lock::read()? {
        let wanted = args.kernels.is_empty() || args.kernels.iter().any(|it| it == locked.series);
        if wanted && locked.arch == args.arch && locked.is_kernel() {
            kernels.push(store.get(&locked)?);
        }
    }
    ensure!(!kernels.is_empty(), "no kernel is left to run");
    for warning in store.warnings() {
        say(warning);
    }

    let run = Run {
        args,
        programs: &programs,
        busybox: &busybox,
        recorded: verified::read().unwrap_or_default(),
    };
    let shares = shares(kernels, |kernel| run.backends(kernel));
    let mut outcomes = at_once(shares.iter().map(|share| {
        let series = share.kernel.kernel.series;
        let run = &run;
        move || -> Result<(Of, GuestOutcome)> {
            let outcome = run.guest(share);
            let outcome = outcome.with_context(|| format!("the guest with {series}"))?;
            Ok(((series, share.first), outcome))
        }
    }))?;
    // In the order of the matrix, and a kernel's first share before its second.
    outcomes.sort_by_key(|((series, first), _)| {
        let place = MATRIX.iter().position(|known| known.name == *series);
        (place, !first)
    });
    let mut whole = Outcome::default();
    let mut counts = verified::Counts::new();
    for ((series, _), (guest, verified)) in outcomes {
        whole.tally.add(guest.tally);
        let name = format!("{series} {}", args.arch.name());
        for remark in guest.remarks {
            whole.remarks.push(format!("{name}: {remark}"));
        }
        let verified = verified.into_iter();
        counts.extend(verified.map(|(program, count)| ((name.clone(), program), count)));
    }
    if args.record {
        verified::record(&counts)?;
    }
    whole.remarks.extend_from_slice(store.warnings());
    Ok(whole)
}

/// Runs what starts guests, [`AT_ONCE`] at a time and the last first; gives what each gave, in their order.
fn at_once<T: Send>(
    guests: impl IntoIterator<Item = impl FnOnce() -> Result<T> + Send>,
) -> Result<Vec<T>> {
    let lock = "a thread that runs guests panicked";
    let waiting: Vec<_> = guests.into_iter().enumerate().collect();
    let waiting = Mutex::new(waiting);
    let ended = Mutex::new(BTreeMap::new());
    let work = || -> Result<()> {
        loop {
            let next = waiting.lock().ok().context(lock)?.pop();
            let Some((place, guest)) = next else {
                return Ok(());
            };
            let outcome = guest()?;
            ended.lock().ok().context(lock)?.insert(place, outcome);
        }
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            worker
                .join()
                .map_err(|_| anyhow::anyhow!(lock))
                .and_then(|result| result)?;
        }
        anyhow::Ok(())
    })?;
    Ok(ended
        .into_inner()
        .ok()
        .context(lock)?
        .into_values()
        .collect())
}

/// What all guests have in common.
struct Run<'a> {
    args: &'a Args,
    programs: &'a build::Programs,
    busybox: &'a Path,
    recorded: verified::Counts,
}

/// What one guest does of a kernel's tests.
struct Share {
    kernel: Arc<Unpacked>,
    /// Its backends.
    backends: Vec<String>,
    /// Whether it is the kernel's first one, which also does what is done once.
    first: bool,
}

/// Of which guest an outcome is: its series, and whether it had the kernel's first share.
type Of = (&'static str, bool);

/// What one guest came to, and how many instructions the verifier went through for each program.
type GuestOutcome = (Outcome, BTreeMap<String, u32>);

/// The shares of the guests, the last to be taken first. Where one guest would be left to run alone at
/// the end, its kernel is shared between two.
fn shares(kernels: Vec<Unpacked>, backends: impl Fn(&Kernel) -> Vec<String>) -> Vec<Share> {
    let odd = !kernels.len().is_multiple_of(AT_ONCE);
    let mut shares = Vec::new();
    for (index, kernel) in kernels.into_iter().enumerate() {
        let mut backends = backends(&kernel.kernel);
        let kernel = Arc::new(kernel);
        // What is done once takes half as long as a backend does.
        if index == 0 && odd && backends.len() > 1 {
            shares.push(Share {
                kernel: Arc::clone(&kernel),
                backends: backends.split_off(1),
                first: false,
            });
        }
        shares.push(Share {
            kernel,
            backends,
            first: true,
        });
    }
    shares
}

impl Run<'_> {
    fn backends(&self, kernel: &Kernel) -> Vec<String> {
        if self.args.backends.is_empty() {
            let all = suite::backends(kernel.arch, kernel.series);
            all.iter().map(ToString::to_string).collect()
        } else {
            self.args.backends.clone()
        }
    }

    fn guest(&self, share: &Share) -> Result<GuestOutcome> {
        let kernel = &*share.kernel;
        let mut name = format!("{}-{}", kernel.kernel.series, kernel.kernel.arch.name());
        if !share.first {
            name += "-second";
        }
        let folder = target_folder()?.join("vm").join(name);
        fs::create_dir_all(&folder)?;
        let guest = Guest {
            arch: kernel.kernel.arch,
            image: kernel.image.clone(),
            initramfs: folder.join("initramfs.cpio"),
            root: None,
            console: folder.join("console.log"),
            clock: Clock::Real,
        };
        let settings = self.settings(share);
        let archive = initramfs::make(kernel, self.busybox, self.programs, &settings)?;
        fs::write(&guest.initramfs, archive)?;

        let mut outcome = Outcome::default();
        let series = kernel.kernel.series;
        let (report, end) = results(&guest, series, guest::LIMIT, &mut outcome.remarks)?;
        let verified = report.verified_instructions();
        let further = self.complaints(&report, &verified, share);
        report.judge(&guest, &end, further, &mut outcome);
        if self.args.verbose {
            for (backend, lines) in report.doctors() {
                let said = format!("portwatch doctor, {backend}:\n{}", lines.join("\n"));
                outcome.remarks.push(said);
            }
        }
        Ok((outcome, verified))
    }

    /// What is wrong that the report does not know.
    fn complaints(
        &self,
        report: &Report,
        verified: &BTreeMap<String, u32>,
        share: &Share,
    ) -> Vec<String> {
        let kernel = &share.kernel.kernel;
        let mut complaints = Vec::new();
        // Tests that were named may all be among those of the first share.
        if report.ended() == 0 && (share.first || self.args.filters.is_empty()) {
            complaints.push("no test was run".to_owned());
        }
        if !self.args.record {
            let name = format!("{} {}", kernel.series, kernel.arch.name());
            complaints.extend(verified::complaints(&self.recorded, &name, verified));
        }
        complaints
    }

    /// The variables of `init.sh`.
    fn settings(&self, share: &Share) -> String {
        let filters = &self.args.filters;
        let kernel = &share.kernel.kernel;
        // Who names tests wants just those.
        let skip = |tests: &[&str]| -> String {
            tests.iter().map(|test| format!(" --skip {test}")).collect()
        };
        let (mut skipped, mut slow, mut once, mut not_again) =
            (String::new(), "", String::new(), String::new());
        if filters.is_empty() {
            slow = suite::SLOW;
            if share.first {
                once = suite::ONCE.join(" ");
            }
            skipped = skip(&suite::NOT_IN_GUESTS) + &skip(&[slow]);
            skipped += &skip(suite::not_beside_others(kernel.series));
            not_again = skip(&suite::ONCE);
        }
        format!(
            "PORT={}\nKERNEL='{}'\nPORTWATCH_CASES={}\nBACKENDS='{}'\nONCE='{once}'\nBACKEND_OF_ONCE={}\nSLOW='{slow}'\n\
             FILTERS='{}'\nSKIPPED='{skipped}'\nNOT_AGAIN='{not_again}'\nPORTWATCH_TEST_PATIENCE={PATIENCE}\n",
            guest::result_port(kernel.arch),
            if share.first { suite::KERNEL } else { "" },
            suite::CASES,
            share.backends.join(" "),
            suite::backend_of_once(kernel.arch, kernel.series).unwrap_or_default(),
            filters.join(" ")
        )
    }
}

/// What a guest says; it is started once more if no result came at all, which is told.
fn results(
    guest: &Guest,
    name: &str,
    limit: Duration,
    remarks: &mut Vec<String>,
) -> Result<(Report, End)> {
    let (report, end) = attempt(guest, name, limit)?;
    if !report.is_empty() {
        return Ok((report, end));
    }
    remarks.push(format!(
        "RETRIED: no result came at all; the console's end:\n{}",
        guest.console_tail()
    ));
    attempt(guest, name, limit)
}

/// Starts a guest and reads what it says, which is shown under this name.
fn attempt(guest: &Guest, name: &str, limit: Duration) -> Result<(Report, End)> {
    let mut report = Report::default();
    let end = guest.run(limit, |line| {
        if let Some(seconds) = line.strip_prefix("@uptime ") {
            say(&format!("{name}: {seconds} s since it started"));
        } else if let Line::Show(backend) = report.line(line) {
            // A reader of the output that has gone is no reason to stop.
            let _ = writeln!(std::io::stdout(), "{name:<4} {backend:<10} | {line}");
        }
    })?;
    Ok((report, end))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::{Arch, MATRIX, Unpacked, lock, shares, suite};

    #[test]
    fn no_guest_is_left_to_run_alone() {
        let unpacked = |kernel| Unpacked {
            kernel,
            image: PathBuf::new(),
            modules: Vec::new(),
        };
        let locked = || lock::read().unwrap().into_iter();
        let kernels = locked().filter(|it| it.arch == Arch::X86_64 && it.is_kernel());
        let kernels: Vec<_> = kernels.map(unpacked).collect();
        assert_eq!(kernels.len(), MATRIX.len());
        let [oldest, newest] = [MATRIX[0].name, MATRIX[MATRIX.len() - 1].name];
        let all = suite::backends(Arch::X86_64, newest);
        let told = |kernels, backends: &[&str]| -> Vec<_> {
            let backends: Vec<_> = backends.iter().map(ToString::to_string).collect();
            let shares = shares(kernels, |_| backends.clone()).into_iter();
            shares
                .map(|share| {
                    let series = share.kernel.kernel.series;
                    (series, share.first, share.backends.join(" "))
                })
                .collect()
        };
        let matrix = told(kernels, all);
        assert_eq!(matrix.len(), MATRIX.len() + 1);
        assert_eq!(matrix[0], (oldest, false, all[1..].join(" ")));
        assert_eq!(matrix[1], (oldest, true, all[0].to_owned()));
        assert_eq!(matrix[MATRIX.len()], (newest, true, all.join(" ")));

        let one = || locked().find(|it| it.series == newest).map(unpacked);
        assert_eq!(told(vec![one().unwrap()], &all[..1]).len(), 1);
        let two = vec![one().unwrap(), one().unwrap()];
        assert_eq!(told(two, all).len(), 2);
    }
}
