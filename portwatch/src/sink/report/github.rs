//! What GitHub Actions shows of a report: annotations, and a table in the job's summary.
//!
//! Workflow commands and their escaping:
//! <https://docs.github.com/actions/reference/workflow-commands-for-github-actions>, and `command.ts`
//! of `actions/toolkit`.

use std::fmt::Write as _;

use super::{
    ended, findings, left_behind, left_container, left_process, left_timewait, refused, risk, title,
};
use crate::report::{Refusal, Report};
use crate::sink::escape::escape;

/// How many annotations of a kind GitHub shows of one step; others it drops.
const SHOWN: usize = 10;
/// How many rows the summary has: it may have 1 MiB.
const ROWS: usize = 100;

/// Annotations: an error for each conflict, warnings for the rest.
#[must_use]
pub fn annotations(report: &Report) -> String {
    let mut out = String::new();
    let refusals = |conflicts: bool| {
        let refusals = report.refusals.iter();
        refusals.filter(move |refusal| refusal.is_conflict() == conflicts)
    };
    for refusal in refusals(true).take(SHOWN) {
        command(&mut out, "error", &title(refusal), &message(refusal));
    }
    let others = refusals(false).map(|refusal| (title(refusal), message(refusal)));
    let left = report.left_behind.iter();
    let processes = left.clone().flat_map(|left| &left.processes);
    let processes =
        processes.map(|left| ("process left behind".to_owned(), vec![left_process(left)]));
    let containers = left.clone().flat_map(|left| &left.containers);
    let containers = containers.map(|left| {
        let text = vec![left_container(left)];
        ("container left behind".to_owned(), text)
    });
    let timewaits = left.flat_map(|left| &left.timewaits);
    let timewaits = timewaits.map(|left| {
        (
            "port kept by TIME_WAIT".to_owned(),
            vec![left_timewait(left)],
        )
    });
    let risks = report.risks.iter();
    let risks = risks.map(|one| ("port of outgoing connections".to_owned(), vec![risk(one)]));
    let left = processes.chain(containers).chain(timewaits);
    let warnings = others.chain(left).chain(risks);
    for (title, text) in warnings.take(SHOWN) {
        command(&mut out, "warning", &title, &text);
    }
    out
}

fn message(refusal: &Refusal) -> Vec<String> {
    let mut lines = vec![refused(refusal)];
    if let Some(conflict) = &refusal.conflict {
        lines.push(format!("{}: {}", conflict.cause.id(), conflict.summary));
        lines.push(conflict.advice.clone());
    }
    lines
}

fn command(out: &mut String, name: &str, title: &str, lines: &[String]) {
    let title = property(&escape(title));
    let lines: Vec<_> = lines.iter().map(|line| escape(line)).collect();
    let message = data(&lines.join("\n"));
    // Writing to a String cannot fail.
    let _ = writeln!(out, "::{name} title={title}::{message}");
}

/// `escapeData` of actions/toolkit.
fn data(text: &str) -> String {
    text.replace('%', "%25")
        .replace('\r', "%0D")
        .replace('\n', "%0A")
}

/// `escapeProperty` of actions/toolkit.
fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}

/// The job's summary, in GitHub's Markdown.
#[must_use]
pub fn summary(report: &Report) -> String {
    let mut out = String::from("### portwatch\n\n");
    let mut line = |text: &str| {
        out.push_str(text);
        out.push('\n');
    };
    if let Some(job) = &report.job {
        line(&format!("{}.", cell(&ended(job))));
        if let Some(why) = &job.unwatched {
            line(&format!("\nNot watched: {}", cell(why)));
        }
        line("");
    }
    let said = findings(report);
    if said.is_empty() {
        line("No conflicts, nothing left behind.");
        return out;
    }
    line(&format!("{}.\n", said.join(", ")));
    if !report.refusals.is_empty() {
        line("| times | refused | cause | why | what to do |");
        line("| ---: | --- | --- | --- | --- |");
        for refusal in report.refusals.iter().take(ROWS) {
            let conflict = refusal.conflict.as_ref();
            let (why, advice) =
                conflict.map_or(("", ""), |conflict| (&*conflict.summary, &*conflict.advice));
            line(&format!(
                "| {} | {} | {} | {} | {} |",
                refusal.count,
                cell(&refused(refusal)),
                refusal.cause().id(),
                cell(why),
                cell(advice)
            ));
        }
        if report.refusals.len() > ROWS {
            line(&format!("\nand {} more", report.refusals.len() - ROWS));
        }
        line("");
    }
    if let Some(left) = &report.left_behind {
        let timewaits = left.timewaits.iter().map(left_timewait);
        for left in left_behind(left).into_iter().chain(timewaits).take(ROWS) {
            line(&format!("- left behind: {}", cell(&left)));
        }
    }
    for one in report.risks.iter().take(ROWS) {
        line(&format!("- flake risk: {}", cell(&risk(one))));
    }
    out
}

/// Text in a cell of a table: what would end it, be Markdown or be HTML stands for itself.
fn cell(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in escape(text).chars() {
        match character {
            '&' => shown.push_str("&amp;"),
            '<' => shown.push_str("&lt;"),
            '>' => shown.push_str("&gt;"),
            // A name must not become a mention, nor a number an issue.
            '@' => shown.push_str("&#64;"),
            '#' => shown.push_str("&#35;"),
            '|' | '\\' | '`' | '*' | '_' | '~' | '[' | ']' | '!' | '$' => {
                shown.push('\\');
                shown.push(character);
            }
            _ => shown.push(character),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_becomes_a_command() {
        let mut out = String::new();
        let lines = ["50%".to_owned(), "next\r\n::error::no".to_owned()];
        command(&mut out, "error", "a,b:c%\n::x", &lines);
        assert_eq!(
            out,
            "::error title=a%2Cb%3Ac%25\\n%3A%3Ax::50%25%0Anext\\r\\n::error::no\n"
        );
    }

    #[test]
    fn no_name_leaves_its_cell() {
        assert_eq!(
            cell("a|b\n<img src=x> @user #1 `x` *b* [l](u) \\"),
            r"a\|b\\n&lt;img src=x&gt; &#64;user &#35;1 \`x\` \*b\* \[l\](u) \\\\"
        );
    }
}
