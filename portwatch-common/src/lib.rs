//! What crosses the boundary between the kernel side and the user side.
//!
//! [`record`] is what the kernel side emits, [`map`] what both sides keep in
//! BPF maps, [`field`] the kernel fields whose offsets the user side resolves
//! from BTF and hands over, [`setting`] the other read-only values.
//!
//! Flat integers in `repr(C)` without padding, and no logic.
#![no_std]

pub mod field;
pub mod map;
pub mod record;
pub mod setting;
