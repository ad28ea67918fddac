//! `cargo xtask bench`: what portwatch costs, beside the tools people use now.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;

use anyhow::{Context, Result};

use crate::package::{Provided, provide};
use crate::process::{Root, build_portwatch, cargo};

/// What the benches compare with.
const PEERS: &[Provided] = &[
    Provided {
        program: "bpftrace",
        package: "bpftrace",
    },
    Provided {
        program: "strace",
        package: "strace",
    },
    Provided {
        program: "ss",
        package: "iproute2",
    },
    Provided {
        program: "lsof",
        package: "lsof",
    },
];

/// The arguments of `cargo xtask bench`.
#[derive(clap::Args)]
pub struct Args {
    /// In a guest that counts instructions, each backend beside bindsnoop
    #[arg(long)]
    guest: bool,
    /// What the bench program is given
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "ARGS"
    )]
    arguments: Vec<OsString>,
}

/// Builds portwatch, then becomes the bench program, unless it is for a guest.
pub fn bench(args: &Args) -> Result<()> {
    if args.guest {
        return crate::vm::bench::bench();
    }
    let root = Root::find()?;
    provide(PEERS)?;
    let binary = build_portwatch()?;
    let mut command = cargo();
    command
        .args(["run", "--quiet", "--profile", "tests", "--locked"])
        .args(root.cargo_runner())
        .args(["-p", "portwatch-tests", "--bin", "bench", "--"])
        .args(&args.arguments)
        .env("PORTWATCH_BIN", binary);
    Err(command.exec()).context("cannot start cargo")
}
