//! A table: for the eye in columns, or as Markdown.

use std::fmt::Write as _;

/// A table whose first column is text and whose others are numbers.
pub struct Table {
    title: String,
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty one.
    pub fn new<'a>(title: &str, header: impl IntoIterator<Item = &'a str>) -> Self {
        Self {
            title: title.to_owned(),
            header: header.into_iter().map(str::to_owned).collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The whole, with an empty line behind it.
    pub fn render(&self, markdown: bool) -> String {
        let widths: Vec<usize> = (0..self.header.len())
            .map(|column| {
                std::iter::once(&self.header)
                    .chain(&self.rows)
                    .filter_map(|row| row.get(column))
                    .map(|cell| cell.chars().count())
                    .max()
                    .unwrap_or_default()
            })
            .collect();
        let (before, between, after) = if markdown {
            ("| ", " | ", " |")
        } else {
            ("", "  ", "")
        };
        let line = |cells: &[String]| {
            let cells: Vec<_> = widths
                .iter()
                .enumerate()
                .map(|(column, width)| {
                    let cell = cells.get(column).map_or("", String::as_str);
                    if column == 0 {
                        format!("{cell:width$}")
                    } else {
                        format!("{cell:>width$}")
                    }
                })
                .collect();
            format!("{before}{}{after}\n", cells.join(between))
        };
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = if markdown {
            write!(text, "**{}**\n\n", self.title)
        } else {
            writeln!(text, "{}", self.title)
        };
        text.push_str(&line(&self.header));
        if markdown {
            let rules: Vec<_> = widths
                .iter()
                .enumerate()
                .map(|(column, width)| {
                    if column == 0 {
                        "-".repeat(*width)
                    } else {
                        format!("{}:", "-".repeat(width.saturating_sub(1)))
                    }
                })
                .collect();
            text.push_str(&line(&rules));
        }
        for row in &self.rows {
            text.push_str(&line(row));
        }
        text.push('\n');
        text
    }
}

#[cfg(test)]
mod tests {
    use super::Table;

    fn table() -> Table {
        let mut table = Table::new("Costs", ["what", "ns"]);
        table.row(["bind".to_owned(), "1200".to_owned()]);
        table
    }

    #[test]
    fn columns_are_aligned() {
        assert_eq!(table().render(false), "Costs\nwhat    ns\nbind  1200\n\n");
    }

    #[test]
    fn markdown_has_a_rule() {
        assert_eq!(
            table().render(true),
            "**Costs**\n\n| what |   ns |\n| ---- | ---: |\n| bind | 1200 |\n\n"
        );
    }
}
