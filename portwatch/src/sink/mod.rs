//! What events are written as: [`text`] for people, [`json`] for programs.
//!
//! Rendering is pure: an event goes in, bytes come out. Nothing here opens,
//! writes or asks for the time.

mod cell;
mod conflict;
pub(crate) mod duration;
pub mod escape;
pub mod json;
pub mod list;
mod moment;
pub mod report;
pub mod text;
pub mod why;
