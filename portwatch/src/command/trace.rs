//! `portwatch trace`: the whole stream.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{IsTerminal as _, Write as _, stderr, stdout};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use aya::maps::{MapData, RingBuf};
use clap::{ArgAction, Args, ValueEnum};
use portwatch_common::map::{FILTER_CAPACITY, filter as bit};

use super::options::{Format, SocketFilter};
use super::value::{self, BackendChoice};
use super::{Usage, pipeline};
use crate::attribute::process::{self, Found};
use crate::event::{Body, Event, Missing, Start, Step};
use crate::filter::{Filter, Kind};
use crate::kernel::clock::{self, Clock};
use crate::kernel::hook::Part;
use crate::kernel::self_test;
use crate::kernel::side::{Choice, Control, KernelSide};
use crate::kernel::snapshot::{self, Snapshot};
use crate::kernel::stream::Batch;
use crate::kernel::support::{self, Unsupported};
use crate::sink::text::{Color, Text};

/// The options of `trace`.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    filter: FilterOptions,

    #[command(flatten)]
    output: OutputOptions,

    /// Stop after this long (500ms, 30s, 5m, 2h)
    #[arg(long, value_name = "TIME", value_parser = value::duration)]
    duration: Option<Duration>,

    /// Stop after this many events
    #[arg(short = 'n', long, value_name = "N", value_parser = value::count)]
    count: Option<u64>,

    /// How to hook into the kernel
    #[arg(long, value_enum, default_value_t = BackendChoice::Auto)]
    backend: BackendChoice,

    /// Size of the kernel's ring buffer: a power of two (64K to 1024M)
    #[arg(long, value_name = "SIZE", default_value = "4M", value_parser = value::buffer)]
    buffer: u32,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Filters")]
struct FilterOptions {
    #[command(flatten)]
    sockets: SocketFilter,

    /// Only failures
    #[arg(short = 'x', long)]
    failed: bool,

    /// Only these kinds of events
    #[arg(short, long, value_name = "EVENTS", value_delimiter = ',', value_enum)]
    events: Vec<Kind>,

    /// AF_UNIX too
    #[arg(long)]
    unix: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Output")]
struct OutputOptions {
    /// How events are written to standard output
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,

    /// Short for --output json
    #[arg(long, conflicts_with = "output")]
    json: bool,

    /// Write JSON to this file as well (mode 0600)
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,

    /// Tell times in UTC instead of local time
    #[arg(long)]
    utc: bool,

    /// When to colour
    #[arg(long, value_enum, default_value_t = When::Auto, value_name = "WHEN")]
    color: When,

    /// Tell nothing on standard error but errors and losses
    #[arg(short, long)]
    quiet: bool,

    /// Tell more on standard error
    #[arg(short, long, action = ArgAction::Count, conflicts_with = "quiet")]
    verbose: u8,
}

/// When to colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum When {
    /// On a terminal, unless NO_COLOR is set
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

impl FilterOptions {
    fn filter(self) -> Result<Filter, Usage> {
        let filter = Filter {
            failed: self.failed,
            unix: self.unix,
            events: self.events.into_iter().collect(),
            ..self.sockets.filter()
        };
        for (option, values) in [
            ("--pid", &filter.pids),
            ("--uid", &filter.uids),
            ("--netns", &filter.netns),
        ] {
            let count = values.len();
            if count > FILTER_CAPACITY as usize {
                return Err(Usage(format!(
                    "{count} values for {option}: {FILTER_CAPACITY} is the most"
                )));
            }
        }
        Ok(filter)
    }
}

impl OutputOptions {
    fn colored(&self) -> bool {
        match self.color {
            When::Always => true,
            When::Never => false,
            // https://no-color.org: set and not empty.
            When::Auto => {
                stdout().is_terminal()
                    && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            }
        }
    }

    fn text(&self) -> Text {
        let zone = if self.utc {
            jiff::tz::TimeZone::UTC
        } else {
            jiff::tz::TimeZone::system()
        };
        let color = if self.colored() {
            Color::On
        } else {
            Color::Off
        };
        Text::new(zone, color)
    }

