//! A connection within this process, and what is seen of it.

use portwatch_tests::expect::{bind, listen, release, socket, waiting, with};
use portwatch_tests::socket::{self, REUSEADDR};
use portwatch_tests::{Scenario, Socket};
use serde_json::{Value, json};

/// Where the server listens.
pub const SERVER: &str = "127.0.0.1:8080";
/// What the client is bound to.
pub const CLIENT: &str = "127.0.0.1:5000";

/// A connection between two sockets of this process, both bound, and its listener.
pub struct Connection {
    /// The listener.
    pub listener: Socket,
    /// The server's end.
    pub server: Socket,
    /// The client's end.
    pub client: Socket,
}

impl Connection {
    /// A new one.
    pub fn new(scenario: &Scenario) -> Self {
        scenario.run(|| {
            let listener = Socket::tcp4().with(REUSEADDR).bound(SERVER);
            listener.listen(5).unwrap();
            let client = Socket::tcp4().with(REUSEADDR).bound(CLIENT);
            let server = socket::connect(&listener, &client);
            Self {
                listener,
                server,
                client,
            }
        })
    }

    /// The server's end goes into TIME_WAIT, straight from its socket.
    pub fn ended_by_server(self, scenario: &Scenario) -> Socket {
        scenario.run(|| self.server.shutdown());
        scenario.netns.wait_for_fin_wait2("tcp", (8080, 5000));
        scenario.run(|| drop(self.client));
        scenario.netns.wait_for_timewait("tcp", (8080, 5000));
        scenario.run(|| drop(self.server));
        self.listener
    }

    /// The client's end goes into TIME_WAIT, straight from its socket.
    pub fn ended_by_client(self, scenario: &Scenario) -> Socket {
        scenario.run(|| self.client.shutdown());
        scenario.netns.wait_for_fin_wait2("tcp", (5000, 8080));
        scenario.run(|| drop(self.server));
        scenario.netns.wait_for_timewait("tcp", (5000, 8080));
        scenario.run(|| drop(self.client));
        self.listener
    }
}

/// What the kernel keeps of the options of the dead socket: whether it had SO_REUSEADDR.
pub fn waiting_with_reuseaddr(local: &str, remote: &str) -> Value {
    with(waiting(local, remote), "/options", json!(["reuseaddr"]))
}

/// What is seen of a [`Connection`] being made.
pub fn connection_made() -> Vec<Value> {
    let listener = socket("tcp", SERVER, &["reuseaddr"]);
    vec![
        bind(listener.clone(), "$self"),
        listen(listener, 5, "$self"),
        bind(socket("tcp", CLIENT, &["reuseaddr"]), "$self"),
    ]
}

/// The client's socket is released.
pub fn client_released() -> Value {
    release(socket("tcp", CLIENT, &["reuseaddr"]), "$self")
}
