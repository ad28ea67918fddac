//! How long it takes to list the sockets of a busy host, beside `ss` and `lsof`.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use portwatch_tests::Socket;
use portwatch_tests::socket::connect;

use crate::environment::Environment;
use crate::measure::median;
use crate::table::Table;

/// The first argument of a process that holds sockets.
pub const COMMAND: &str = "hold";

/// Sockets of each process: so many listeners, as many of UDP, and so many connections with both
/// ends.
const LISTENERS: u16 = 20;
const CONNECTIONS: u16 = 30;
const EACH: u32 = (2 * LISTENERS + 2 * CONNECTIONS) as u32;

/// The port of the first listener.
const FIRST: u16 = 20_000;

/// How many times as long another tool may take.
const GOALS: [(Lister, f64); 2] = [(Lister::Ss, 5.0), (Lister::Lsof, 20.0)];

/// Who lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lister {
    /// `portwatch list`
    Bound,
    /// `portwatch list --all`
    All,
    /// `ss -tunap`
    Ss,
    /// `lsof -nPi`
    Lsof,
}

impl Lister {
    const ALL: [Self; 4] = [Self::Bound, Self::All, Self::Ss, Self::Lsof];

    fn words(self) -> &'static [&'static str] {
        match self {
            Self::Bound => &["portwatch", "list"],
            Self::All => &["portwatch", "list", "--all"],
            Self::Ss => &["ss", "-tunap"],
            Self::Lsof => &["lsof", "-nPi"],
        }
    }

    fn command(self) -> Command {
        let (program, arguments) = match self.words() {
            ["portwatch", arguments @ ..] => (portwatch_tests::portwatch(), arguments),
            [program, arguments @ ..] => ((*program).into(), arguments),
            [] => unreachable!("each has a program"),
        };
        let mut command = Command::new(program);
        command.args(arguments).stderr(Stdio::null());
        command
    }
}

/// What was measured of one.
pub struct Listed {
    lister: Lister,
    took: Vec<Duration>,
    rows: usize,
}

/// Lists the sockets of so many processes, in so many rounds in which each has its turn.
pub fn measure(
    environment: &Environment,
    processes: u32,
    rounds: u32,
) -> anyhow::Result<Vec<Listed>> {
    let mut holders = Holders::start(processes)?;
    let mut all: Vec<_> = Lister::ALL
        .map(|lister| Listed {
            lister,
            took: Vec::new(),
            rows: 0,
        })
        .into();
    let path = environment.outputs.join("list");
    for _ in 0..rounds {
        for listed in &mut all {
            let title = listed.lister.words().join(" ");
            let mut command = listed.lister.command();
            command.stdout(File::create(&path)?);
            let begin = Instant::now();
            let status = command
                .status()
                .with_context(|| format!("starting {title}"))?;
            listed.took.push(begin.elapsed());
            ensure!(status.success(), "{title}: {status}");
            listed.rows = std::fs::read(&path)?
                .iter()
                .filter(|byte| **byte == b'\n')
                .count();
        }
    }
    holders.end();
    let wanted = processes * EACH;
    for listed in &all {
        let least = match listed.lister {
            Lister::Bound => processes * u32::from(2 * LISTENERS),
            _ => wanted,
        };
        let title = listed.lister.words().join(" ");
        ensure!(
            listed.rows >= least as usize,
            "{title} has {} rows of {least}",
            listed.rows
        );
    }
    Ok(all)
}

/// A row a tool.
pub fn table(all: &[Listed]) -> Table {
    let mut table = Table::new(
        "A list of all sockets, 100 in each process",
        ["tool", "rows", "ms, median", "ms, best", "times list --all"],
    );
    let base = all.iter().find(|listed| listed.lister == Lister::All);
    for listed in all {
        let best = listed.took.iter().min().copied().unwrap_or_default();
        let times = base.map_or(0.0, |base| milliseconds(listed) / milliseconds(base));
        table.row([
            listed.lister.words().join(" "),
            listed.rows.to_string(),
            format!("{:.1}", milliseconds(listed)),
            format!("{:.1}", best.as_secs_f64() * 1e3),
            format!("{times:.1}"),
        ]);
    }
    table
}

/// Whether the goals were met.
pub fn goals(all: &[Listed]) -> Vec<String> {
    let find = |lister| all.iter().find(|listed| listed.lister == lister);
    let Some(own) = find(Lister::All) else {
        return Vec::new();
    };
    let goals = GOALS.into_iter().filter_map(|(lister, goal)| {
        let times = milliseconds(find(lister)?) / milliseconds(own);
        let met = if times >= goal { "met" } else { "not met" };
        let title = lister.words().join(" ");
        Some(format!(
            "goal portwatch list --all: {title} takes {goal:.0} times as long: {times:.1}, {met}"
        ))
    });
    goals.collect()
}

fn milliseconds(listed: &Listed) -> f64 {
    median(&listed.took).as_secs_f64() * 1e3
}

/// Processes that hold sockets until they are told to end.
struct Holders(Vec<Child>);

impl Holders {
    fn start(count: u32) -> anyhow::Result<Self> {
        let myself = std::env::current_exe().context("where this program lies")?;
        let mut holders = Self(Vec::new());
        for number in 0..count {
            let mut command = Command::new(&myself);
            command.arg(COMMAND).arg(number.to_string());
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
            holders
                .0
                .push(command.spawn().context("starting a holder")?);
        }
        for child in &mut holders.0 {
            let mut ready = [0];
            let output = child.stdout.as_mut().context("a holder has no output")?;
            output.read_exact(&mut ready).context("a holder failed")?;
        }
        Ok(holders)
    }

    fn end(&mut self) {
        for child in &mut self.0 {
            // The end of its input ends it.
            drop(child.stdin.take());
            let _ = child.wait();
        }
        self.0.clear();
    }
}

impl Drop for Holders {
    fn drop(&mut self) {
        self.end();
    }
}

/// A holder: opens its sockets, says so, and waits for the end of its input.
pub fn hold(arguments: &[String]) -> anyhow::Result<()> {
    let number: u8 = arguments
        .first()
        .and_then(|number| number.parse().ok())
        .context("hold wants a number up to 255")?;
    let mut kept = Vec::new();
    let listeners = (0..LISTENERS).map(|place| {
        let address = format!("127.1.{number}.1:{}", FIRST + place);
        kept.push(Socket::udp4().bound(&address));
        let listener = Socket::tcp4().bound(&address);
        listener.listen(i32::from(CONNECTIONS)).map(|()| listener)
    });
    let listeners = listeners.collect::<Result<Vec<_>, _>>()?;
    let first = listeners.first().context("no listener")?;
    for _ in 0..CONNECTIONS {
        let client = Socket::tcp4();
        kept.push(connect(first, &client));
        kept.push(client);
    }
    let mut output = std::io::stdout();
    output.write_all(b"x")?;
    output.flush()?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
