//! What GitLab CI shows of a report: a section of the job's log that can be folded.

/// The report's text as a section, folded if there is nothing to complain of. `now` is the time in
/// seconds since the epoch.
///
/// Carriage return and `ESC [0K` are part of the markers, which GitLab takes out of the log:
/// <https://docs.gitlab.com/ci/jobs/job_logs/#custom-collapsible-sections>.
#[must_use]
pub fn section(text: &str, now: i64, folded: bool) -> String {
    let folded = if folded { "[collapsed=true]" } else { "" };
    format!(
        "\x1b[0Ksection_start:{now}:portwatch{folded}\r\x1b[0Kportwatch\n{text}\
         \x1b[0Ksection_end:{now}:portwatch\r\x1b[0K\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_begins_and_ends() {
        assert_eq!(
            section("a\nb\n", 7, true),
            "\x1b[0Ksection_start:7:portwatch[collapsed=true]\r\x1b[0Kportwatch\na\nb\n\x1b[0Ksection_end:7:portwatch\r\x1b[0K\n"
        );
        assert!(section("", 7, false).contains(":portwatch\r"));
    }
}
