//! Where the runtimes keep their records: the usual places, and what the running ones say.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::docker;
use super::file::{Content, read};

/// Where dockerd keeps its data unless told otherwise.
const DOCKER_DATA: &str = "var/lib/docker";
/// The file that may tell it otherwise.
const DOCKER_CONFIG: &str = "etc/docker/daemon.json";
/// Where containers/storage is unless told otherwise.
const STORAGE: &str = "var/lib/containers/storage/overlay-containers";

/// A folder with records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Store {
    pub(super) path: PathBuf,
    /// Inode number of the network namespace in which its daemon publishes ports, if one runs.
    pub(super) netns: Option<u32>,
}

/// The folders with records of a host.
#[derive(Debug, Default)]
pub(super) struct Stores {
    /// Data roots of dockerd.
    pub(super) docker: Vec<Store>,
    /// Folders `overlay-containers` of containers/storage.
    pub(super) storage: Vec<Store>,
}

/// What a running process tells of a store, by its arguments.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    /// The options of dockerd that decide where its data is.
    Docker {
        data_root: Option<PathBuf>,
        config: Option<PathBuf>,
    },
    /// The folder that conmon's bundle is in.
    Storage(PathBuf),
}

impl Stores {
    /// The stores of the host whose file system is at `root`; `docker_data` is where Docker's is
    /// whatever the configuration says.
    pub(super) fn of(root: &Path, docker_data: Option<&Path>) -> Self {
        let mut stores = Self::default();
        let mut running: Vec<_> = processes(root)
            .filter_map(|process| Some((uid(&process)?, process)))
            .collect();
        // Anyone may call a process dockerd: what root runs goes first.
        running.sort_by_key(|(uid, _)| *uid);
        for (_, process) in &running {
            stores.add_running(process);
        }
        let configured = || docker::configured_data_root(&root.join(DOCKER_CONFIG));
        let docker = match docker_data.map(Path::to_owned).or_else(configured) {
            Some(path) => below(root, &path),
            None => root.join(DOCKER_DATA),
        };
        add(&mut stores.docker, docker, None);
        add(&mut stores.storage, root.join(STORAGE), None);
        stores
    }

    fn add_running(&mut self, process: &Path) {
        let Content::Read(arguments, _) = read(&process.join("cmdline")) else {
            return;
        };
        // Its paths are those of its own mount namespace.
        let root = process.join("root");
        let netns = std::fs::metadata(process.join("ns/net")).ok();
        let netns = netns.and_then(|netns| u32::try_from(netns.ino()).ok());
        match told(&arguments) {
            Some(Told::Docker { data_root, config }) => {
                let config = config.unwrap_or_else(|| PathBuf::from("/").join(DOCKER_CONFIG));
                let configured = || docker::configured_data_root(&below(&root, &config));
                let path = match data_root.or_else(configured) {
                    Some(path) => below(&root, &path),
                    None => root.join(DOCKER_DATA),
                };
                add(&mut self.docker, path, netns);
            }
            Some(Told::Storage(path)) => add(&mut self.storage, below(&root, &path), netns),
            None => {}
        }
    }
}

/// Adds a folder that is there, unless it is there already by another path.
fn add(stores: &mut Vec<Store>, path: PathBuf, netns: Option<u32>) {
    let identity = |path: &Path| {
        let metadata = std::fs::metadata(path).ok()?;
        Some((metadata.dev(), metadata.ino()))
    };
    let new = identity(&path);
    if new.is_some() && stores.iter().all(|store| identity(&store.path) != new) {
        stores.push(Store { path, netns });
    }
}

/// A path as seen by who has `root` as its root.
pub(super) fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// The folders of `/proc` of the processes that may tell of a store.
fn processes(root: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = std::fs::read_dir(root.join("proc")).into_iter();
    entries
        .flatten()
        .flatten()
        .filter(|entry| {
            let name = entry.file_name();
            name.as_bytes().first().is_some_and(u8::is_ascii_digit)
        })
        .map(|entry| entry.path())
        .filter(|process| {
            let comm = std::fs::read(process.join("comm")).unwrap_or_default();
            matches!(comm.as_slice(), b"dockerd\n" | b"conmon\n")
        })
}

fn uid(process: &Path) -> Option<u32> {
    Some(std::fs::metadata(process).ok()?.uid())
}

fn told(arguments: &[u8]) -> Option<Told> {
    let mut arguments = arguments.split(|byte| *byte == 0);
    let path = |bytes: &[u8]| {
        let path = PathBuf::from(OsStr::from_bytes(bytes));
        path.is_absolute().then_some(path)
    };
    let program = arguments.next()?.rsplit(|byte| *byte == b'/').next()?;
    let (mut data_root, mut config, mut bundle) = (None, None, None);
    while let Some(argument) = arguments.next() {
        let (option, value) = match argument.iter().position(|byte| *byte == b'=') {
            Some(at) if argument.starts_with(b"-") => (&argument[..at], Some(&argument[at + 1..])),
            _ => (argument, None),
        };
        let slot = match option {
            b"--data-root" | b"-g" | b"--graph" => &mut data_root,
            b"--config-file" => &mut config,
            b"-b" | b"--bundle" => &mut bundle,
            _ => continue,
        };
        *slot = value.or_else(|| arguments.next()).and_then(path);
    }
    match program {
        b"dockerd" => Some(Told::Docker { data_root, config }),
        // It is <store>/overlay-containers/<id>/userdata.
        b"conmon" => bundle?
            .ancestors()
            .nth(2)
            .map(Path::to_owned)
            .map(Told::Storage),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{Told, told};

    #[test]
    fn where_the_data_of_a_running_daemon_is() {
        let docker = |data_root: Option<&str>, config: Option<&str>| {
            Some(Told::Docker {
                data_root: data_root.map(Into::into),
                config: config.map(Into::into),
            })
        };
        let storage = |path: &str| Some(Told::Storage(path.into()));
        let cases = [
            ("/usr/sbin/dockerd -H fd://", docker(None, None)),
            (
                "dockerd --data-root /srv/d -H x",
                docker(Some("/srv/d"), None),
            ),
            ("dockerd --data-root=/srv/d", docker(Some("/srv/d"), None)),
            ("dockerd -g /srv/d", docker(Some("/srv/d"), None)),
            ("dockerd --data-root srv/d", docker(None, None)),
            ("dockerd --data-root", docker(None, None)),
            (
                "dockerd --config-file=/d.json",
                docker(None, Some("/d.json")),
            ),
            (
                "/usr/bin/conmon --api-version 1 -c 12ab -b /s/overlay-containers/12ab/userdata -n web",
                storage("/s/overlay-containers"),
            ),
            ("conmon -c 12ab -n web", None),
            ("conmon -b /", None),
            ("sleep --data-root /srv/d", None),
            ("", None),
        ];
        for (arguments, expected) in cases {
            let seen = told(arguments.replace(' ', "\0").as_bytes());
            assert_eq!(seen, expected, "of {arguments}");
        }
    }
}
