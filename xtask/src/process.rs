//! Starting other programs, and where things lie.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::IsTerminal;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// Environment that a program started through sudo keeps.
const KEPT_BY_SUDO: &str = "--preserve-env=CARGO_MANIFEST_DIR,CARGO_TARGET_TMPDIR,CI,LD_LIBRARY_PATH,\
     NO_COLOR,PORTWATCH_BIN,PORTWATCH_CASES,PORTWATCH_SEED,RUST_BACKTRACE";

/// Prints one line to standard error, marked as this program's own.
pub fn say(line: &str) {
    eprintln!("portwatch xtask: {line}");
}

/// The top of the checkout.
pub fn top() -> PathBuf {
    // `cargo run` sets the variable; the other is for a copy run by hand.
    let here = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    here.parent()
        .map_or_else(|| here.clone(), Path::to_path_buf)
}

/// The release binary that `cargo build --release -p portwatch` leaves.
///
/// Looked for beside this program's own profile folder, which holds whatever
/// target folder cargo was told to use.
pub fn portwatch_binary() -> Result<PathBuf> {
    Ok(target_folder()?.join("release/portwatch"))
}

/// Cargo's target folder.
pub fn target_folder() -> Result<PathBuf> {
    let me = env::current_exe().context("where this program lies")?;
    me.parent()
        .and_then(Path::parent)
        .map(Path::to_path_buf)
        .with_context(|| format!("{} does not lie in a target folder", me.display()))
}

/// Builds portwatch with the release profile and returns its path.
pub fn build_portwatch() -> Result<PathBuf> {
    run(cargo().args([
        "build",
        "--quiet",
        "--release",
        "--locked",
        "-p",
        "portwatch",
    ]))?;
    let binary = portwatch_binary()?;
    ensure!(
        binary.is_file(),
        "cargo built portwatch, yet {} is missing",
        binary.display()
    );
    Ok(binary)
}

/// The cargo that runs this program, in the top of the checkout.
pub fn cargo() -> Command {
    let mut command = Command::new(cargo_path());
    command.current_dir(top());
    command
}

/// The cargo that runs this program.
pub fn cargo_path() -> PathBuf {
    env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from)
}

/// Runs a command to its end; its failure is an error that names it.
///
/// What it prints to standard output goes to standard error: standard output
/// is for results.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command
        .stdin(Stdio::null())
        .stdout(std::io::stderr())
        .status()
        .with_context(|| format!("cannot start `{}`", shown(command)))?;
    ensure!(status.success(), "`{}` failed: {status}", shown(command));
    Ok(())
}

/// Runs a command silently; when it fails, what it printed is in the error.
pub fn run_silently(command: &mut Command) -> Result<()> {
    capture(command).map(drop)
}

/// What a command printed to standard output.
pub fn capture(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start `{}`", shown(command)))?;
    if !output.status.success() {
        bail!(
            "`{}` failed: {}\n{}{}",
            shown(command),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    String::from_utf8(output.stdout)
        .with_context(|| format!("`{}` printed something else than UTF-8", shown(command)))
}

/// Runs a command that may never answer, and ends it after `limit`.
pub fn run_within(command: &mut Command, limit: Duration) -> Result<()> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start `{}`", shown(command)))?;
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            ensure!(status.success(), "`{}` failed: {status}", shown(command));
            return Ok(());
        }
        if start.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            bail!(
                "`{}` gave no answer in {} s",
                shown(command),
                limit.as_secs()
            );
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// A command as one would type it.
pub fn shown(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}

/// Where a program lies: in PATH, or in the folders of system programs, which
/// a plain user's PATH may lack.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|file| {
            fs::metadata(file)
                .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        })
}

/// How this process can act as root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Root {
    /// It is root.
    Already,
    /// Through sudo.
    Sudo,
}

impl Root {
    /// Finds the way, or says why there is none.
    pub fn find() -> Result<Self> {
        // The owner of /proc/self is the effective user.
        let user = fs::metadata("/proc/self")
            .context("/proc/self: is this Linux?")?
            .uid();
        if user == 0 {
            return Ok(Self::Already);
        }
        ensure!(
            find_program("sudo").is_some(),
            "needs root: this user is not, and there is no sudo"
        );
        // Where nobody can type a password, sudo has to do without.
        let answers = std::io::stdin().is_terminal()
            || run_silently(Command::new("sudo").args(["-n", "true"])).is_ok();
        ensure!(
            answers,
            "needs root: sudo asks for a password and there is no terminal"
        );
        Ok(Self::Sudo)
    }

    /// A command that starts `program` as root.
    pub fn command(self, program: impl AsRef<OsStr>) -> Command {
        match self {
            Self::Already => Command::new(program),
            Self::Sudo => {
                let mut command = Command::new("sudo");
                command.args([OsStr::new(KEPT_BY_SUDO), OsStr::new("--"), program.as_ref()]);
                command
            }
        }
    }

    /// Arguments for cargo that make it start what it built as root, while it
    /// goes on building as this user.
    pub fn cargo_runner(self) -> Vec<OsString> {
        match self {
            Self::Already => Vec::new(),
            Self::Sudo => vec![
                "--config".into(),
                format!("target.'cfg(all())'.runner=['sudo','{KEPT_BY_SUDO}','--']").into(),
            ],
        }
    }
}
