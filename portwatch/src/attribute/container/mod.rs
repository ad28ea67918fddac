//! Names, images, labels and published ports of containers, from the records their runtimes keep
//! on disk.
//!
//! No daemon is asked and no client library is needed. Every record is a small
//! file: it is read up to a limit, without ever waiting for it, and what
//! cannot be understood leaves the container with just its id.

mod ancestor;
mod bolt;
mod bundle;
mod containerd;
mod docker;
mod file;
mod kubernetes;
mod libpod;
mod proxy;
mod publish;
mod sqlite;
mod storage;
mod stores;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lru::LruCache;

pub use ancestor::by_ancestor;
pub use proxy::is_proxy;
pub use publish::{NamedPort, Publication, agreed, only};

use self::file::Source;
use self::stores::Stores;
use super::cgroup::{ContainerRef, is_containerd_id, is_id};
use crate::event::{Container, Pod, Time};

/// How many containers are kept in mind.
const CAPACITY: usize = 256;
/// How many containers of a runtime are looked through.
const LOOKED_THROUGH: usize = 1024;
/// How long an answer is good without another look at its file.
const FRESH: Duration = Duration::from_secs(1);
/// How long it is not looked again for what was not found, at least: as long as a look takes, lest
/// nothing else be done.
const MISSED: Duration = Duration::from_millis(5);

/// A container by name, the pod it is in, and what its record tells of its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// The container.
    pub container: Container,
    /// Its pod, of Kubernetes or podman.
    pub pod: Option<Pod>,
    /// Its life.
    pub life: Life,
}

impl From<Container> for Named {
    /// One that is in no pod, and of which no more is known.
    fn from(container: Container) -> Self {
        Self {
            container,
            pod: None,
            life: Life::default(),
        }
    }
}

/// What the record of a container tells of its life.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Life {
    /// When it was created.
    pub created: Option<Time>,
    /// Since when it runs: none of one that does not, or whose record does not tell.
    pub running_since: Option<Time>,
}

/// A container as its runtime keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Which.
    pub named: Named,
    /// Whether it runs.
    pub running: bool,
    /// The ports that it publishes, or would if it ran.
    pub publications: Vec<Publication>,
}

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
    named: Named,
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
    Found(Box<Named>, Source),
}

impl Containers {
    /// The containers of the host whose file system is at `root`.
    ///
    /// Docker's data is where the running daemons say by their arguments or `daemon.json`, and
    /// where `etc/docker/daemon.json` says, else in `var/lib/docker`. Podman's is where the running
    /// conmons say, those of every user, and in `var/lib/containers/storage`. containerd's is where the
    /// running daemons say by their arguments or `config.toml`, and in `var/lib/containerd`.
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
    pub fn get(&mut self, reference: &ContainerRef, now: Instant) -> Named {
        if let Some(entry) = self.cache.get_mut(reference) {
            let fresh = now.saturating_duration_since(entry.checked) < FRESH;
            if fresh || entry.source.as_ref().is_some_and(Source::is_current) {
                if !fresh {
                    entry.checked = now;
                }
                return entry.named.clone();
            }
        }
        let (named, source) = match self.read(reference, now) {
            Answer::Found(named, source) => (*named, Some(source)),
            Answer::Broken => (just_id(reference).into(), None),
            Answer::Absent => {
                let known = self.cache.pop(reference).map(|entry| entry.named);
                (known.unwrap_or_else(|| just_id(reference).into()), None)
            }
        };
        let entry = Entry {
            named: named.clone(),
            source,
            checked: now,
        };
        self.cache.put(reference.clone(), entry);
        named
    }

    /// The containers of all runtimes that keep them in files, as they are now.
    pub fn all(&mut self, now: Instant) -> Vec<Kept> {
        let (root, docker_data) = (&self.root, self.docker_data.as_deref());
        let stores = (self.stores).refresh(now, Duration::ZERO, || Stores::of(root, docker_data));
        stores.all()
    }

    fn read(&mut self, reference: &ContainerRef, now: Instant) -> Answer {
        // The id becomes part of a path; those of containerd may be names.
        let usable = match reference.runtime {
            "containerd" => is_containerd_id(&reference.id),
            _ => is_id(&reference.id),
        };
        if !usable {
            return Answer::Absent;
        }
        // Of a daemon that was started a moment ago nothing is known yet.
        for fresh in [FRESH, MISSED.max(self.stores.took)] {
            let (root, docker_data) = (&self.root, self.docker_data.as_deref());
            let stores = self
                .stores
                .refresh(now, fresh, || Stores::of(root, docker_data));
            let answer = stores.read(reference);
            if !matches!(answer, Answer::Absent) {
                return answer;
            }
        }
        Answer::Absent
    }
}

impl Stores {
    fn read(&self, reference: &ContainerRef) -> Answer {
        let id = &reference.id;
        let docker = || {
            self.docker
                .iter()
                .map(|store| docker::container(&store.path, id))
        };
        let containerd = || {
            self.containerd
                .iter()
                .map(|store| containerd::container(store, id))
        };
        let storage = || self.storage.iter();
        match reference.runtime {
            "docker" => first(docker()),
            // Containers of cri-dockerd look like containerd's: only their record is Docker's.
            "containerd" => first(docker().chain(containerd())),
            "podman" => {
                let own = storage().map(|store| libpod::container(&store.path, id));
                first(own.chain(storage().map(|store| storage::container(&store.path, reference))))
            }
            "cri-o" => {
                let bundles = storage().map(|store| storage::of_cri_o(&store.path, id));
                first(
                    bundles
                        .chain(storage().map(|store| storage::container(&store.path, reference))),
                )
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

/// A point in time as the runtimes write it (RFC 3339). Go's zero, the year 1, is none.
fn time(text: &str) -> Option<Time> {
    let time: jiff::Timestamp = text.parse().ok()?;
    i64::try_from(time.as_nanosecond()).ok().map(Time)
}

/// The text, unless it is empty.
fn text<T: for<'a> From<&'a str>>(text: &str) -> Option<T> {
    (!text.is_empty()).then(|| text.into())
}

#[cfg(test)]
mod tests;
