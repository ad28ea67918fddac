//! What a guest says, understood: see the end of `init.sh`.

use std::collections::BTreeMap;

use super::Outcome;
use super::guest::{End, Guest};
use crate::tally::Reader;

/// What was read of a guest's results.
#[derive(Debug, Default)]
pub struct Report {
    /// What is in progress: its kind and the backend.
    section: Option<(String, String)>,
    /// Output of `portwatch doctor`, by backend.
    doctors: BTreeMap<String, Vec<String>>,
    reader: Reader,
    /// Failures counted when the section began, and those of them that were named.
    failed_before: usize,
    named_before: usize,
    /// The failed tests, with the backend.
    failures: Vec<String>,
    complaints: Vec<String>,
    begun: bool,
    done: bool,
}

/// What becomes of a line.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// It is of a test program through this backend.
    Show(String),
    /// It is kept, or was understood.
    Kept,
}

impl Report {
    /// Reads a line.
    pub fn line(&mut self, line: &str) -> Line {
        let mut words = line.split(' ');
        let section = match (words.next(), &self.section) {
            (Some("@begin"), _) => {
                self.begun = true;
                self.failed_before = self.reader.tally().failed;
                self.named_before = self.reader.failures().len();
                let mut word = || words.next().unwrap_or_default().to_owned();
                self.section = Some((word(), word()));
                return Line::Kept;
            }
            (Some("@end"), _) => {
                self.end(words.next().unwrap_or_default());
                return Line::Kept;
            }
            (Some("@done"), _) => {
                self.done = true;
                return Line::Kept;
            }
            (_, None) => return Line::Show(String::new()),
            (_, Some(section)) => section,
        };
        let (kind, backend) = section;
        if kind == "doctor" {
            let doctor = self.doctors.entry(backend.clone()).or_default();
            doctor.push(line.to_owned());
            return Line::Kept;
        }
        self.reader.line(line);
        Line::Show(backend.clone())
    }

    fn end(&mut self, status: &str) {
        let Some((kind, backend)) = self.section.take() else {
            return;
        };
        if kind == "doctor" {
            let said = self.doctors.get(&backend).map_or(&[][..], Vec::as_slice);
            // That a backend has its blind spots is status 1, and no failure.
            let wrong = !matches!(status, "0" | "1") || said.iter().any(|line| is_wrong(line));
            if wrong {
                self.complaints.push(format!(
                    "portwatch doctor, {backend}: exit status {status}\n{}",
                    said.join("\n")
                ));
            }
            return;
        }
        let failed = &self.reader.failures()[self.named_before..];
        let failed = failed.iter().map(|failure| format!("{backend}: {failure}"));
        self.failures.extend(failed);
        if status != "0" && self.reader.tally().failed == self.failed_before {
            self.complaints.push(format!(
                "{kind} {backend}: exit status {status}, though no test failed"
            ));
        }
    }

    /// Whether anything came at all.
    pub fn is_empty(&self) -> bool {
        !self.begun
    }

    /// Counts the tests into an outcome, with what is wrong besides as failed, and tells of both, and of
    /// how the guest ended. `further` is wrong as well, and not to be seen in the report.
    pub fn judge(&self, guest: &Guest, end: &End, further: Vec<String>, outcome: &mut Outcome) {
        let complaints = [self.complaints(end.told()), further].concat();
        outcome.tally = self.reader.tally();
        outcome.tally.failed += complaints.len();
        let remarks = &mut outcome.remarks;
        remarks.extend(complaints.iter().map(|text| format!("FAILED: {text}")));
        remarks.extend_from_slice(&self.failures);
        let skips = self.reader.skips().iter();
        remarks.extend(skips.map(|skip| format!("skipped: {skip}")));
        if outcome.tally.failed != 0 {
            remarks.push(format!("the console's end:\n{}", guest.console_tail()));
        }
    }

