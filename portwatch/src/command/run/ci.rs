//! CI services: which one this is, and what it is told.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::path::PathBuf;

use anyhow::Context as _;
use clap::ValueEnum;

use crate::report::Report;
use crate::sink::report::github;

/// The values of `--ci`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Choice {
    /// By the environment
    Auto,
    /// GitHub Actions: annotations, and a table in the job's summary
    Github,
    /// GitLab: a section that can be folded
    Gitlab,
    /// None
    None,
}

/// A CI service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Service {
    /// GitHub Actions, with the file of the job's summary.
    Github { summary: Option<PathBuf> },
    /// GitLab CI.
    Gitlab,
}

impl Service {
    /// The one that was chosen, or that this environment is of.
    pub(super) fn of(
        choice: Choice,
        environment: impl Fn(&str) -> Option<std::ffi::OsString>,
    ) -> Option<Self> {
        let is = |name| environment(name).is_some_and(|value| value == "true");
        let github = || Self::Github {
            summary: environment("GITHUB_STEP_SUMMARY")
                .filter(|path| !path.is_empty())
                .map(PathBuf::from),
        };
        match choice {
            Choice::Github => Some(github()),
            Choice::Gitlab => Some(Self::Gitlab),
            Choice::Auto if is("GITHUB_ACTIONS") => Some(github()),
            Choice::Auto if is("GITLAB_CI") => Some(Self::Gitlab),
            Choice::Auto | Choice::None => None,
        }
    }
}

/// Adds the report to the job's summary of GitHub Actions.
///
/// # Errors
///
/// If the file cannot be written to.
pub(super) fn summarise(report: &Report, path: &PathBuf) -> anyhow::Result<()> {
    let append = || -> io::Result<()> {
        let mut file = OpenOptions::new().append(true).create(true).open(path)?;
        file.write_all(github::summary(report).as_bytes())
    };
    append().with_context(|| format!("cannot write to {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_known_by_their_environment() {
        let of = |choice, set: &'static [(&str, &str)]| {
            Service::of(choice, move |name| {
                let found = set.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| value.into())
            })
        };
        let github = |summary: Option<&str>| {
            Some(Service::Github {
                summary: summary.map(PathBuf::from),
            })
        };
        assert_eq!(of(Choice::Auto, &[]), None);
        assert_eq!(
            of(Choice::Auto, &[("GITHUB_ACTIONS", "true")]),
            github(None)
        );
        let both = &[("GITHUB_ACTIONS", "true"), ("GITHUB_STEP_SUMMARY", "/s")];
        assert_eq!(of(Choice::Auto, both), github(Some("/s")));
        assert_eq!(of(Choice::None, both), None);
        assert_eq!(of(Choice::Gitlab, both), Some(Service::Gitlab));
        assert_eq!(
            of(Choice::Auto, &[("GITLAB_CI", "true")]),
            Some(Service::Gitlab)
        );
        assert_eq!(of(Choice::Auto, &[("GITLAB_CI", "")]), None);
        assert_eq!(of(Choice::Github, &[]), github(None));
    }
}
