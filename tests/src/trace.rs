//! A running `portwatch trace --json`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, Once};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use jsonschema::Validator;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{LIMIT, ended, patience, portwatch_command, signal, spawn, wait};

const SCHEMA: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../docs/schema/portwatch-1.schema.json"
);

/// Whether a line is what the schema says.
pub static VALIDATOR: LazyLock<Validator> = LazyLock::new(|| {
    let schema = std::fs::read(SCHEMA).unwrap();
    jsonschema::validator_for(&serde_json::from_slice(&schema).unwrap()).unwrap()
});

/// The traces that the scenarios of a test binary share, by their arguments.
static SHARED: Mutex<BTreeMap<&'static [&'static str], Arc<Trace>>> = Mutex::new(BTreeMap::new());

#[derive(Default)]
struct Lines {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    lines: Vec<Value>,
    ended: bool,
}

impl Lines {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|lock| lock.into_inner())
    }
}

/// A running trace, whose whole stream is checked when it ends.
pub struct Trace {
    child: Child,
    lines: Arc<Lines>,
    reader: Option<JoinHandle<()>>,
    told: Option<JoinHandle<String>>,
    losses_expected: bool,
    finished: bool,
}

/// What a trace has left behind.
pub struct Stream {
    /// All lines, from `start` to `end`.
    pub lines: Vec<Value>,
    /// What it told on standard error.
    pub told: String,
}

impl Trace {
    /// Starts `portwatch trace --json` with further arguments; it traces when this returns.
    pub fn start(arguments: &[&str]) -> Self {
        let mut command = portwatch_command("trace");
        command.arg("--json").args(arguments);
        // On a machine so slow what explains a refusal takes long as well; and in a guest nobody preempts
        // another trace that starts, which has its only processor for seconds. 250 ms are the default.
        if patience() > 1 {
            let most = Duration::from_secs(1) * patience();
            command.arg(format!("--explain-within={}ms", most.as_millis()));
        }
        Self::of(command)
    }

    /// Starts a command that is one.
    pub fn of(mut command: Command) -> Self {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = spawn(&mut command);
        let lines = Arc::new(Lines::default());
        let output = BufReader::new(child.stdout.take().unwrap());
        let reader = thread::spawn({
            let lines = Arc::clone(&lines);
            move || {
                for line in output.split(b'\n').map_while(Result::ok) {
                    let parsed = serde_json::from_slice(&line).unwrap_or_else(|error| {
                        let line = String::from_utf8_lossy(&line);
                        Value::String(format!("no JSON: {error}: {line}"))
                    });
                    lines.state().lines.push(parsed);
                    lines.changed.notify_all();
                }
                lines.state().ended = true;
                lines.changed.notify_all();
            }
        });
        let mut errors = child.stderr.take().unwrap();
        let told = thread::spawn(move || {
            let mut told = Vec::new();
            let _ = errors.read_to_end(&mut told);
            String::from_utf8_lossy(&told).into_owned()
        });
        let mut trace = Self {
            child,
            lines,
            reader: Some(reader),
            told: Some(told),
            losses_expected: false,
            finished: false,
        };
        match trace.wait_for(0, *LIMIT, |_| true) {
            Ok(start) => assert_eq!(start["event"], "start", "the first line is {start}"),
            Err(why) => {
                let _ = trace.child.kill();
                let told = trace
                    .told
                    .take()
                    .map(|told| told.join().unwrap_or_default());
                panic!("no start event: {why}: {}", told.unwrap_or_default());
            }
        }
        trace
    }