    /// What is wrong besides failed tests. `ended` says how the guest ended.
    fn complaints(&self, ended: &str) -> Vec<String> {
        let mut complaints = self.complaints.clone();
        if !self.done {
            let during = self.section.as_ref().map(|(kind, backend)| {
                format!(" during {}", [&**kind, backend].join(" ").trim_end())
            });
            complaints.push(format!(
                "{ended} before it was done{}",
                during.unwrap_or_default()
            ));
        }
        complaints
    }

    /// Tests that ran.
    pub fn ended(&self) -> usize {
        self.reader.ended()
    }

    /// Output of `portwatch doctor`, by backend.
    pub fn doctors(&self) -> &BTreeMap<String, Vec<String>> {
        &self.doctors
    }

    /// How many instructions the verifier went through, by program. One that is
    /// loaded through several backends is the same in each.
    pub fn verified_instructions(&self) -> BTreeMap<String, u32> {
        let lines = self.doctors.values().flatten();
        lines.filter_map(|line| verified(line)).collect()
    }
}

/// Whether a line of `portwatch doctor` tells of something that should work.
fn is_wrong(line: &str) -> bool {
    line.starts_with("FAIL") || line.starts_with("warn") && !line.ends_with("by no backend")
}

/// The program and the count in a line like
/// `ok    hook tp_btf/sys_exit: in place, 12 instructions verified`.
fn verified(line: &str) -> Option<(String, u32)> {
    let (_, hook) = line.split_once(" hook ")?;
    let (program, rest) = hook.split_once(": in place, ")?;
    let count = rest.strip_suffix(" instructions verified")?;
    Some((program.to_owned(), count.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::{Line, Report};

    fn read(lines: &str) -> Report {
        let mut report = Report::default();
        for line in lines.lines() {
            report.line(line);
        }
        report
    }

    #[test]
    fn a_whole_report() {
        let report = read(
            "cannot load x.ko\n\
             @begin btf\ntest result: ok. 2 passed; 0 failed; 0 ignored\n@end 0\n\
             @begin doctor kprobe\n\
             ok    hook tp_btf/sys_exit: in place, 12 instructions verified\n@end 0\n\
             @begin suite kprobe\nSKIP: a: b\nfailures:\n---- x::y stdout ----\nno\nfailures:\n    x::y\n\
             test result: FAILED. 2 passed; 1 failed; 0 ignored\n@end 101\n@done",
        );
        assert_eq!(
            report.reader.tally().to_string(),
            "3 passed, 1 failed, 1 skipped"
        );
        assert_eq!(report.complaints("ended"), Vec::<String>::new());
        assert_eq!(report.reader.skips(), ["a: b"]);
        assert_eq!(report.failures, ["kprobe: FAILED: x::y\n    no"]);
        let verified = report.verified_instructions();
        assert_eq!(verified, [("tp_btf/sys_exit".to_owned(), 12)].into());
        assert!(!report.is_empty());
    }

    #[test]
    fn lines_of_tests_are_shown_with_their_backend() {
        let mut report = Report::default();
        assert_eq!(report.line("early"), Line::Show(String::new()));
        assert!(report.is_empty());
        assert_eq!(report.line("@begin suite fentry"), Line::Kept);
        assert_eq!(report.line("x"), Line::Show("fentry".to_owned()));
    }

    #[test]
    fn what_did_not_end_well_is_told() {
        let report = read(
            "@begin doctor kprobe\nwarn  autobind: by no backend\n@end 1\n\
             @begin doctor default\nFAIL\n@end 1\n@begin suite default\nx",
        );
        assert_eq!(
            report.complaints("killed"),
            [
                "portwatch doctor, default: exit status 1\nFAIL",
                "killed before it was done during suite default",
            ]
        );
        let report = read("@begin suite default\nx\n@end 139\n@done");
        assert_eq!(
            report.complaints("ended"),
            ["suite default: exit status 139, though no test failed"]
        );
    }
}
