//! The worker: a process of its own that does nothing but the operations that
//! are measured, in bursts, and prints how long each burst took.

use std::fmt;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, accept, bind, connect, getsockname,
    listen, socket,
};
use portwatch_tests::Netns;

use crate::environment::pin;

/// The first argument of a worker.
pub const COMMAND: &str = "worker";

/// The port of loops that ask for one.
const FIXED: u16 = 20_000;

/// How often a bind is tried. Who looks at this process's descriptors (`ss -p`, `lsof`, a
/// portwatch that starts) may hold the socket for a moment after it was closed here.
const ATTEMPTS: u32 = 100_000;

/// A loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// socket, bind to port 0, close: UDP.
    UdpAny,
    /// socket, bind to a port, close: UDP.
    UdpFixed,
    /// socket, bind to port 0, close: TCP.
    TcpAny,
    /// socket, bind to a port, close: TCP.
    TcpFixed,
    /// socket, bind, listen, close.
    Listen,
    /// connect, accept, close by the server, close by the client.
    Timewait,
    /// A system call that nobody traces.
    Getppid,
    /// bind to port 0, without the socket's making and end: UDP.
    UdpBind,
    /// bind to port 0, without the socket's making and end: TCP.
    TcpBind,
}

impl Operation {
    /// All of them, as the tables list them.
    pub const ALL: [Self; 7] = [
        Self::UdpAny,
        Self::UdpFixed,
        Self::TcpAny,
        Self::TcpFixed,
        Self::Listen,
        Self::Timewait,
        Self::Getppid,
    ];

    /// Those of which bind(2) alone is timed.
    pub const ALONE: [Self; 2] = [Self::UdpBind, Self::TcpBind];

    /// Those that bind and do nothing else.
    pub const BINDS: [Self; 4] = [Self::UdpAny, Self::UdpFixed, Self::TcpAny, Self::TcpFixed];

    /// What the tables call it.
    pub fn title(self) -> &'static str {
        match self {
            Self::UdpAny => "bind UDP port 0",
            Self::UdpFixed => "bind UDP fixed",
            Self::TcpAny => "bind TCP port 0",
            Self::TcpFixed => "bind TCP fixed",
            Self::Listen => "bind + listen",
            Self::Timewait => "TIME_WAIT",
            Self::Getppid => "getppid",
            Self::UdpBind => "bind(2) alone, UDP",
            Self::TcpBind => "bind(2) alone, TCP",
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UdpAny => "udp-any",
            Self::UdpFixed => "udp-fixed",
            Self::TcpAny => "tcp-any",
            Self::TcpFixed => "tcp-fixed",
            Self::Listen => "listen",
            Self::Timewait => "timewait",
            Self::Getppid => "getppid",
            Self::UdpBind => "udp-bind",
            Self::TcpBind => "tcp-bind",
        })
    }
}

impl FromStr for Operation {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> anyhow::Result<Self> {
        Self::ALL
            .into_iter()
            .chain(Self::ALONE)
            .find(|operation| operation.to_string() == name)
            .with_context(|| format!("{name}: no such operation"))
    }
}

/// A loop to be run: so many bursts of so many operations.
#[derive(Debug, Clone, Copy)]
pub struct Job {
    /// What to do.
    pub operation: Operation,
    /// How many bursts.
    pub bursts: u32,
    /// How many operations in each.
    pub burst: u32,
    /// What lies between two bursts, for the tool to catch up.
    pub pause: Duration,
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pause = self.pause.as_micros();
        write!(
            f,
            "{}:{}:{}:{pause}",
            self.operation, self.bursts, self.burst
        )
    }
}

impl FromStr for Job {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let fields: Vec<&str> = text.split(':').collect();
        let [operation, bursts, burst, pause] = fields[..] else {
            bail!("{text}: not a job");
        };
        Ok(Self {
            operation: operation.parse()?,
            bursts: bursts.parse()?,
            burst: burst.parse()?,
            pause: Duration::from_micros(pause.parse()?),
        })
    }
}

/// What a worker with these jobs is started with.
pub fn arguments(core: usize, spin: bool, jobs: &[Job]) -> Vec<String> {
    let pausing = if spin { "spin" } else { "sleep" };
    [COMMAND.to_owned(), core.to_string(), pausing.to_owned()]
        .into_iter()
        .chain(jobs.iter().map(Job::to_string))
        .collect()
}

/// Nanoseconds per operation of each burst, from a line that a worker printed.
pub fn parse(line: &str) -> anyhow::Result<(Operation, Vec<f64>)> {
    let mut words = line.split_ascii_whitespace();
    let operation = words.next().context("an empty line")?.parse()?;
    let bursts = words.map(str::parse).collect::<Result<_, _>>()?;
    Ok((operation, bursts))
}

