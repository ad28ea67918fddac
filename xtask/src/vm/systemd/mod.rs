//! `cargo xtask vm --systemd`: real containers and units, in guests whose first
//! process is systemd and whose cgroups are of version 2 alone.

mod image;

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::build::Built;
use super::guest::{self, Clock, End, Guest};
use super::initramfs::{add, add_checkout, base};
use super::kernel::Store;
use super::lock::{self, Arch, DOCKER, SYSTEM, Series};
use super::report::Report;
use super::{Outcome, PATIENCE, PROGRAMS, QEMU, attempt};
use crate::package::provide;
use crate::process::{say, target_folder};

const INIT: &[u8] = include_bytes!("init.sh");
const RUN: &[u8] = include_bytes!("run.sh");
/// The kernel, of those in the lock file.
const SERIES: &str = "6.12";
/// How long a guest may take: several times as long as it does.
const LIMIT: Duration = Duration::from_secs(2700);

/// A guest, and what is run in it.
struct System {
    /// What it is shown as.
    name: &'static str,
    /// Its packages, of those in the lock file.
    packages: &'static Series,
    /// The test programs, in the order in which they are run.
    suites: &'static [&'static str],
    /// Tests that nothing there is news to, unless they are asked for.
    no_news: &'static [&'static str],
    /// Tests of what is not there.
    not_there: &'static [&'static str],
}

const SYSTEMS: [System; 2] = [
    System {
        name: "systemd",
        packages: &SYSTEM,
        suites: &["systemd", "container"],
        // Which containers are a job's is told by the runtimes' records.
        no_news: &["job::"],
        not_there: &[],
    },
    System {
        name: "docker 28",
        packages: &DOCKER,
        suites: &["container"],
        no_news: &["job::"],
        not_there: &["containerd::", "inside::", "podman::"],
    },
];

/// Runs the tests, or those whose names contain one of these, in one guest after the other.
pub fn run(filters: &[String]) -> Result<Outcome> {
    provide(PROGRAMS)?;
    provide(&[QEMU])?;
    let built = Built::new(
        Arch::X86_64,
        &["portwatch", "actor"],
        &["systemd", "container"],
    )?;
    let mut store = Store::new()?;
    let busybox = store.busybox(Arch::X86_64)?;
    let kernel = store.get(&lock::find(SERIES, Arch::X86_64)?)?;
    let mut roots = Vec::new();
    for system in &SYSTEMS {
        roots.push(image::get(&mut store, system.packages.name, SERIES)?);
    }
    for warning in store.warnings() {
        say(warning);
    }

    let folder = target_folder()?.join("vm/systemd");
    fs::create_dir_all(&folder)?;
    let mut whole = Outcome::default();
    let mut ended = 0;
    for (system, root) in SYSTEMS.iter().zip(roots) {
        let guest = Guest {
            arch: Arch::X86_64,
            image: kernel.image.clone(),
            initramfs: folder.join("initramfs.cpio"),
            root: Some(root),
            console: folder.join(format!("{}.log", system.name)),
            clock: Clock::Real,
        };
        fs::write(
            &guest.initramfs,
            system.initramfs(&built, &busybox, filters)?,
        )?;
        let (mut report, mut end) = attempt(&guest, system.name, LIMIT)?;
        if report.is_empty() {
            whole.remarks.push(format!(
                "{}: RETRIED: no result came at all; the console's end:\n{}",
                system.name,
                guest.console_tail()
            ));
            (report, end) = attempt(&guest, system.name, LIMIT)?;
        }
        let failed = whole.tally.failed;
        judge(system, &report, &end, &mut whole);
        if whole.tally.failed != failed {
            let (name, tail) = (system.name, guest.console_tail());
            let told = format!("{name}: the console's end:\n{tail}");
            whole.remarks.push(told);
        }
        ended += report.ended();
    }
    if ended == 0 {
        whole.tally.failed += 1;
        whole.remarks.push("FAILED: no test was run".to_owned());
    }
    whole.remarks.extend_from_slice(store.warnings());
    Ok(whole)
}

impl System {
    fn initramfs(&self, built: &Built, busybox: &Path, filters: &[String]) -> Result<Vec<u8>> {
        let mut skipped = self.not_there.to_vec();
        // Who names tests wants just those.
        if filters.is_empty() {
            skipped.extend(self.no_news);
        }
        let skipped: Vec<_> = skipped
            .iter()
            .map(|name| format!("--skip {name}"))
            .collect();
        let settings = format!(
            "PORT={}\nSUITES='{}'\nFILTERS='{}'\nSKIPPED='{}'\nPORTWATCH_TEST_PATIENCE={PATIENCE}\n",
            guest::result_port(Arch::X86_64),
            self.suites.join(" "),
            filters.join(" "),
            skipped.join(" "),
        );
        let mut archive = base(INIT, busybox, &settings)?;
        archive.file("/suite/run", true, RUN);
        for program in ["portwatch", "actor"] {
            let file = built.executable("bin", program)?;
            add(&mut archive, &format!("/suite/{program}"), &file)?;
        }
        for suite in self.suites {
            let file = built.executable("test", suite)?;
            add(&mut archive, &format!("/suite/deps/{suite}"), &file)?;
        }
        add_checkout(&mut archive)?;
        Ok(archive.finish())
    }
}

fn judge(system: &System, report: &Report, end: &End, outcome: &mut Outcome) {
    outcome.tally.add(report.tally());
    let complaints = report.complaints(end.told());
    outcome.tally.failed += complaints.len();
    let name = system.name;
    let failed = complaints
        .iter()
        .map(|text| format!("{name}: FAILED: {text}"));
    outcome.remarks.extend(failed);
    let skips = report.skips().iter();
    let skips = skips.map(|skip| format!("{name}: skipped: {skip}"));
    outcome.remarks.extend(skips);
}
