//! Bound sockets are followed to their end only where somebody wants to know of
//! it: otherwise what is known of them would fill the map, and be told as lost.

use portwatch_tests::{Scenario, Socket};

/// More than the map of bound sockets holds.
const MANY: usize = 70_000;

#[test]
fn binds_whose_release_is_not_wanted_fill_nothing() {
    let scenario = Scenario::traced(&["-e", "listen"]);
    scenario.run(|| {
        for _ in 0..MANY {
            drop(Socket::udp4().bound("127.0.0.1:9"));
        }
    });
    // The stream's end is checked: nothing lost.
    scenario.end(&[]);
}
