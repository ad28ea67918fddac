//! Docker's records: `config.v2.json` of a container, as dockerd 20.10 to 28 write it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::file::{Content, Source, read};
use super::stores::Store;
use super::{Answer, Kept, LOOKED_THROUGH, Life, Named, Publication, kubernetes, text, time};
use crate::event::Container;

/// The name, image and labels of a container below a data root.
pub(super) fn container(data_root: &Path, id: &str) -> Answer {
    let path = record_path(data_root, id);
    let (bytes, stamp) = match read(&path) {
        Content::Read(bytes, stamp) => (bytes, stamp),
        Content::Absent => return Answer::Absent,
        Content::Broken => return Answer::Broken,
    };
    match parse(&bytes, id) {
        Some(record) => Answer::Found(Box::new(record.named()), Source { path, stamp }),
        None => Answer::Broken,
    }
}

/// The containers of a daemon.
pub(super) fn all(store: &Store, found: &mut Vec<Kept>) {
    let Ok(entries) = std::fs::read_dir(store.path.join("containers")) else {
        return;
    };
    for entry in entries.flatten().take(LOOKED_THROUGH) {
        let name = entry.file_name();
        let Some(id) = name.to_str() else { continue };
        if let Content::Read(bytes, _) = read(&record_path(&store.path, id))
            && let Some(record) = parse(&bytes, id)
        {
            let host = store
                .path
                .join("containers")
                .join(id)
                .join("hostconfig.json");
            let bindings = match read(&host) {
                Content::Read(bytes, _) => serde_json::from_slice::<HostConfig>(&bytes).ok(),
                _ => None,
            };
            let bindings = bindings.and_then(|host| host.bindings);
            found.push(Kept {
                named: record.named(),
                running: record.is_running(),
                publications: record.publications(bindings, store.netns),
            });
        }
    }
}

/// What `daemon.json` says of where the data is.
pub(super) fn configured_data_root(config: &Path) -> Option<PathBuf> {
    let Content::Read(bytes, _) = read(config) else {
        return None;
    };
    let daemon: Daemon = serde_json::from_slice(&bytes).ok()?;
    daemon.data_root.filter(|path| path.is_absolute())
}

fn record_path(data_root: &Path, id: &str) -> PathBuf {
    data_root.join("containers").join(id).join("config.v2.json")
}

fn parse(bytes: &[u8], id: &str) -> Option<Record> {
    let record: Record = serde_json::from_slice(bytes).ok()?;
    (record.id == id).then_some(record)
}

/// `config.v2.json`.
#[derive(Deserialize)]
struct Record {
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "Name")]
    name: Option<String>,
    #[serde(rename = "Created")]
    created: Option<String>,
    #[serde(rename = "Config")]
    config: Option<Config>,
    #[serde(rename = "State")]
    state: Option<State>,
    #[serde(rename = "NetworkSettings")]
    network: Option<Network>,
}

#[derive(Deserialize, Default)]
struct Config {
    #[serde(rename = "Image")]
    image: Option<String>,
    #[serde(rename = "Labels")]
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct State {
    #[serde(rename = "Running", default)]
    running: bool,
    #[serde(rename = "StartedAt")]
    started: Option<String>,
}

#[derive(Deserialize)]
struct Network {
    #[serde(rename = "Ports")]
    ports: Option<Ports>,
    #[serde(rename = "Networks")]
    networks: Option<BTreeMap<String, Option<Endpoint>>>,
}

/// By `80/tcp`; null where the port is exposed and not published.
type Ports = BTreeMap<String, Option<Vec<HostPort>>>;

/// `hostconfig.json`.
#[derive(Deserialize)]
struct HostConfig {
    #[serde(rename = "PortBindings")]
    bindings: Option<Ports>,
}

#[derive(Deserialize)]
struct HostPort {
    #[serde(rename = "HostIp", default)]
    ip: String,
    #[serde(rename = "HostPort", default)]
    port: String,
}

#[derive(Deserialize)]
struct Endpoint {
    #[serde(rename = "IPAddress", default)]
    ipv4: String,
    #[serde(rename = "GlobalIPv6Address", default)]
    ipv6: String,
}

/// `daemon.json` of dockerd.
#[derive(Deserialize)]
struct Daemon {
    #[serde(rename = "data-root")]
    data_root: Option<PathBuf>,
}

impl Record {
    fn named(&self) -> Named {
        let container = self.container();
        Named {
            // With cri-dockerd.
            pod: kubernetes::pod(&container.labels),
            container,
            life: self.life(),
        }
    }

    fn is_running(&self) -> bool {
        self.state.as_ref().is_some_and(|state| state.running)
    }

    fn life(&self) -> Life {
        let started = self.state.as_ref().filter(|state| state.running);
        let started = started.and_then(|state| state.started.as_deref());
        Life {
            created: self.created.as_deref().and_then(time),
            running_since: started.and_then(time),
        }
    }

    fn container(&self) -> Container {
        let name = self.name.as_deref().unwrap_or_default();
        let config = self.config.as_ref();
        let image = config.and_then(|config| config.image.as_deref());
        Container {
            runtime: "docker".into(),
            id: self.id.as_str().into(),
            name: text(name.strip_prefix('/').unwrap_or(name)),
            image: text(image.unwrap_or_default()),
            labels: config
                .and_then(|config| config.labels.clone())
                .unwrap_or_default(),
        }
    }

    /// What it publishes while it runs; what it is to publish (`bindings`), while it does not.
    fn publications(&self, bindings: Option<Ports>, netns: Option<u32>) -> Vec<Publication> {
        let running = self.is_running();
        let network = self.network.as_ref();
        let addresses: Vec<IpAddr> = (network.iter())
            .flat_map(|network| network.networks.iter().flatten())
            .filter_map(|(_, endpoint)| endpoint.as_ref())
            .flat_map(|endpoint| [&endpoint.ipv4, &endpoint.ipv6])
            .filter_map(|address| address.parse().ok())
            .collect();
        let ports = if running {
            network.and_then(|network| network.ports.as_ref())
        } else {
            bindings.as_ref()
        };
        let mut publications = Vec::new();
        for (port, bindings) in ports.into_iter().flatten() {
            let Some((port, protocol)) = port.split_once('/') else {
                continue;
            };
            let Ok(port) = port.parse() else { continue };
            for binding in bindings.iter().flatten() {
                let Ok(host_port) = binding.port.parse() else {
                    continue;
                };
                publications.push(Publication {
                    named: self.named(),
                    protocol: protocol.to_owned(),
                    host_address: binding.ip.parse().ok(),
                    host_port,
                    port,
                    addresses: addresses.clone(),
                    netns,
                    running,
                });
            }
        }
        publications
    }
}
