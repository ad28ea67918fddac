//! The command line: one definition of all flags, from which help,
//! completions and man pages are made, and a file for each subcommand.

use std::io::Write as _;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

use crate::kernel::support::Unsupported;

pub mod doctor;
pub mod explain;
pub mod list;
mod options;
pub mod pipeline;
mod prepare;
pub mod report;
pub mod run;
pub mod trace;
pub mod value;
pub mod why;

/// Exit status: it failed while running.
const FAILED: u8 = 1;
/// Exit status: used wrongly.
const USAGE: u8 = 2;
/// Exit status: not permitted or not supported here.
const UNSUPPORTED: u8 = 3;

/// Streams every bind, failed listen, release and TIME_WAIT of a host as it happens
#[derive(Debug, Parser)]
#[command(
    name = "portwatch",
    version,
    about,
    after_help = "Exit status: 0 done (Ctrl-C included), 1 failed while running, 2 usage, 3 not permitted or not supported here."
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Stream every bind, listen, release and TIME_WAIT as it happens
    Trace(Box<trace::Options>),
    /// Run a command and tell who was in the way of its ports, and what it left behind
    Run(Box<run::Options>),
    /// List every bound port of every network namespace, and who has it
    List(list::Options),
    /// Tell who has a port, whether a bind to it would fail, and what to do
    Why(why::Options),
    /// Tell what recordings of trace and run have in common: conflicts, causes, a timeline
    Report(report::Options),
    /// Tell what this kernel offers, which hooks are used and whether each one fires
    Doctor(doctor::Options),
    /// Explain why a bind or listen fails, and how it is fixed
    Explain(explain::Options),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print a man page
    Man {
        /// The subcommand it is for; without one, portwatch's own
        subcommand: Option<String>,
    },
}

impl Cli {
    /// Does what was asked for.
    ///
    /// # Errors
    ///
    /// If it cannot be done; see [`exit_code`].
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Trace(options) => trace::run(*options),
            Command::Run(options) => run::run(*options),
            Command::List(options) => list::run(options),
            Command::Why(options) => why::run(&options),
            Command::Report(options) => report::run(&options),
            Command::Doctor(options) => doctor::run(options),
            Command::Explain(options) => explain::run(&options),
            Command::Completions { shell } => {
                let mut script = Vec::new();
                clap_complete::generate(shell, &mut Self::command(), "portwatch", &mut script);
                print(&script)
            }
            Command::Man { subcommand } => print(&man(subcommand.as_deref())?),
        }
    }
}

/// The man page of a subcommand, or of portwatch itself.
fn man(subcommand: Option<&str>) -> anyhow::Result<Vec<u8>> {
    let mut command = Cli::command();
    command.build();
    if let Some(name) = subcommand {
        let Some(found) = command.find_subcommand(name) else {
            let names: Vec<_> = command
                .get_subcommands()
                .map(clap::Command::get_name)
                .collect();
            let names = names.join(", ");
            return Err(Usage(format!("no subcommand {name}: there are {names}")).into());
        };
        command = found.clone().display_name(format!("portwatch-{name}"));
    }
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page)?;
    Ok(page)
}

/// Prints to standard output; that it was closed is no failure.
fn print(bytes: &[u8]) -> anyhow::Result<ExitCode> {
    match std::io::stdout().write_all(bytes) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// What was asked for makes no sense. Exit status 2, as of the flags' own errors.
#[derive(Debug, thiserror::Error)]
#[error("{0}\n\nFor more information, try '--help'.")]
pub struct Usage(pub String);

/// Maps a result to the exit status, telling a failure on standard error.
#[must_use]
pub fn exit_code(result: anyhow::Result<ExitCode>) -> ExitCode {
    match result {
        Ok(code) => code,
        Err(error) => {
            // Nothing can be told where standard error is closed.
            let _ = writeln!(std::io::stderr(), "portwatch: {error:#}");
            ExitCode::from(if error.is::<Unsupported>() {
                UNSUPPORTED
            } else if error.is::<Usage>() {
                USAGE
            } else {
                FAILED
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_of_the_flags_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn each_kind_of_failure_has_a_status_of_its_own() {
        assert_eq!(
            exit_code(Err(Usage(String::new()).into())),
            ExitCode::from(2)
        );
        let unsupported = Unsupported::new("a", "b", "c").into();
        assert_eq!(exit_code(Err(unsupported)), ExitCode::from(3));
        assert_eq!(exit_code(Err(anyhow::anyhow!("x"))), ExitCode::from(1));
    }

    #[test]
    fn man_pages_are_made_from_the_same_definition() {
        let page = String::from_utf8(man(Some("trace")).unwrap()).unwrap();
        assert!(page.contains("portwatch\\-trace"), "{page}");
        assert!(page.contains("\\-\\-duration"), "{page}");
        let error = man(Some("nonsense")).unwrap_err().to_string();
        assert!(
            error.starts_with(
                "no subcommand nonsense: there are trace, run, list, why, report, doctor, explain, completions, man"
            ),
            "{error}"
        );
    }
}
