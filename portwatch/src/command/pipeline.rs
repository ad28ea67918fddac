//! Puts the stages together: stream, attribution, sinks, writing, with bounded channels between them.
//!
//! Two tasks on one thread, since a hop to another costs more than what the tasks do for a
//! batch of usual size; and a thread that only writes, because standard output may block, and must
//! not keep anything else from ending. Events never leave the task that makes them: it renders them
//! at once, and bytes go on.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use aya::maps::{HashMap, MapData, RingBuf};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};

use portwatch_common::map::filter;

use crate::attribute::Attribution;
use crate::attribute::looker::Looker;
use crate::attribute::lookup::{self, Answer, Ask, Question};
use crate::attribute::process::{self, Found};
use crate::event::{Body, Cause, End, Event, Outcome};
use crate::filter::Filter;
use crate::kernel::clock::{self, Clock};
use crate::kernel::side::{Control, KernelSide};
use crate::kernel::snapshot::Snapshot;
use crate::kernel::stream::{self, Batch};
use crate::sink::json::Json;
use crate::sink::text::{self, Text};

/// Batches between two stages.
const BATCHES: usize = 4;

/// How often it is asked which connections have gone on from FIN_WAIT2 to TIME_WAIT, and looked
/// whether answers have come too late.
const ASK: Duration = lookup::LOOK;

/// How long looking up rests between two rounds at most.
const REST: Duration = Duration::from_millis(50);

/// How many bytes of what was written are kept as room for the next.
const KEPT: usize = 256 << 10;

/// How long a reader of standard output may keep the end waiting.
const LAST_WRITE: Duration = Duration::from_secs(2);

/// All that a stream needs.
pub struct Plan {
    /// The hooks, in place.
    pub side: Arc<KernelSide>,
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
    /// What is wanted.
    pub filter: Filter,
    /// After how many events to end.
    pub count: Option<u64>,
    /// After how long to end.
    pub duration: Option<Duration>,
    /// Where to.
    pub sinks: Sinks,
}

/// Where events go.
pub struct Sinks {
    /// Text on standard output; without it, JSON.
    pub text: Option<Text>,
    /// The columns' names at the head of text.
    pub header: bool,
    /// JSON into a file as well.
    pub file: Option<(PathBuf, File)>,
    /// Nothing on standard error but errors and losses.
    pub quiet: bool,
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

/// Runs the stages until the end: a signal, the duration, the count, or that nobody reads any more.
///
/// # Errors
///
/// If a stage fails.
pub fn run(plan: Plan) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    let result = runtime.block_on(stages(plan));
    // Whatever still blocks must not keep the process from ending.
    runtime.shutdown_background();
    result
}

