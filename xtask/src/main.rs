//! What a developer of portwatch runs, as `cargo xtask SUBCOMMAND`.
//!
//! A subcommand is one file. What they share: [`process`] (starting other
//! programs), [`package`] (Debian's packages) and [`toolchain`] (what the
//! kernel side is built with). No product code lives here.

mod bench;
mod ebpf;
mod lint;
mod package;
mod process;
mod run;
mod rustc;
mod shape;
mod stamp;
mod tally;
mod test;
mod toolchain;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about, version)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build the kernel side and write portwatch/bpf/portwatch.bpf.o with its stamp
    BuildEbpf(ebpf::Args),
    /// Build portwatch and run it as root
    Run(run::Args),
    /// Run the tests, by level
    Test(test::Args),
    /// Run the scenarios on other kernels, in virtual machines
    Vm(vm::Args),
    /// Check the format and run clippy, the kernel side included
    Lint(lint::Args),
    /// Build portwatch and run the benches as root
    Bench(bench::Args),
}

fn main() -> ExitCode {
    if rustc::is_wrapping() {
        return rustc::wrap();
    }
    let result = match Cli::parse().task {
        Task::BuildEbpf(args) => ebpf::build(&args).map(|()| ExitCode::SUCCESS),
        Task::Run(args) => run::run(&args).map(|()| ExitCode::SUCCESS),
        Task::Test(args) => test::test(&args),
        Task::Vm(args) => vm::vm(&args),
        Task::Lint(args) => lint::lint(&args).map(|()| ExitCode::SUCCESS),
        Task::Bench(args) => bench::bench(&args).map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| {
        process::say(&format!("error: {error:#}"));
        ExitCode::FAILURE
    })
}
