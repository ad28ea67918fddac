//! `portwatch run`: jobs, and what is told of them.

#![allow(
    clippy::unwrap_used,
    reason = "the helpers of tests: what cannot go on panics"
)]

mod findings;
mod jobs;
mod terminal;
mod tree;
mod wrapper;

use std::process::ExitStatus;

use portwatch_tests::job::{PYTHON, Place, Ran};
use serde_json::Value;

#[test]
fn what_varies_has_a_name() {
    let ran = Ran {
        status: ExitStatus::default(),
        stdout: String::new(),
        stderr: "12:03:09.114  a[17] (kill 17) b[18] 40000 after 2.4 s, 850 ms, 1s".to_owned(),
        report: Value::Null,
    };
    assert_eq!(
        ran.text(),
        "TIME  a[#1] (kill #1) b[#2] 40000 after LONG, LONG, 1s"
    );
}
