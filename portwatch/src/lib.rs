//! portwatch: streams every bind, failed listen, release and TIME_WAIT of a
//! Linux host as it happens.
//!
//! Data flows one way: [`kernel`] loads the kernel side and drains its
//! records, [`attribute`] makes events of them, [`filter`] chooses, [`sink`]
//! writes. [`command`] puts the stages together.

pub mod attribute;
pub mod command;
pub mod diagnose;
pub mod event;
pub mod filter;
pub mod kernel;
pub mod report;
pub mod sink;
