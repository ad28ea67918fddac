//! `cargo xtask lint`: format and clippy, of the workspace and the kernel side.

use anyhow::Result;

use crate::ebpf;
use crate::process::{cargo, run, say, top};
use crate::toolchain::{Choice, Rust};

/// The arguments of `cargo xtask lint`.
#[derive(clap::Args)]
pub struct Args {
    /// The Rust to check the kernel side with
    #[arg(long, value_enum, default_value_t = Choice::Auto)]
    toolchain: Choice,
}

/// Runs every check, the quick ones first.
pub fn lint(args: &Args) -> Result<()> {
    say("format");
    run(cargo().args(["fmt", "--all", "--check"]))?;
    run(cargo().args([
        "fmt",
        "--all",
        "--check",
        "--manifest-path",
        "portwatch-ebpf/Cargo.toml",
    ]))?;
    say("clippy");
    run(cargo()
        .args([
            "clippy",
            "--quiet",
            "--workspace",
            "--all-targets",
            "--locked",
        ])
        .args(DENY))?;
    kernel_side(args.toolchain)?;
    say("lint: no findings");
    Ok(())
}

const DENY: [&str; 3] = ["--", "-D", "warnings"];

fn kernel_side(choice: Choice) -> Result<()> {
    let rust = Rust::find(choice)?;
    say("clippy of the kernel side");
    // The development features too, or they rot.
    for features in [&[][..], &["--all-features"]] {
        let Some(mut command) = ebpf::clippy(&top(), &rust) else {
            say(&format!(
                "SKIPPED: clippy of the kernel side: rustc {} comes without clippy",
                rust.version
            ));
            return Ok(());
        };
        command.args(features).args(DENY).env(
            "CARGO_ENCODED_RUSTFLAGS",
            ebpf::encoded(&[ebpf::arch_flag()]),
        );
        run(&mut command)?;
    }
    Ok(())
}
