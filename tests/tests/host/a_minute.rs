//! A TIME_WAIT to its natural end. The tests are run in the order of their names: this one, which
//! takes a minute, is the first and runs beside all others.

use std::sync::Arc;
use std::time::Duration;

use portwatch_tests::expect::{enter, exit};
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
    let events = scenario.raw_events();
    let lasted = events.iter().find_map(|event| event["lasted_ms"].as_u64());
    // A timer of a minute lies in a slot of the wheel that is 2.048 s wide with HZ=250 (`LVL_GRAN`,
    // kernel/time/timer.c), and a softirq that is late is the machine's.
    assert!(
        lasted.is_some_and(|lasted| (59_900..65_000).contains(&lasted)),
        "{lasted:?}"
    );
    drop(listener);
}
