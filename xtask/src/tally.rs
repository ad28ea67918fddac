//! Counting tests from what test programs print.
//!
//! The test programs are Rust's own harness with `--show-output`, so what a
//! passed test printed stands, under its name, before the closing line. A test
//! that cannot run here prints `SKIP: name: reason` and returns; the harness
//! calls it passed, this does not.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;

/// How many tests ended which way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Ran and passed.
    pub passed: usize,
    /// Ran and failed.
    pub failed: usize,
    /// Did not run.
    pub skipped: usize,
}

impl Tally {
    /// Adds another to this.
    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        )
    }
}

/// The last lines of what a failed test printed that are kept, and how long each may be: a whole
/// event is one line.
const KEPT_LINES: usize = 40;
const KEPT_CHARACTERS: usize = 2_000;

/// A test that failed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failure {
    /// Its name.
    pub test: String,
    /// The end of what it printed.
    pub printed: VecDeque<String>,
}

impl Failure {
    fn line(&mut self, line: &str) {
        if self.printed.len() == KEPT_LINES {
            self.printed.pop_front();
        }
        let mut kept: String = line.chars().take(KEPT_CHARACTERS).collect();
        if kept.len() < line.len() {
            kept.push('…');
        }
        self.printed.push_back(kept);
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FAILED: {}", self.test)?;
        let printed = self.printed.iter().filter(|line| !line.is_empty());
        printed
            .into_iter()
            .try_for_each(|line| write!(f, "\n    {line}"))
    }
}

/// Reads the output of test programs, line by line.
#[derive(Debug, Default)]
pub struct Reader {
    tally: Tally,
    skips: Vec<String>,
    failures: Vec<Failure>,
    ended: usize,
    part: Part,
    /// The test whose output this is.
    test: Option<String>,
    /// Tests of this program that the harness will call passed, but skipped.
    not_passed: BTreeSet<String>,
    /// The same, from output that stands under no test's name.
    not_passed_unnamed: usize,
}

/// Whose output the harness is showing.
#[derive(Debug, Default, PartialEq, Eq)]
enum Part {
    /// Nobody's: tests are running.
    #[default]
    Running,
    /// That of passed tests.
    Passed,
    /// That of failed tests.
    Failed,
}

impl Reader {
    /// Reads a line, its end taken off.
    pub fn line(&mut self, line: &str) {
        if let Some(skip) = line.trim_start().strip_prefix("SKIP:") {
            self.skip(skip.trim());
        } else if let Some(test) = line
            .strip_prefix("---- ")
            .and_then(|rest| rest.strip_suffix(" stdout ----"))
        {
            self.test = Some(test.to_owned());
            if self.part == Part::Failed {
                self.failures.push(Failure {
                    test: test.to_owned(),
                    ..Failure::default()
                });
            }
        } else if line == "successes:" {
            (self.part, self.test) = (Part::Passed, None);
        } else if line == "failures:" {
            (self.part, self.test) = (Part::Failed, None);
        } else if let Some(counts) = Counts::parse(line) {
            self.end(counts);
        } else if self.part == Part::Failed && self.test.is_some() {
            self.failures
                .last_mut()
                .into_iter()
                .for_each(|failure| failure.line(line));
        }
    }

    /// The tests that failed.
    pub fn failures(&self) -> &[Failure] {
        &self.failures
    }

    /// What was counted.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// The skips that tests printed: name and reason.
    pub fn skips(&self) -> &[String] {
        &self.skips
    }

    /// Tests that ran, those that skipped themselves among them.
    pub fn ended(&self) -> usize {
        self.ended
    }

    fn skip(&mut self, skip: &str) {
        self.skips.push(skip.to_owned());
        self.tally.skipped += 1;
        match (&self.part, &self.test) {
            // A failed test was never counted as passed.
            (Part::Failed, _) => {}
            (Part::Passed, Some(test)) => drop(self.not_passed.insert(test.clone())),
            _ => self.not_passed_unnamed += 1,
        }
    }

    fn end(&mut self, counts: Counts) {
        let not_passed = self.not_passed.len() + self.not_passed_unnamed;
        self.tally.add(Tally {
            passed: counts.passed.saturating_sub(not_passed),
            failed: counts.failed,
            skipped: counts.ignored,
        });
        self.ended += counts.passed + counts.failed;
        self.part = Part::Running;
        self.test = None;
        self.not_passed.clear();
        self.not_passed_unnamed = 0;
    }
}

/// The counts in the closing line of a test program.
#[derive(Debug, PartialEq, Eq)]
struct Counts {
    passed: usize,
    failed: usize,
    ignored: usize,
}

