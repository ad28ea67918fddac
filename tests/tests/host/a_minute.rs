//! A TIME_WAIT to its natural end. The tests are run in the order of their names: this one, which
//! takes a minute, is the first and runs beside all others.

use std::sync::Arc;
use std::time::Duration;

use portwatch_tests::expect::{enter, exit};
use portwatch_tests::identity::nanoseconds;
use portwatch_tests::{LIMIT, Netns, Scenario, Trace};

use crate::connection::{
    CLIENT, Connection, SERVER, client_released, connection_made, waiting_with_reuseaddr,
};

#[test]
fn later_a_timewait_expires() {
    let netns = Netns::new();
    // In a guest it is traced beside all other scenarios, which do not concern it.
    let inode = netns.inode().to_string();
    let trace = Arc::new(Trace::start(&["--netns", &inode]));
    let mut scenario = Scenario::within(trace, netns);
    let listener = Connection::new(&scenario).ended_by_server(&scenario);
    let limit = Duration::from_secs(65) + *LIMIT;
    scenario.wait_for(limit, "the end of the TIME_WAIT", |event| {
        event["phase"] == "exit"
    });
    let socket = waiting_with_reuseaddr(SERVER, CLIENT);
    let mut expected = connection_made();
    expected.extend([
        client_released(),
        enter(socket.clone(), "$self"),
        exit(socket, "expired", "$self"),
    ]);
    // TIME_WAIT begins while the client's socket is being closed.
    scenario.expect_in_any_order(&expected);
    // A timer of the kernel's never ends early (but by the tick it begins in), and ends as late as
    // the machine lets a softirq be: by `LIMIT` above. What is told of the time is the events' own.
    let events = scenario.raw_events();
    let of_timewait = |phase: &str| {
        let event = events.iter().find(|event| event["phase"] == phase);
        event.unwrap_or_else(|| panic!("no {phase} of a TIME_WAIT"))
    };
    let time = |event: &serde_json::Value| event["time"].as_str().and_then(nanoseconds).unwrap();
    let between = (time(of_timewait("exit")) - time(of_timewait("enter"))) / 1_000_000;
    let lasted = of_timewait("exit")["lasted_ms"].as_i64().unwrap();
    assert!(
        lasted >= 59_900 && lasted.abs_diff(between) <= 1,
        "{lasted} ms, {between} ms between the events"
    );
    drop(listener);
}
