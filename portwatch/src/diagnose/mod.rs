//! Why a bind or a listen was refused, and what to do about it.
//!
//! Pure: no descriptors, no clock, no globals. Facts go in, one of the
//! catalogue's causes comes out, with a summary and an advice.

pub mod rules;
