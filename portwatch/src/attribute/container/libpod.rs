//! Podman's own records: the state of libpod, in `bolt_state.db` up to podman 4.7 and in `db.sql` since,
//! below the root of its storage. What they keep of a container and of a pod is the same JSON.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::bolt::{self, Bolt, Bucket};
use super::file::{Source, Stamp};
use super::sqlite::{self, Sqlite};
use super::stores::Store;
use super::{Answer, Kept, LOOKED_THROUGH, Life, Named, Publication, text, time};
use crate::event::{Container, Pod};

/// `ContainerStateRunning` of libpod/define.
const RUNNING: i64 = 3;

/// The name, image, labels and pod of a container, by the state below the root of podman's storage.
pub(super) fn container(store: &Path, id: &str) -> Answer {
    match ask(store, Some(id)) {
        None => Answer::Absent,
        Some((records, source)) => match records.into_iter().next() {
            Some(record) => Answer::Found(Box::new(record.named()), source),
            None => Answer::Absent,
        },
    }
}

/// The containers of a storage, or one of them.
pub(super) fn all(store: &Store, id: Option<&str>, found: &mut Vec<Kept>) {
    let Some((records, _)) = ask(&store.path, id) else {
        return;
    };
    let mut room = LOOKED_THROUGH;
    for record in records {
        let publications = record.publications(store.netns, room);
        room -= publications.len();
        found.push(Kept {
            named: record.named(),
            running: record.is_running(),
            publications,
        });
    }
}

/// A container, as libpod has it.
struct Record {
    config: Config,
    pod: Option<PodConfig>,
    state: Option<State>,
}

/// What was given when it was made.
#[derive(Deserialize)]
struct Config {
    id: String,
    #[serde(default)]
    name: String,
    pod: Option<String>,
    #[serde(rename = "rootfsImageName", default)]
    image: String,
    labels: Option<BTreeMap<String, String>>,
    #[serde(rename = "createdTime")]
    created: Option<String>,
    #[serde(rename = "newPortMappings")]
    ports: Option<Vec<Mapping>>,
}

#[derive(Deserialize)]
struct Mapping {
    #[serde(default)]
    host_ip: String,
    container_port: u16,
    host_port: u16,
    #[serde(default)]
    range: u16,
    /// One or several of them, with commas between.
    #[serde(default)]
    protocol: String,
}

#[derive(Deserialize)]
struct PodConfig {
    id: String,
    name: String,
}

/// What changes while it lives.
#[derive(Deserialize)]
struct State {
    state: i64,
    #[serde(rename = "startedTime")]
    started: Option<String>,
}

impl Record {
    fn named(&self) -> Named {
        let config = &self.config;
        Named {
            container: Container {
                runtime: "podman".into(),
                id: config.id.as_str().into(),
                name: text(&config.name),
                image: text(&config.image),
                labels: config.labels.clone().unwrap_or_default(),
            },
            pod: self.pod.as_ref().map(|pod| Pod {
                namespace: None,
                name: pod.name.as_str().into(),
                uid: text(&pod.id),
                container: None,
            }),
            life: self.life(),
        }
    }

    fn is_running(&self) -> bool {
        (self.state.as_ref()).is_some_and(|state| state.state == RUNNING)
    }

    fn life(&self) -> Life {
        let started = self.state.as_ref().filter(|_| self.is_running());
        let started = started.and_then(|state| state.started.as_deref());
        Life {
            created: self.config.created.as_deref().and_then(time),
            running_since: started.and_then(time),
        }
    }

    /// As many as there is room for.
    fn publications(&self, netns: Option<u32>, room: usize) -> Vec<Publication> {
        let mut found = Vec::new();
        for mapping in self.config.ports.iter().flatten() {
            for (offset, protocol) in (0..mapping.range.max(1))
                .flat_map(|n| mapping.protocol.split(',').map(move |p| (n, p)))
            {
                let ports = (mapping.host_port.checked_add(offset))
                    .zip(mapping.container_port.checked_add(offset));
                let (Some((host_port, port)), true) = (ports, found.len() < room) else {
                    return found;
                };
                found.push(Publication {
                    named: self.named(),
                    protocol: protocol.to_owned(),
                    host_address: host_address(&mapping.host_ip),
                    host_port,
                    port,
                    addresses: Vec::new(),
                    netns,
                    running: self.is_running(),
                });
            }
        }
        found
    }
}

