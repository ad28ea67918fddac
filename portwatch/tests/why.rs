//! The text of `portwatch why`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

#[path = "golden/samples.rs"]
#[allow(dead_code, reason = "other tests have other samples")]
mod samples;

use portwatch::event::{PortRange, Time, Why};
use portwatch::sink::why::render;
use samples::NOON;

fn text(why: &Why) -> String {
    String::from_utf8(render(why, 3, Time(NOON))).unwrap()
}

#[test]
fn a_port_that_is_held() {
    insta::assert_snapshot!(text(&samples::why()));
}

#[test]
fn a_port_that_only_a_runtime_gives_away() {
    let why = Why {
        places: Vec::new(),
        last_use: None,
        ..samples::why()
    };
    insta::assert_snapshot!(text(&why));
}

#[test]
fn a_free_port() {
    let free = |range| Why {
        held: false,
        places: Vec::new(),
        published: Vec::new(),
        last_use: None,
        range,
        ..samples::why()
    };
    let ranges = [
        PortRange::default(),
        PortRange {
            ephemeral: true,
            ..PortRange::default()
        },
        PortRange {
            reserved: true,
            privileged: true,
            ..PortRange::default()
        },
    ];
    let all: String = ranges.map(|range| text(&free(range))).join("\n");
    insta::assert_snapshot!(all);
}
