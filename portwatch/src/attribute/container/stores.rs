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
/// Where containers/storage is unless told otherwise, and what CRI-O keeps of what runs.
const STORAGE: [&str; 2] = ["var/lib/containers/storage", "run/containers/storage"];
/// The storage drivers that have containers in their folder `<driver>-containers`.
const DRIVERS: [&str; 4] = ["overlay", "vfs", "btrfs", "zfs"];
/// Where containerd keeps its data and its state unless told otherwise.
const CONTAINERD: [&str; 2] = ["/var/lib/containerd", "/run/containerd"];
/// The file that may tell it otherwise.
const CONTAINERD_CONFIG: &str = "/etc/containerd/config.toml";

/// A folder with records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Store {
    pub(super) path: PathBuf,
    /// Of containerd: where its state is.
    pub(super) state: Option<PathBuf>,
    /// Inode number of the network namespace in which its daemon publishes ports, if one runs.
    pub(super) netns: Option<u32>,
}

/// The folders with records of a host.
#[derive(Debug, Default)]
pub(super) struct Stores {
    /// Data roots of dockerd.
    pub(super) docker: Vec<Store>,
    /// Folders `<driver>-containers` of containers/storage.
    pub(super) storage: Vec<Store>,
    /// Roots of containerd.
    pub(super) containerd: Vec<Store>,
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
    /// Podman's option for where its storage is, or that it is a user's who has a podman: the process
    /// that keeps the user's namespaces for the next podman says no more.
    Podman { root: Option<PathBuf> },
    /// The options of containerd that decide where its data is.
    Containerd {
        root: Option<PathBuf>,
        state: Option<PathBuf>,
        config: Option<PathBuf>,
    },
}

impl Stores {
    /// The stores of the host whose file system is at `root`; `docker_data` is where Docker's is
    /// whatever the configuration says.
    pub(super) fn of(root: &Path, docker_data: Option<&Path>) -> Self {
        let mut stores = Self::default();
        let mut running: Vec<_> = processes(root)
            .filter_map(|(process, comm)| Some((uid(&process)?, comm == b"podman\n", process)))
            .collect();
        // Anyone may call a process dockerd: what root runs goes first. Podman ends in a moment, and the
        // path through its root with it: where conmon tells the same, that is what stays.
        running.sort_by_key(|(uid, brief, _)| (*uid, *brief));
        for (uid, _, process) in &running {
            stores.add_running(*uid, process);
        }
        let configured = || docker::configured_data_root(&root.join(DOCKER_CONFIG));
        let docker = match docker_data.map(Path::to_owned).or_else(configured) {
            Some(path) => below(root, &path),
            None => root.join(DOCKER_DATA),
        };
        add(&mut stores.docker, Store::new(docker));
        for storage in STORAGE {
            stores.add_storage(&root.join(storage), None);
        }
        let config = root.join("etc/containerd/config.toml");
        add(
            &mut stores.containerd,
            containerd(root, None, None, &config, None),
        );
        stores
    }

    /// The stores that one running process tells of, by its folder in `/proc`; none if it tells of none.
    pub(super) fn told_by(process: &Path) -> Option<Self> {
        let mut stores = Self::default();
        stores.add_running(uid(process)?, process);
        let Self {
            docker,
            storage,
            containerd,
        } = &stores;
        let told = [docker, storage, containerd];
        told.iter().any(|of| !of.is_empty()).then_some(stores)
    }

    /// Those that a user's podman has unless told otherwise.
    pub(super) fn of_user(root: &Path, uid: u32) -> Self {
        let mut stores = Self::default();
        if let Some(storage) = usual_storage(root, uid) {
            stores.add_storage(&below(root, &storage), None);
        }
        stores
    }

    fn add_storage(&mut self, root: &Path, netns: Option<u32>) {
        for driver in DRIVERS {
            let path = root.join(format!("{driver}-containers"));
            let store = Store {
                netns,
                ..Store::new(path)
            };
            add(&mut self.storage, store);
        }
    }

