//! Jobs under `portwatch run`, and what is told of them.

use std::ffi::OsStr;
use std::io::Read as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, LazyLock};
use std::thread;

use jsonschema::Validator;
use serde_json::Value;
use tempfile::TempDir;

use crate::{LIMIT, Netns, portwatch, spawn, wait};

const SCHEMA: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../docs/schema/portwatch-report-1.schema.json"
);

static VALIDATOR: LazyLock<Validator> = LazyLock::new(|| {
    let schema = std::fs::read(SCHEMA).unwrap();
    jsonschema::validator_for(&serde_json::from_slice(&schema).unwrap()).unwrap()
});

/// Debian's, whatever else is in PATH.
pub const PYTHON: &str = "/usr/bin/python3";

/// A network namespace and a folder for a job.
pub struct Place {
    /// The namespace.
    pub netns: Arc<Netns>,
    folder: TempDir,
}

impl Default for Place {
    fn default() -> Self {
        Self::new()
    }
}

impl Place {
    /// New ones.
    pub fn new() -> Self {
        Self::within(&Arc::new(Netns::new()))
    }

    /// A folder, and a namespace that there is already.
    pub fn within(netns: &Arc<Netns>) -> Self {
        Self {
            netns: Arc::clone(netns),
            folder: tempfile::tempdir().unwrap(),
        }
    }

    /// The folder, in which the job runs.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// `portwatch run` with these options, a report in JSON, and a job, not started yet.
    pub fn command<S: AsRef<OsStr>>(&self, options: &[&str], job: &[S]) -> Command {
        let mut command = self.netns.command(portwatch());
        command.arg("run");
        if let Some(backend) = std::env::var_os("PORTWATCH_TEST_BACKEND") {
            command.arg("--backend").arg(backend);
        }
        command
            .arg("--utc")
            .arg("--report")
            .arg(self.path().join("report.json"))
            .args(options)
            .arg("--")
            .args(job)
            .current_dir(self.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        for of_service in [
            "GITHUB_ACTIONS",
            "GITLAB_CI",
            "CI_JOB_ID",
            "CI_JOB_URL",
            "GITHUB_RUN_ID",
            "SUDO_UID",
            "SUDO_GID",
            "SUDO_USER",
        ] {
            command.env_remove(of_service);
        }
        command
    }

    /// The same of a command, with the environment that it was given.
    pub fn around(&self, options: &[&str], job: &Command) -> Command {
        let words: Vec<_> = std::iter::once(job.get_program())
            .chain(job.get_args())
            .collect();
        let mut command = self.command(options, &words);
        for (name, value) in job.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
    }

    /// Runs a job to its end.
    pub fn run<S: AsRef<OsStr>>(&self, options: &[&str], job: &[S]) -> Ran {
        self.finish(self.command(options, job))
    }

    /// Runs a script of `sh` to its end.
    pub fn sh(&self, options: &[&str], script: &str) -> Ran {
        self.run(options, &["sh", "-c", script])
    }

    /// Runs a script of Python to its end.
    pub fn python(&self, options: &[&str], script: &str) -> Ran {
        self.run(options, &[PYTHON, "-c", script])
    }

    /// Runs a command of [`Self::command`] to its end.
    pub fn finish(&self, mut command: Command) -> Ran {
        let child = spawn(&mut command);
        self.end(child)
    }

    /// Waits for the end of one that was started.
    pub fn end(&self, mut child: Child) -> Ran {
        let read = |pipe: Option<Box<dyn std::io::Read + Send>>| {
            thread::spawn(move || {
                let mut text = String::new();
                if let Some(mut pipe) = pipe {
                    pipe.read_to_string(&mut text).unwrap();
                }
                text
            })
        };
        let stdout = read(child.stdout.take().map(|pipe| Box::new(pipe) as _));
        let stderr = read(child.stderr.take().map(|pipe| Box::new(pipe) as _));
        let status = wait(&mut child, *LIMIT * 3);
        let report = std::fs::read(self.path().join("report.json")).ok();
        let report = report.filter(|text| !text.is_empty());
        let report = report.map(|text| serde_json::from_slice(&text).unwrap());
        if let Some(report) = &report {
            let errors: Vec<_> = VALIDATOR
                .iter_errors(report)
                .map(|e| e.to_string())
                .collect();
            assert!(errors.is_empty(), "{errors:?} in {report:#}");
        }
        Ran {
            status,
            stdout: stdout.join().unwrap(),
            stderr: stderr.join().unwrap(),
            report: report.unwrap_or(Value::Null),
        }
    }
}

/// How a job went.
#[derive(Debug)]
pub struct Ran {
    /// Portwatch's own.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// The report, if there is one.
    pub report: Value,
}

impl Ran {
    /// The report's text, with names for what varies: times, and pids by the order in which they come.
    pub fn text(&self) -> String {
        let mut pids = Vec::<String>::new();
        let mut text = String::new();
        let mut rest = &*self.stderr;
        while let Some(character) = rest.chars().next() {
            let (shown, length) = if let Some(length) = clock(rest) {
                ("TIME".to_owned(), length)
            } else if let Some((number, length)) = pid(rest) {
                let known = pids
                    .iter()
                    .position(|pid| *pid == number)
                    .unwrap_or_else(|| {
                        pids.push(number.clone());
                        pids.len() - 1
                    });
                let kept = rest[..length].replace(&number, &format!("#{}", known + 1));
                (kept, length)
            } else if let Some(length) = duration(rest).filter(|_| !text.ends_with(is_word)) {
                ("LONG".to_owned(), length)
            } else {
                (character.to_string(), character.len_utf8())
            };
            text.push_str(&shown);
            rest = &rest[length..];
        }
        text
    }

