//! Puts the stages together: stream, attribution, sinks, writing, with bounded channels between them.
//!
//! Two tasks on one thread, since a hop to another costs more than what the tasks do for a
//! batch of usual size; and a thread that only writes, because standard output may block, and must
//! not keep anything else from ending. Events never leave the task that makes them: it renders them
//! at once, and bytes go on.

mod emission;
mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use aya::maps::{HashMap, MapData};
use portwatch_common::record::SnapshotEntry;
use tokio::sync::{mpsc, oneshot, watch};

use self::emission::{Emission, Output, Renderer};
use self::writer::{Writer, spawn_writer};
use super::prepare::Prepared;
use crate::attribute::Attribution;
use crate::attribute::looker::{Looker, OpenFiles};
use crate::attribute::lookup::{self, Answer, Ask, Patience, Question};
use crate::attribute::marks::Marks;
use crate::attribute::process::{self, Found};
use crate::event::Event;
use crate::filter::Filter;
use crate::kernel::clock;
use crate::kernel::side::KernelSide;
use crate::kernel::stream::{self, Batch};
use crate::sink::json::Json;
use crate::sink::text::Text;

/// Batches between two stages.
const BATCHES: usize = 4;

/// How often it is asked which connections have gone on from FIN_WAIT2 to TIME_WAIT, and looked
/// whether answers have come too late.
const ASK: Duration = lookup::LOOK;

/// How long looking up rests between two rounds at most.
const REST: Duration = Duration::from_millis(50);

/// How long a reader of standard output may keep the end waiting.
const LAST_WRITE: Duration = Duration::from_secs(2);

/// All that a stream needs.
pub struct Plan {
    /// The hooks, in place, and what came of putting them there.
    pub prepared: Prepared,
    /// What is wanted.
    pub filter: Filter,
    /// By what containers are known to be of the job that is watched, if one is.
    pub marks: Option<Arc<Marks>>,
    /// After how many events to end.
    pub count: Option<u64>,
    /// How long an event may wait for what explains it.
    pub explain_within: Duration,
    /// Where to.
    pub sinks: Sinks,
}

/// Is shown each event that is wanted, in the task that makes them.
pub type Watcher = Box<dyn FnMut(&Event) + Send>;

/// Where events go.
pub struct Sinks {
    /// Standard output, and standard error for what is no event.
    pub screen: Screen,
    /// JSON into a file as well.
    pub file: Option<(PathBuf, File)>,
    /// Nothing on standard error but errors and losses.
    pub quiet: bool,
    /// Who else is shown them.
    pub watcher: Option<Watcher>,
}

/// What is shown on standard output.
pub enum Screen {
    /// Lines of text.
    Text {
        /// Makes them.
        text: Box<Text>,
        /// The columns' names stand above them.
        header: bool,
    },
    /// JSON.
    Json,
    /// Nothing, on standard error neither.
    Nothing,
}

/// What the attribution stage gets.
enum Input {
    Batch(Batch),
    Found(Vec<Found>),
}

impl From<Batch> for Input {
    fn from(batch: Batch) -> Self {
        Self::Batch(batch)
    }
}

type Task = tokio::task::JoinHandle<anyhow::Result<()>>;

/// The stages at work.
pub struct Running {
    stop: Arc<watch::Sender<bool>>,
    stopped: watch::Receiver<bool>,
    streaming: Task,
    attributing: Task,
    written: oneshot::Receiver<anyhow::Result<()>>,
    unwritten: Arc<AtomicU64>,
    side: Arc<KernelSide>,
}

/// Runs something that starts the stages, on a runtime of its own.
///
/// # Errors
///
/// If there is no runtime to be had, or as `act` says.
pub fn block_on<T>(act: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    let result = runtime.block_on(act);
    // Whatever still blocks must not keep the process from ending.
    runtime.shutdown_background();
    result
}

