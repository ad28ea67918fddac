//! The `portwatch` program: parses the command line and maps results to exit statuses.

use std::process::ExitCode;

use clap::Parser as _;
use portwatch::command::{Cli, exit_code};

fn main() -> ExitCode {
    exit_code(Cli::parse().run())
}
