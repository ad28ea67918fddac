//! Text: one line per event, in columns, and nothing on a terminal that it should not see.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::process::Stdio;

use nix::sys::signal::Signal;
use portwatch_tests::socket::{self, REUSEADDR};
use portwatch_tests::{
    Actor, LIMIT, Netns, Printed, Program, Socket, ended, netns, portwatch_command, signal, start,
    wait,
};

/// A running trace of one namespace that prints text.
struct Text {
    child: Program,
    printed: Printed,
    told: Printed,
}

impl Text {
    fn start(netns: &Netns, options: &[&str]) -> Self {
        let mut command = portwatch_command("trace");
        let inode = netns.inode().to_string();
        command.args(["--utc", "--netns", &inode]).args(options);
        command
            .env_remove("NO_COLOR")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = start(&mut command);
        let told = Printed::of(child.stderr.take().unwrap());
        let first = told.next().unwrap();
        assert!(
            first.starts_with("portwatch ")
                && first.contains("tracing with the tracepoint backend"),
            "{first}"
        );
        Self {
            printed: Printed::of(child.stdout.take().unwrap()),
            told,
            child,
        }
    }

    /// Ends it; the lines of events, without explanations, and what it told.
    fn stop(mut self) -> (Vec<String>, Vec<String>) {
        signal(&self.child, Signal::SIGINT);
        let status = wait(&mut self.child, *LIMIT);
        assert!(status.success(), "{}", ended(status));
        let mut lines = self.printed.rest();
        lines.retain(|line| !line.starts_with(' '));
        (lines, self.told.rest())
    }
}

/// A line without its time, which it has to begin with.
fn without_time(line: &str) -> &str {
    let (time, rest) = line.split_at_checked(14).unwrap();
    let shape: String = time
        .chars()
        .map(|character| {
            if character.is_ascii_digit() {
                '0'
            } else {
                character
            }
        })
        .collect();
    assert_eq!(shape, "00:00:00.000  ", "{line}");
    rest
}

/// A line's columns but the first, as wide as they are at the least.
fn line(pid: u32, comm: &str, event: [&str; 4]) -> String {
    let [event, protocol, local, result] = event;
    let line =
        format!("{pid:<6}  {comm:<12}  {event:<8}  {protocol:<5}  {local:<19}  {result:<10}");
    line.trim_end().to_owned()
}

/// Whether a duration of the right form stands between these two.
fn has_duration(text: &str, before: &str, after: &str) -> bool {
    text.strip_prefix(before)
        .and_then(|rest| rest.strip_suffix(after))
        .is_some_and(|duration| {
            duration.ends_with(" ms") || duration.ends_with(" s") && !duration.is_empty()
        })
}

#[test]
fn every_kind_of_event_in_its_columns() {
    let netns = Netns::new();
    let text = Text::start(&netns, &[]);
    netns.run(|| {
        let listener = Socket::tcp4().with(REUSEADDR).bound("127.0.0.1:8080");
        listener.listen(5).unwrap();
        Socket::tcp4().bind("127.0.0.1:8080").unwrap_err();
        let client = Socket::tcp4();
        let server = socket::connect(&listener, &client);
        server.shutdown();
        client.shutdown();
        drop((server, client, listener));
        drop(Socket::udp6().bound("[::1]:5353"));
    });
    let (lines, told) = text.stop();
    let pid = std::process::id();
    let of = |event| line(pid, netns::COMM, event);
    let tcp = "127.0.0.1:8080";
    let expected = [
        (of(["bind", "tcp4", tcp, "ok"]), ""),
        (of(["listen", "tcp4", tcp, "ok"]), ""),
        (of(["bind", "tcp4", tcp, "EADDRINUSE"]), ""),
        (of(["timewait", "tcp4", tcp, "enter"]), "frees in 60 s"),
        (of(["release", "tcp4", tcp, "ok"]), "held "),
        (of(["bind", "udp6", "[::1]:5353", "ok"]), ""),
        (of(["release", "udp6", "[::1]:5353", "ok"]), "held "),
    ];
    assert_eq!(lines.len(), expected.len(), "{lines:#?}");
    for (line, (columns, place)) in lines.iter().zip(&expected) {
        let rest = without_time(line).strip_prefix(&**columns);
        let rest = rest.unwrap_or_else(|| panic!("{line:?} is not as\n{columns:?}"));
        // In a container or a unit, that comes before.
        let own = rest.trim_start();
        let right = match *place {
            "" => !own.contains("held") && !own.contains('→'),
            "held " => own.split(", ").any(|part| has_duration(part, place, "")),
            _ => own.starts_with("→ 127.0.0.1:") && own.ends_with(place),
        };
        assert!(right, "{line:?} does not end as {place:?}");
    }
    assert!(told.last().is_some_and(|line| !line.is_empty()), "{told:?}");
}