    /// Opens the file to write to, so that what is wrong with it is told before anything is attached.
    fn open(&self) -> anyhow::Result<Option<(PathBuf, File)>> {
        let Some(path) = &self.write else {
            return Ok(None);
        };
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path)
            .with_context(|| format!("cannot write to {}", path.display()))?;
        // A file that was there already keeps its mode otherwise; a device is left alone.
        if file.metadata().is_ok_and(|metadata| metadata.is_file()) {
            file.set_permissions(Permissions::from_mode(0o600))
                .with_context(|| format!("cannot set the mode of {}", path.display()))?;
        }
        Ok(Some((path.clone(), file)))
    }
}

/// Runs `portwatch trace`.
///
/// # Errors
///
/// If tracing is not possible here, or fails.
pub fn run(options: Options) -> anyhow::Result<ExitCode> {
    let filter = options.filter.filter()?;
    let quiet = options.output.quiet;
    let verbose = options.output.verbose > 0;
    support::preflight(Path::new("/"))?;
    let file = options.output.open()?;

    let mut side = KernelSide::load(&Choice {
        backend: options.backend.into(),
        parts: parts(&filter),
        buffer: options.buffer,
    })?;
    let mut ring = side.take_ring().context("the object has no ring buffer")?;
    let mut control = side
        .take_control()
        .context("the object has no control map")?;
    let (first, unproven) = prove(&mut side, &mut ring, verbose)?;
    let mut missing = missing(&side);
    missing.extend(unproven);
    if verbose {
        for step in side.steps() {
            let _ = writeln!(
                stderr(),
                "portwatch: {} not by {}: {}",
                step.part.name(),
                step.backend,
                step.why
            );
        }
    }
    apply_filters(&filter, &mut side, &mut control)?;
    let snapshot = snapshot::take(&side);
    if let Some(why) = &snapshot.degraded {
        missing.push(Missing {
            what: Part::Snapshot.loss().to_owned(),
            why: why.clone(),
        });
    }
    give_back();
    let found = find(&snapshot);
    let start = Event {
        time: Clock::now().at_monotonic(clock::monotonic()),
        body: Body::Start(start(&filter, &side, missing)),
    };
    let sinks = pipeline::Sinks {
        text: (options.output.output == Format::Text && !options.output.json)
            .then(|| options.output.text()),
        header: stdout().is_terminal(),
        file,
        quiet,
    };
    pipeline::run(pipeline::Plan {
        side: Arc::new(side),
        ring,
        control,
        first,
        snapshot,
        found,
        start,
        filter,
        count: options.count,
        duration: options.duration,
        sinks,
    })
}

/// Proves that the hooks fire. Gives the records of others that came meanwhile, and what could not
/// be proven.
fn prove(
    side: &mut KernelSide,
    ring: &mut RingBuf<MapData>,
    verbose: bool,
) -> anyhow::Result<(Option<Batch>, Vec<Missing>)> {
    let proven = self_test::run(side, ring);
    side.settle();
    let report = match proven {
        Ok(report) => report,
        Err(error) if error.is::<Unsupported>() => return Err(error),
        Err(error) => {
            let unproven = Missing {
                what: "proof that the hooks fire".to_owned(),
                why: format!("{error:#}"),
            };
            return Ok((None, vec![unproven]));
        }
    };
    if verbose {
        let _ = writeln!(
            stderr(),
            "portwatch: self-test: {} of {} kinds of events seen in {} ms",
            report.proofs.iter().filter(|proof| proof.seen).count(),
            report.proofs.len(),
            report.took.as_millis()
        );
    }
    if report.failed().contains(&"bind") && !report.lossy {
        return Err(Unsupported::new(
            "cannot trace: the hooks are attached but do not fire",
            "binds made by the self-test were not seen",
            "see portwatch doctor; if lockdown is in force, leave confidentiality mode",
        )
        .into());
    }
    let unproven = report.failed().into_iter().map(|what| Missing {
        what: what.to_owned(),
        why: if report.lossy {
            "the ring buffer overflowed during the self-test, which proves nothing"
        } else {
            "its hook is attached but did not fire in the self-test"
        }
        .to_owned(),
    });
    let unproven = unproven.collect();
    Ok((Some(report.others), unproven))
}

/// How long the start may be held up by reading who held sockets before.
const FIND: Duration = Duration::from_millis(100);

