//! Where the report goes: opened before the job is started, so that what is wrong is told then.

use std::fs::File;
use std::io::{Write as _, stderr};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use nix::unistd::{Gid, Uid, fchown};

use super::ci::{Choice, Service, summarise};
use crate::command::options::{create_private, zone};
use crate::command::report::json;
use crate::report::{Finding, Report};
use crate::sink::report::text::{self, Style};
use crate::sink::report::{github, gitlab, junit};
use crate::sink::text::Color;

/// What was asked for.
pub(super) struct WhereTo<'a> {
    pub(super) json: bool,
    pub(super) report: Option<&'a Path>,
    pub(super) junit: Option<&'a Path>,
    pub(super) write: Option<&'a Path>,
    pub(super) ci: Choice,
    pub(super) utc: bool,
    pub(super) color: Color,
    pub(super) quiet: bool,
    pub(super) whole: bool,
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
    pub(super) fn open(where_to: &WhereTo, owner: Option<(Uid, Gid)>) -> anyhow::Result<Self> {
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
            events: open(where_to.write)?,
            report: open(where_to.report)?,
            junit: open(where_to.junit)?,
            service: Service::of(where_to.ci, |name| std::env::var_os(name)),
        })
    }

    /// Writes the report everywhere, and gives what could not be written.
    pub(super) fn write(self, report: &Report, where_to: &WhereTo) -> Vec<anyhow::Error> {
        let mut errors = Vec::new();
        let mut told = Vec::new();
        if !where_to.quiet {
            match self.shown(report, where_to) {
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
    fn shown(&self, report: &Report, where_to: &WhereTo) -> anyhow::Result<Vec<u8>> {
        if where_to.json {
            return json(report);
        }
        let style = Style {
            zone: zone(where_to.utc),
            color: where_to.color,
            whole: where_to.whole,
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
