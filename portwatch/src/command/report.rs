//! `portwatch report`: what recordings of `trace` and `run` tell together.

use std::fs::File;
use std::io::{self, BufRead, BufReader, stdin, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{ArgAction, Args, ValueEnum};

use super::options::StyleOptions;
use super::print;
use crate::report::{Report, Tally, read};
use crate::sink::report::html;
use crate::sink::report::text::{self, Style};

/// Bytes that are read at a time.
const BUFFER: usize = 256 << 10;

/// The options of `report`.
#[derive(Debug, Args)]
pub struct Options {
    /// JSON that `trace` or `run` has written, of one or several hosts; `-` is standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,

    /// How the report is written to standard output
    #[arg(short, long, value_enum, default_value_t = Format::Text, help_heading = "Output")]
    output: Format,

    /// Short for --output json
    #[arg(long, conflicts_with = "output", help_heading = "Output")]
    json: bool,

    #[command(flatten)]
    style: StyleOptions,

    /// Tell more: why something could not be seen
    #[arg(short, long, action = ArgAction::Count, help_heading = "Output")]
    verbose: u8,
}

/// How a report is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Lines for people
    Text,
    /// A JSON object
    Json,
    /// A page with the timeline drawn, which needs no other file
    Html,
}

/// Runs `portwatch report`.
///
/// # Errors
///
/// If a file cannot be read, or standard output not be written to.
pub fn run(options: &Options) -> anyhow::Result<ExitCode> {
    // All of them, before a long time is spent on the first.
    let files: Vec<_> = options.files.iter().map(|path| open(path)).collect();
    let files: Vec<_> = files.into_iter().collect::<anyhow::Result<_>>()?;
    let mut tally = Tally::new();
    let mut sources = Vec::new();
    for (path, file) in options.files.iter().zip(files) {
        let name = path.display().to_string();
        let source = read(file, name, |recorded| {
            tally.take(recorded.time, &recorded.body);
        });
        sources.push(source.with_context(|| format!("cannot read {}", path.display()))?);
    }
    let report = Report {
        sources,
        ..tally.finish()
    };
    let zone = options.style.zone();
    print(&match options.output {
        _ if options.json => json(&report)?,
        Format::Json => json(&report)?,
        Format::Html => html::render(&report, &zone).into_bytes(),
        Format::Text => {
            let style = Style {
                zone,
                color: options.style.color(&stdout()),
                whole: options.verbose > 0,
            };
            text::render(&report, &style).into_bytes()
        }
    })
}

fn open(path: &Path) -> anyhow::Result<Box<dyn BufRead>> {
    if path == Path::new("-") {
        return Ok(Box::new(stdin().lock()));
    }
    let open = || -> io::Result<File> {
        let file = File::open(path)?;
        if file.metadata()?.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        Ok(file)
    };
    let file = open().with_context(|| format!("cannot read {}", path.display()))?;
    Ok(Box::new(BufReader::with_capacity(BUFFER, file)))
}

/// The report as JSON, with a newline.
pub(super) fn json(report: &Report) -> anyhow::Result<Vec<u8>> {
    let mut json = serde_json::to_vec(report)?;
    json.push(b'\n');
    Ok(json)
}
