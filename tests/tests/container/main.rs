//! Conflicts with real containers in them: each daemon in namespaces of its own, which end with it.

#![allow(
    clippy::unwrap_used,
    reason = "a test program: what cannot go on panics"
)]

mod containerd;
mod daemon;
mod docker;
mod inside;
mod job;
mod podman;
mod room;
mod scene;
