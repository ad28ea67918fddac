//! The tools: starting one, knowing by its output that it sees everything or has
//! caught up, and ending it.

use std::fs::File;
use std::io::{BufRead, BufReader, Read as _, Seek as _, SeekFrom};
use std::os::fd::AsRawFd as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, listen, socket,
};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::{Pid, getpgid, getsid};

use crate::environment::{Environment, pin};

/// How long a tool may take for anything before the bench fails.
const LIMIT: Duration = Duration::from_secs(60);

/// How long a probe's event is waited for before the next probe.
const PATIENCE: Duration = Duration::from_millis(50);

/// Between two looks at what a tool has printed.
const LOOK: Duration = Duration::from_micros(500);

/// The ports that probes bind, one after the other.
const PROBES: std::ops::Range<u16> = 21_000..32_000;

/// One line for each bind, listen, end of a listener and entry into TIME_WAIT: what portwatch
/// tells, as far as these tracepoints know it. The address is read on entry to bind(2) and told on
/// exit, with the result, as anyone would who wants one line for a bind. Of the transitions to
/// CLOSE (7) those from LAST_ACK (9) are left out: that side keeps no TIME_WAIT.
const PRINT: &str = r#"
struct address { unsigned short family; unsigned short port; }
tracepoint:syscalls:sys_enter_bind { @bind[tid] = args->umyaddr; }
tracepoint:syscalls:sys_exit_bind /@bind[tid]/ {
    $address = (struct address *)uptr(@bind[tid]);
    printf("%d %s bind %d %d %d\n", pid, comm, $address->family,
        ($address->port & 0xff) << 8 | $address->port >> 8, args->ret);
    delete(@bind[tid]);
}
tracepoint:syscalls:sys_enter_listen { @listen[tid] = args->fd + 1; }
tracepoint:syscalls:sys_exit_listen /@listen[tid]/ {
    printf("%d %s listen %d %d\n", pid, comm, @listen[tid] - 1, args->ret);
    delete(@listen[tid]);
}
tracepoint:sock:inet_sock_set_state /args->newstate == 7 && args->oldstate != 9/ {
    printf("%d %s state %d %d %d\n", pid, comm, args->oldstate, args->sport, args->dport);
}
"#;

/// Counts the same. The tracepoints at both ends only tell that all between them are attached, in
/// whatever order that is done.
const COUNT: &str = r#"
tracepoint:syscalls:sys_enter_getpgid /pid == PID/ { printf("one end\n"); }
tracepoint:syscalls:sys_exit_bind { @bind = count(); }
tracepoint:syscalls:sys_exit_listen { @listen = count(); }
tracepoint:sock:inet_sock_set_state /args->newstate == 7 && args->oldstate != 9/ { @state = count(); }
tracepoint:syscalls:sys_enter_getsid /pid == PID/ { printf("the other\n"); }
"#;

/// The beginning of the lines that say of bpftrace what it has lost.
const LOST: &[u8] = b"Lost ";

/// A tool in one of its uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Variant {
    /// No tool.
    None,
    /// `portwatch trace --json > file`
    Json,
    /// `portwatch trace > file`
    Text,
    /// bpftrace with [`PRINT`].
    Print,
    /// bpftrace with [`COUNT`].
    Count,
    /// strace of the worker alone.
    Strace,
}

impl Variant {
    /// All of them, as the tables list them.
    pub const ALL: [Self; 6] = [
        Self::None,
        Self::Json,
        Self::Text,
        Self::Print,
        Self::Count,
        Self::Strace,
    ];

