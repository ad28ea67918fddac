//! Real programs from end to end: started, a second one on the same port, stopped.

#![allow(
    clippy::unwrap_used,
    reason = "the helpers of tests: what cannot go on panics"
)]

use std::ffi::OsString;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use portwatch_tests::expect::{bind, bind_failed, enter, listen, release, socket, waiting, with};
use portwatch_tests::identity::realtime;
use portwatch_tests::{
    Identity, LIMIT, Netns, Scenario, Socket, Trace, ended, signal, spawn, wait,
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// How long a program may try for before it gives up: nginx tries five times, twice a second.
const PERSISTENCE: Duration = Duration::from_secs(20);

/// How long cargo may build for.
const BUILD: Duration = Duration::from_secs(900);

/// A program that runs.
struct Program {
    child: Child,
    /// Its arguments, each with a NUL behind it.
    arguments: Vec<u8>,
    /// When it was started, in nanoseconds since the epoch.
    started: RangeInclusive<i64>,
}

impl Program {
    /// Starts one in the scenario's namespace.
    fn start(scenario: &Scenario, line: &[&str]) -> Self {
        let (name, arguments) = line.split_first().unwrap();
        let mut command = scenario.netns.command(name);
        command.args(arguments);
        Self::of(command, line)
    }

    /// Starts one in the scenario's namespace as another user.
    fn start_as(user: u32, scenario: &Scenario, line: &[&str]) -> Self {
        // Only root may enter the namespace, so the user changes afterwards.
        let mut command = scenario.netns.command("setpriv");
        command
            .arg(format!("--reuid={user}"))
            .arg("--clear-groups")
            .args(line);
        Self::of(command, line)
    }

    /// Starts a command that in the end executes this line.
    fn of(mut command: Command, line: &[&str]) -> Self {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let before = realtime();
        let child = spawn(&mut command);
        Self {
            child,
            arguments: line
                .join("\0")
                .into_bytes()
                .into_iter()
                .chain([0])
                .collect(),
            started: before..=realtime(),
        }
    }

    /// Waits until it listens on a port.
    fn listening(&self, scenario: &Scenario, port: u16) {
        let pid = self.child.id();
        scenario.wait(&format!("listen of port {port} by {pid}"), |event| {
            event["event"] == "listen"
                && event["socket"]["local"]["port"] == port
                && event["process"]["pid"] == pid
        });
    }

    /// Who it is, while it lives and nobody else has its pid.
    fn identity(&self) -> Identity {
        let mut identity = Identity::of(self.child.id()).with_args(&self.arguments);
        identity.started = self.started.clone();
        identity
    }

    /// Who it was, if it ran the same program as another that the same parent has started.
    fn identity_like(&self, other: &Identity) -> Identity {
        let mut identity = other.clone().with_args(&self.arguments);
        identity.pid = self.child.id();
        identity.threads = vec![identity.pid];
        identity.started = self.started.clone();
        identity.with("pid", self.child.id().into())
    }

    /// Asks it to end, and waits for that.
    fn stop(&mut self, with: Signal) -> ExitStatus {
        signal(&self.child, with);
        wait(&mut self.child, *LIMIT)
    }

    /// Waits until it gives up by itself.
    fn give_up(&mut self) {
        let status = wait(&mut self.child, PERSISTENCE);
        assert!(
            status.code().is_some_and(|code| code != 0),
            "the second one: {}",
            ended(status)
        );
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A server with one listening socket: is started, keeps another one like it from its port, and is
/// stopped.
struct Server<'a> {
    /// The command.
    first: &'a [&'a str],
    /// Another that conflicts with it.
    second: &'a [&'a str],
    /// What the first binds.
    socket: Value,
    /// What the second tries to.
    refused: Value,
    /// The first's backlog.
    backlog: i32,
    /// The user that the second runs as.
    user: u32,
}

impl Server<'_> {
    fn check(self) {
        let port = u16::try_from(self.socket["local"]["port"].as_u64().unwrap()).unwrap();
        let mut scenario = Scenario::new();
        let mut first = Program::start(&scenario, self.first);
        first.listening(&scenario, port);
        let identity = first.identity();
        let mut second = if self.user == 0 {
            Program::start(&scenario, self.second)
        } else {
            Program::start_as(self.user, &scenario, self.second)
        };
        second.give_up();
        let rival = second.identity_like(&identity);
        scenario.know("$second", rival.with("uid", self.user.into()));
        scenario.know("$first", identity);
        first.stop(Signal::SIGTERM);
        let socket = self.socket;
        scenario.expect(&[
            bind(socket.clone(), "$first"),
            listen(socket.clone(), self.backlog, "$first"),
            bind_failed(self.refused, "EADDRINUSE", 98, "$second"),
            release(socket, "$first"),
        ]);
    }
}