    /// Asserts that the report has this text, but for what this machine cannot see. What is between
    /// columns, which are as wide as pids are, is two spaces.
    pub fn expect(&self, expected: &str) {
        let text = self.text();
        let begin = text.find("portwatch: ").unwrap_or_default();
        let lines = text[begin..].lines();
        let lines = lines.filter(|line| !line.starts_with("not seen: "));
        let text: String = lines.map(|line| format!("{}\n", narrow(line))).collect();
        assert_eq!(text, expected, "in full:\n{}", self.stderr);
    }
}

/// A row of the table of ports without its padding; any other line as it is.
fn narrow(line: &str) -> String {
    if !line.starts_with("  tcp") && !line.starts_with("  udp") {
        return line.to_owned();
    }
    let cells = line.split("  ").map(str::trim);
    let cells = cells.filter(|cell| !cell.is_empty());
    cells.map(|cell| format!("  {cell}")).collect()
}

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '.'
}

fn digits(text: &str) -> usize {
    text.bytes().take_while(u8::is_ascii_digit).count()
}

/// `12:03:09` or `12:03:09.114`: how long it is.
fn clock(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let shape = |at: usize, is: u8| bytes.get(at) == Some(&is);
    if !(digits(text) == 2 && shape(2, b':') && shape(5, b':') && digits(&text[6..]) == 2) {
        return None;
    }
    let fraction = text.get(8..).filter(|rest| rest.starts_with('.'));
    Some(8 + fraction.map_or(0, |fraction| 1 + digits(&fraction[1..])))
}

/// `[4711]` and `kill 4711`: the number, and how long it is in all.
fn pid(text: &str) -> Option<(String, usize)> {
    for (before, after) in [("[", "]"), ("kill ", "")] {
        let Some(rest) = text.strip_prefix(before) else {
            continue;
        };
        let length = digits(rest);
        if length != 0 && rest[length..].starts_with(after) {
            let number = rest[..length].to_owned();
            return Some((number, before.len() + length + after.len()));
        }
    }
    None
}

/// `2.4 s` or `850 ms`: how long it is.
fn duration(text: &str) -> Option<usize> {
    let whole = digits(text);
    if whole == 0 {
        return None;
    }
    let rest = &text[whole..];
    let fraction = rest.strip_prefix('.').map_or(0, |rest| 1 + digits(rest));
    let unit = [" ms", " s"].into_iter().find(|unit| {
        let behind = text[whole + fraction..].strip_prefix(unit);
        behind.is_some_and(|behind| !behind.starts_with(is_word))
    })?;
    Some(whole + fraction + unit.len())
}
