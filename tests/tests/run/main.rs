//! `portwatch run`: jobs, and what is told of them.

#![allow(
    clippy::unwrap_used,
    reason = "the helpers of tests: what cannot go on panics"
)]

mod findings;
mod jobs;
mod terminal;
mod tree;
mod wrapper;

use std::ffi::OsStr;
use std::io::Read as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::LazyLock;
use std::thread;

use jsonschema::Validator;
use portwatch_tests::{LIMIT, Netns, portwatch, spawn, wait};
use serde_json::Value;
use tempfile::TempDir;

const SCHEMA: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../docs/schema/portwatch-report-1.schema.json"
);

static VALIDATOR: LazyLock<Validator> = LazyLock::new(|| {
    let schema = std::fs::read(SCHEMA).unwrap();
    jsonschema::validator_for(&serde_json::from_slice(&schema).unwrap()).unwrap()
});

/// Debian's, whatever else is in PATH.
const PYTHON: &str = "/usr/bin/python3";

/// A network namespace and a folder for a job.
struct Place {
    netns: Netns,
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        Self {
            netns: Netns::new(),
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// `portwatch run` with these options, a report in JSON, and a job, not started yet.
    fn command<S: AsRef<OsStr>>(&self, options: &[&str], job: &[S]) -> Command {
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
            "SUDO_UID",
            "SUDO_GID",
            "SUDO_USER",
        ] {
            command.env_remove(of_service);
        }
        command
    }

    /// Runs a job to its end.
    fn run<S: AsRef<OsStr>>(&self, options: &[&str], job: &[S]) -> Ran {
        self.finish(self.command(options, job))
    }

    /// Runs a script of `sh` to its end.
    fn sh(&self, options: &[&str], script: &str) -> Ran {
        self.run(options, &["sh", "-c", script])
    }

    /// Runs a script of Python to its end.
    fn python(&self, options: &[&str], script: &str) -> Ran {
        self.run(options, &[PYTHON, "-c", script])
    }

    /// Runs a command of [`Self::command`] to its end.
    fn finish(&self, mut command: Command) -> Ran {
        let child = spawn(&mut command);
        self.end(child)
    }

    /// Waits for the end of one that was started.
    fn end(&self, mut child: Child) -> Ran {
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
struct Ran {
    status: ExitStatus,
    stdout: String,
    stderr: String,
    report: Value,
}

impl Ran {
    /// The report's text, with names for what varies: times, and pids by the order in which they come.
    fn text(&self) -> String {
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

    /// Asserts that the report has this text, but for what this machine cannot see.
    fn expect(&self, expected: &str) {
        let text = self.text();
        let begin = text.find("portwatch: ").unwrap_or_default();
        let lines = text[begin..].lines();
        let lines = lines.filter(|line| !line.starts_with("not seen: "));
        let text: String = lines.map(|line| format!("{line}\n")).collect();
        assert_eq!(text, expected, "in full:\n{}", self.stderr);
    }
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

#[test]
fn what_varies_has_a_name() {
    let ran = Ran {
        status: ExitStatus::default(),
        stdout: String::new(),
        stderr: "12:03:09.114  a[17] (kill 17) b[18] 40000 after 2.4 s, 850 ms, 1s".to_owned(),
        report: Value::Null,
    };
    assert_eq!(
        ran.text(),
        "TIME  a[#1] (kill #1) b[#2] 40000 after LONG, LONG, 1s"
    );
}