    /// What the tables call it.
    pub fn title(self) -> &'static str {
        match self {
            Self::None => "no tool",
            Self::Json => "portwatch --json",
            Self::Text => "portwatch text",
            Self::Print => "bpftrace print",
            Self::Count => "bpftrace count",
            Self::Strace => "strace",
        }
    }

    fn command(self) -> Option<Command> {
        let bpftrace = |program: &str| {
            let mut command = Command::new("bpftrace");
            command.args([
                "-e",
                &program.replace("PID", &std::process::id().to_string()),
            ]);
            command
        };
        let portwatch = |arguments: &[&str]| {
            let mut command = Command::new(portwatch_tests::portwatch());
            command.args(arguments);
            command
        };
        match self {
            Self::None | Self::Strace => None,
            Self::Json => Some(portwatch(&["trace", "--json"])),
            Self::Text => Some(portwatch(&["trace"])),
            Self::Print => Some(bpftrace(PRINT)),
            Self::Count => Some(bpftrace(COUNT)),
        }
    }

    /// The lines that must have come, each told by words that are in it: first those that say that
    /// the tool is ready, then those that a probe on this port brings.
    fn lines(self, port: u16) -> Vec<Vec<String>> {
        let me = std::process::id();
        let line = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        match self {
            Self::None | Self::Strace => Vec::new(),
            Self::Json => ["bind", "listen", "release"]
                .map(|event| {
                    let event = format!("\"event\":\"{event}\"");
                    line(&[&event, &format!("\"port\":{port}}}")])
                })
                .into(),
            Self::Text => [" bind ", " listen ", " release "]
                .map(|event| line(&[event, &format!(":{port} ")]))
                .into(),
            Self::Print => vec![
                line(&[&format!("{me} "), " bind 2 ", &format!(" {port} 0")]),
                line(&[&format!("{me} "), " listen "]),
                line(&[&format!("{me} "), " state 10 ", &format!(" {port} ")]),
            ],
            Self::Count => vec![line(&["one end"]), line(&["the other"])],
        }
    }
}

impl Cpu {
    /// What has been used since.
    pub fn since(self, before: Self) -> Self {
        Self {
            total: self.total.saturating_sub(before.total),
            system: self.system.saturating_sub(before.system),
        }
    }
}

/// A tool that runs.
pub struct Tool {
    variant: Variant,
    child: Child,
    output: PathBuf,
    errors: PathBuf,
    worker: usize,
    core: usize,
    port: u16,
    /// From its start until its output showed that it sees everything.
    pub ready: Duration,
    /// From its start until portwatch's `start` line.
    pub started: Option<Duration>,
}

/// Processor time that a tool has used.
#[derive(Debug, Clone, Copy)]
pub struct Cpu {
    /// All of it.
    pub total: Duration,
    /// That in the kernel, in ticks of 10 ms.
    pub system: Duration,
}

impl Tool {
    /// Starts a tool and returns when it is ready; without one, nothing.
    pub fn start(variant: Variant, environment: &Environment) -> anyhow::Result<Option<Self>> {
        let Some(mut command) = variant.command() else {
            return Ok(None);
        };
        let output = environment.outputs.join("output");
        let errors = environment.outputs.join("errors");
        command
            .stdin(Stdio::null())
            .stdout(File::create(&output)?)
            .stderr(File::create(&errors)?);
        let begin = Instant::now();
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let mut tool = Self {
            variant,
            child,
            output,
            errors,
            worker: environment.worker,
            core: environment.tool,
            port: PROBES.start,
            ready: Duration::ZERO,
            started: None,
        };
        match variant {
            Variant::Json => tool.wait_for_line(begin, Stream::Output, "\"event\":\"start\"")?,
            Variant::Text => tool.wait_for_line(begin, Stream::Errors, ": tracing with ")?,
            _ => tool.wait_for_line(begin, Stream::Output, "Attaching")?,
        }
        if matches!(variant, Variant::Json | Variant::Text) {
            tool.started = Some(begin.elapsed());
        }
        tool.probe(0)?;
        tool.ready = begin.elapsed();
        Ok(Some(tool))
    }

    fn wait_for_line(&mut self, begin: Instant, stream: Stream, words: &str) -> anyhow::Result<()> {
        let path = match stream {
            Stream::Output => self.output.clone(),
            Stream::Errors => self.errors.clone(),
        };
        let mut tail = Tail::from(&path, 0)?;
        let mut lines = vec![vec![words.to_owned()]];
        loop {
            tail.strike(&mut lines)?;
            if lines.is_empty() {
                return Ok(());
            }
            self.check(begin, &lines)?;
            std::thread::sleep(LOOK);
        }
    }

    /// Returns once everything up to now has been printed.
    pub fn drain(&mut self) -> anyhow::Result<()> {
        let end = self.output.metadata()?.len();
        self.probe(end)
    }

