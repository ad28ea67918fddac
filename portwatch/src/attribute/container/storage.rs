//! The lists of containers/storage, which podman and CRI-O share.

use std::path::Path;

use serde::Deserialize;

use super::bundle::Bundle;
use super::file::{Content, Source, read};
use super::{Answer, Life, Named, containerd, just_id, text, time};
use crate::attribute::cgroup::ContainerRef;
use crate::event::Container;

/// The lists of a store. Containers that are run with `--rm` are in the second one.
const LISTS: [&str; 2] = ["containers.json", "volatile-containers.json"];

/// The name and image of a container, from the folder `<driver>-containers` of a store.
pub(super) fn container(store: &Path, reference: &ContainerRef) -> Answer {
    let mut answer = Answer::Absent;
    for list in LISTS {
        let path = store.join(list);
        let (bytes, stamp) = match read(&path) {
            Content::Read(bytes, stamp) => (bytes, stamp),
            Content::Absent => continue,
            Content::Broken => {
                answer = Answer::Broken;
                continue;
            }
        };
        let Ok(records) = serde_json::from_slice::<Vec<Record>>(&bytes) else {
            answer = Answer::Broken;
            continue;
        };
        let Some(record) = records.into_iter().find(|record| record.id == reference.id) else {
            continue;
        };
        let metadata: RecordMetadata = record
            .metadata
            .and_then(|metadata| serde_json::from_str(&metadata).ok())
            .unwrap_or_default();
        let name = record.names.and_then(|names| names.into_iter().next());
        let container = Container {
            name: text(&name.or(metadata.name).unwrap_or_default()),
            image: text(&metadata.image_name.unwrap_or_default()),
            ..just_id(reference)
        };
        let life = Life {
            created: record.created.as_deref().and_then(time),
            running_since: None,
        };
        let named = Named {
            life,
            ..container.into()
        };
        return Answer::Found(Box::new(named), Source { path, stamp });
    }
    answer
}

/// A container of CRI-O, by the bundle in the folder of a store: its annotations tell of the pod.
pub(super) fn of_cri_o(store: &Path, id: &str) -> Answer {
    match Bundle::read(store.join(id).join("userdata/config.json")) {
        Some((bundle, source)) if !bundle.annotations.is_empty() => Answer::Found(
            Box::new(containerd::of_bundle("cri-o", id, &bundle)),
            source,
        ),
        _ => Answer::Absent,
    }
}

/// An element of the lists.
#[derive(Deserialize)]
struct Record {
    id: String,
    names: Option<Vec<String>>,
    created: Option<String>,
    /// JSON in a string.
    metadata: Option<String>,
}

#[derive(Deserialize, Default)]
struct RecordMetadata {
    #[serde(rename = "image-name")]
    image_name: Option<String>,
    name: Option<String>,
}
