//! Scenarios against this machine's kernel: whole events of a namespace of each test's own.
//!
//! They need root. `cargo xtask test host` runs them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod a_minute;
mod backends;
mod bind;
mod causes;
#[cfg(target_arch = "x86_64")]
mod compat;
mod conflict;
mod connection;
mod errors;
mod filters;
mod job;
mod list;
mod listen;
mod process;
mod snapshot;
mod text;
mod timewait;
mod why;