    fn add_running(&mut self, uid: u32, process: &Path) {
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
                add(
                    &mut self.docker,
                    Store {
                        netns,
                        ..Store::new(path)
                    },
                );
            }
            Some(Told::Storage(path)) => {
                let path = below(&root, &path);
                add(
                    &mut self.storage,
                    Store {
                        netns,
                        ..Store::new(path)
                    },
                );
            }
            Some(Told::Podman { root: storage }) => {
                if let Some(storage) = storage.or_else(|| usual_storage(&root, uid)) {
                    self.add_storage(&below(&root, &storage), netns);
                }
            }
            Some(Told::Containerd {
                root: data,
                state,
                config,
            }) => {
                let config = config.unwrap_or_else(|| CONTAINERD_CONFIG.into());
                let config = below(&root, &config);
                add(
                    &mut self.containerd,
                    containerd(&root, data, state, &config, netns),
                );
            }
            None => {}
        }
    }
}

impl Store {
    /// One that no daemon is known of.
    fn new(path: PathBuf) -> Self {
        Self {
            path,
            state: None,
            netns: None,
        }
    }
}

/// Where containerd keeps what it has: by its arguments, by its configuration, or where it usually is.
fn containerd(
    root: &Path,
    data: Option<PathBuf>,
    state: Option<PathBuf>,
    config: &Path,
    netns: Option<u32>,
) -> Store {
    let config = match read(config) {
        Content::Read(bytes, _) => String::from_utf8(bytes).unwrap_or_default(),
        _ => String::new(),
    };
    let place = |told: Option<PathBuf>, key, usual: &str| {
        let path = told.or_else(|| top_level(&config, key));
        below(root, &path.unwrap_or_else(|| usual.into()))
    };
    Store {
        path: place(data, "root", CONTAINERD[0]),
        state: Some(place(state, "state", CONTAINERD[1])),
        netns,
    }
}

/// Where podman's storage is unless told otherwise: of a user, in the home that the users' file says.
fn usual_storage(root: &Path, uid: u32) -> Option<PathBuf> {
    if uid == 0 {
        return Some(Path::new("/").join(STORAGE[0]));
    }
    let Content::Read(users, _) = read(&root.join("etc/passwd")) else {
        return None;
    };
    let users = String::from_utf8_lossy(&users);
    // name:password:uid:gid:comment:home:shell
    let home = users.lines().find_map(|line| {
        let mut fields = line.split(':').skip(2);
        (fields.next()?.parse() == Ok(uid)).then(|| fields.nth(2))?
    })?;
    Some(Path::new(home).join(".local/share/containers/storage"))
}

/// A path among the pairs of a TOML file that stand before its first table.
fn top_level(toml: &str, key: &str) -> Option<PathBuf> {
    let lines = toml.lines().map(str::trim);
    let mut pairs = lines.take_while(|line| !line.starts_with('['));
    let value = pairs.find_map(|line| {
        let (name, value) = line.split_once('=')?;
        (name.trim() == key).then(|| value.trim())
    })?;
    let quote = value
        .chars()
        .next()
        .filter(|first| matches!(first, '"' | '\''))?;
    let path = PathBuf::from(value[1..].split_once(quote)?.0);
    path.is_absolute().then_some(path)
}

/// Adds a folder that is there, unless it is there already by another path.
fn add(stores: &mut Vec<Store>, store: Store) {
    let identity = |path: &Path| {
        let metadata = std::fs::metadata(path).ok()?;
        Some((metadata.dev(), metadata.ino()))
    };
    let new = identity(&store.path);
    if new.is_some() && stores.iter().all(|store| identity(&store.path) != new) {
        stores.push(store);
    }
}

