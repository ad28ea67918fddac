//! This program in the place of rustc, so that names do not depend on folders.
//!
//! Cargo gives each crate `-C metadata=HASH`. Rust mangles that hash into the
//! name of every function, and for crates outside the workspace built
//! (portwatch-common, and core itself) it contains the folder they lie in. No
//! setting of cargo removes it, so cargo is told that this program is its
//! `RUSTC_WRAPPER`, and the hash is replaced on the way.

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::process::say;

/// Set for the compilers of a build in which this program wraps rustc.
const WRAPPING: &str = "PORTWATCH_XTASK_WRAPS_RUSTC";

/// Makes this program the wrapper of rustc in a cargo command.
pub fn wrap_in(cargo: &mut Command) -> Result<()> {
    let me = env::current_exe().context("where this program lies")?;
    cargo.env("RUSTC_WRAPPER", me).env(WRAPPING, "1");
    Ok(())
}

/// Whether cargo started this program in the place of rustc.
pub fn is_wrapping() -> bool {
    env::var_os(WRAPPING).is_some()
}

/// Becomes rustc. Returns only when it could not be started.
pub fn wrap() -> ExitCode {
    let mut arguments = env::args_os().skip(1);
    let Some(rustc) = arguments.next() else {
        say("error: cargo named no rustc to wrap");
        return ExitCode::FAILURE;
    };
    // Cargo sets the version for every crate that it compiles.
    let version = env::var("CARGO_PKG_VERSION").unwrap_or_default();
    let error = Command::new(&rustc)
        .args(without_folder(arguments, &version))
        .env_remove(WRAPPING)
        .exec();
    say(&format!("error: cannot start {}: {error}", rustc.display()));
    ExitCode::FAILURE
}

/// The arguments, with the metadata of a crate for the kernel's target replaced
/// by its version. Rust itself adds the crate's name, which is enough to tell
/// the crates of the kernel side apart.
fn without_folder(arguments: impl Iterator<Item = OsString>, version: &str) -> Vec<OsString> {
    let arguments: Vec<OsString> = arguments.collect();
    let for_kernel = arguments
        .windows(2)
        .any(|pair| pair[0] == "--target" && pair[1] == crate::ebpf::TARGET);
    if !for_kernel {
        return arguments;
    }
    arguments
        .into_iter()
        .map(|argument| {
            if is_metadata(&argument) {
                OsString::from(format!("metadata={version}"))
            } else {
                argument
            }
        })
        .collect()
}

fn is_metadata(argument: &OsStr) -> bool {
    argument
        .to_str()
        .is_some_and(|text| text.starts_with("metadata="))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::without_folder;

    fn rewritten(line: &str) -> String {
        let words = line.split(' ').map(OsString::from);
        let rewritten = without_folder(words, "1.2.3");
        rewritten
            .iter()
            .map(|word| word.to_str().unwrap())
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn only_crates_for_the_kernel_lose_their_hash() {
        assert_eq!(
            rewritten(
                "--crate-name c -C metadata=0123 -C extra-filename=-9 --target bpfel-unknown-none"
            ),
            "--crate-name c -C metadata=1.2.3 -C extra-filename=-9 --target bpfel-unknown-none"
        );
        let host = "--crate-name build_script -C metadata=0123 -C extra-filename=-9";
        assert_eq!(rewritten(host), host);
    }
}
