//! Debian's packages, installed where they are missing.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::{Root, capture, find_program, run_silently, say};

/// Installs as root without starting any daemon: invoke-rc.d asks policy-rc.d,
/// and 101 forbids. A policy that the machine already has is left alone.
const INSTALL: &str = r#"
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 130' HUP INT TERM
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi
export DEBIAN_FRONTEND=noninteractive
apt-get install -y -qq --no-install-recommends \
    -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300 "$@"
"#;

/// A program and the package that has it.
#[derive(Clone, Copy, Debug)]
pub struct Provided {
    /// The program that is looked for.
    pub program: &'static str,
    /// Debian's package.
    pub package: &'static str,
}

/// Installs the packages of those programs that are not there.
pub fn provide(wanted: &[Provided]) -> Result<()> {
    let missing: Vec<&str> = wanted
        .iter()
        .filter(|item| find_program(item.program).is_none())
        .map(|item| item.package)
        .collect();
    install(&missing)
}

/// Installs packages with apt-get, whose lists are updated when they do not
/// know one of them, or know it from too long ago.
pub fn install(packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let names = packages.join(" ");
    let by_hand = || format!("by hand, as root: apt-get install {names}");
    if find_program("apt-get").is_none() {
        bail!(
            "{names}: not installed, and there is no apt-get; install what your system has for them"
        );
    }
    let root = Root::find().with_context(by_hand)?;
    if packages.iter().any(|package| !is_known(package)) {
        update(root)?;
    } else if apt_install(root, packages).is_ok() {
        return Ok(());
    } else {
        update(root)?;
    }
    apt_install(root, packages).with_context(by_hand)
}

fn apt_install(root: Root, packages: &[&str]) -> Result<()> {
    say(&format!("apt-get install {}", packages.join(" ")));
    run_silently(
        root.command("sh")
            .args(["-c", INSTALL, "sh"])
            .args(packages),
    )
}

fn update(root: Root) -> Result<()> {
    say("apt-get update");
    run_silently(root.command("apt-get").args(["update", "-qq"]))
}

fn is_known(package: &str) -> bool {
    capture(Command::new("apt-cache").args(["policy", package]))
        .is_ok_and(|policy| has_candidate(&policy))
}

/// Whether `apt-cache policy` names a version that could be installed.
fn has_candidate(policy: &str) -> bool {
    policy
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Candidate:"))
        .any(|version| version.trim() != "(none)")
}

#[cfg(test)]
mod tests {
    use super::has_candidate;

    #[test]
    fn a_candidate_is_a_version() {
        assert!(has_candidate(
            "x:\n  Installed: (none)\n  Candidate: 1:22.1.8-1\n"
        ));
        assert!(!has_candidate(
            "x:\n  Installed: (none)\n  Candidate: (none)\n"
        ));
        assert!(!has_candidate(""));
    }
}