impl Counts {
    /// Reads `test result: ok. 3 passed; 0 failed; 1 ignored; …`.
    fn parse(line: &str) -> Option<Self> {
        let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
        let count = |word: &str| {
            counts
                .split("; ")
                .find_map(|part| part.strip_suffix(word)?.trim_end().parse().ok())
        };
        Some(Self {
            passed: count("passed")?,
            failed: count("failed")?,
            ignored: count("ignored")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Reader, Tally};

    fn read(text: &str) -> Reader {
        let mut reader = Reader::default();
        text.lines().for_each(|line| reader.line(line));
        reader
    }

    fn tally(passed: usize, failed: usize, skipped: usize) -> Tally {
        Tally {
            passed,
            failed,
            skipped,
        }
    }

    const ENDS: &str = "0 measured; 0 filtered out; finished in 0.01s";

    #[test]
    fn programs_are_added_up() {
        let reader = read(&format!(
            "running 3 tests\ntest a ... ok\ntest result: ok. 3 passed; 0 failed; 1 ignored; {ENDS}\n\n\
             running 2 tests\ntest result: FAILED. 1 passed; 1 failed; 0 ignored; {ENDS}\n"
        ));
        assert_eq!(reader.tally(), tally(4, 1, 1));
        assert_eq!(reader.ended(), 5);
        assert!(reader.skips().is_empty());
    }

    #[test]
    fn a_skip_is_never_passed() {
        let reader = read(&format!(
            "successes:\n\n---- bind::v6 stdout ----\nSKIP: v6: no IPv6 here\n\n\
             successes:\n    bind::v4\n    bind::v6\n\n\
             test result: ok. 2 passed; 0 failed; 0 ignored; {ENDS}\n"
        ));
        assert_eq!(reader.tally(), tally(1, 0, 1));
        assert_eq!(reader.ended(), 2);
        assert_eq!(reader.skips(), ["v6: no IPv6 here"]);
    }

    #[test]
    fn several_skips_of_one_test_take_one_from_passed() {
        let reader = read(&format!(
            "successes:\n---- all stdout ----\nSKIP: a: x\nSKIP: b: y\nsuccesses:\n    all\n\
             test result: ok. 3 passed; 0 failed; 0 ignored; {ENDS}\n"
        ));
        assert_eq!(reader.tally(), tally(2, 0, 2));
    }

    #[test]
    fn a_failed_test_that_skipped_something_has_failed() {
        let reader = read(&format!(
            "failures:\n---- all stdout ----\nSKIP: a: x\nthread panicked\nfailures:\n    all\n\
             test result: FAILED. 3 passed; 1 failed; 0 ignored; {ENDS}\n"
        ));
        assert_eq!(reader.tally(), tally(3, 1, 1));
    }

    #[test]
    fn a_failed_test_is_kept_with_the_end_of_what_it_printed() {
        let long = "é".repeat(3_000);
        let many: String = (0..50).map(|number| format!("{number}\n")).collect();
        let reader = read(&format!(
            "successes:\n---- fine stdout ----\nx\nsuccesses:\n    fine\n\n\
             failures:\n\n---- a::one stdout ----\nthread 'a::one' panicked at x.rs:1:\n\
             assertion failed: {long}\n\n---- two stdout ----\n{many}\n\n\
             failures:\n    a::one\n    two\n\n\
             test result: FAILED. 1 passed; 2 failed; 0 ignored; {ENDS}\n\nno test's\n"
        ));
        let [one, two] = reader.failures() else {
            panic!("{:?}", reader.failures());
        };
        let kept = &long[..2 * (2_000 - "assertion failed: ".len())];
        assert_eq!(
            one.to_string(),
            format!(
                "FAILED: a::one\n    thread 'a::one' panicked at x.rs:1:\n    assertion failed: {kept}…"
            )
        );
        assert_eq!(two.test, "two");
        assert_eq!(two.printed.len(), 40);
        assert_eq!(two.printed[0], "12");
        assert!(two.to_string().ends_with("\n    48\n    49"));
    }

    #[test]
    fn a_skip_under_no_name_takes_one_from_passed() {
        let reader = read(&format!(
            "SKIP: a: x\ntest result: ok. 3 passed; 0 failed; 0 ignored; {ENDS}\n\
             test result: ok. 2 passed; 0 failed; 0 ignored; {ENDS}\n"
        ));
        assert_eq!(reader.tally(), tally(4, 0, 1));
    }

    #[test]
    fn other_lines_count_nothing() {
        let reader = read(
            "test result: ok\nxtest result: ok. 3 passed; 0 failed; 0 ignored\n1 passed, 0 failed\n",
        );
        assert_eq!(reader.tally(), tally(0, 0, 0));
        assert_eq!(reader.ended(), 0);
    }

    #[test]
    fn the_closing_line_is_the_plain_one() {
        assert_eq!(
            tally(120, 1, 2).to_string(),
            "120 passed, 1 failed, 2 skipped"
        );
    }
}