/// Reads from `/proc` who held sockets before, as many as the time allows: one that is killed right
/// after the start is known then. The others are read beside the stream.
fn find(snapshot: &Snapshot) -> Vec<Found> {
    let begin = Instant::now();
    snapshot
        .processes()
        .into_iter()
        .take_while(|_| begin.elapsed() < FIND)
        .filter_map(|pid| process::from_proc(Path::new("/proc"), pid))
        .collect()
}

/// Gives the memory back that reading the kernel's types has taken.
fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: has no preconditions.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// The parts of the kernel side that the wanted events need.
fn parts(filter: &Filter) -> Vec<Part> {
    let mut parts = BTreeSet::from([
        Part::Bind,
        Part::Autobind,
        Part::Conflict,
        Part::Process,
        Part::Snapshot,
    ]);
    if filter.wants(Kind::Release) || filter.wants(Kind::Timewait) {
        // Why a TIME_WAIT ended depends on whether somebody still listens.
        parts.insert(Part::Release);
    }
    if filter.wants(Kind::Timewait) {
        parts.insert(Part::Timewait);
    }
    parts.into_iter().collect()
}

/// What is not seen: for want of a hook, one for each part with the reason of its first hook, or by
/// the backend that does the part.
fn missing(side: &KernelSide) -> Vec<Missing> {
    let mut missing = Vec::new();
    for (part, backend) in side.parts() {
        let Some(backend) = backend else {
            let steps = side.steps().iter().filter(|step| step.part == part);
            let why: Vec<_> = steps
                .map(|step| format!("{}: {}", step.backend, step.why))
                .collect();
            missing.push(Missing {
                what: part.loss().to_owned(),
                why: if why.is_empty() {
                    "the backend asked for cannot see it".to_owned()
                } else {
                    why.join("; ")
                },
            });
            continue;
        };
        let mut statuses = side.statuses().filter(|(of, _)| *of == part);
        if let Some((hook, why)) =
            statuses.find_map(|(_, status)| Some((status.hook, status.failure.as_ref()?)))
        {
            missing.push(Missing {
                what: part.loss().to_owned(),
                why: format!("the hook {hook} is not in place: {why}"),
            });
        }
        if let Some(what) = part.blind_spot(backend) {
            missing.push(Missing {
                what: what.to_owned(),
                why: format!("the {backend} backend cannot see them"),
            });
        }
    }
    missing
}

fn start(filter: &Filter, side: &KernelSide, missing: Vec<Missing>) -> Start {
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok();
    let kernel = nix::sys::utsname::uname()
        .map(|name| name.release().to_string_lossy().into_owned())
        .unwrap_or_default();
    Start {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        backend: side.backend().name().to_owned(),
        parts: side
            .parts()
            .filter_map(|(part, backend)| {
                Some((part.name().to_owned(), backend?.name().to_owned()))
            })
            .collect(),
        steps: side
            .steps()
            .iter()
            .map(|step| Step {
                part: step.part.name().to_owned(),
                backend: step.backend.name().to_owned(),
                why: step.why.clone(),
            })
            .collect(),
        kernel,
        boot_id: boot_id.map(|id| id.trim().to_owned()),
        filters: filter.describe(),
        missing,
    }
}

/// Puts the filters that the kernel side can apply into force.
fn apply_filters(
    filter: &Filter,
    side: &mut KernelSide,
    control: &mut Control,
) -> anyhow::Result<()> {
    for (name, values) in [
        ("PIDS", &filter.pids),
        ("UIDS", &filter.uids),
        ("NETNS", &filter.netns),
    ] {
        let mut map = side.filter_map(name).context("a filter map is missing")?;
        for value in values {
            map.insert(value, 1, 0)?;
        }
    }
    let mut words = std::collections::BTreeMap::<u32, u64>::new();
    for port in filter.ports.iter().cloned().flatten() {
        *words.entry(u32::from(port) / 64).or_default() |= 1 << (port % 64);
    }
    let mut map = side.port_map().context("the port map is missing")?;
    for (index, word) in words {
        map.set(index, word, 0)?;
    }
    let mut bits = filter.in_kernel();
    if !(filter.wants(Kind::Release) || filter.wants(Kind::Timewait)) {
        bits |= bit::FOLLOW_NONE;
    }
    if !side.has(&self_test::RELEASES) {
        bits |= bit::FOLLOW_TCP;
    }
    control.set_filters(bits)?;
    Ok(())
}
