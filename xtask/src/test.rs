//! `cargo xtask test`: the tests by level, counted, with nothing lost: a level
//! that cannot run is skipped by name, and one that runs no test has failed.

use std::env;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::package::{Provided, provide};
use crate::process::{Root, build_portwatch, cargo, say, shown};
use crate::tally::{Reader, Tally};
use crate::vm::{self, Outcome};

/// What the tests of the host start.
const HOST_PROGRAMS: &[Provided] = &[
    Provided {
        program: "ip",
        package: "iproute2",
    },
    Provided {
        program: "nginx",
        package: "nginx-light",
    },
    Provided {
        program: "redis-server",
        package: "redis-server",
    },
    Provided {
        program: "nc.openbsd",
        package: "netcat-openbsd",
    },
    Provided {
        program: "python3",
        package: "python3",
    },
    Provided {
        program: "node",
        package: "nodejs",
    },
    Provided {
        program: "py.test-3",
        package: "python3-pytest",
    },
    Provided {
        program: "make",
        package: "make",
    },
];

/// The arguments of `cargo xtask test`.
#[derive(clap::Args)]
pub struct Args {
    /// The levels to run; all if none is named
    #[arg(value_enum, value_name = "LEVEL")]
    levels: Vec<Level>,
    /// Only tests whose names contain one of these
    #[arg(last = true, value_name = "FILTER")]
    filters: Vec<String>,
}

/// A level of tests: what its tests need. A new one is a variant here and an
/// arm in [`Level::command`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Level {
    /// Pure logic, fixtures and goldens: needs nothing
    Plain,
    /// Whole events against this machine's kernel: needs root
    Host,
    /// Real containers on this machine: needs root, and starts daemons of its own
    Container,
    /// The bind-conflict rules against this machine's kernel: needs root
    Differential,
    /// The host's scenarios against other kernels, in virtual machines: needs Debian's packages
    Vm,
    /// Units and real containers in a virtual machine with systemd: needs Debian's packages
    Systemd,
}

/// The test programs of portwatch-tests that are the level `host`.
const HOST_TESTS: &[&str] = &["host", "programs", "robust", "run"];

/// What the level `container` starts.
const CONTAINER_PROGRAMS: &[Provided] = &[
    Provided {
        program: "dockerd",
        package: "docker.io",
    },
    Provided {
        program: "docker-compose",
        package: "docker-compose",
    },
    Provided {
        program: "containerd",
        package: "containerd",
    },
    Provided {
        program: "iptables",
        package: "iptables",
    },
    Provided {
        program: "runc",
        package: "runc",
    },
    Provided {
        program: "podman",
        package: "podman",
    },
    Provided {
        program: "/usr/lib/podman/netavark",
        package: "netavark",
    },
    Provided {
        program: "catatonit",
        package: "catatonit",
    },
    Provided {
        program: "slirp4netns",
        package: "slirp4netns",
    },
    Provided {
        program: "newuidmap",
        package: "uidmap",
    },
    Provided {
        program: "busybox",
        package: "busybox-static",
    },
];

/// What the level `differential` runs `ip` for.
const DIFFERENTIAL_PROGRAMS: &[Provided] = &[Provided {
    program: "ip",
    package: "iproute2",
}];

impl Level {
    /// The name it has on the command line and in the closing lines.
    fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Host => "host",
            Self::Container => "container",
            Self::Differential => "differential",
            Self::Vm => "vm",
            Self::Systemd => "systemd",
        }
    }

    /// Sets up what the level needs. `Err` with [`Unable`] in it says why it
    /// cannot run here; any other error is a failure.
    fn command(self) -> Result<Command> {
        let mut command = cargo();
        command.args(["test", "--locked", "--no-fail-fast"]);
        match self {
            Self::Vm | Self::Systemd => bail!("it is no command of cargo"),
            Self::Plain => {
                command.args(["--workspace", "--exclude", "portwatch-tests"]);
            }
            Self::Host => {
                with_portwatch(&mut command, HOST_PROGRAMS, HOST_TESTS)?;
            }
            Self::Container => {
                with_portwatch(&mut command, CONTAINER_PROGRAMS, &["container"])?;
            }
            Self::Differential => {
                let root = find_root()?;
                provide(DIFFERENTIAL_PROGRAMS)?;
                vm::choose_tests(&mut command)?;
                command
                    .args(["--test", "differential"])
                    .args(root.cargo_runner());
            }
        }
        Ok(command)
    }
}

