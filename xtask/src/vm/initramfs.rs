//! The first and only file system of a guest.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::build::Programs;
use super::cpio::Archive;
use super::kernel::Unpacked;
use crate::process::top;

const INIT: &[u8] = include_bytes!("init.sh");
const PASSWD: &[u8] = b"root:x:0:0:root:/:/bin/sh\ndaemon:x:1:1:daemon:/:/bin/false\n\
    nobody:x:65534:65534:nobody:/:/bin/false\n";
const GROUP: &[u8] = b"root:x:0:\ndaemon:x:1:\nnogroup:x:65534:\n";

/// What of the checkout the tests read, which look for it where it was built, and what
/// makes the folder through which their path to it leads.
const READ_BY_TESTS: [&str; 4] = [
    "tests/tests/differential/regressions.txt",
    "docs/schema/portwatch-1.schema.json",
    "tests/Cargo.toml",
    "portwatch/Cargo.toml",
];

/// What each has: the first process, busybox, and variables for the first one's shell.
pub fn base(init: &[u8], busybox: &Path, settings: &str) -> Result<Archive> {
    let mut archive = Archive::default();
    archive.device("/dev/console", 5, 1);
    archive.device("/dev/null", 1, 3);
    archive.file("/init", true, init);
    archive.file("/etc/passwd", false, PASSWD);
    archive.file("/etc/group", false, GROUP);
    archive.file("/suite/settings", false, settings.as_bytes());
    add(&mut archive, "/bin/busybox", busybox)?;
    Ok(archive)
}

/// Adds an executable file.
pub fn add(archive: &mut Archive, place: &str, file: &Path) -> Result<()> {
    let content = fs::read(file).with_context(|| file.display().to_string())?;
    archive.file(place, true, &content);
    Ok(())
}

/// Adds what the tests read of the checkout below `/files`, from where the guest puts it to where they look
/// for it: that may be where it mounts something, as on `/tmp`.
pub fn add_checkout(archive: &mut Archive) -> Result<()> {
    let mut read_by_tests: Vec<_> = READ_BY_TESTS.iter().map(|path| top().join(path)).collect();
    let kernel_side = top().join("portwatch-ebpf/src");
    for source in fs::read_dir(&kernel_side).context("the kernel side's sources")? {
        read_by_tests.push(source?.path());
    }
    for path in read_by_tests {
        add(archive, &format!("/files{}", path.display()), &path)?;
    }
    Ok(())
}

/// Makes one for a kernel. `settings` are variables of the shell that `init.sh` knows.
///
/// It is not compressed: an emulated processor is slower at that than qemu at
/// handing it over.
pub fn make(
    kernel: &Unpacked,
    busybox: &Path,
    programs: &Programs,
    settings: &str,
) -> Result<Vec<u8>> {
    let mut archive = base(INIT, busybox, settings)?;
    let mut add = |place: &str, file: &Path| add(&mut archive, place, file);
    add("/suite/portwatch", &programs.portwatch)?;
    // The scenarios look for it above the folder that they are in.
    add("/suite/actor", &programs.actor)?;
    add("/suite/deps/host", &programs.host)?;
    add("/suite/btf", &programs.btf)?;
    add("/suite/prototypes", &programs.prototypes)?;
    add("/suite/differential", &programs.differential)?;
    let mut order = String::new();
    for module in &kernel.modules {
        let name = module.file_name().unwrap_or_default().to_string_lossy();
        add(&format!("/modules/{name}"), module)?;
        order += &format!("{name}\n");
    }
    add_checkout(&mut archive)?;
    archive.file("/modules/order", false, order.as_bytes());
    Ok(archive.finish())
}
