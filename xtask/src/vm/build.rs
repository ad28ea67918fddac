//! The tests, and portwatch for guests: linked statically, since a guest has no libraries. This machine's
//! levels run the same test programs, so that they are built once.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::lock::Arch;
use crate::package::install;
use crate::process::{capture, cargo, find_program, run_silently, say, shown, top};

/// The programs a guest gets.
pub struct Programs {
    /// portwatch itself.
    pub portwatch: PathBuf,
    /// What the scenarios start.
    pub actor: PathBuf,
    /// The scenarios.
    pub host: PathBuf,
    /// The tests of the readers of the kernel's types.
    pub btf: PathBuf,
    /// The test of the hooks' prototypes.
    pub prototypes: PathBuf,
    /// The test of the rules by which binds are refused.
    pub differential: PathBuf,
}

/// Builds them.
pub fn programs(arch: Arch) -> Result<Programs> {
    let built = Built::new(
        arch,
        &["portwatch", "actor"],
        &["host", "btf", "prototypes", "differential"],
    )?;
    Ok(Programs {
        portwatch: built.executable("bin", "portwatch")?,
        actor: built.executable("bin", "actor")?,
        host: built.executable("test", "host")?,
        btf: built.executable("test", "btf")?,
        prototypes: built.executable("test", "prototypes")?,
        differential: built.executable("test", "differential")?,
    })
}

/// What cargo says it has built.
pub struct Built {
    messages: String,
}

impl Built {
    /// Builds programs and test programs.
    pub fn new(arch: Arch, programs: &[&str], tests: &[&str]) -> Result<Self> {
        let mut command = cargo();
        command
            .args(["build", "--locked"])
            .args(programs.iter().flat_map(|name| ["--bin", name]))
            .args(tests.iter().flat_map(|name| ["--test", name]))
            .args(["--message-format", "json-render-diagnostics"])
            .stdin(Stdio::null())
            .stderr(Stdio::inherit());
        choose(&mut command, arch)?;
        let messages = output(&mut command)?;
        Ok(Self { messages })
    }

    /// The file of a program (`bin`) or test program (`test`).
    pub fn executable(&self, kind: &str, name: &str) -> Result<PathBuf> {
        let find = |line: &str| {
            let message: serde_json::Value = serde_json::from_str(line).ok()?;
            let target = message.get("target")?;
            let is = target["kind"][0] == kind && target["name"] == name;
            let path = message["executable"].as_str()?;
            is.then(|| PathBuf::from(path))
        };
        self.messages
            .lines()
            .find_map(find)
            .with_context(|| format!("cargo built no {kind} {name}"))
    }
}

/// The linker for another architecture than this machine's, installed with that
/// one's C library and Rust's standard library where they are missing.
fn linker(arch: Arch, target: &str) -> Result<Option<String>> {
    if arch.is_here() {
        return Ok(None);
    }
    let linker = format!("{}-linux-gnu-gcc", arch.name());
    if find_program(&linker).is_none() {
        let compiler = format!("gcc-{}-linux-gnu", arch.name().replace('_', "-"));
        let libc = format!("libc6-dev-{}-cross", arch.debian());
        install(&[&compiler, &libc])?;
    }
    let sysroot = capture(
        Command::new("rustc")
            .args(["--print", "sysroot"])
            .current_dir(top()),
    )?;
    let library = Path::new(sysroot.trim()).join("lib/rustlib").join(target);
    if !library.exists() {
        say(&format!("rustup target add {target}"));
        run_silently(
            Command::new("rustup")
                .args(["target", "add", target])
                .current_dir(top()),
        )
        .with_context(|| format!("no standard library of Rust for {target}"))?;
    }
    Ok(Some(linker))
}

/// Has cargo build the packages with tests for an architecture, as guests need them.
pub fn choose(command: &mut Command, arch: Arch) -> Result<()> {
    let target = format!("{}-unknown-linux-gnu", arch.name());
    // As arguments and not as variables: those a test would hand on to the cargo that it starts.
    let config = |key: &str, value: &str| format!("target.{target}.{key}={value}");
    let linker = linker(arch, &target)?;
    let linker = linker.map(|linker| config("linker", &format!("'{linker}'")));
    let flags = config("rustflags", "['-C','target-feature=+crt-static']");
    command
        .args(["--profile", "tests", "--target", &target])
        .args(["-p", "portwatch", "-p", "portwatch-tests"])
        .args(
            linker
                .iter()
                .chain([&flags])
                .flat_map(|config| ["--config", config]),
        );
    Ok(())
}

fn output(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("cannot start `{}`", shown(command)))?;
    ensure!(
        output.status.success(),
        "`{}` failed: {}",
        shown(command),
        output.status
    );
    Ok(String::from_utf8(output.stdout)?)
}
