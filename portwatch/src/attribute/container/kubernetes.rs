//! What the runtimes keep of Kubernetes' pods: labels and annotations of their containers.

use std::collections::BTreeMap;

use crate::event::{Pod, Text};

/// Keys of a pod's facts: of labels that the kubelet gives to every container, and of annotations.
struct Keys {
    namespace: &'static str,
    name: &'static str,
    uid: &'static str,
    container: &'static str,
}

const KEYS: [Keys; 2] = [
    // Labels, of every runtime; annotations, of CRI-O.
    Keys {
        namespace: "io.kubernetes.pod.namespace",
        name: "io.kubernetes.pod.name",
        uid: "io.kubernetes.pod.uid",
        container: "io.kubernetes.container.name",
    },
    // Annotations of containerd.
    Keys {
        namespace: "io.kubernetes.cri.sandbox-namespace",
        name: "io.kubernetes.cri.sandbox-name",
        uid: "io.kubernetes.cri.sandbox-uid",
        container: "io.kubernetes.cri.container-name",
    },
];

/// The name that cri-dockerd gives as a container to what holds a pod's namespaces.
const SANDBOX: &str = "POD";

/// The pod that labels or annotations tell.
pub(super) fn pod(said: &BTreeMap<String, String>) -> Option<Pod> {
    KEYS.iter().find_map(|keys| {
        let of = |key: &str| said.get(key).filter(|value| !value.is_empty());
        let text = |key| of(key).map(|value| Text::from(value.as_str()));
        Some(Pod {
            name: text(keys.name)?,
            namespace: text(keys.namespace),
            uid: text(keys.uid),
            container: text(keys.container).filter(|name| &**name != SANDBOX),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        let pairs = pairs.iter();
        pairs
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn pods_by_what_each_runtime_keeps() {
        let web = |container: Option<&str>| {
            Some(Pod {
                namespace: Some("shop".into()),
                name: "web-7d9f".into(),
                uid: Some("2f9e1a7c-6b0d-4c57-9e58-0d6f3b1f2a11".into()),
                container: container.map(Text::from),
            })
        };
        let labels = [
            ("io.kubernetes.pod.namespace", "shop"),
            ("io.kubernetes.pod.name", "web-7d9f"),
            (
                "io.kubernetes.pod.uid",
                "2f9e1a7c-6b0d-4c57-9e58-0d6f3b1f2a11",
            ),
            ("app", "web"),
        ];
        let with = |name| [&labels[..], &[("io.kubernetes.container.name", name)]].concat();
        assert_eq!(pod(&said(&with("nginx"))), web(Some("nginx")));
        assert_eq!(pod(&said(&with("POD"))), web(None), "of cri-dockerd");
        assert_eq!(pod(&said(&labels)), web(None), "of a sandbox of containerd");
        let annotations = [
            ("io.kubernetes.cri.sandbox-namespace", "shop"),
            ("io.kubernetes.cri.sandbox-name", "web-7d9f"),
            (
                "io.kubernetes.cri.sandbox-uid",
                "2f9e1a7c-6b0d-4c57-9e58-0d6f3b1f2a11",
            ),
            ("io.kubernetes.cri.container-name", "nginx"),
        ];
        assert_eq!(pod(&said(&annotations)), web(Some("nginx")));
        // Before containerd 1.7 the uid was none of them.
        let older = said(&annotations[..2]);
        let seen = pod(&older).unwrap();
        assert_eq!((seen.uid, seen.container), (None, None));
        assert_eq!(pod(&said(&[("io.kubernetes.pod.name", "")])), None);
        assert_eq!(pod(&said(&[("app", "web")])), None);
    }
}
