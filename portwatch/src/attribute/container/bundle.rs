//! The configuration of a container for its OCI runtime (`config.json`), which containerd and CRI-O keep
//! with annotations while it runs.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

use super::file::{Content, Source, read};

/// What is read of it.
#[derive(Deserialize)]
pub(super) struct Bundle {
    #[serde(default)]
    pub(super) annotations: BTreeMap<String, String>,
}

impl Bundle {
    /// Reads one.
    pub(super) fn read(path: PathBuf) -> Option<(Self, Source)> {
        let Content::Read(bytes, stamp) = read(&path) else {
            return None;
        };
        let bundle = serde_json::from_slice(&bytes).ok()?;
        Some((bundle, Source { path, stamp }))
    }

    /// The first of some annotations that there is.
    pub(super) fn annotation(&self, keys: &[&str]) -> &str {
        let of = |key: &&str| self.annotations.get(*key).filter(|value| !value.is_empty());
        keys.iter().find_map(of).map_or("", String::as_str)
    }
}
