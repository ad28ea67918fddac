//! Puts the hooks in place and proves that they fire: what a stream begins with.

use std::collections::BTreeSet;
use std::io::{Write as _, stderr};
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use aya::maps::{MapData, RingBuf};
use portwatch_common::map::filter as bit;

use super::options::TraceOptions;
use crate::attribute::process::{self, Found};
use crate::event::{Body, Event, Missing, Start, Step};
use crate::filter::{Filter, Kind};
use crate::kernel::clock::{self, Clock};
use crate::kernel::hook::Part;
use crate::kernel::netns;
use crate::kernel::self_test;
use crate::kernel::side::{Choice, Control, KernelSide};
use crate::kernel::snapshot::{self, Snapshot};
use crate::kernel::stream::Batch;
use crate::kernel::support::Unsupported;
use crate::kernel::sysctls::Sysctls;
use crate::kernel::tree::Tree;

/// The hooks, in place and proven.
pub struct Prepared {
    /// The hooks.
    pub side: KernelSide,
    /// The records.
    pub ring: RingBuf<MapData>,
    /// What the kernel side is told at run time.
    pub control: Control,
    /// What was drained before the stream begins.
    pub first: Option<Batch>,
    /// What existed before.
    pub snapshot: Snapshot,
    /// Who those are that held sockets, as far as they could be read so far.
    pub found: Vec<Found>,
    /// The stream's first event.
    pub start: Event,
}

/// Puts the hooks in place that the wanted events need.
///
/// # Errors
///
/// If tracing is not possible here.
pub(super) fn prepare(
    filter: &Filter,
    options: TraceOptions,
    verbose: bool,
) -> anyhow::Result<Prepared> {
    let mut side = KernelSide::load(&Choice {
        backend: options.backend.into(),
        parts: parts(filter),
        buffer: options.buffer,
        tree: filter.job.is_some(),
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
    apply_filters(filter, &mut side, &mut control)?;
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
        body: Body::Start(start(filter, &side, missing)),
    };
    Ok(Prepared {
        side,
        ring,
        control,
        first,
        snapshot,
        found,
        start,
    })
}

/// The tree of a job's processes, proven to be followed.
///
/// # Errors
///
/// If it cannot be followed here.
pub(super) fn tree(side: &mut KernelSide) -> anyhow::Result<Tree> {
    let mut tree = side
        .take_tree()
        .context("the object has no map of a tree")?;
    tree.prove()?;
    Ok(tree)
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
        // Who bound what, and whether a port was given back, explains refusals. Why a TIME_WAIT
        // ended depends on whether somebody still listens.
        Part::Release,
        Part::Process,
        Part::Snapshot,
    ]);
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
    let settings = Sysctls::read(Path::new("/proc"));
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
        netns: netns::own(),
        local_port_range: settings.local_port_range.map(RangeInclusive::into_inner),
        local_reserved_ports: settings
            .local_reserved_ports
            .filter(|reserved| !reserved.is_empty()),
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
    if !side.has(&self_test::RELEASES) {
        bits |= bit::FOLLOW_TCP;
    }
    control.set_filters(bits)?;
    Ok(())
}
