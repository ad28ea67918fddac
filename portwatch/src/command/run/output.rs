//! Where the report goes: opened before the job is started, so that what is wrong is told then.

use std::fs::File;
use std::io::{Write as _, stderr};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{ArgAction, Args};
use nix::unistd::{Gid, Uid, fchown};

use super::ci::{Choice, Service, summarise};
use crate::command::options::{Format, StyleOptions, create_private};
use crate::command::report::json;
use crate::report::{Finding, Report};
use crate::sink::report::text::{self, Style};
use crate::sink::report::{github, gitlab, junit};

/// Where to, and how.
#[derive(Debug, Args)]
#[command(next_help_heading = "Output")]
pub(super) struct OutputOptions {
    /// How the report is written to standard error
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,

    /// Short for --output json
    #[arg(long, conflicts_with = "output")]
    json: bool,

    /// Write the report as JSON to this file as well
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,

    /// Write the findings as JUnit XML to this file
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,

    /// Write the events as JSON to this file (mode 0600)
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,

    /// Which CI service to tell
    #[arg(long, value_enum, default_value_t = Choice::Auto)]
    ci: Choice,

    #[command(flatten)]
    style: StyleOptions,

    /// No report on standard error
    #[arg(short, long)]
    quiet: bool,

    /// The whole report, also if there is nothing to complain of
    #[arg(short, long, action = ArgAction::Count, conflicts_with = "quiet")]
    pub(super) verbose: u8,
}

/// The files.
pub(super) struct Outputs {
    /// For the events.
    pub(super) events: Option<(PathBuf, File)>,
    report: Option<(PathBuf, File)>,
    junit: Option<(PathBuf, File)>,
    service: Option<Service>,
}

impl Outputs {
    /// Opens them; they are the owner's, if there is one.
    pub(super) fn open(options: &OutputOptions, owner: Option<(Uid, Gid)>) -> anyhow::Result<Self> {
        let open = |path: Option<&Path>| -> anyhow::Result<Option<(PathBuf, File)>> {
            let Some(path) = path else { return Ok(None) };
            let file = create_private(path)?;
            if let Some((uid, gid)) = owner
                && file.metadata().is_ok_and(|metadata| metadata.is_file())
            {
                fchown(&file, Some(uid), Some(gid))
                    .with_context(|| format!("cannot give {} to user {uid}", path.display()))?;
            }
            Ok(Some((path.to_owned(), file)))
        };
        Ok(Self {
            events: open(options.write.as_deref())?,
            report: open(options.report.as_deref())?,
            junit: open(options.junit.as_deref())?,
            service: Service::of(options.ci, |name| std::env::var_os(name)),
        })
    }

    /// Writes the report everywhere, and gives what could not be written.
    pub(super) fn write(self, report: &Report, options: &OutputOptions) -> Vec<anyhow::Error> {
        let mut errors = Vec::new();
        let mut told = Vec::new();
        if !options.quiet {
            match self.shown(report, options) {
                Ok(shown) => told.extend(shown),
                Err(error) => errors.push(error),
            }
        }
        if let Some(Service::Github { summary }) = &self.service {
            told.extend(github::annotations(report).into_bytes());
            let written = summary.as_ref().map(|path| summarise(report, path));
            errors.extend(written.and_then(Result::err));
        }
        // Nothing can be told where standard error is closed.
        let _ = stderr().write_all(&told);
        let write = |to: Option<(PathBuf, File)>, what: anyhow::Result<Vec<u8>>| {
            let (path, mut file) = to?;
            let written = what.and_then(|what| Ok(file.write_all(&what)?));
            let written = written.with_context(|| format!("cannot write to {}", path.display()));
            written.err()
        };
        errors.extend(write(self.report, json(report)));
        errors.extend(write(self.junit, junit::render(report).map_err(Into::into)));
        errors
    }

    /// What is shown on standard error.
    fn shown(&self, report: &Report, options: &OutputOptions) -> anyhow::Result<Vec<u8>> {
        if options.json || options.output == Format::Json {
            return json(report);
        }
        let style = Style {
            zone: options.style.zone(),
            color: options.style.color(&stderr()),
            whole: options.verbose > 0,
        };
        let text = text::render(report, &style);
        Ok(match self.service {
            Some(Service::Gitlab) => {
                let now = jiff::Timestamp::now().as_second();
                let findings = [Finding::Conflict, Finding::Leak, Finding::FlakeRisk];
                let folded = !findings.iter().any(|finding| report.has(*finding));
                gitlab::section(&text, now, folded).into_bytes()
            }
            _ => text.into_bytes(),
        })
    }
}
