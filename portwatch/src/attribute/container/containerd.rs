//! containerd's records: its database of metadata, and the bundles of what runs.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Deserialize;

use super::bolt::{self, Bolt, Bucket};
use super::bundle::Bundle;
use super::file::{Source, be};
use super::stores::Store;
use super::{Answer, Kept, LOOKED_THROUGH, Life, Named, Publication, kubernetes, text, time};
use crate::event::{Container, Time};

/// The database below the root.
const METADATA: &str = "io.containerd.metadata.v1.bolt/meta.db";
/// The bundles, by namespace and id, below the state's folder.
const BUNDLES: &str = "io.containerd.runtime.v2.task";
/// The namespace of Kubernetes' containers, and that of who names none, go first.
const FIRST: [&[u8]; 2] = [b"k8s.io", b"default"];
/// The namespace of Docker, which has records of its own.
const DOCKER: &[u8] = b"moby";

/// The name, image, labels and pod of a container.
pub(super) fn container(store: &Store, id: &str) -> Answer {
    let path = store.path.join(METADATA);
    let found = bolt::ask(&path, |bolt, root| record(bolt, root, id.as_bytes()));
    let Some((Some(record), stamp)) = found else {
        return from_bundle(store, id);
    };
    Answer::Found(Box::new(record.named(id)), Source { path, stamp })
}

/// The containers of all namespaces, with the ports that nerdctl notes in a label.
pub(super) fn all(store: &Store, found: &mut Vec<Kept>) {
    let path = store.path.join(METADATA);
    let all = bolt::ask(&path, |bolt, root| {
        let namespaces = bolt.bucket(root, b"v1")?;
        let mut all = Vec::new();
        for namespace in namespaces_of(bolt, &namespaces)? {
            let Some(containers) = containers(bolt, &namespaces, &namespace) else {
                continue;
            };
            for id in bolt.keys(&containers)?.into_iter().take(LOOKED_THROUGH) {
                if let Some(record) = record_of(bolt, &containers, &id) {
                    all.push((String::from_utf8(namespace.clone()).ok()?, id, record));
                }
            }
        }
        Some(all)
    });
    for (namespace, id, record) in all.and_then(|(all, _)| all).into_iter().flatten() {
        let Ok(id) = String::from_utf8(id) else {
            continue;
        };
        let bundle =
            (store.state.as_ref()).map(|state| state.join(BUNDLES).join(namespace).join(&id));
        let running = bundle.is_some_and(|bundle| bundle.join("init.pid").exists());
        found.push(Kept {
            named: record.named(&id),
            running,
            publications: record.publications(&id, running, store.netns),
        });
    }
}

/// Where nerdctl notes ports, as JSON.
const PORTS: &str = "nerdctl/ports";
/// Where nerdctl notes the name.
const NERDCTL_NAME: &str = "nerdctl/name";

/// An element of that label.
#[derive(Deserialize)]
struct Port {
    #[serde(rename = "HostPort")]
    host_port: u16,
    #[serde(rename = "ContainerPort")]
    port: u16,
    #[serde(rename = "Protocol")]
    protocol: String,
    #[serde(rename = "HostIP", default)]
    host_ip: String,
}

/// A container in the database.
struct Record {
    image: String,
    labels: BTreeMap<String, String>,
    created: Option<Time>,
}

impl Record {
    fn named(&self, id: &str) -> Named {
        let pod = kubernetes::pod(&self.labels);
        let in_pod = pod.as_ref().and_then(|pod| pod.container.clone());
        let nerdctl = self.labels.get(NERDCTL_NAME).and_then(|name| text(name));
        // Of `ctr` the id is a name that somebody gave.
        let own = (!super::is_id(id)).then(|| id.into());
        Named {
            container: Container {
                runtime: "containerd".into(),
                id: id.into(),
                name: in_pod.or(nerdctl).or(own),
                image: text(&self.image),
                labels: self.labels.clone(),
            },
            pod,
            life: Life {
                created: self.created,
                running_since: None,
            },
        }
    }

    fn publications(&self, id: &str, running: bool, netns: Option<u32>) -> Vec<Publication> {
        let ports = self
            .labels
            .get(PORTS)
            .map(String::as_str)
            .unwrap_or_default();
        let ports: Vec<Port> = serde_json::from_str(ports).unwrap_or_default();
        let ports = ports.into_iter();
        let publication = |port: Port| Publication {
            named: self.named(id),
            protocol: port.protocol,
            host_address: port.host_ip.parse::<IpAddr>().ok(),
            host_port: port.host_port,
            port: port.port,
            addresses: Vec::new(),
            netns,
            running,
        };
        ports.map(publication).collect()
    }
}

/// Bucket `v1` has one for each namespace, with one of `containers`, with one for each container, with its
/// `image`, its `createdat` and one of `labels`.
fn record(bolt: &Bolt, root: &Bucket, id: &[u8]) -> Option<Record> {
    let namespaces = bolt.bucket(root, b"v1")?;
    (namespaces_of(bolt, &namespaces)?.iter())
        .find_map(|namespace| record_of(bolt, &containers(bolt, &namespaces, namespace)?, id))
}