    /// Makes events, on the worker's core so that they come after its own, until they have been
    /// printed behind this place of the output.
    fn probe(&mut self, from: u64) -> anyhow::Result<()> {
        let begin = Instant::now();
        let mut tail = Tail::from(&self.output, from)?;
        loop {
            self.port += 1;
            ensure!(PROBES.contains(&self.port), "out of ports to probe with");
            pin(self.worker)?;
            act(self.port)?;
            pin(self.core)?;
            let mut lines = self.variant.lines(self.port);
            let probe = Instant::now();
            while probe.elapsed() < PATIENCE {
                tail.strike(&mut lines)?;
                if lines.is_empty() {
                    return Ok(());
                }
                self.check(begin, &lines)?;
                std::thread::sleep(LOOK);
            }
        }
    }

    /// Fails if the tool has ended or takes too long.
    fn check(&mut self, begin: Instant, lines: &[Vec<String>]) -> anyhow::Result<()> {
        let name = self.variant.title();
        if let Some(status) = self.child.try_wait()? {
            bail!("{name} ended by itself ({status}):\n{}", self.errors());
        }
        if begin.elapsed() > LIMIT {
            bail!(
                "{name} has not printed within {LIMIT:?} the lines with {lines:?}:\n{}",
                self.errors()
            );
        }
        Ok(())
    }

    fn errors(&self) -> String {
        std::fs::read_to_string(&self.errors).unwrap_or_default()
    }

    /// How many lines of events it has printed.
    pub fn printed(&self) -> anyhow::Result<u64> {
        let mut output = BufReader::with_capacity(1 << 16, File::open(&self.output)?);
        let mut lines = 0;
        let mut line = Vec::new();
        while output.read_until(b'\n', &mut line)? != 0 {
            lines += u64::from(!line.starts_with(LOST));
            line.clear();
        }
        Ok(lines)
    }

    /// The processor time that it has used so far, all its threads together.
    pub fn cpu(&self) -> anyhow::Result<Cpu> {
        let pid = self.child.id();
        let clock = clock_getcpuclockid(Pid::from_raw(pid.cast_signed()))?;
        let total = Duration::from(clock_gettime(clock)?);
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // proc(5): stime is field 15, and the second, in parentheses, may contain anything.
        let system = stat
            .rsplit_once(") ")
            .and_then(|(_, rest)| rest.split(' ').nth(12)?.parse().ok())
            .with_context(|| format!("/proc/{pid}/stat: {stat}"))?;
        Ok(Cpu {
            total,
            // USER_HZ is 100 on every architecture that Linux is built for today.
            system: Duration::from_millis(10) * system,
        })
    }

    /// A line of its `/proc/PID/status` that is in kB, in bytes.
    pub fn memory(&self, key: &str) -> anyhow::Result<u64> {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(&path)?;
        status
            .lines()
            .find_map(|line| {
                let value = line.strip_prefix(key)?.strip_prefix(':')?;
                value.trim().strip_suffix(" kB")?.parse::<u64>().ok()
            })
            .map(|kilobytes| kilobytes * 1024)
            .with_context(|| format!("{path}: no {key}"))
    }

    /// Interrupts the tool, waits for its end and returns how many events it says it has lost.
    pub fn stop(mut self) -> anyhow::Result<u64> {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGINT)?;
        let name = self.variant.title();
        let begin = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            ensure!(begin.elapsed() < LIMIT, "{name} does not heed SIGINT");
            std::thread::sleep(LOOK);
        };
        ensure!(
            interrupted(status),
            "{name} failed ({status}):\n{}",
            self.errors()
        );
        let lost = match self.variant {
            Variant::Json => lost_in_end(&last_line(&self.output)?)?,
            Variant::Text => lost_in_summary(&self.errors())?,
            _ => {
                lost_by_bpftrace(self.errors().as_bytes())?
                    + lost_by_bpftrace(BufReader::new(File::open(&self.output)?))?
            }
        };
        Ok(lost)
    }
}

