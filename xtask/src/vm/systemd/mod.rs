//! `cargo xtask vm --systemd`: real containers and units, in a guest whose first
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
use super::lock::{self, Arch};
use super::report::Report;
use super::{Outcome, PATIENCE, PROGRAMS, QEMU, attempt};
use crate::package::provide;
use crate::process::{say, target_folder};

const INIT: &[u8] = include_bytes!("init.sh");
const RUN: &[u8] = include_bytes!("run.sh");
/// The kernel, of those in the lock file.
const SERIES: &str = "6.12";
/// What it is shown as.
const NAME: &str = "systemd";
/// How long the guest may take: several times as long as it does.
const LIMIT: Duration = Duration::from_secs(2700);
/// The test programs, in the order in which they are run.
const SUITES: [&str; 2] = ["systemd", "container"];

/// Tests that nothing here is news to: which containers are a job's is told by the runtimes' records.
const NOT_IN_GUEST: &str = "job::";

/// Runs the tests, or those whose names contain one of these.
pub fn run(filters: &[String]) -> Result<Outcome> {
    provide(PROGRAMS)?;
    provide(&[QEMU])?;
    let built = Built::new(Arch::X86_64, &["portwatch", "actor"], &SUITES)?;
    let mut store = Store::new()?;
    let busybox = store.busybox(Arch::X86_64)?;
    let kernel = store.get(&lock::find(SERIES, Arch::X86_64)?)?;
    let root = image::get(&mut store, SERIES)?;
    for warning in store.warnings() {
        say(warning);
    }

    let folder = target_folder()?.join("vm/systemd");
    fs::create_dir_all(&folder)?;
    let guest = Guest {
        arch: Arch::X86_64,
        image: kernel.image,
        initramfs: folder.join("initramfs.cpio"),
        root: Some(root),
        console: folder.join("console.log"),
        clock: Clock::Real,
    };
    fs::write(&guest.initramfs, initramfs(&built, &busybox, filters)?)?;
    let mut outcome = Outcome::default();
    let (mut report, mut end) = attempt(&guest, NAME, LIMIT)?;
    if report.is_empty() {
        outcome.remarks.push(format!(
            "RETRIED: no result came at all; the console's end:\n{}",
            guest.console_tail()
        ));
        (report, end) = attempt(&guest, NAME, LIMIT)?;
    }
    judge(&report, &end, &mut outcome);
    if outcome.tally.failed != 0 {
        let tail = guest.console_tail();
        outcome.remarks.push(format!("the console's end:\n{tail}"));
    }
    outcome.remarks.extend_from_slice(store.warnings());
    Ok(outcome)
}

fn initramfs(built: &Built, busybox: &Path, filters: &[String]) -> Result<Vec<u8>> {
    // Who names tests wants just those.
    let skipped = if filters.is_empty() {
        format!("--skip {NOT_IN_GUEST}")
    } else {
        String::new()
    };
    let settings = format!(
        "PORT={}\nSUITES='{}'\nFILTERS='{}'\nSKIPPED='{skipped}'\nPORTWATCH_TEST_PATIENCE={PATIENCE}\n",
        guest::result_port(Arch::X86_64),
        SUITES.join(" "),
        filters.join(" "),
    );
    let mut archive = base(INIT, busybox, &settings)?;
    archive.file("/suite/run", true, RUN);
    for program in ["portwatch", "actor"] {
        let file = built.executable("bin", program)?;
        add(&mut archive, &format!("/suite/{program}"), &file)?;
    }
    for suite in SUITES {
        let file = built.executable("test", suite)?;
        add(&mut archive, &format!("/suite/deps/{suite}"), &file)?;
    }
    add_checkout(&mut archive)?;
    Ok(archive.finish())
}

fn judge(report: &Report, end: &End, outcome: &mut Outcome) {
    outcome.tally = report.tally();
    let mut complaints = report.complaints(end.told());
    if report.ended() == 0 {
        complaints.push("no test was run".to_owned());
    }
    outcome.tally.failed += complaints.len();
    let failed = complaints.iter().map(|text| format!("FAILED: {text}"));
    outcome.remarks.extend(failed);
    let skips = report.skips().iter().map(|skip| format!("skipped: {skip}"));
    outcome.remarks.extend(skips);
}