/// Where it is published; on all addresses if nothing is said.
fn host_address(text: &str) -> Option<IpAddr> {
    if text.is_empty() {
        return Some([0, 0, 0, 0].into());
    }
    text.parse().ok()
}

/// One container or all, and the file that they stand in. None if podman keeps nothing here.
fn ask(store: &Path, id: Option<&str>) -> Option<(Vec<Record>, Source)> {
    // Its folder is `<driver>-containers`, in the storage's root.
    let root = store.parent()?;
    let found = |(records, stamp): (Option<_>, Stamp), path: PathBuf| {
        (records.unwrap_or_default(), Source { path, stamp })
    };
    for name in ["db.sql", "libpod/db.sql"] {
        let path = root.join(name);
        if let Some(answer) = sqlite::ask(&path, |sqlite| Some(from_sqlite(sqlite, id))) {
            return Some(found(answer, path));
        }
    }
    let path = root.join("libpod/bolt_state.db");
    let answer = bolt::ask(&path, |bolt, root| from_bolt(bolt, root, id))?;
    Some(found(answer, path))
}

/// Bucket `ctr` has one for each container with its `config` and `state` and the id of its pod, `pod` one
/// for each pod.
fn from_bolt(bolt: &Bolt, root: &Bucket, id: Option<&str>) -> Option<Vec<Record>> {
    let containers = bolt.bucket(root, b"ctr")?;
    let pods = bolt.bucket(root, b"pod");
    let ids = match id {
        Some(id) => vec![id.as_bytes().to_owned()],
        None => bolt.keys(&containers)?,
    };
    let records = ids.iter().take(LOOKED_THROUGH).filter_map(|id| {
        let of = bolt.bucket(&containers, id)?;
        let config: Config = json(&bolt.value(&of, b"config")?)?;
        let state = bolt.value(&of, b"state").and_then(|state| json(&state));
        let pod = (config.pod.as_deref()).and_then(|id| {
            let of = bolt.bucket(pods.as_ref()?, id.as_bytes())?;
            json(&bolt.value(&of, b"config")?)
        });
        Some(Record { config, pod, state })
    });
    Some(records.collect())
}

/// Tables `ContainerConfig` (ID, Name, PodID, JSON), `ContainerState` (ID, State, ExitCode, JSON) and
/// `PodConfig` (ID, Name, JSON).
fn from_sqlite(sqlite: &Sqlite, id: Option<&str>) -> Vec<Record> {
    let mut records: Vec<Record> = Vec::new();
    sqlite.rows("ContainerConfig", &mut |row| {
        let [own, _, _, config] = row else {
            return None;
        };
        if id.is_none_or(|id| own.bytes() == Some(id.as_bytes()))
            && let Some(config) = config.bytes().and_then(json)
        {
            records.push(Record {
                config,
                pod: None,
                state: None,
            });
        }
        (records.len() >= id.map_or(LOOKED_THROUGH, |_| 1)).then_some(())
    });
    sqlite.rows("ContainerState", &mut |row| {
        let id = row.first()?.bytes()?;
        let mut of = records.iter_mut();
        if let Some(record) = of.find(|record| record.config.id.as_bytes() == id) {
            // The column `State` keeps what it was when the container was made.
            record.state = row.last()?.bytes().and_then(json);
        }
        None::<()>
    });
    if records.iter().any(|record| record.config.pod.is_some()) {
        sqlite.rows("PodConfig", &mut |row| {
            let id = row.first()?.bytes()?;
            for record in &mut records {
                if record.config.pod.as_deref().map(str::as_bytes) == Some(id) {
                    record.pod = row.last()?.bytes().and_then(json);
                }
            }
            None::<()>
        });
    }
    records
}

fn json<T: for<'a> Deserialize<'a>>(bytes: &[u8]) -> Option<T> {
    serde_json::from_slice(bytes).ok()
}
