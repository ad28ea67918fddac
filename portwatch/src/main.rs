//! The `portwatch` program: parses the command line and maps results to exit statuses.

use std::process::ExitCode;

use clap::Parser as _;
use portwatch::command::{Cli, exit_code};

/// From how many bytes on memory is the kernel's own to give and to take back.
#[cfg(target_env = "gnu")]
const MAPPED: libc::c_int = 1 << 20;

/// Keeps the allocator from keeping an arena for each of a few threads, and what was needed once.
///
/// Events are made in one thread and dropped in another, which leaves every
/// arena full of holes; portwatch is to stay small beside what it watches.
/// The kernel's types are some megabytes in one piece, read at the start
/// alone: once glibc has seen such a piece given back, it takes the next ones
/// from the heap, unless it was told from which size on not to.
fn frugal() {
    #[cfg(target_env = "gnu")]
    // SAFETY: nothing else runs yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED);
    }
}

fn main() -> ExitCode {
    frugal();
    exit_code(Cli::parse().run())
}
