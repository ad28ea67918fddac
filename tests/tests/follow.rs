//! Bound sockets are followed to their end only where that is seen: otherwise
//! what is known of them would fill the map, and be told as lost.

use portwatch_tests::{Scenario, Socket};

/// More than the map of bound sockets holds.
const MANY: usize = 70_000;

fn bind_many(arguments: &[&str]) {
    let mut scenario = Scenario::traced(arguments);
    scenario.run(|| {
        for _ in 0..MANY {
            drop(Socket::udp4().bound("127.0.0.1:9"));
        }
    });
    // The stream's end is checked: nothing lost.
    let binds = scenario
        .events()
        .iter()
        .filter(|event| event["event"] == "bind")
        .count();
    assert_eq!(binds, MANY);
}

#[test]
fn binds_alone_are_not_followed() {
    bind_many(&["-e", "bind", "--buffer", "32M"]);
}

#[test]
fn followed_sockets_are_forgotten_at_their_end() {
    bind_many(&["-e", "bind,release", "--buffer", "32M"]);
}
