//! `cargo xtask run`: portwatch itself, from this checkout, as root.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;

use anyhow::{Context, Result};

use crate::process::{Root, build_portwatch};

/// The arguments of `cargo xtask run`.
#[derive(clap::Args)]
pub struct Args {
    /// What portwatch is given; `trace` if nothing
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "ARGS"
    )]
    arguments: Vec<OsString>,
}

/// Builds portwatch, then becomes it, so that signals reach it and its exit
/// status is ours. Returns only with an error.
pub fn run(args: &Args) -> Result<()> {
    let root = Root::find()?;
    let binary = build_portwatch()?;
    let mut command = root.command(&binary);
    if args.arguments.is_empty() {
        command.arg("trace");
    } else {
        command.args(&args.arguments);
    }
    Err(command.exec()).with_context(|| format!("cannot start {}", binary.display()))
}
