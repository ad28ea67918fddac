//! The toolchain of the kernel side, found or set up step by step.
//!
//! A step that is done says nothing. One that has work says so first, and one
//! that fails says what to do by hand.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::package;
use crate::process::{capture, cargo_path, find_program, run, run_within, say, top};

/// The version of bpf-linker that the kernel side is linked with.
const BPF_LINKER: &str = "0.13.0";
/// The LLVM that bpf-linker is built on: its major version must be at least
/// that of the LLVM in rustc, whose bitcode it reads.
const LLVM_MAJOR: u32 = 22;
/// Debian's Rust, which comes with the sources of core.
const DEBIAN_RUST: &[&str] = &["rustc-web", "cargo-web", "rust-web-src"];
/// How long rustup may take: where its server cannot be reached it hangs.
const RUSTUP_PATIENCE: Duration = Duration::from_secs(180);

/// Which Rust is to build the kernel side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Choice {
    /// The pinned one where it has rust-src or can get it, else Debian's
    Auto,
    /// The one that rust-toolchain.toml pins
    Pinned,
    /// Debian's packages
    Debian,
}

/// A Rust that has the sources of core.
#[derive(Debug)]
pub struct Rust {
    /// Its compiler.
    pub rustc: PathBuf,
    /// Its cargo.
    pub cargo: PathBuf,
    /// As `rustc --version` tells it: number, commit, date.
    pub version: String,
    /// Where it lies.
    pub sysroot: PathBuf,
    /// The major version of the LLVM in it.
    llvm: u32,
}

/// What bpf-linker needs and is.
#[derive(Debug)]
pub struct Linker {
    /// The folder of bpf-linker, to be put in front of PATH.
    pub folder: PathBuf,
    /// bpf-linker's version.
    pub version: String,
    /// The full version of the LLVM that it uses.
    pub llvm_version: String,
    /// LLVM's objcopy.
    pub objcopy: PathBuf,
}

impl Rust {
    /// Finds it, or sets it up.
    pub fn find(choice: Choice) -> Result<Self> {
        if choice == Choice::Debian {
            return Self::debian();
        }
        let pinned = Self::pinned()?;
        if pinned.has_core() {
            return Ok(pinned);
        }
        let added = pinned.add_source();
        if added.is_ok() || choice == Choice::Pinned {
            return added.map(|()| pinned);
        }
        if let Err(error) = added {
            say(&format!("{error:#}; falling back to Debian's Rust"));
        }
        Self::debian()
    }

    fn pinned() -> Result<Self> {
        Self::probe(Path::new("rustc"), cargo_path())
    }

    fn debian() -> Result<Self> {
        let (rustc, cargo) = (Path::new("/usr/bin/rustc"), Path::new("/usr/bin/cargo"));
        let found = Self::probe(rustc, cargo.to_path_buf());
        if let Ok(rust) = found
            && rust.has_core()
            && cargo.exists()
        {
            return Ok(rust);
        }
        package::install(DEBIAN_RUST).context(
            "no Rust with the sources of core; with rustup, by hand: rustup component add rust-src",
        )?;
        let rust = Self::probe(rustc, cargo.to_path_buf())?;
        ensure!(
            rust.has_core(),
            "{} has no sources of core, though {} are installed",
            rustc.display(),
            DEBIAN_RUST.join(", ")
        );
        Ok(rust)
    }

    fn probe(rustc: &Path, cargo: PathBuf) -> Result<Self> {
        let ask = |argument: &[&str]| {
            let mut command = Command::new(rustc);
            capture(command.args(argument).current_dir(top()))
        };
        let verbose = ask(&["-vV"])?;
        let sysroot = PathBuf::from(ask(&["--print", "sysroot"])?.trim());
        Ok(Self {
            // Past rustup's stand-in, which chooses again by folder.
            rustc: sysroot.join("bin/rustc"),
            cargo,
            version: rustc_version(&verbose)
                .with_context(|| format!("no version in what `{} -vV` says", rustc.display()))?,
            llvm: rustc_llvm(&verbose)
                .with_context(|| format!("no LLVM in what `{} -vV` says", rustc.display()))?,
            sysroot,
        })
    }

    /// The folder of the standard library's sources.
    pub fn source(&self) -> PathBuf {
        self.sysroot.join("lib/rustlib/src/rust")
    }

    fn has_core(&self) -> bool {
        self.source().join("library/core").is_dir()
    }

    fn add_source(&self) -> Result<()> {
        let by_hand = "by hand: rustup component add rust-src";
        let rustup = find_program("rustup").context("no rust-src, and no rustup to add it")?;
        say("rustup component add rust-src");
        let mut command = Command::new(rustup);
        command
            .args(["component", "add", "rust-src"])
            .current_dir(top());
        run_within(&mut command, RUSTUP_PATIENCE).context(by_hand)?;
        ensure!(
            self.has_core(),
            "rustup added rust-src, yet {} is missing",
            self.source().join("library/core").display()
        );
        Ok(())
    }
}

