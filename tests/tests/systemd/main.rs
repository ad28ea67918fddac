//! Units of a real systemd, in a guest that it runs: see `cargo xtask vm --systemd`.

#![allow(
    clippy::unwrap_used,
    reason = "a test program: what cannot go on panics"
)]

mod machine;
mod units;
