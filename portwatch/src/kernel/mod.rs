//! The kernel's side of things: what it offers, loading and attaching the
//! programs, proving that they fire, and draining their records.

pub mod backend;
pub mod btf;
pub mod clock;
pub mod decode;
pub mod layout;
#[cfg(feature = "log")]
mod messages;
pub mod self_test;
pub mod snapshot;
pub mod stream;
pub mod support;
pub mod symbols;
