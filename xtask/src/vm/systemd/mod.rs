//! `cargo xtask vm --systemd`: real containers and units, in guests whose first
//! process is systemd and whose cgroups are of version 2 alone.

mod image;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

use super::build::Built;
use super::guest::{self, Clock, Guest};
use super::initramfs::{add, add_checkout, base};
use super::kernel::Store;
use super::lock::{self, Arch, DOCKER, SYSTEM, Series};
use super::{Outcome, PATIENCE, PROGRAMS, QEMU, at_once, results};
use crate::package::provide;
use crate::process::{say, target_folder};

const INIT: &[u8] = include_bytes!("init.sh");
const RUN: &[u8] = include_bytes!("run.sh");
/// The kernel, of those in the lock file.
const SERIES: &str = "6.12";
/// How long a guest may take: several times as long as it does.
const LIMIT: Duration = Duration::from_secs(2700);

/// The test programs, in the order in which they are run.
const SUITES: [&str; 2] = ["systemd", "container"];

/// Tests that nothing here is news to: which containers are a job's is told by the runtimes' records.
const NOT_IN_GUEST: &str = "job::";

const NO_TEST: &str = "FAILED: no test was run";

/// A guest, and what is run in it.
struct System {
    /// What it is shown as.
    name: &'static str,
    /// Its packages, of those in the lock file.
    packages: &'static Series,
    /// Those of the test programs that are run.
    suites: &'static [&'static str],
    /// Tests of what is not there.
    not_there: &'static [&'static str],
}

const SYSTEMS: [System; 2] = [
    System {
        name: "systemd",
        packages: &SYSTEM,
        suites: &SUITES,
        not_there: &[],
    },
    System {
        name: "docker 28",
        packages: &DOCKER,
        suites: &["container"],
        not_there: &["containerd::", "inside::", "podman::"],
    },
];

/// Runs the tests, or those whose names contain one of these, in all guests.
pub fn run(filters: &[String]) -> Result<Outcome> {
    provide(PROGRAMS)?;
    provide(&[QEMU])?;
    let built = Built::new(Arch::X86_64, &["portwatch", "actor"], &SUITES)?;
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

    let image = &kernel.image;
    let mut guests = Vec::new();
    for (system, root) in SYSTEMS.iter().zip(roots) {
        let archive = system.initramfs(&built, &busybox, filters)?;
        guests.push(move || system.guest(image, root, &archive));
    }
    let mut whole = Outcome::default();
    let mut ended = 0;
    for (system, (outcome, of_guest)) in SYSTEMS.iter().zip(at_once(guests)?) {
        ended += of_guest;
        whole.tally.add(outcome.tally);
        let mut remarks = outcome.remarks;
        // Tests that are named may all be another guest's.
        if of_guest == 0 && filters.is_empty() {
            whole.tally.failed += 1;
            remarks.push(NO_TEST.to_owned());
        }
        let remarks = remarks.iter();
        let remarks = remarks.map(|remark| format!("{}: {remark}", system.name));
        whole.remarks.extend(remarks);
    }
    if ended == 0 && !filters.is_empty() {
        whole.tally.failed += 1;
        whole.remarks.push(NO_TEST.to_owned());
    }
    whole.remarks.extend_from_slice(store.warnings());
    Ok(whole)
}

impl System {
    /// Starts it; gives what it came to, and how many tests ran.
    fn guest(&self, image: &Path, root: PathBuf, initramfs: &[u8]) -> Result<(Outcome, usize)> {
        let folder = target_folder()?.join("vm").join(self.name);
        fs::create_dir_all(&folder)?;
        let guest = Guest {
            arch: Arch::X86_64,
            image: image.to_owned(),
            initramfs: folder.join("initramfs.cpio"),
            root: Some(root),
            console: folder.join("console.log"),
            clock: Clock::Real,
        };
        fs::write(&guest.initramfs, initramfs)?;
        let mut outcome = Outcome::default();
        let (report, end) = results(&guest, self.name, LIMIT, &mut outcome.remarks)?;
        report.judge(&guest, &end, Vec::new(), &mut outcome);
        Ok((outcome, report.ended()))
    }

    fn initramfs(&self, built: &Built, busybox: &Path, filters: &[String]) -> Result<Vec<u8>> {
        // Who names tests wants just those.
        let no_news = filters.is_empty().then_some(&NOT_IN_GUEST);
        let skipped = self.not_there.iter().chain(no_news);
        let skipped: Vec<_> = skipped.map(|name| format!("--skip {name}")).collect();
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
