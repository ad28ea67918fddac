//! Jobs as CI runners have them, with their reports in full.

use std::fs;

use crate::{PYTHON, Place, Ran};

/// The events of a job, written into its folder: whoever is in the way stays until the refusal stands
/// there, since that is when it has been looked up who it is.
const EVENTS: &[&str] = &["--write", "events.json"];

fn write(place: &Place, name: &str, text: &str) {
    fs::write(place.path().join(name), text).unwrap();
}

/// The causes, and how often.
fn causes(ran: &Ran) -> &serde_json::Value {
    &ran.report["causes"]
}

#[test]
fn two_workers_of_node_on_one_port() {
    let place = Place::new();
    write(
        &place,
        "run.js",
        "const { fork } = require('child_process');
let left = 2, failed = 0;
const start = () => fork('./worker.js').on('exit', (status) => {
  failed |= status;
  if (--left === 0) process.exit(failed);
});
start().once('message', start);
",
    );
    write(
        &place,
        "worker.js",
        "const fs = require('fs');
const server = require('net').createServer().listen(3210, '127.0.0.1');
server.on('error', () => process.exit(1));
server.on('listening', () => {
  process.send('listening');
  setInterval(() => {
    if (fs.readFileSync('events.json').includes('EADDRINUSE')) process.exit(0);
  }, 10);
});
",
    );
    let ran = place.run(EVENTS, &["/usr/bin/node", "run.js"]);
    assert_eq!(ran.status.code(), Some(1), "{ran:?}");
    ran.expect(
        "portwatch: `/usr/bin/node run.js` ended with exit status 1 after LONG: 1 conflict
conflicts
  TIME  node[#1] `/usr/bin/node ./worker.js`: bind on tcp4 127.0.0.1:3210: EADDRINUSE
              held by   node[#2] `/usr/bin/node ./worker.js`, listening on 127.0.0.1:3210 since TIME (LONG)
              why       sibling: node[#2] and node[#1] are of one job and both want 127.0.0.1:3210
              do        give each worker a port of its own, or let each bind port 0    more: portwatch explain sibling
ports used
  tcp4  127.0.0.1:3210  node[#2] `/usr/bin/node ./worker.js`  TIME to TIME
",
    );
}

/// Whoever binds before the other listens is refused in listen(2), if both set SO_REUSEADDR.
#[test]
fn two_workers_that_bind_before_either_listens() {
    let place = Place::new();
    write(
        &place,
        "worker.py",
        "import os, socket, sys, time
def until(file):
    while not os.path.exists(file): time.sleep(0.01)
def done(file): open(file, 'w').close()
server = socket.socket(); server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind(('127.0.0.1', 3211))
if sys.argv[1] == 'first':
    until('bound'); server.listen(); done('listening')
    while 'EADDRINUSE' not in open('events.json').read(): time.sleep(0.01)
else:
    done('bound'); until('listening'); server.listen()
",
    );
    let script = "/usr/bin/python3 worker.py first & \
                  /usr/bin/python3 worker.py second 2>/dev/null; failed=$?; wait; exit $failed";
    let ran = place.sh(EVENTS, script);
    assert_eq!(ran.status.code(), Some(1), "{ran:?}");
    assert_eq!(causes(&ran), &serde_json::json!({"sibling": 1}), "{ran:?}");
    let text = ran.text();
    let conflict = text.lines().skip_while(|line| !line.contains("EADDRINUSE"));
    let conflict: Vec<_> = conflict.take(4).collect();
    assert_eq!(
        conflict.join("\n"),
        "  TIME  python3[#1] `/usr/bin/python3 worker.py second`: listen on tcp4 127.0.0.1:3211: EADDRINUSE
              held by   python3[#2] `/usr/bin/python3 worker.py first`, listening on 127.0.0.1:3211 since TIME (LONG)
              why       sibling: python3[#2] and python3[#1] are of one job and both want 127.0.0.1:3211
              do        give each worker a port of its own, or let each bind port 0    more: portwatch explain sibling"
    );
}

#[test]
fn a_server_that_pytest_leaves_behind() {
    let place = Place::new();
    write(
        &place,
        "test_site.py",
        "import socket, subprocess, sys, time

def start():
    command = [sys.executable, '-m', 'http.server', '8123', '--bind', '127.0.0.1']
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

def test_that_leaks():
    server = start()
    while server.poll() is None:
        try: return socket.create_connection(('127.0.0.1', 8123)).close()
        except OSError: time.sleep(0.01)

def test_that_suffers():
    assert start().wait() == 0
",
    );
    let pytest = [
        PYTHON,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "test_site.py",
    ];
    let ran = place.run(&["--kill-leftovers"], &pytest);
    assert_eq!(ran.status.code(), Some(1), "{ran:?}");
    ran.expect(
        "portwatch: `/usr/bin/python3 -m pytest -q -p no:cacheprovider test_site.py` ended with exit status 1 after LONG: 1 conflict, 1 process left behind
conflicts
  TIME  python3[#1] `/usr/bin/python3 -m http.server 8123 --bind 127.0.0.1`: bind on tcp4 127.0.0.1:8123: EADDRINUSE
              held by   python3[#2] `/usr/bin/python3 -m http.server 8123 --bind 127.0.0.1`, listening on 127.0.0.1:8123 since TIME (LONG)
              why       sibling: python3[#2] and python3[#1] are of one job and both want 127.0.0.1:8123
              do        give each worker a port of its own, or let each bind port 0    more: portwatch explain sibling
left behind
  python3[#2] `/usr/bin/python3 -m http.server 8123 --bind 127.0.0.1`, listening on tcp4 127.0.0.1:8123: ended by SIGTERM
ports used
  tcp4  127.0.0.1:8123  python3[#2] `/usr/bin/python3 -m http.server 8123 --bind 127.0.0.1`  from TIME on
",
    );
}

#[test]
fn parallel_servers_of_a_makefile() {
    let place = Place::new();
    write(
        &place,
        "Makefile",
        "all: one two
one:
\t@/usr/bin/python3 server.py one
two:
\t@until [ -e one ]; do sleep 0.01; done; ! /usr/bin/python3 server.py two 2>/dev/null
",
    );
    write(
        &place,
        "server.py",
        "import socket, sys, time
s = socket.socket(); s.bind(('0.0.0.0', 9123)); s.listen()
open(sys.argv[1], 'w').close()
while 'EADDRINUSE' not in open('events.json').read(): time.sleep(0.01)
",
    );
    let ran = place.run(EVENTS, &["make", "-s", "-j2"]);
    assert_eq!(ran.status.code(), Some(0), "{ran:?}");
    ran.expect(
        "portwatch: `make -s -j2` ended with exit status 0 after LONG: 1 conflict
conflicts
  TIME  python3[#1] `/usr/bin/python3 server.py two`: bind on tcp4 0.0.0.0:9123: EADDRINUSE
              held by   python3[#2] `/usr/bin/python3 server.py one`, listening on 0.0.0.0:9123 since TIME (LONG)
              why       sibling: python3[#2] and python3[#1] are of one job and both want 0.0.0.0:9123
              do        give each worker a port of its own, or let each bind port 0    more: portwatch explain sibling
ports used
  tcp4  0.0.0.0:9123  python3[#2] `/usr/bin/python3 server.py one`  TIME to TIME
",
    );
}

#[test]
fn a_server_that_is_restarted_into_its_timewait() {
    let place = Place::new();
    write(
        &place,
        "server.py",
        "import socket, sys
server = socket.socket(); server.bind(('127.0.0.1', 9124)); server.listen()
client = socket.create_connection(('127.0.0.1', 9124))
connection, _ = server.accept()
connection.close(); client.recv(1); client.close()
",
    );
    let script = "/usr/bin/python3 server.py; /usr/bin/python3 server.py 2>/dev/null || exit 1";
    let ran = place.sh(&[], script);
    assert_eq!(ran.status.code(), Some(1), "{ran:?}");
    assert_eq!(
        causes(&ran),
        &serde_json::json!({"time-wait-no-reuse": 1}),
        "{ran:?}"
    );
    let text = ran.text();
    // The client's port is any.
    let holder = text.lines().find(|line| line.contains("held by")).unwrap();
    let client = ran.report["refusals"][0]["conflict"]["holders"][0]["socket"]["remote"]["port"]
        .as_u64()
        .unwrap();
    assert_eq!(
        holder.replace(&format!(":{client},"), ":CLIENT,"),
        "              held by   python3[#2] `/usr/bin/python3 server.py` (when last seen), \
         time-wait from 127.0.0.1:9124 to 127.0.0.1:CLIENT, frees in LONG"
    );
}

/// The standard library of Rust sets SO_REUSEADDR, and so may bind beside a TIME_WAIT of its own.
#[test]
fn a_server_of_rust_that_is_restarted_into_its_timewait() {
    let program = portwatch_tests::actor::program().with_file_name("server");
    for (socket, status) in [("", 0), (" plain", 1)] {
        let place = Place::new();
        let script = format!("\"$0\" 127.0.0.1:9125{socket} && \"$0\" 127.0.0.1:9125{socket}");
        let words = [
            "sh".into(),
            "-c".into(),
            script.into(),
            program.clone().into_os_string(),
        ];
        let ran = place.run(&[], &words);
        assert_eq!(ran.status.code(), Some(status), "{ran:?}");
        let left = &ran.report["left_behind"]["timewaits"];
        if socket.is_empty() {
            assert_eq!(ran.report["refusals"], serde_json::json!([]), "{ran:?}");
            assert_eq!(left, &serde_json::json!([]), "{ran:?}");
        } else {
            let refusal = &ran.report["refusals"][0];
            assert_eq!(
                refusal["conflict"]["cause"], "time-wait-no-reuse",
                "{ran:?}"
            );
            assert_eq!(refusal["process"]["comm"], "server", "{ran:?}");
            assert_eq!(left[0]["port"], 9125, "{ran:?}");
        }
    }
}

#[test]
fn an_outgoing_connection_that_takes_the_port_of_a_test() {
    let place = Place::new();
    place
        .netns
        .sysctl("ipv4/ip_local_port_range", "45000 45000");
    write(
        &place,
        "download.py",
        "import socket, time
registry = socket.socket(); registry.bind(('127.0.0.1', 9000)); registry.listen()
download = socket.create_connection(('127.0.0.1', 9000))
try: socket.socket().bind(('127.0.0.1', 45000))
except OSError as error: print(error.errno)
while 'EADDRINUSE' not in open('events.json').read(): time.sleep(0.01)
",
    );
    let ran = place.run(EVENTS, &[PYTHON, "download.py"]);
    assert_eq!(ran.stdout, "98\n");
    ran.expect(
        "portwatch: `/usr/bin/python3 download.py` ended with exit status 0 after LONG: 1 conflict
conflicts
  TIME  python3[#1] `/usr/bin/python3 download.py`: bind on tcp4 127.0.0.1:45000: EADDRINUSE
              held by   python3[#1] `/usr/bin/python3 download.py`, established from 127.0.0.1:45000 to 127.0.0.1:9000
              why       ephemeral-collision: an outgoing connection of python3[#1] to 127.0.0.1:9000 got port 45000 as its source port: it is within net.ipv4.ip_local_port_range (45000 45000)
              do        use a port below 45000, or reserve this one: sysctl -w net.ipv4.ip_local_reserved_ports=45000 (now empty)    more: portwatch explain ephemeral-collision
ports used
  tcp4  127.0.0.1:9000  python3[#1] `/usr/bin/python3 download.py`  TIME to TIME
",
    );
}