/// Starts the stages, on the runtime that this is called on.
///
/// # Errors
///
/// If the writing stage cannot be started.
pub fn start(plan: Plan) -> anyhow::Result<Running> {
    let prepared = plan.prepared;
    let (stop, stopped) = watch::channel(false);
    let stop = Arc::new(stop);
    let unwritten = Arc::new(AtomicU64::new(0));
    let renderer = Renderer {
        screen: plan.sinks.screen,
        json: Json::default(),
        file: plan.sinks.file.is_some(),
        quiet: plan.sinks.quiet,
    };
    let (output, to_write) = mpsc::channel(BATCHES);
    // Room for all there can be: on the way, being written and being filled.
    let (emptied, spare) = mpsc::channel(BATCHES + 2);
    let written = spawn_writer(
        Writer {
            file: plan.sinks.file,
        },
        to_write,
        emptied,
        Arc::clone(&stop),
        Arc::clone(&unwritten),
    )?;
    let (inputs, to_attribute) = mpsc::channel::<Input>(BATCHES);

    let mut side = prepared.side;
    let identified = side.take_identified();
    let side = Arc::new(side);
    let (ask, answers) = spawn_looker(Arc::clone(&side))?;
    let patience = Patience::within(plan.explain_within);
    let mut attribution = Attribution::new(&prepared.snapshot.held, ask, patience);
    attribution.choose(plan.filter.clone());
    if let Some(marks) = plan.marks {
        attribution.watch(marks);
    }
    let mut left = prepared.snapshot.processes();
    for found in &prepared.found {
        left.remove(&found.tgid);
    }
    attribution.found(prepared.found);
    let attributing = tokio::spawn(attribute(
        attribution,
        Emission {
            filter: plan.filter,
            left: plan.count,
            renderer,
            watcher: plan.sinks.watcher,
            rendered: Output::default(),
            output,
            spare,
            unwritten: Arc::clone(&unwritten),
            stop: Arc::clone(&stop),
            counts: BTreeMap::new(),
            failed: 0,
            without_holder: 0,
            lost: BTreeMap::new(),
            begin: clock::monotonic(),
        },
        prepared.start,
        Arc::clone(&side),
        identified,
        to_attribute,
        answers,
    ));
    spawn_finder(left, inputs.clone(), stopped.clone());
    let streaming = tokio::spawn({
        let (stopped, side) = (stopped.clone(), Arc::clone(&side));
        async move {
            if let Some(first) = prepared.first {
                // Nobody takes it only where everything has ended already.
                let _ = inputs.send(first.into()).await;
            }
            stream::run(prepared.ring, prepared.control, &side, inputs, stopped).await
        }
    });
    Ok(Running {
        stop,
        stopped,
        streaming,
        attributing,
        written,
        unwritten,
        side,
    })
}

impl Running {
    /// The kernel side, which the stages use as well: the hooks are in place for as long as it is there.
    #[must_use]
    pub fn side(&self) -> Arc<KernelSide> {
        Arc::clone(&self.side)
    }

    /// Returns once the stages end by themselves: the count was reached, or nobody reads any more.
    pub async fn stopped(&mut self) {
        // The stages have the other end.
        let _ = self.stopped.changed().await;
    }

    /// Ends the stages: what has happened until now is written.
    ///
    /// # Errors
    ///
    /// If a stage has failed, or standard output is not being read.
    pub async fn finish(self) -> anyhow::Result<()> {
        let _ = self.stop.send(true);
        self.side.leave();
        let ending = async {
            let stage = |name: &str| format!("the {name} stage ended abruptly");
            self.streaming.await.with_context(|| stage("stream"))??;
            (self.attributing.await).with_context(|| stage("attribution"))??;
            self.written.await.with_context(|| stage("writing"))?
        };
        tokio::select! {
            result = ending => result,
            () = stalled(&self.unwritten) => {
                let events = self.unwritten.load(Ordering::Relaxed);
                let records: u64 = self.side.losses().ring.values().sum();
                anyhow::bail!(
                    "standard output is not being read: at least {events} events are not written, \
                     and {records} records did not fit into the ring buffer"
                )
            }
        }
    }
}

/// Returns once nothing has been written for too long although something waits to be.
async fn stalled(unwritten: &AtomicU64) {
    let mut before = u64::MAX;
    loop {
        tokio::time::sleep(LAST_WRITE).await;
        let now = unwritten.load(Ordering::Relaxed);
        if now != 0 && now == before {
            return;
        }
        before = now;
    }
}