impl Linker {
    /// Finds LLVM and bpf-linker, or sets them up.
    pub fn find(rust: &Rust) -> Result<Self> {
        let prefix = llvm_prefix();
        if !has_llvm(&prefix) {
            let package = format!("llvm-{LLVM_MAJOR}-dev");
            package::install(&[&package])?;
            ensure!(
                has_llvm(&prefix),
                "no libLLVM*.so in {}; install LLVM {LLVM_MAJOR} with its headers, or set LLVM_PREFIX",
                prefix.join("lib").display()
            );
        }
        let llvm_version = capture(Command::new(prefix.join("bin/llvm-config")).arg("--version"))?
            .trim()
            .to_owned();
        let major = major(&llvm_version)
            .with_context(|| format!("LLVM calls its version {llvm_version:?}"))?;
        ensure!(
            reads_bitcode_of(major, rust.llvm),
            "LLVM {llvm_version} in {} is older than the LLVM {} of rustc {}: bpf-linker could not read \
             what rustc writes",
            prefix.display(),
            rust.llvm,
            rust.version
        );
        let home = tool_folder()?;
        let linker = home.join("bin/bpf-linker");
        if !linker.is_file() {
            install_linker(rust, &prefix, &home)?;
        }
        let version = capture(Command::new(&linker).arg("--version")).with_context(|| {
            format!(
                "bpf-linker does not start; by hand: remove {} and try again",
                home.display()
            )
        })?;
        let version = version.trim().trim_start_matches("bpf-linker ").to_owned();
        ensure!(
            version == BPF_LINKER,
            "{} is version {version}, not {BPF_LINKER}; by hand: remove it and try again",
            linker.display()
        );
        Ok(Self {
            folder: home.join("bin"),
            version,
            llvm_version,
            objcopy: prefix.join("bin/llvm-objcopy"),
        })
    }
}

fn install_linker(rust: &Rust, prefix: &Path, home: &Path) -> Result<()> {
    say(&format!(
        "building bpf-linker {BPF_LINKER}, once; about two minutes"
    ));
    let mut command = Command::new(&rust.cargo);
    command
        .args([
            "install",
            "bpf-linker",
            "--quiet",
            "--locked",
            "--version",
            BPF_LINKER,
        ])
        .args([
            "--no-default-features",
            "--features",
            &format!("llvm-{LLVM_MAJOR}"),
        ])
        .arg("--root")
        .arg(home)
        .current_dir(top())
        .env("RUSTC", &rust.rustc)
        .env("LLVM_PREFIX", prefix)
        .env("RUSTFLAGS", format!("-L{}", prefix.join("lib").display()))
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("CARGO_TARGET_DIR");
    run(&mut command).with_context(|| {
        format!(
            "bpf-linker could not be built; by hand: LLVM_PREFIX={} and the command that follows, with a C compiler",
            prefix.display()
        )
    })
}

fn llvm_prefix() -> PathBuf {
    env::var_os("LLVM_PREFIX").map_or_else(
        || PathBuf::from(format!("/usr/lib/llvm-{LLVM_MAJOR}")),
        PathBuf::from,
    )
}

fn has_llvm(prefix: &Path) -> bool {
    let library = |name: &str| name.starts_with("libLLVM") && name.ends_with(".so");
    let has_library = fs::read_dir(prefix.join("lib")).is_ok_and(|entries| {
        entries
            .flatten()
            .any(|entry| entry.file_name().to_str().is_some_and(library))
    });
    has_library
        && prefix.join("bin/llvm-config").exists()
        && prefix.join("bin/llvm-objcopy").exists()
}

/// Where bpf-linker is kept: outside the checkout, since it takes minutes.
fn tool_folder() -> Result<PathBuf> {
    let cache = match env::var_os("XDG_CACHE_HOME") {
        Some(cache) if Path::new(&cache).is_absolute() => PathBuf::from(cache),
        _ => match env::home_dir() {
            Some(home) => home.join(".cache"),
            None => bail!("neither XDG_CACHE_HOME nor HOME is set: nowhere to keep bpf-linker"),
        },
    };
    Ok(cache.join(format!("portwatch/tools/bpf-linker-{BPF_LINKER}")))
}

/// Whether an LLVM reads the bitcode that another wrote: it is compatible
/// backwards only.
fn reads_bitcode_of(reader: u32, writer: u32) -> bool {
    reader >= writer
}

fn major(version: &str) -> Option<u32> {
    version.trim().split('.').next()?.parse().ok()
}

/// The version in the first line of `rustc -vV`, without the program's name.
fn rustc_version(verbose: &str) -> Option<String> {
    verbose
        .lines()
        .next()?
        .strip_prefix("rustc ")
        .map(str::to_owned)
}

/// The major version of LLVM that `rustc -vV` tells.
fn rustc_llvm(verbose: &str) -> Option<u32> {
    verbose
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version:"))
        .and_then(major)
}

#[cfg(test)]
mod tests {
    use super::{major, reads_bitcode_of, rustc_llvm, rustc_version};

    const VERBOSE: &str = "rustc 1.95.0 (59807616e 2026-04-14)\nbinary: rustc\nrelease: 1.95.0\n\
                           LLVM version: 22.1.2\n";

    #[test]
    fn rustc_tells_its_version_and_llvm() {
        assert_eq!(
            rustc_version(VERBOSE).as_deref(),
            Some("1.95.0 (59807616e 2026-04-14)")
        );
        assert_eq!(rustc_llvm(VERBOSE), Some(22));
        assert_eq!(rustc_version("clippy 0.1"), None);
        assert_eq!(rustc_llvm("rustc 1.95.0\n"), None);
    }

    #[test]
    fn llvm_must_be_as_new_as_rustcs_own() {
        assert_eq!(major("22.1.8\n"), Some(22));
        assert_eq!(major("git"), None);
        assert!(reads_bitcode_of(22, 22));
        assert!(reads_bitcode_of(23, 22));
        assert!(!reads_bitcode_of(9, 22));
        assert!(!reads_bitcode_of(21, 22));
    }
}