#[test]
fn redis() {
    let folder = tempfile::tempdir().unwrap();
    let line = [
        "redis-server",
        "--port",
        "7379",
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--dir",
        folder.path().to_str().unwrap(),
    ];
    let socket = socket("tcp", "127.0.0.1:7379", &["reuseaddr"]);
    Server {
        first: &line,
        second: &line,
        refused: socket.clone(),
        socket,
        backlog: 511,
        user: 0,
    }
    .check();
}

#[test]
fn python() {
    let line = [
        "/usr/bin/python3",
        "-m",
        "http.server",
        "--bind",
        "127.0.0.1",
        "8000",
    ];
    let socket = socket("tcp", "127.0.0.1:8000", &["reuseaddr"]);
    Server {
        first: &line,
        second: &line,
        refused: socket.clone(),
        socket,
        backlog: 5,
        user: 0,
    }
    .check();
}

/// On every address of IPv6, and so of IPv4: the second one asks for 0.0.0.0.
#[test]
fn node() {
    let serve = |address: &str| {
        format!(
            "const server = require('http').createServer().listen(3000, '{address}');
             process.on('SIGTERM', () => server.close(() => process.exit(0)));"
        )
    };
    let (first, second) = (serve("::"), serve("0.0.0.0"));
    Server {
        first: &["node", "-e", &first],
        second: &["node", "-e", &second],
        socket: socket("tcp", "[::]:3000", &["reuseaddr"]),
        refused: socket("tcp", "0.0.0.0:3000", &["reuseaddr"]),
        backlog: 511,
        user: 0,
    }
    .check();
}

/// Sets SO_REUSEPORT, which lets only the same user have the port as well.
#[test]
fn netcat() {
    let line = ["nc.openbsd", "-l", "127.0.0.1", "9999"];
    let socket = socket("tcp", "127.0.0.1:9999", &["reuseaddr", "reuseport"]);
    Server {
        first: &line,
        second: &line,
        refused: socket.clone(),
        socket,
        backlog: 1,
        user: 65534,
    }
    .check();
}

/// An nginx of its own, with its files in a folder of its own.
struct Nginx {
    folder: TempDir,
    address: &'static str,
}

impl Nginx {
    fn new(address: &'static str, daemon: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().display();
        let configuration = format!(
            "daemon {daemon};
             worker_processes 1;
             pid {path}/pid;
             error_log {path}/error.log;
             events {{}}
             http {{
                 access_log off;
                 client_body_temp_path {path}/body;
                 proxy_temp_path {path}/proxy;
                 fastcgi_temp_path {path}/fastcgi;
                 uwsgi_temp_path {path}/uwsgi;
                 scgi_temp_path {path}/scgi;
                 server {{
                     listen {address};
                     return 204;
                 }}
             }}"
        );
        fs::write(folder.path().join("conf"), configuration).unwrap();
        Self { folder, address }
    }

    fn start(&self, scenario: &Scenario) -> Program {
        let configuration = self.folder.path().join("conf");
        let log = self.folder.path().join("error.log");
        Program::start(
            scenario,
            &[
                "nginx",
                "-c",
                configuration.to_str().unwrap(),
                "-e",
                log.to_str().unwrap(),
            ],
        )
    }

    fn address(&self) -> SocketAddr {
        self.address.parse().unwrap()
    }

    fn socket(&self) -> Value {
        socket("tcp", self.address, &["reuseaddr"])
    }

    /// The connection of a client in TIME_WAIT, which has its options from the listener.
    fn waiting(&self, client: &str) -> Value {
        with(
            waiting(self.address, client),
            "/options",
            json!(["reuseaddr"]),
        )
    }

    /// The master's pid, from the file that it writes once it is one.
    fn master(&self) -> u32 {
        wait_until("nginx has not written its pid", || {
            let pid = fs::read_to_string(self.folder.path().join("pid")).ok()?;
            pid.strip_suffix('\n')?.parse().ok()
        })
    }

    /// Asks for a page, which the server answers and then closes the connection: returns the
    /// client's address.
    fn ask(&self, scenario: &Scenario) -> String {
        scenario.run(|| {
            let mut stream = TcpStream::connect(self.address()).unwrap();
            let client = stream.local_addr().unwrap().to_string();
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert!(
                answer.starts_with("HTTP/1.1 204 "),
                "nginx answers {answer}"
            );
            client
        })
    }
}

impl Drop for Nginx {
    /// A daemon is nobody's child; it takes its file away when it ends.
    fn drop(&mut self) {
        let pid = fs::read_to_string(self.folder.path().join("pid"));
        if let Some(pid) = pid.ok().and_then(|pid| pid.trim().parse().ok()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
    }
}

/// Waits for what no event tells.
fn wait_until<T>(otherwise: &str, look: impl Fn() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begin.elapsed() < *LIMIT, "{otherwise} within {:?}", *LIMIT);
        thread::yield_now();
    }
}

/// The only child of a process.
fn child_of(parent: u32) -> u32 {
    wait_until(&format!("process {parent} has no child"), || {
        fs::read_dir("/proc").unwrap().find_map(|entry| {
            let entry = entry.ok()?;
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let status = fs::read_to_string(entry.path().join("status")).ok()?;
            let line = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
            (line.trim() == parent.to_string()).then_some(pid)
        })
    })
}

