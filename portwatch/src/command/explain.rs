//! `portwatch explain`: the page on a cause, or all causes with a line each.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Args;

use crate::diagnose::page;
use crate::event::Cause;

/// Columns where there is no terminal to ask.
const WIDTH: usize = 80;

/// The options of `explain`.
#[derive(Debug, Args)]
pub struct Options {
    /// The cause, as the text's `why` or the JSON's `conflict.cause` names it; without one, all are
    /// listed
    #[arg(value_enum, hide_possible_values = true)]
    cause: Option<Cause>,
}

/// Runs `portwatch explain`.
///
/// # Errors
///
/// If standard output cannot be written to.
pub fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let terminal = std::io::stdout().is_terminal();
    let size = terminal.then(terminal_size::terminal_size).flatten();
    let width = size.map_or(WIDTH, |(width, _)| usize::from(width.0));
    let text = match options.cause {
        Some(cause) => page::render(cause.page(), width),
        None => page::list(width),
    };
    super::print(text.as_bytes())
}