#[test]
fn what_a_process_calls_itself_does_no_harm() {
    let netns = Netns::new();
    let text = Text::start(&netns, &[]);
    let steps = [
        "comm=\x1b[2J\n\u{202e}x",
        "socket=udp4",
        "bind=127.0.0.1:5353",
    ];
    let mut actor = Actor::start(&netns, &steps);
    let pid = actor.pid();
    actor.go();
    actor.finish();
    let (lines, _) = text.stop();
    let [bind, release] = &lines[..] else {
        panic!("{lines:?}");
    };
    for (line, event) in [(bind, "bind"), (release, "release")] {
        assert!(
            line.chars().all(|character| !character.is_control()),
            "{line:?}"
        );
        assert!(!line.contains('\u{202e}'), "{line:?}");
        let name = r"\x1b[2J\n\u{202e}x";
        let columns = format!("{pid:<6}  {name}  {event:<8}  udp4   127.0.0.1:5353");
        assert!(
            without_time(line).starts_with(&columns),
            "{line:?} is not as {columns:?}"
        );
    }
}

#[test]
fn colour_if_it_is_asked_for() {
    let netns = Netns::new();
    let colored = Text::start(&netns, &["--color", "always"]);
    let plain = Text::start(&netns, &[]);
    netns.run(|| {
        let holder = Socket::udp4().bound("127.0.0.1:5353");
        Socket::udp4().bind("127.0.0.1:5353").unwrap_err();
        drop(holder);
    });
    let (colored, _) = colored.stop();
    let (plain, _) = plain.stop();
    assert_eq!(colored.len(), 3, "{colored:?}");
    let colors = [
        "\x1b[32mok\x1b[0m",
        "\x1b[1;31mEADDRINUSE\x1b[0m",
        "\x1b[32mok\x1b[0m",
    ];
    for (line, color) in colored.iter().zip(colors) {
        assert!(line.contains(color), "{line:?}");
    }
    let uncolored: Vec<_> = colored
        .iter()
        .map(|line| {
            ["\x1b[32m", "\x1b[1;31m", "\x1b[0m"]
                .iter()
                .fold(line.clone(), |line, code| line.replace(code, ""))
        })
        .collect();
    // Each of the two has read the clocks for itself, some microseconds apart.
    let but_time = |lines: &[String]| -> Vec<String> {
        let lines = lines.iter().map(|line| without_time(line).to_owned());
        lines.collect()
    };
    assert_eq!(but_time(&uncolored), but_time(&plain));
}

/// Runs a trace on a terminal until it has printed a bind; all that it printed.
fn on_a_terminal(no_color: bool) -> String {
    let netns = Netns::new();
    let terminal = nix::pty::openpty(None, None).unwrap();
    let mut command = portwatch_command("trace");
    command.args(["--netns", &netns.inode().to_string()]);
    if no_color {
        command.env("NO_COLOR", "1");
    } else {
        command.env_remove("NO_COLOR");
    }
    command
        .stdin(Stdio::null())
        .stdout(terminal.slave)
        .stderr(Stdio::piped());
    let mut child = start(&mut command);
    // It holds the terminal's other end, which has to be closed for the end to be seen.
    drop(command);
    let told = Printed::of(child.stderr.take().unwrap());
    told.next().unwrap();
    netns.run(|| drop(Socket::udp4().bound("127.0.0.1:5353")));
    let mut screen = BufReader::new(File::from(terminal.master));
    let mut shown = String::new();
    while !shown.contains("release") {
        assert_ne!(screen.read_line(&mut shown).unwrap(), 0, "{shown}");
    }
    signal(&child, Signal::SIGINT);
    let status = wait(&mut child, *LIMIT);
    assert!(status.success(), "{}", ended(status));
    // Reading from a terminal whose other end is closed fails.
    let _ = screen.read_to_string(&mut shown);
    shown
}

#[test]
fn a_terminal_gets_a_header_and_colour() {
    let shown = on_a_terminal(false);
    let lines: Vec<_> = shown.lines().collect();
    assert_eq!(
        lines[0].trim_end(),
        "TIME          PID     COMM          EVENT     PROTO  LOCAL                RESULT      WHERE"
    );
    assert!(lines[1].contains("\x1b[32mok\x1b[0m"), "{shown:?}");
}

#[test]
fn no_color_takes_the_colour_away() {
    let shown = on_a_terminal(true);
    assert!(shown.starts_with("TIME "), "{shown:?}");
    assert!(!shown.contains('\x1b'), "{shown:?}");
}

#[test]
fn quiet_tells_nothing() {
    let netns = Netns::new();
    let mut command = portwatch_command("trace");
    let inode = netns.inode().to_string();
    command.args(["-q", "-n", "1", "--netns", &inode]);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = start(&mut command);
    let printed = Printed::of(child.stdout.take().unwrap());
    let told = Printed::of(child.stderr.take().unwrap());
    // Nothing says that it has begun; so it is tried until it has.
    let ended = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| wait(&mut child, *LIMIT));
        while !waiting.is_finished() {
            netns.run(|| drop(Socket::udp4().bound("127.0.0.1:5353")));
            std::thread::yield_now();
        }
        waiting.join().unwrap()
    });
    assert!(ended.success());
    let lines = printed.rest();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(told.rest(), Vec::<String>::new());
}