/// Reads from `/proc` who these processes are, beside the stream: there may be thousands.
fn spawn_finder(pids: BTreeSet<u32>, inputs: mpsc::Sender<Input>, stopped: watch::Receiver<bool>) {
    tokio::task::spawn_blocking(move || {
        let pids: Vec<_> = pids.into_iter().collect();
        for pids in pids.chunks(64) {
            let found = pids
                .iter()
                .filter_map(|pid| process::from_proc(Path::new("/proc"), *pid))
                .collect();
            if *stopped.borrow() || inputs.blocking_send(Input::Found(found)).is_err() {
                return;
            }
        }
    });
}

/// The iterators of the kernel side.
struct Iterators(Arc<KernelSide>);

impl OpenFiles for Iterators {
    fn owners(&self, addresses: &[u64]) -> Option<Vec<SnapshotEntry>> {
        self.0.ask_owners(addresses).ok()
    }

    fn sockets(&self) -> Option<Vec<SnapshotEntry>> {
        self.0.snapshot().ok()
    }
}

/// Starts the thread that looks up what explains refusals: what asks it, and what it answers. It
/// takes one round of questions at a time, and ends when nobody is left to ask.
fn spawn_looker(side: Arc<KernelSide>) -> anyhow::Result<(Ask, mpsc::Receiver<Vec<Answer>>)> {
    let (questions, asked) = std::sync::mpsc::sync_channel::<Vec<Question>>(1);
    let (answer, answers) = mpsc::channel(BATCHES);
    std::thread::Builder::new()
        .name("portwatch-look".to_owned())
        .spawn(move || {
            let mut looker = Looker::new(Box::new(Iterators(side)));
            while let Ok(questions) = asked.recv() {
                let before = clock::thread_time();
                // Nobody takes them only where everything has ended.
                looker.answer(questions, |answers| drop(answer.blocking_send(answers)));
                // Looking up takes at most half of a processor, however many refusals there are.
                let took = clock::thread_time().saturating_sub(before);
                std::thread::sleep(took.min(REST));
            }
        })
        .context("starting the look-ups")?;
    let ask = move |round| {
        questions.try_send(round).map_err(|error| match error {
            std::sync::mpsc::TrySendError::Full(round)
            | std::sync::mpsc::TrySendError::Disconnected(round) => round,
        })
    };
    Ok((Box::new(ask), answers))
}

/// The attribution stage.
async fn attribute(
    mut attribution: Attribution,
    mut emission: Emission,
    start: Event,
    side: Arc<KernelSide>,
    mut identified: Option<HashMap<MapData, u32, u32>>,
    mut inputs: mpsc::Receiver<Input>,
    mut answers: mpsc::Receiver<Vec<Answer>>,
) -> anyhow::Result<()> {
    emission.render(&start);
    emission.send().await;
    let mut ask = tokio::time::interval(ASK);
    ask.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            input = inputs.recv() => match input {
                Some(Input::Batch(batch)) => {
                    attribution.batch(&batch, |event| emission.take(event));
                }
                Some(Input::Found(found)) => attribution.found(found),
                None => break,
            },
            Some(answers) = answers.recv() => {
                attribution.answered(answers, |event| emission.take(event));
            }
            _ = ask.tick(), if attribution.is_waiting() || attribution.is_asking() => {
                if attribution.is_waiting()
                    // Without the iterator they are told at their end.
                    && let Ok(found) = side.ask_timewaits(&attribution.waiting())
                {
                    attribution.found_timewaits(found);
                }
                attribution.look(&mut |event: &Event| emission.take(event));
            }
        }
        if let Some(identified) = &mut identified {
            for tgid in attribution.forgotten() {
                // It may have been evicted there as well.
                let _ = identified.remove(&tgid);
            }
        }
        emission.send().await;
    }
    attribution.nothing_comes_behind();
    while attribution.is_asking() {
        if let Ok(Some(answers)) = tokio::time::timeout(ASK, answers.recv()).await {
            attribution.answered(answers, |event| emission.take(event));
        } else {
            attribution.look(&mut |event: &Event| emission.take(event));
        }
    }
    attribution.finish(|event| emission.take(event));
    emission.end().await;
    Ok(())
}