/// Does the jobs in a network namespace that goes with this process, and with it what they leave in
/// TIME_WAIT.
pub fn run(arguments: &[String]) -> anyhow::Result<()> {
    let [core, pausing, jobs @ ..] = arguments else {
        bail!("a worker wants a core, how to pause, and jobs");
    };
    let core = core.parse()?;
    let spin = pausing == "spin";
    Netns::new().run(|| {
        pin(core)?;
        for job in jobs {
            let job: Job = job.parse()?;
            let mut line = job.operation.to_string();
            for nanoseconds in work(&job, spin)? {
                line.push_str(&format!(" {nanoseconds:.1}"));
            }
            println!("{line}");
        }
        Ok(())
    })
}

fn work(job: &Job, spin: bool) -> anyhow::Result<Vec<f64>> {
    let tcp = |port| one(SockType::Stream, port);
    let udp = |port| one(SockType::Datagram, port);
    match job.operation {
        Operation::UdpAny => bursts(job, spin, || udp(0).map(drop)),
        Operation::UdpFixed => bursts(job, spin, || udp(FIXED).map(drop)),
        Operation::TcpAny => bursts(job, spin, || tcp(0).map(drop)),
        Operation::TcpFixed => bursts(job, spin, || tcp(FIXED).map(drop)),
        Operation::Listen => bursts(job, spin, || listen(&tcp(FIXED)?, Backlog::new(1)?)),
        Operation::Timewait => {
            let listener = tcp(0)?;
            listen(&listener, Backlog::new(16)?)?;
            let address: SockaddrIn = getsockname(listener.as_raw_fd())?;
            bursts(job, spin, || pair(&listener, &address))
        }
        Operation::Getppid => bursts(job, spin, || {
            std::hint::black_box(nix::unistd::getppid());
            Ok(())
        }),
        Operation::UdpBind => alone(job, spin, SockType::Datagram),
        Operation::TcpBind => alone(job, spin, SockType::Stream),
    }
}

/// A bound socket.
fn one(kind: SockType, port: u16) -> nix::Result<OwnedFd> {
    let socket = socket(AddressFamily::Inet, kind, SockFlag::SOCK_CLOEXEC, None)?;
    let address = SockaddrIn::new(127, 0, 0, 1, port);
    for _ in 0..ATTEMPTS {
        match bind(socket.as_raw_fd(), &address) {
            Err(Errno::EADDRINUSE) => {}
            result => return result.map(|()| socket),
        }
    }
    Err(Errno::EADDRINUSE)
}

/// A connection whose server closes first and so keeps it in TIME_WAIT.
fn pair(listener: &OwnedFd, address: &SockaddrIn) -> nix::Result<()> {
    let client = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    connect(client.as_raw_fd(), address)?;
    let server = accept(listener.as_raw_fd())?;
    // SAFETY: accept(2) has just made the descriptor, and nobody else has it.
    drop(unsafe { OwnedFd::from_raw_fd(server) });
    drop(client);
    Ok(())
}

fn bursts(
    job: &Job,
    spin: bool,
    mut operation: impl FnMut() -> nix::Result<()>,
) -> anyhow::Result<Vec<f64>> {
    let mut results = Vec::with_capacity(job.bursts as usize);
    for _ in 0..job.bursts {
        let begin = Instant::now();
        for _ in 0..job.burst {
            operation().with_context(|| job.operation.to_string())?;
        }
        let took = begin.elapsed();
        results.push(took.as_secs_f64() * 1e9 / f64::from(job.burst));
        pause(job.pause, spin);
    }
    Ok(results)
}

/// Bursts of bind(2) whose sockets are made before and closed after.
fn alone(job: &Job, spin: bool, kind: SockType) -> anyhow::Result<Vec<f64>> {
    let mut results = Vec::with_capacity(job.bursts as usize);
    let address = SockaddrIn::new(127, 0, 0, 1, 0);
    for _ in 0..job.bursts {
        let make = |_| socket(AddressFamily::Inet, kind, SockFlag::SOCK_CLOEXEC, None);
        let sockets = (0..job.burst).map(make).collect::<Result<Vec<_>, _>>()?;
        let begin = Instant::now();
        for socket in &sockets {
            bind(socket.as_raw_fd(), &address)?;
        }
        let took = begin.elapsed();
        results.push(took.as_secs_f64() * 1e9 / f64::from(job.burst));
        drop(sockets);
        pause(job.pause, spin);
    }
    Ok(results)
}

/// Lets the tool catch up. Where it has a core of its own this one is kept awake, so that the next
/// burst does not begin with a cold core.
fn pause(time: Duration, spin: bool) {
    if !spin {
        std::thread::sleep(time);
        return;
    }
    let begin = Instant::now();
    while begin.elapsed() < time {
        std::hint::spin_loop();
    }
}
