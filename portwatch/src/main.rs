//! The `portwatch` program: parses the command line and maps results to exit statuses.

use std::process::ExitCode;

use clap::Parser as _;
use portwatch::command::{Cli, exit_code};

/// Keeps the allocator from keeping an arena for each of a few threads.
///
/// Events are made in one thread and dropped in another, which leaves every
/// arena full of holes; portwatch is to stay small beside what it watches.
fn frugal() {
    #[cfg(target_env = "gnu")]
    // SAFETY: nothing else runs yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

fn main() -> ExitCode {
    frugal();
    exit_code(Cli::parse().run())
}