async fn stages(mut plan: Plan) -> anyhow::Result<ExitCode> {
    // Before the start event says that signals are heeded.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let (stop, stopped) = watch::channel(false);
    let stop = Arc::new(stop);

    let unwritten = Arc::new(AtomicU64::new(0));
    let (renderer, writer) = sinks(plan.sinks);
    let (output, to_write) = mpsc::channel(BATCHES);
    // Room for all there can be: on the way, being written and being filled.
    let (emptied, spare) = mpsc::channel(BATCHES + 2);
    let written = spawn_writer(
        writer,
        to_write,
        emptied,
        Arc::clone(&stop),
        Arc::clone(&unwritten),
    )?;
    let (inputs, to_attribute) = mpsc::channel::<Input>(BATCHES);

    let identified = Arc::get_mut(&mut plan.side).and_then(KernelSide::take_identified);
    let (ask, answers) = spawn_looker(Arc::clone(&plan.side))?;
    let mut attribution = Attribution::new(&plan.snapshot.held, ask);
    if plan.filter.in_kernel() & !filter::UNIX == 0 {
        attribution.sees_all();
    }
    let mut left = plan.snapshot.processes();
    for found in &plan.found {
        left.remove(&found.tgid);
    }
    attribution.found(plan.found);
    let attributing = tokio::spawn(attribute(
        attribution,
        Emission {
            filter: plan.filter,
            left: plan.count,
            renderer,
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
        plan.start,
        Arc::clone(&plan.side),
        identified,
        to_attribute,
        answers,
    ));
    let side = Arc::clone(&plan.side);
    spawn_finder(left, inputs.clone(), stopped.clone());
    let streaming = tokio::spawn({
        let (stopped, side) = (stopped.clone(), Arc::clone(&plan.side));
        async move {
            if let Some(first) = plan.first {
                // Nobody takes it only where everything has ended already.
                let _ = inputs.send(first.into()).await;
            }
            stream::run(plan.ring, plan.control, &side, inputs, stopped).await
        }
    });

    let mut stopped = stopped;
    let deadline = async {
        match plan.duration {
            Some(duration) => tokio::time::sleep(duration).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        () = deadline => {}
        () = output_closed() => {}
        _ = stopped.changed() => {}
    }
    let _ = stop.send(true);

    // A second signal ends it at once; so does a reader that does not read.
    tokio::select! {
        result = finish(streaming, attributing, written) => result,
        _ = interrupt.recv() => Ok(ExitCode::from(130)),
        () = stalled(&unwritten) => {
            let events = unwritten.load(Ordering::Relaxed);
            let records: u64 = side.losses().ring.values().sum();
            anyhow::bail!(
                "standard output is not being read: at least {events} events are not written, \
                 and {records} records did not fit into the ring buffer"
            )
        }
    }
}

type Task = tokio::task::JoinHandle<anyhow::Result<()>>;

async fn finish(
    streaming: Task,
    attributing: Task,
    written: oneshot::Receiver<anyhow::Result<()>>,
) -> anyhow::Result<ExitCode> {
    streaming
        .await
        .context("the stream stage ended abruptly")??;
    attributing
        .await
        .context("the attribution stage ended abruptly")??;
    written
        .await
        .context("the writing stage ended abruptly")??;
    Ok(ExitCode::SUCCESS)
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

/// Returns once standard output is a pipe or socket whose reader has gone, also if there is nothing
/// to write.
async fn output_closed() {
    // SAFETY: standard output's descriptor is never closed or exchanged.
    let watched = unsafe { AsyncFd::register_with_interest(io::stdout(), Interest::ERROR) };
    match watched {
        Ok(output) => {
            let _ = output.ready(Interest::ERROR).await;
        }
        // A file, which has no reader.
        Err(_) => std::future::pending().await,
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

/// Starts the thread that looks up what explains refusals: what asks it, and what it answers. It
/// takes one round of questions at a time, and ends when nobody is left to ask.
fn spawn_looker(side: Arc<KernelSide>) -> anyhow::Result<(Ask, mpsc::Receiver<Vec<Answer>>)> {
    let (questions, asked) = std::sync::mpsc::sync_channel::<Vec<Question>>(1);
    let (answer, answers) = mpsc::channel(BATCHES);
    std::thread::Builder::new()
        .name("portwatch-look".to_owned())
        .spawn(move || {
            let mut looker =
                Looker::new(Box::new(move |addresses| side.ask_owners(addresses).ok()));
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

/// Chooses, counts, renders and hands on.
struct Emission {
    filter: Filter,
    left: Option<u64>,
    renderer: Renderer,
    rendered: Output,
    output: mpsc::Sender<Output>,
    spare: mpsc::Receiver<Output>,
    unwritten: Arc<AtomicU64>,
    stop: Arc<watch::Sender<bool>>,
    counts: BTreeMap<&'static str, u64>,
    failed: u64,
    without_holder: u64,
    lost: BTreeMap<std::borrow::Cow<'static, str>, u64>,
    begin: u64,
}

impl Emission {
    /// Renders an event if it passes.
    fn take(&mut self, event: &Event) {
        if self.keep(&event.body) {
            self.render(event);
        }
    }

    fn render(&mut self, event: &Event) {
        self.renderer.render(event, &mut self.rendered);
    }

    fn keep(&mut self, body: &Body) -> bool {
        if !self.filter.passes(body) {
            return false;
        }
        if let Body::Lost(lost) = body {
            *self.lost.entry(lost.place.clone()).or_default() += lost.count;
            return true;
        }
        match &mut self.left {
            Some(0) => return false,
            Some(left) => {
                *left -= 1;
                if *left == 0 {
                    let _ = self.stop.send(true);
                }
            }
            None => {}
        }
        *self.counts.entry(body.name()).or_default() += 1;
        let failed = match body {
            Body::Bind(bind) => Some((&bind.result, bind.conflict.as_deref())),
            Body::Listen(listen) => Some((&listen.result, listen.conflict.as_deref())),
            _ => None,
        };
        if let Some((result, conflict)) =
            failed.filter(|(result, _)| result.outcome == Outcome::Failure)
        {
            self.failed += 1;
            let unknown = conflict.is_some_and(|conflict| conflict.cause == Cause::Unknown);
            let in_use = result.errno == Some(libc::EADDRINUSE);
            self.without_holder += u64::from(unknown && in_use);
        }
        true
    }

    /// Hands on what was rendered, if anything.
    async fn send(&mut self) {
        if self.rendered.events == 0 {
            return;
        }
        self.unwritten
            .fetch_add(self.rendered.events, Ordering::Relaxed);
        let empty = self.spare.try_recv().unwrap_or_default();
        let rendered = std::mem::replace(&mut self.rendered, empty);
        // The writing stage ends early only when nobody reads; then everything ends.
        let _ = self.output.send(rendered).await;
    }

    async fn end(mut self) {
        let now = clock::monotonic();
        let end = Event {
            time: Clock::now().at_monotonic(now),
            body: Body::End(End {
                counts: self.counts.clone(),
                failed: self.failed,
                without_holder: self.without_holder,
                lost: self.lost.clone(),
                duration_ms: (now - self.begin) / 1_000_000,
            }),
        };
        self.render(&end);
        self.send().await;
    }
}

/// What some events have become.
#[derive(Default)]
struct Output {
    /// How many events.
    events: u64,
    /// For standard output.
    screen: Vec<u8>,
    /// For the file.
    file: Vec<u8>,
    /// For standard error.
    told: String,
}

impl Output {
    /// Keeps the memory, as the next batch is about as long; but not that of many events which waited
    /// for one.
    fn clear(&mut self) {
        self.events = 0;
        self.screen.clear();
        self.screen.shrink_to(KEPT);
        self.file.clear();
        self.file.shrink_to(KEPT);
        self.told.clear();
    }
}

/// Makes of events what is written.
struct Renderer {
    text: Option<Text>,
    json: Json,
    header: bool,
    file: bool,
    quiet: bool,
}

impl Renderer {
    fn render(&mut self, event: &Event, output: &mut Output) {
        output.events += 1;
        let Some(text) = &mut self.text else {
            let begin = output.screen.len();
            self.json.render(event, &mut output.screen);
            if self.file {
                output.file.extend_from_slice(&output.screen[begin..]);
            }
            return;
        };
        if self.file {
            self.json.render(event, &mut output.file);
        }
        match &event.body {
            Body::Start(start) => {
                if !self.quiet {
                    output.told.push_str(&text::start_lines(start));
                }
                if self.header {
                    output.screen.extend(text.header().as_bytes());
                }
            }
            Body::Lost(lost) => output.told.push_str(&text::lost_line(lost)),
            Body::End(end) => {
                if !self.quiet {
                    output.told.push_str(&text::end_line(end));
                }
            }
            _ => text.render(event, &mut output.screen),
        }
    }
}

/// The two ends of the sinks: what renders and what writes.
fn sinks(sinks: Sinks) -> (Renderer, Writer) {
    let renderer = Renderer {
        text: sinks.text,
        json: Json::default(),
        header: sinks.header,
        file: sinks.file.is_some(),
        quiet: sinks.quiet,
    };
    (renderer, Writer { file: sinks.file })
}

/// Starts the writing stage, which gives back what it has written. Its result comes when all is.
fn spawn_writer(
    mut writer: Writer,
    mut outputs: mpsc::Receiver<Output>,
    emptied: mpsc::Sender<Output>,
    stop: Arc<watch::Sender<bool>>,
    unwritten: Arc<AtomicU64>,
) -> anyhow::Result<oneshot::Receiver<anyhow::Result<()>>> {
    let (done, written) = oneshot::channel();
    std::thread::Builder::new()
        .name("portwatch-write".to_owned())
        .spawn(move || {
            let result = loop {
                let Some(mut output) = outputs.blocking_recv() else {
                    break Ok(());
                };
                match writer.write(&output) {
                    Ok(Reader::Reads) => {}
                    Ok(Reader::Gone) => break Ok(()),
                    Err(error) => break Err(error),
                }
                unwritten.fetch_sub(output.events, Ordering::Relaxed);
                output.clear();
                // There is always room.
                let _ = emptied.try_send(output);
            };
            unwritten.store(0, Ordering::Relaxed);
            let _ = stop.send(true);
            let _ = done.send(result);
        })
        .context("starting the writing stage")?;
    Ok(written)
}

/// Whether somebody still reads standard output.
enum Reader {
    Reads,
    Gone,
}

/// The writing stage.
struct Writer {
    file: Option<(PathBuf, File)>,
}

impl Writer {
    fn write(&mut self, output: &Output) -> anyhow::Result<Reader> {
        tell(&output.told);
        if let Some((path, file)) = &mut self.file {
            write_whole(file, &output.file)
                .with_context(|| format!("cannot write to {}", path.display()))?;
        }
        match write_out(&output.screen) {
            Ok(()) => Ok(Reader::Reads),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Reader::Gone),
            Err(error) => Err(error).context("cannot write to standard output"),
        }
    }
}

fn write_out(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}

/// Writes all of it, or as many whole lines as there is room for: no half a line is left behind on a
/// full disk.
fn write_whole(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    let begin = file.stream_position().ok();
    let mut written = 0;
    while written < bytes.len() {
        let error = match file.write(&bytes[written..]) {
            Ok(0) => io::ErrorKind::WriteZero.into(),
            Ok(count) => {
                written += count;
                continue;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => error,
        };
        let whole = bytes[..written].iter().rposition(|byte| *byte == b'\n');
        if let Some(begin) = begin {
            // What is not a regular file cannot be shortened.
            let _ = file.set_len(begin + whole.map_or(0, |newline| newline as u64 + 1));
        }
        return Err(error);
    }
    Ok(())
}

/// Tells something on standard error.
fn tell(lines: &str) {
    // Nothing can be told where standard error is closed.
    let _ = io::stderr().lock().write_all(lines.as_bytes());
}