/// The worker of an nginx, which has a title instead of arguments.
fn worker_of(master: u32) -> Identity {
    Identity::of(child_of(master)).with_args(b"nginx: worker process\0")
}

/// The master binds, and listens once more when it has set its options; a worker answers and so has the TIME_WAIT, and the master closes last.
#[test]
fn nginx() {
    let nginx = Nginx::new("127.0.0.1:8088", "off");
    let mut scenario = Scenario::new();
    let mut first = nginx.start(&scenario);
    first.listening(&scenario, nginx.address().port());
    let client = nginx.ask(&scenario);
    let master = first.identity();
    let worker = worker_of(master.pid);
    scenario.know("$master", master.clone());
    scenario.know("$worker", worker);

    let rival = Nginx::new("127.0.0.1:8088", "off");
    let mut second = rival.start(&scenario);
    second.give_up();
    scenario.know("$second", second.identity_like(&master));
    assert!(first.stop(Signal::SIGTERM).success());

    let socket = nginx.socket();
    let refused = bind_failed(socket.clone(), "EADDRINUSE", 98, "$second");
    let mut expected = vec![
        bind(socket.clone(), "$master"),
        listen(socket.clone(), 511, "$master"),
        listen(socket.clone(), 511, "$master"),
        enter(nginx.waiting(&client), "$worker"),
    ];
    expected.extend(vec![refused; 5]);
    expected.push(release(socket, "$master"));
    scenario.expect(&expected);
}

/// The process that was started binds and goes; its child, the daemon, closes.
#[test]
fn nginx_as_daemon() {
    let nginx = Nginx::new("127.0.0.1:8089", "on");
    let mut scenario = Scenario::new();
    let mut starter = nginx.start(&scenario);
    starter.listening(&scenario, nginx.address().port());
    let status = wait(&mut starter.child, *LIMIT);
    assert!(status.success(), "nginx: {}", ended(status));
    let client = nginx.ask(&scenario);
    let line = String::from_utf8_lossy(&starter.arguments).replace('\0', " ");
    // Longer than the arguments it was written over.
    let title = format!("nginx: master process {}\0", line.trim_end());
    let master = Identity::of(nginx.master()).with_args(title.as_bytes());
    let worker = worker_of(master.pid);
    let pid = Pid::from_raw(master.pid.cast_signed());
    let myself = Identity::of(std::process::id()).child(starter.child.id());
    let ancestors = myself.whole["ancestors"].clone();
    let identity = starter.identity_like(&master).with("ancestors", ancestors);
    scenario.know("$starter", identity);
    scenario.know("$master", master);
    scenario.know("$worker", worker);
    kill(pid, Signal::SIGTERM).unwrap();
    scenario.released(nginx.address().port());

    let socket = nginx.socket();
    scenario.expect(&[
        bind(socket.clone(), "$starter"),
        listen(socket.clone(), 511, "$starter"),
        listen(socket.clone(), 511, "$starter"),
        enter(nginx.waiting(&client), "$worker"),
        with(release(socket, "$master"), "/binder", json!("$starter")),
    ]);
}

/// Cargo, as the one who has built this would start it: a plain user who runs the tests through
/// sudo is that user again.
fn cargo() -> Command {
    let cargo = Path::new(env!("CARGO"));
    let Some(user) = std::env::var_os("SUDO_UID") else {
        return Command::new(cargo);
    };
    let folder = cargo.parent().unwrap_or(Path::new("/")).to_owned();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths([folder].into_iter().chain(std::env::split_paths(&path)));
    let mut assignment = OsString::from("PATH=");
    assignment.push(path.unwrap());
    let mut name = OsString::from("#");
    name.push(user);
    let mut command = Command::new("sudo");
    command.args(["-n", "-H", "-u"]).arg(name);
    command.args(["--", "env"]).arg(assignment).arg(cargo);
    command
}

/// The README's first command, from the top of the repository.
#[test]
fn readme_run_command() {
    let top = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let run = |arguments: &[&str]| {
        let mut command = cargo();
        command
            .current_dir(&top)
            .args(["xtask", "run", "--"])
            .args(arguments);
        command
    };
    // It may have to be built first, which takes longer than a trace may take to begin.
    let mut build = spawn(run(&["--version"]).stdout(Stdio::null()));
    let status = wait(&mut build, BUILD);
    assert!(status.success(), "cargo xtask run: {}", ended(status));

    // Trace::of wants the start line; the end is checked as that of every trace.
    let mut trace = Trace::of(run(&["trace", "--json", "--count", "1"]));
    let netns = Netns::new();
    netns.run(|| drop(Socket::udp4().bound("127.0.0.1:4000")));
    let stream = trace.finish();
    let events: Vec<_> = stream.lines.iter().map(|line| &line["event"]).collect();
    assert_eq!(events.len(), 3, "{events:?}");
}