/// A path as seen by who has `root` as its root.
pub(super) fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// The folders of `/proc` of the processes that may tell of a store, with their names.
fn processes(root: &Path) -> impl Iterator<Item = (PathBuf, Vec<u8>)> {
    let entries = std::fs::read_dir(root.join("proc")).into_iter();
    entries
        .flatten()
        .flatten()
        .filter(|entry| {
            let name = entry.file_name();
            name.as_bytes().first().is_some_and(u8::is_ascii_digit)
        })
        .map(|entry| {
            let comm = std::fs::read(entry.path().join("comm"));
            (entry.path(), comm.unwrap_or_default())
        })
        .filter(|(_, comm)| {
            let told: [&[u8]; 6] = [
                b"dockerd\n",
                b"conmon\n",
                b"containerd\n",
                b"podman\n",
                b"catatonit\n",
                b"podman pause\n",
            ];
            told.contains(&comm.as_slice())
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
    if program == b"catatonit" {
        // With other options it is the first process of a container.
        let keeps = arguments.next() == Some(b"-P");
        return keeps.then_some(Told::Podman { root: None });
    }
    let (mut data_root, mut state, mut config, mut bundle) = (None, None, None, None);
    while let Some(argument) = arguments.next() {
        let (option, value) = match argument.iter().position(|byte| *byte == b'=') {
            Some(at) if argument.starts_with(b"-") => (&argument[..at], Some(&argument[at + 1..])),
            _ => (argument, None),
        };
        let slot = match (program, option) {
            (b"dockerd", b"--data-root" | b"-g" | b"--graph") => &mut data_root,
            (b"dockerd", b"--config-file") => &mut config,
            (b"conmon", b"-b" | b"--bundle") => &mut bundle,
            (b"containerd" | b"podman", b"--root") => &mut data_root,
            (b"containerd", b"--state") => &mut state,
            (b"containerd", b"-c" | b"--config") => &mut config,
            _ => continue,
        };
        *slot = value.or_else(|| arguments.next()).and_then(path);
    }
    match program {
        b"dockerd" => Some(Told::Docker { data_root, config }),
        b"podman" => Some(Told::Podman { root: data_root }),
        b"containerd" => Some(Told::Containerd {
            root: data_root,
            state,
            config,
        }),
        // It is <storage>/<driver>-containers/<id>/userdata.
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
    use super::{Told, told, top_level};

    #[test]
    fn where_the_data_of_a_running_daemon_is() {
        let docker = |data_root: Option<&str>, config: Option<&str>| {
            Some(Told::Docker {
                data_root: data_root.map(Into::into),
                config: config.map(Into::into),
            })
        };
        let storage = |path: &str| Some(Told::Storage(path.into()));
        let containerd = |root: Option<&str>, state: Option<&str>, config: Option<&str>| {
            Some(Told::Containerd {
                root: root.map(Into::into),
                state: state.map(Into::into),
                config: config.map(Into::into),
            })
        };
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
            ("podman run web", Some(Told::Podman { root: None })),
            (
                "/usr/bin/podman --root /srv/p run web",
                Some(Told::Podman {
                    root: Some("/srv/p".into()),
                }),
            ),
            ("catatonit -P", Some(Told::Podman { root: None })),
            ("/dev/init -- sleep 600", None),
            ("catatonit -- sleep 600", None),
            ("/usr/bin/containerd", containerd(None, None, None)),
            (
                "containerd -c /srv/c.toml --state /run/k --root=/srv/k",
                containerd(Some("/srv/k"), Some("/run/k"), Some("/srv/c.toml")),
            ),
            ("sleep --data-root /srv/d", None),
            ("", None),
        ];
        for (arguments, expected) in cases {
            let seen = told(arguments.replace(' ', "\0").as_bytes());
            assert_eq!(seen, expected, "of {arguments}");
        }
    }

    #[test]
    fn what_the_configuration_of_containerd_says() {
        let cases = [
            ("version = 2\nroot = \"/srv/c\"\n[grpc]\n", Some("/srv/c")),
            ("  root='/srv/c' # there\n", Some("/srv/c")),
            ("[plugins]\nroot = \"/srv/c\"\n", None),
            ("#root = \"/srv/c\"\n", None),
            ("root = \"srv\"\n", None),
            ("root = \"/srv\n", None),
            ("root = 1\n", None),
            ("root =\n", None),
            ("", None),
        ];
        for (toml, expected) in cases {
            let seen = top_level(toml, "root");
            assert_eq!(seen, expected.map(Into::into), "of {toml:?}");
        }
    }
}
