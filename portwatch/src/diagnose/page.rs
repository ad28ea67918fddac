//! The pages on the causes, laid out for a terminal.
//!
//! The source is Markdown of a small kind: a title, headings, paragraphs, bullets and code between
//! fences. `docs/causes/` has the same pages as they are.

use std::fmt::Write as _;

use crate::event::Cause;

/// As wide as lines that people read should become.
const WIDEST: usize = 92;

/// All causes with a line each, as wide as `width` columns.
#[must_use]
pub fn list(width: usize) -> String {
    let widest = Cause::ALL.iter().map(|cause| cause.id().len()).max();
    let indent = widest.unwrap_or_default() + 2;
    let mut list = String::new();
    for cause in Cause::ALL {
        let first = format!("{:indent$}", cause.id());
        let later = " ".repeat(indent);
        wrap(cause.gist(), &first, &later, width, &mut list);
    }
    list.push_str("\nportwatch explain CAUSE has a page on each.\n");
    list
}

/// A page for a terminal of `width` columns.
#[must_use]
pub fn render(markdown: &str, width: usize) -> String {
    let mut page = String::new();
    let mut lines = markdown.lines().peekable();
    while let Some(line) = lines.next() {
        if line.starts_with("```") {
            for code in lines.by_ref().take_while(|line| !line.starts_with("```")) {
                let indent = if code.is_empty() { "" } else { "    " };
                // Writing to a String cannot fail.
                let _ = writeln!(page, "{indent}{code}");
            }
        } else if let Some(title) = line.strip_prefix("# ") {
            wrap(title, "", "", width, &mut page);
        } else if let Some(heading) = line.strip_prefix("## ") {
            wrap(&heading.to_uppercase(), "", "", width, &mut page);
        } else if line.is_empty() {
            page.push('\n');
        } else {
            let (first, later, text) = match line.strip_prefix("- ") {
                Some(text) => ("- ", "  ", text),
                None => ("", "", line),
            };
            let mut text = text.to_owned();
            while let Some(more) = lines.next_if(|line| continues(line)) {
                text.push(' ');
                text.push_str(more.trim_start());
            }
            wrap(&plain(&text), first, later, width, &mut page);
        }
    }
    page
}

/// Whether a line goes on with the paragraph or bullet above it.
fn continues(line: &str) -> bool {
    !line.is_empty()
        && !["- ", "```", "# ", "## "]
            .iter()
            .any(|start| line.starts_with(start))
}

/// A text without the marks of emphasis, which a terminal does not show. Those of code stay: they
/// say where a command ends.
fn plain(text: &str) -> String {
    text.replace("**", "")
}

fn wrap(text: &str, first: &str, later: &str, width: usize, out: &mut String) {
    let options = textwrap::Options::new(width.min(WIDEST))
        .initial_indent(first)
        .subsequent_indent(later)
        .word_splitter(textwrap::WordSplitter::NoHyphenation)
        .break_words(false);
    out.push_str(&textwrap::fill(text, options));
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_wrapped_and_code_is_not() {
        let page = "# a-cause: what it is\n\nSome words that are\nwrapped **anew** here.\n\n\
                    - one point of which\n  there is more\n- another\n\n\
                    ## Fix\n\n```sh\na command that is longer than the terminal is wide\n\nnext\n```\n";
        insta::assert_snapshot!(render(page, 24), @r"
        a-cause: what it is

        Some words that are
        wrapped anew here.

        - one point of which
          there is more
        - another

        FIX

            a command that is longer than the terminal is wide

            next
        ");
    }

    #[test]
    fn no_line_of_a_page_is_wider_than_the_terminal_but_code() {
        for cause in Cause::ALL {
            for width in [40, 80, 200] {
                let page = render(cause.page(), width);
                for line in page.lines().filter(|line| !line.starts_with("    ")) {
                    let long = line.split(' ').any(|word| word.len() + 2 > width);
                    assert!(line.chars().count() <= width.min(WIDEST) || long, "{line}");
                }
            }
        }
    }

    #[test]
    fn the_list_has_every_cause() {
        let list = list(80);
        for cause in Cause::ALL {
            let lines = list
                .lines()
                .filter(|line| line.split(' ').next() == Some(cause.id()));
            assert_eq!(lines.count(), 1, "{}", cause.id());
        }
    }

    /// Every page has the same parts, so that one finds one's way in each.
    #[test]
    fn every_page_has_its_parts() {
        for cause in Cause::ALL {
            let page = cause.page();
            let title = format!("# {}: {}\n", cause.id(), cause.gist());
            assert!(page.starts_with(&title), "{}", cause.id());
            let parts: Vec<_> = page
                .lines()
                .filter(|line| line.starts_with("## "))
                .collect();
            let expected = [
                "## What happens",
                "## How to recognise it",
                "## How to fix it",
            ];
            assert_eq!(parts, expected, "{}", cause.id());
        }
    }
}