impl Drop for Tool {
    fn drop(&mut self) {
        // It has ended already unless something failed; then nothing more can be done.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[derive(Clone, Copy)]
enum Stream {
    Output,
    Errors,
}

/// A file that grows, read line by line.
struct Tail {
    file: File,
    line: Vec<u8>,
}

impl Tail {
    fn from(path: &Path, position: u64) -> anyhow::Result<Self> {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(position))?;
        Ok(Self {
            file,
            line: Vec::new(),
        })
    }

    /// Strikes off those lines that have come.
    fn strike(&mut self, wanted: &mut Vec<Vec<String>>) -> anyhow::Result<()> {
        let mut new = Vec::new();
        self.file.read_to_end(&mut new)?;
        for piece in new.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend(piece);
            if !piece.ends_with(b"\n") {
                break;
            }
            let line = String::from_utf8_lossy(&self.line);
            wanted.retain(|words| !words.iter().all(|word| line.contains(word)));
            self.line.clear();
        }
        Ok(())
    }
}

/// Does what every tool must see: bind, listen, close; and what bpftrace's ends look for.
fn act(port: u16) -> anyhow::Result<()> {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    bind(socket.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, port))?;
    listen(&socket, Backlog::new(1)?)?;
    getpgid(None)?;
    getsid(None)?;
    Ok(())
}

/// Whether a tool ended as one that was interrupted does.
fn interrupted(status: ExitStatus) -> bool {
    status.success() || status.signal() == Some(Signal::SIGINT as i32)
}

fn last_line(path: &Path) -> anyhow::Result<String> {
    /// More than an `end` line can be long.
    const ENOUGH: u64 = 1 << 16;
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(ENOUGH)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    Ok(text.lines().next_back().unwrap_or_default().to_owned())
}

/// What an `end` line says was lost.
fn lost_in_end(line: &str) -> anyhow::Result<u64> {
    let end: serde_json::Value =
        serde_json::from_str(line).with_context(|| format!("portwatch's last line: {line}"))?;
    ensure!(end["event"] == "end", "portwatch's last line: {line}");
    let lost = end["lost"]
        .as_object()
        .with_context(|| format!("no `lost`: {line}"))?;
    Ok(lost.values().filter_map(serde_json::Value::as_u64).sum())
}

/// What the closing line of text says was lost: `…; lost 3 records (ring buffer full), 1 run (…)`.
fn lost_in_summary(errors: &str) -> anyhow::Result<u64> {
    let line = errors.lines().next_back().unwrap_or_default();
    if line.ends_with("; nothing lost") {
        return Ok(0);
    }
    let (_, losses) = line
        .rsplit_once("; lost ")
        .with_context(|| format!("portwatch's closing line: {line}"))?;
    losses
        .split("), ")
        .map(|loss| {
            let number = loss.split(' ').next().unwrap_or_default();
            number
                .parse::<u64>()
                .with_context(|| format!("portwatch's closing line: {line}"))
        })
        .sum()
}

/// What bpftrace said it has lost, each time it did: `Lost 3 events`, on standard output or, in
/// later versions, as a warning on standard error.
fn lost_by_bpftrace(mut printed: impl BufRead) -> anyhow::Result<u64> {
    let mut lost = 0;
    let mut line = String::new();
    while printed.read_line(&mut line)? != 0 {
        let said = line.trim_end().trim_start_matches("WARNING: ");
        let number = said
            .strip_prefix("Lost ")
            .and_then(|rest| rest.strip_suffix(" events"));
        if let Some(number) = number {
            lost += number
                .parse::<u64>()
                .with_context(|| format!("bpftrace: {line}"))?;
        }
        line.clear();
    }
    Ok(lost)
}

#[cfg(test)]
mod tests {
    use super::{lost_by_bpftrace, lost_in_end, lost_in_summary};

    #[test]
    fn losses_are_added_up() {
        let errors = "WARNING: x\nLost 3 events\nWARNING: Lost 40 events\n";
        assert_eq!(lost_by_bpftrace(errors.as_bytes()).unwrap(), 43);
        let end = r#"{"event":"end","lost":{"ring":5,"recursion":2}}"#;
        assert_eq!(lost_in_end(end).unwrap(), 7);
        let summary = "portwatch: 3 events in 1 s: 3 bind; lost ";
        let some = format!("{summary}5 records (ring buffer full), 1 run (it was running)\n");
        assert_eq!(lost_in_summary(&some).unwrap(), 6);
        let none = "portwatch: 3 events in 1 s: 3 bind; nothing lost\n";
        assert_eq!(lost_in_summary(none).unwrap(), 0);
        assert!(lost_in_summary("killed").is_err());
    }
}
