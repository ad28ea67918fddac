//! Names, images, labels and published ports of containers, from the records their runtimes keep
//! on disk.
//!
//! No daemon is asked and no client library is needed. Every record is a small
//! file: it is read up to a limit, without ever waiting for it, and what
//! cannot be understood leaves the container with just its id.

mod docker;
mod file;
mod proxy;
mod publish;
mod storage;
mod stores;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lru::LruCache;

pub use publish::Publication;

use self::file::Source;
use self::stores::Stores;
use super::cgroup::{ContainerRef, is_id};
use crate::event::Container;

/// How many containers are kept in mind.
const CAPACITY: usize = 256;
/// How long an answer is good without another look at its file.
const FRESH: Duration = Duration::from_secs(1);

/// The containers of a host, by the records of their runtimes.
///
/// At most 256 are kept in mind, those that were asked for last.
#[derive(Debug)]
pub struct Containers {
    root: PathBuf,
    docker_data: Option<PathBuf>,
    cache: LruCache<ContainerRef, Entry>,
    stores: Looked<Stores>,
    publications: Looked<Vec<Publication>>,
}

/// What was found, when it was looked for, and how long that took.
#[derive(Debug, Default)]
struct Looked<T> {
    found: T,
    at: Option<Instant>,
    took: Duration,
}

impl<T> Looked<T> {
    /// Looks again, unless what was found is fresh enough.
    fn refresh(&mut self, now: Instant, fresh: Duration, look: impl FnOnce() -> T) -> &T {
        let fresh = |at| now.saturating_duration_since(at) < fresh;
        if !self.at.is_some_and(fresh) {
            let begin = Instant::now();
            self.found = look();
            self.took = begin.elapsed();
            self.at = Some(now);
        }
        &self.found
    }
}

/// What is remembered of a container.
#[derive(Debug)]
struct Entry {
    container: Container,
    /// The record it was read from; none if there was none.
    source: Option<Source>,
    /// When that was last looked at.
    checked: Instant,
}

/// What the records say of a container.
enum Answer {
    /// There is no record of it.
    Absent,
    /// There is a record, but it cannot be understood.
    Broken,
    /// There is one.
    Found(Container, Source),
}

impl Containers {
    /// The containers of the host whose file system is at `root`.
    ///
    /// Docker's data is where the running daemons say by their arguments or `daemon.json`, and
    /// where `etc/docker/daemon.json` says, else in `var/lib/docker`. Podman's is where the running
    /// conmons say, and in `var/lib/containers/storage`.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            docker_data: None,
            cache: LruCache::new(NonZeroUsize::new(CAPACITY).unwrap_or(NonZeroUsize::MIN)),
            stores: Looked::default(),
            publications: Looked::default(),
        }
    }

    /// Looks for Docker's data here, whatever its configuration says. The path is below the root.
    #[must_use]
    pub fn docker_data_root(mut self, path: &Path) -> Self {
        self.docker_data = Some(path.to_owned());
        self.stores = Looked::default();
        self
    }

    /// What is known of a container at the moment `now`: at least its runtime and id.
    ///
    /// An answer up to a second old is given again without a look at the disk.
    /// When the record of a container is gone, what was known of it stays.
    pub fn get(&mut self, reference: &ContainerRef, now: Instant) -> Container {
        if let Some(entry) = self.cache.get_mut(reference) {
            let fresh = now.saturating_duration_since(entry.checked) < FRESH;
            if fresh || entry.source.as_ref().is_some_and(Source::is_current) {
                if !fresh {
                    entry.checked = now;
                }
                return entry.container.clone();
            }
        }
        let (container, source) = match self.read(reference, now) {
            Answer::Found(container, source) => (container, Some(source)),
            Answer::Broken => (just_id(reference), None),
            Answer::Absent => {
                let known = self.cache.pop(reference).map(|entry| entry.container);
                (known.unwrap_or_else(|| just_id(reference)), None)
            }
        };
        let entry = Entry {
            container: container.clone(),
            source,
            checked: now,
        };
        self.cache.put(reference.clone(), entry);
        container
    }

    fn read(&mut self, reference: &ContainerRef, now: Instant) -> Answer {
        // The id becomes part of a path.
        if !is_id(&reference.id) {
            return Answer::Absent;
        }
        let (root, docker_data) = (&self.root, self.docker_data.as_deref());
        let stores = self
            .stores
            .refresh(now, FRESH, || Stores::of(root, docker_data));
        match reference.runtime {
            // Containers of cri-dockerd look like containerd's: only their record is Docker's.
            "docker" | "containerd" => {
                let answers = stores.docker.iter();
                first(answers.map(|store| docker::container(&store.path, &reference.id)))
            }
            "podman" | "cri-o" => {
                let answers = stores.storage.iter();
                first(answers.map(|store| storage::container(&store.path, reference)))
            }
            _ => Answer::Absent,
        }
    }
}

/// The first record that can be understood.
fn first(answers: impl Iterator<Item = Answer>) -> Answer {
    let mut first = Answer::Absent;
    for answer in answers {
        match answer {
            Answer::Found(..) => return answer,
            Answer::Broken => first = answer,
            Answer::Absent => {}
        }
    }
    first
}

fn just_id(reference: &ContainerRef) -> Container {
    Container {
        runtime: reference.runtime.into(),
        id: reference.id.as_str().into(),
        name: None,
        image: None,
        labels: BTreeMap::new(),
    }
}

/// The text, unless it is empty.
fn text<T: for<'a> From<&'a str>>(text: &str) -> Option<T> {
    (!text.is_empty()).then(|| text.into())
}

#[cfg(test)]
mod tests;