    /// A trace with these arguments that is shared with whoever asks for the same, until the test
    /// binary ends: starting one takes long, and they are all told the same. Its whole stream is
    /// checked then.
    pub fn shared(arguments: &'static [&'static str]) -> Arc<Self> {
        static END: Once = Once::new();
        let mut shared = SHARED.lock().unwrap_or_else(|lock| lock.into_inner());
        END.call_once(|| {
            // SAFETY: the function may be called at any time.
            assert_eq!(unsafe { libc::atexit(end_shared) }, 0);
        });
        let trace = shared
            .entry(arguments)
            .or_insert_with(|| Arc::new(Self::start(arguments)));
        Arc::clone(trace)
    }

    /// Says that losses are part of the test.
    #[must_use]
    pub fn expecting_losses(mut self) -> Self {
        self.losses_expected = true;
        self
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, which: Signal) {
        signal(&self.child, which);
    }

    /// How many lines have been read.
    pub fn seen(&self) -> usize {
        self.lines.state().lines.len()
    }

    /// The lines read so far, from one on.
    pub fn lines(&self, from: usize) -> Vec<Value> {
        let state = self.lines.state();
        state.lines.get(from..).unwrap_or_default().to_vec()
    }

    /// Waits for a line, at or behind `from`, that is what is wanted; otherwise says why it did not
    /// come.
    pub fn wait_for(
        &self,
        from: usize,
        limit: Duration,
        is: impl Fn(&Value) -> bool,
    ) -> Result<Value, &'static str> {
        let begin = Instant::now();
        let mut state = self.lines.state();
        let mut looked_at = from;
        loop {
            while let Some(line) = state.lines.get(looked_at) {
                if is(line) {
                    return Ok(line.clone());
                }
                looked_at += 1;
            }
            let left = limit.saturating_sub(begin.elapsed());
            if state.ended {
                return Err("the trace has ended");
            }
            if left.is_zero() {
                return Err("time is up");
            }
            (state, _) = self.lines.changed.wait_timeout(state, left).unwrap();
        }
    }

    /// Ends it with SIGINT and checks the whole stream.
    pub fn stop(mut self) -> Stream {
        self.signal(Signal::SIGINT);
        self.finish()
    }

    /// Waits for its end and checks the whole stream.
    pub fn finish(&mut self) -> Stream {
        self.finished = true;
        let status = wait(&mut self.child, *LIMIT);
        let joined = self.reader.take().map(JoinHandle::join);
        assert!(joined.is_some_and(|joined| joined.is_ok()));
        let told = self.told.take().unwrap().join().unwrap();
        let lines = std::mem::take(&mut self.lines.state().lines);
        assert!(
            status.success(),
            "portwatch trace: {}\n{told}",
            ended(status)
        );
        check(&lines, self.losses_expected);
        Stream { lines, told }
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        if thread::panicking() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        } else {
            self.signal(Signal::SIGINT);
            self.finish();
        }
    }
}

/// Ends the shared traces; what is wrong with one is a failure of the test binary.
extern "C" fn end_shared() {
    // This thread's own data has gone already.
    let ending = thread::spawn(|| {
        let shared = {
            let mut shared = SHARED.lock().unwrap_or_else(|lock| lock.into_inner());
            std::mem::take(&mut *shared)
        };
        // A test that hangs may have one still.
        for mut trace in shared.into_values().filter_map(Arc::into_inner) {
            trace.signal(Signal::SIGINT);
            trace.finish();
        }
    });
    if ending.join().is_err() {
        eprintln!("the stream of a trace that scenarios shared is not whole: see above");
        // SAFETY: ends this process at once, which exit(3) is about to do.
        unsafe { libc::_exit(101) };
    }
}

/// The lines as text.
pub fn shown(lines: &[Value]) -> String {
    lines.iter().fold(String::new(), |mut text, line| {
        let _ = writeln!(text, "  {line}");
        text
    })
}

/// Lines from a file that portwatch has written.
pub fn read_lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read(path).unwrap();
    assert!(
        text.is_empty() || text.ends_with(b"\n"),
        "the last line of {} is not whole",
        path.display()
    );
    text.split_inclusive(|byte| *byte == b'\n')
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect()
}

/// Checks what holds of every whole stream: it begins with `start` and ends with `end`, has no
/// gaps, keeps to the schema, tells its own counts, and lost no record unless that is expected.
pub fn check(lines: &[Value], losses_expected: bool) {
    let wrong = |what: &str, line: &Value| panic!("{what}: {line}");
    let mut counts = BTreeMap::<&str, u64>::new();
    let mut lost = BTreeMap::<&str, u64>::new();
    let mut failed = 0;
    for (number, line) in lines.iter().enumerate() {
        if let Err(error) = VALIDATOR.validate(line) {
            wrong(&format!("against the schema ({error})"), line);
        }
        if line["seq"] != number {
            wrong(&format!("line {number} has another seq"), line);
        }
        let event = line["event"].as_str().unwrap();
        let place = match number {
            0 => event == "start",
            _ if number + 1 == lines.len() => event == "end",
            _ => !matches!(event, "start" | "end"),
        };
        if !place {
            wrong(&format!("in line {number} of {}", lines.len()), line);
        }
        match event {
            "start" | "end" => {}
            "lost" => {
                let count = line["count"].as_u64().unwrap();
                *lost.entry(line["where"].as_str().unwrap()).or_default() += count;
            }
            event => *counts.entry(event).or_default() += 1,
        }
        failed += u64::from(line["outcome"] == "failure");
    }
    let end = lines.last().unwrap();
    assert!(lines.len() >= 2, "the stream ends with {end}");
    assert_eq!(end["counts"], serde_json::json!(counts), "{end}");
    assert_eq!(end["failed"], failed, "{end}");
    assert_eq!(end["lost"], serde_json::json!(lost), "{end}");
    assert!(
        // A program that was skipped in the middle of itself had nothing to tell, or a scenario misses it;
        // what was not looked up in time is missing from its event, which is there.
        losses_expected || (lost.keys()).all(|place| *place == "recursion" || *place == "lookup"),
        "something was lost: {end}"
    );
}