fn namespaces_of(bolt: &Bolt, namespaces: &Bucket) -> Option<Vec<Vec<u8>>> {
    let mut names = bolt.keys(namespaces)?;
    names.retain(|name| name != DOCKER);
    names.sort_by_key(|name| {
        FIRST
            .iter()
            .position(|first| first == name)
            .unwrap_or(FIRST.len())
    });
    Some(names)
}

fn containers(bolt: &Bolt, namespaces: &Bucket, namespace: &[u8]) -> Option<Bucket> {
    bolt.bucket(&bolt.bucket(namespaces, namespace)?, b"containers")
}

fn record_of(bolt: &Bolt, containers: &Bucket, id: &[u8]) -> Option<Record> {
    let of = bolt.bucket(containers, id)?;
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).ok();
    let labels = bolt.bucket(&of, b"labels");
    let pairs = labels.iter().flat_map(|labels| {
        let keys = bolt.keys(labels).unwrap_or_default().into_iter();
        keys.filter_map(|key| Some((text(key.clone())?, text(bolt.value(labels, &key)?)?)))
    });
    Some(Record {
        image: bolt.value(&of, b"image").and_then(text).unwrap_or_default(),
        labels: pairs.collect(),
        created: bolt
            .value(&of, b"createdat")
            .and_then(|time| go_time(&time)),
    })
}

/// A point in time as `Time.MarshalBinary` of Go writes it: the version, seconds since the year 1,
/// nanoseconds, and where it was, which does not change the moment.
fn go_time(bytes: &[u8]) -> Option<Time> {
    /// From there to 1970.
    const EPOCH: i64 = 62_135_596_800;

    if !matches!(bytes.first(), Some(1 | 2)) {
        return None;
    }
    let seconds = be::<8>(bytes, 1)?.cast_signed().checked_sub(EPOCH)?;
    let nanoseconds = i64::try_from(be::<4>(bytes, 9)?).ok()?;
    let time = seconds.checked_mul(1_000_000_000)?;
    time.checked_add(nanoseconds).map(Time)
}

/// By the annotations of its bundle, where the database does not have it.
fn from_bundle(store: &Store, id: &str) -> Answer {
    let Some(bundles) = store.state.as_ref().map(|state| state.join(BUNDLES)) else {
        return Answer::Absent;
    };
    let Ok(namespaces) = std::fs::read_dir(&bundles) else {
        return Answer::Absent;
    };
    let mut bundles = namespaces
        .flatten()
        .filter(|namespace| namespace.file_name().as_encoded_bytes() != DOCKER)
        .filter_map(|namespace| Bundle::read(namespace.path().join(id).join("config.json")));
    let Some((bundle, source)) = bundles.next() else {
        return Answer::Absent;
    };
    Answer::Found(Box::new(of_bundle("containerd", id, &bundle)), source)
}

/// What a bundle's annotations tell of a Kubernetes container.
pub(super) fn of_bundle(runtime: &str, id: &str, bundle: &Bundle) -> Named {
    let pod = kubernetes::pod(&bundle.annotations);
    let image = [
        "io.kubernetes.cri.image-name",
        "io.kubernetes.cri-o.ImageName",
    ];
    // JSON in a string; of CRI-O.
    let labels = bundle.annotation(&["io.kubernetes.cri-o.Labels"]);
    let own = (!super::is_id(id)).then(|| id.into());
    Named {
        container: Container {
            runtime: runtime.into(),
            id: id.into(),
            name: pod.as_ref().and_then(|pod| pod.container.clone()).or(own),
            image: text(bundle.annotation(&image)),
            labels: serde_json::from_str(labels).unwrap_or_default(),
        },
        pod,
        life: Life {
            created: time(bundle.annotation(&["io.kubernetes.cri-o.Created"])),
            running_since: None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::go_time;

    #[test]
    fn points_in_time_of_go() {
        let time = |bytes: &[u8]| go_time(bytes).map(|time| time.to_string());
        // 2026-11-25T13:41:01.322307056Z, as containerd 1.6 has written it, in UTC and elsewhere.
        let utc = b"\x01\x00\x00\x00\x0e\xe2\x98\xdcm\x136\x03\xf0\xff\xff";
        let seen = Some("2026-11-25T13:41:01.322307056Z".to_owned());
        assert_eq!(time(utc), seen);
        let mut with_seconds = utc.to_vec();
        with_seconds[0] = 2;
        with_seconds.push(7);
        assert_eq!(time(&with_seconds), seen);
        assert_eq!(time(&[&[3], &utc[1..]].concat()), None, "a later version");
        assert_eq!(time(&utc[..12]), None, "cut off");
        assert_eq!(time(&[]), None);
        assert_eq!(time(&[1; 15]), None, "too late to be one");
        assert_eq!(
            time(&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            None,
            "the year 1"
        );
        assert_eq!(time(&[0xff; 15]), None);
        assert_eq!(time(&[&[1, 0x80], &[0; 13][..]].concat()), None);
    }
}
