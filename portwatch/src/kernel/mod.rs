//! The kernel's side of things: what it offers, loading and attaching the
//! programs, proving that they fire, and draining their records.

mod attach;
mod bpf;
pub mod btf;
pub mod clock;
pub mod decode;
pub mod denial;
mod detach;
pub mod hook;
mod iterator;
pub mod layout;
pub mod losses;
#[cfg(feature = "log")]
mod messages;
pub mod netns;
pub mod self_test;
mod settings;
pub mod side;
pub mod snapshot;
pub mod sock_diag;
pub mod sockets;
pub mod stream;
pub mod support;
pub mod symbols;
pub mod sysctls;
pub mod tree;