/// Has these test programs run as root with a portwatch that is built for it.
fn with_portwatch(command: &mut Command, programs: &[Provided], tests: &[&str]) -> Result<()> {
    let root = find_root()?;
    provide(programs)?;
    let binary = build_portwatch()?;
    vm::choose_tests(command)?;
    command
        .args(tests.iter().flat_map(|test| ["--test", test]))
        .args(root.cargo_runner())
        .env("PORTWATCH_BIN", binary);
    Ok(())
}

/// How tests can act as root; without a way the level cannot run here.
fn find_root() -> Result<Root> {
    if !cfg!(target_os = "linux") {
        return Err(Unable("needs Linux".to_owned()).into());
    }
    Ok(Root::find().map_err(|error| Unable(format!("{error:#}")))?)
}

/// Why a level cannot run here.
#[derive(Debug)]
struct Unable(String);

impl std::fmt::Display for Unable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unable {}

/// Runs the levels asked for; the closing lines end standard output.
pub fn test(args: &Args) -> Result<ExitCode> {
    let levels = if args.levels.is_empty() {
        Level::value_variants()
    } else {
        &args.levels
    };
    let (mut remarks, mut closing) = (Vec::new(), Vec::new());
    let mut total = Tally::default();
    for &level in levels {
        let outcome = run_level(level, &args.filters)?;
        let name = level.name();
        let of_level = outcome.remarks.iter();
        remarks.extend(of_level.map(|remark| format!("{name}: {remark}")));
        closing.push(format!("{name}: {}", outcome.tally));
        total.add(outcome.tally);
    }
    // After all levels, as the output of each would bury what is told of those before it.
    for remark in remarks {
        say(&remark);
    }
    for line in closing {
        println!("{line}");
    }
    println!("{total}");
    // In CI nothing may be missing.
    let complete = total.skipped == 0 || env::var_os("CI").is_none_or(|value| value != "true");
    Ok(if total.failed == 0 && complete {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Runs a level. What keeps it from running counts too: as a skip where this
/// machine lacks something, else as a failure.
fn run_level(level: Level, filters: &[String]) -> Result<Outcome> {
    match level {
        Level::Vm => return Ok(vm::level(filters).unwrap_or_else(|error| not_run(&error))),
        Level::Systemd => {
            return Ok(vm::systemd::run(filters).unwrap_or_else(|error| not_run(&error)));
        }
        _ => {}
    }
    let mut command = match level.command() {
        Ok(command) => command,
        Err(error) => return Ok(not_run(&error)),
    };
    command.arg("--").args(filters).arg("--show-output");
    let (reader, succeeded) = stream(&mut command, &mut std::io::stdout())?;
    let (tally, complaint) = verdict(&reader, succeeded);
    let complaint = complaint.map(|complaint| format!("FAILED: {complaint}"));
    let skips = reader.skips().iter().map(|skip| format!("skipped: {skip}"));
    let failures = reader.failures().iter().map(ToString::to_string);
    Ok(Outcome {
        tally,
        remarks: skips.chain(failures).chain(complaint).collect(),
    })
}

/// Counts a level that could not be run, and says why.
fn not_run(error: &anyhow::Error) -> Outcome {
    let unable = error.is::<Unable>();
    let word = if unable { "SKIPPED" } else { "FAILED" };
    Outcome {
        tally: Tally {
            failed: usize::from(!unable),
            skipped: usize::from(unable),
            ..Tally::default()
        },
        remarks: vec![format!("{word}: {error:#}")],
    }
}

/// What was counted, corrected where the counts alone would hide a failure.
fn verdict(reader: &Reader, succeeded: bool) -> (Tally, Option<&'static str>) {
    let mut tally = reader.tally();
    let complaint = if !succeeded && tally.failed == 0 {
        Some("cargo test failed, though no test did (see above)")
    } else if reader.ended() == 0 {
        Some("no test was run")
    } else {
        None
    };
    if complaint.is_some() {
        tally.failed += 1;
    }
    (tally, complaint)
}

/// Runs a command, passes on what it prints, and counts the tests in it.
fn stream(command: &mut Command, output: &mut impl Write) -> Result<(Reader, bool)> {
    // One pipe for both, so that the order stays.
    let (printed, writer) = std::io::pipe().context("a pipe")?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(writer.try_clone().context("a pipe")?)
        .stderr(writer)
        .spawn()
        .with_context(|| format!("cannot start `{}`", shown(command)))?;
    // The command holds its ends of the pipe, which must close with the child.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut reader = Reader::default();
    for line in BufReader::new(printed).split(b'\n') {
        let line = line.context("reading what the tests print")?;
        let line = String::from_utf8_lossy(&line);
        writeln!(output, "{line}").context("passing on what the tests print")?;
        reader.line(line.trim_end());
    }
    let status = child.wait().context("waiting for the tests")?;
    Ok((reader, status.success()))
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;

    use clap::ValueEnum;

    use super::{HOST_TESTS, Level, Reader, Tally, stream, verdict};
    use crate::process::top;

    #[test]
    fn names_are_those_of_the_command_line() {
        for level in Level::value_variants() {
            assert_eq!(level.to_possible_value().unwrap().get_name(), level.name());
        }
    }

    /// A test program that no level runs would never fail.
    #[test]
    fn every_test_program_has_a_level() {
        let entries = std::fs::read_dir(top().join("tests/tests")).unwrap();
        let mut programs: Vec<_> = entries
            .map(|entry| {
                let name = entry.unwrap().file_name();
                let stem = Path::new(&name).file_stem().unwrap();
                stem.to_string_lossy().into_owned()
            })
            .collect();
        programs.sort();
        let mut run = [HOST_TESTS, &["container", "differential", "systemd"]].concat();
        run.sort_unstable();
        assert_eq!(programs, run);
    }

    fn read(line: &str) -> Reader {
        let mut reader = Reader::default();
        reader.line(line);
        reader
    }

    #[test]
    fn a_run_without_tests_has_failed() {
        let reader =
            read("test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 9 filtered out");
        let (tally, complaint) = verdict(&reader, true);
        assert_eq!(tally.failed, 1);
        assert_eq!(complaint, Some("no test was run"));
    }

    #[test]
    fn a_failure_without_a_failed_test_is_one() {
        let reader = read("test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured");
        let (tally, complaint) = verdict(&reader, false);
        assert_eq!((tally.passed, tally.failed), (3, 1));
        assert!(complaint.is_some());
        assert_eq!(verdict(&reader, true).1, None);
    }

    #[test]
    fn both_outputs_are_counted_and_the_status_seen() {
        let script =
            "echo 'SKIP: a: b'; echo 'test result: ok. 2 passed; 0 failed; 0 ignored' >&2; exit 3";
        let mut output = Vec::new();
        let (reader, succeeded) =
            stream(Command::new("sh").args(["-c", script]), &mut output).unwrap();
        assert!(output.starts_with(b"SKIP: a: b\ntest result: ok. 2"));
        assert!(!succeeded);
        let expected = Tally {
            passed: 1,
            failed: 0,
            skipped: 1,
        };
        assert_eq!(reader.tally(), expected);
    }
}
