//! Records in databases: as podman 4.3 and 5.4 and containerd 1.6 have left them, and damaged.

use super::*;

const BOLT: &[u8] = include_bytes!("../../../../tests/fixtures/runtime/podman/bolt_state.db");
const SQLITE: &[u8] = include_bytes!("../../../../tests/fixtures/runtime/podman/db.sql");
pub(super) const METADATA: &[u8] =
    include_bytes!("../../../../tests/fixtures/runtime/containerd/meta.db");

pub(super) const CRI: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
pub(super) const METADATA_PATH: &str = "var/lib/containerd/io.containerd.metadata.v1.bolt/meta.db";

/// A podman whose database holds the same containers and pod, by their ids.
pub(super) struct Podman {
    path: &'static str,
    pub(super) database: &'static [u8],
    pub(super) web: &'static str,
    pub(super) second: &'static str,
    infra: &'static str,
    in_pod: &'static str,
    pod: &'static str,
    pause: &'static str,
}

pub(super) const PODMANS: [Podman; 2] = [
    Podman {
        path: "var/lib/containers/storage/libpod/bolt_state.db",
        database: BOLT,
        web: "720d062fac611e98f07155b03329c7023ab5e6d504eec514efd375cb6e319ff4",
        second: "9cdab637e7009748af98a0895983b1f2789d45e44ae9f67c339c536466d5b30b",
        infra: "550452bdfc8cbddbd8150cc64f256c13a91180746048bb066ae827517289fa94",
        in_pod: "9c948a14c62b0aca54e1f389b489aaff93d644a16ae7aed247ac9b2c40ec5300",
        pod: "2f23a98ed2cef90ae8cbeca038991fbe1d2d70a285043bfa3ac4fb1f7d149576",
        pause: "localhost/podman-pause:4.3.1-0",
    },
    Podman {
        path: "var/lib/containers/storage/db.sql",
        database: SQLITE,
        web: "b5c7b757ed184dae06ff21bd79ae369d91acdc830cf4ce134d6d6b556059abc2",
        second: "df019eb192b21256f46c3f3eaf6a773e244b5b1682e248d827973f11cef69c92",
        infra: "d87bb66aeb136c7e4bc78388fadb897747bcc50545800f177b7b0d9ae2fa6f4a",
        in_pod: "30e09597e4dc5aaee66094020b6371fe35ecc7660a7cdfc5751c6d1ee7811617",
        pod: "89d565902ba0c976fab2d6e09aa381d4424b999378895e5cbd53e5208fb57971",
        pause: "localhost/podman-pause:5.4.2-1766335321",
    },
];

impl Podman {
    pub(super) fn host(&self, database: &[u8]) -> Host {
        let host = Host::new();
        fs::create_dir_all(host.path("var/lib/containers/storage/vfs-containers/x")).unwrap();
        host.write(self.path, database);
        host
    }

    fn web(&self) -> Container {
        Container {
            labels: [("app".to_owned(), "shop".to_owned())].into(),
            ..container("podman", self.web, "web-1", "localhost/bb:1")
        }
    }

    fn infra(&self) -> Named {
        let infra = format!("{}-infra", &self.pod[..12]);
        let seen = container("podman", self.infra, &infra, self.pause);
        Named {
            container: Container {
                labels: [("io.buildah.version", self.buildah()), ("tier", "front")]
                    .map(|(key, value)| (key.to_owned(), value.to_owned()))
                    .into(),
                ..seen
            },
            pod: self.pod(),
            life: Life::default(),
        }
    }

    fn buildah(&self) -> &'static str {
        if self.path.ends_with(".db") {
            "1.28.2"
        } else {
            "1.39.3"
        }
    }

    fn pod(&self) -> Option<Pod> {
        Some(Pod {
            namespace: None,
            name: "shop".into(),
            uid: text(self.pod),
            container: None,
        })
    }
}

#[test]
fn podmans_containers_with_labels_and_pods() {
    for podman in PODMANS {
        let mut host = podman.host(podman.database);
        assert_eq!(host.named("podman", podman.web), podman.web().into());
        let in_pod = container("podman", podman.in_pod, "in-pod", "localhost/bb:1");
        assert_eq!(
            host.named("podman", podman.in_pod),
            Named {
                container: in_pod,
                pod: podman.pod(),
                life: Life::default(),
            }
        );
        assert_eq!(host.get("podman", WEB), container("podman", WEB, "", ""));
    }
}

#[test]
fn ports_that_podman_publishes() {
    for podman in PODMANS {
        let mut host = podman.host(podman.database);
        let on = |host: &mut Host, port| -> Vec<_> {
            let found = host.containers.publishing(port, host.now);
            found
                .into_iter()
                .map(|one| (lifeless(one.named), one.host_address, one.port))
                .collect()
        };
        let any: Option<std::net::IpAddr> = Some([0, 0, 0, 0].into());
        assert_eq!(on(&mut host, 8080), [(podman.web().into(), any, 80)]);
        // A range of ports.
        assert_eq!(on(&mut host, 9090), [(podman.infra(), any, 90)]);
        assert_eq!(on(&mut host, 9091), [(podman.infra(), any, 91)]);
        assert_eq!(on(&mut host, 9092), []);

        let listening = held(Transport::Tcp, [0, 0, 0, 0], 8080);
        let conmon = [actor(&format!("/usr/bin/conmon -c {}", podman.web))];
        let seen = host
            .containers
            .publishes(&listening, &conmon, host.now)
            .unwrap();
        assert_eq!((seen.named.container, seen.port), (podman.web(), Some(80)));
    }
}

/// It was made, and its port was refused to it.
#[test]
fn what_podman_was_to_publish() {
    for podman in PODMANS {
        let mut host = podman.host(podman.database);
        let wanted = held(Transport::Tcp, [0, 0, 0, 0], 8080);
        let wanting = |host: &mut Host, wanted: &Socket, line: &str, granted| {
            let wanting = host
                .containers
                .wanting(wanted, &actor(line), granted, host.now);
            agreed(wanting, wanted)
        };
        for line in ["/usr/bin/podman run -d -p 8080:80 bb:1", "rootlessport"] {
            let seen = wanting(&mut host, &wanted, line, false);
            let seen = seen.unwrap_or_else(|| panic!("nothing of {line}"));
            assert_eq!(&*seen.named.container.id, podman.second);
            assert_eq!(seen.named.container.name.as_deref(), Some("second"));
            assert_eq!((seen.named.pod, seen.port), (None, Some(80)));
            // What runs has the port, and may have been given it.
            assert_eq!(wanting(&mut host, &wanted, line, true), None, "of {line}");
        }
        for (line, port) in [
            ("/usr/bin/podman run -p 9090:80 bb:1", 9090),
            ("/usr/sbin/dockerd", 8080),
            ("/usr/sbin/nginx", 8080),
        ] {
            let wanted = held(Transport::Tcp, [0, 0, 0, 0], port);
            let seen = wanting(&mut host, &wanted, line, false);
            assert_eq!(seen, None, "of {line} on {port}");
        }
    }
}

/// No process tells where a user's are, but the user is known.
#[test]
fn what_a_users_podman_that_has_ended_was_to_publish() {
    for podman in PODMANS {
        let mut host = Host::new();
        let usual = podman.path.replace("var/lib", "home/ann/.local/share");
        let storage = "home/ann/.local/share/containers/storage/vfs-containers/x";
        fs::create_dir_all(host.path(storage)).unwrap();
        host.write(&usual, podman.database);
        host.write(
            "etc/passwd",
            "bob:x:1000:1000::/home/bob:/bin/sh\nann:x:1001:1001::/home/ann:/bin/sh\n",
        );
        let wanted = held(Transport::Tcp, [0, 0, 0, 0], 8080);
        let mut wanting = |uid| {
            let newcomer = Actor {
                uid,
                ..actor("rootlessport")
            };
            let wanting = host.containers.wanting(&wanted, &newcomer, false, host.now);
            agreed(wanting, &wanted).map(|of| of.named.container.id.to_string())
        };
        assert_eq!(wanting(1001).as_deref(), Some(podman.second));
        assert_eq!(wanting(1000), None);
        assert_eq!(wanting(1002), None);
    }
}

#[test]
fn containerds_containers() {
    let mut host = Host::new();
    host.write(METADATA_PATH, METADATA);
    let labels = |pairs: &[(&str, &str)]| {
        let pairs = pairs.iter();
        pairs
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    };
    let web = Container {
        labels: labels(&[("app", "shop")]),
        ..container("containerd", "web-1", "web-1", "")
    };
    assert_eq!(host.named("containerd", "web-1"), web.into());
    // In a namespace that somebody made.
    let web = container("containerd", "web-2", "web-2", "");
    assert_eq!(host.named("containerd", "web-2"), web.into());
    // So many that their buckets lie in pages of several levels.
    for number in 1..=40 {
        let id = format!("many-{number}");
        let seen = host.get("containerd", &id);
        assert_eq!(
            seen.labels,
            labels(&[("n", &number.to_string())]),
            "of {id}"
        );
    }
    let nginx = host.named("containerd", CRI);
    assert_eq!(nginx.container.name.as_deref(), Some("nginx"));
    let pod = Pod {
        namespace: Some("shop".into()),
        name: "web-7d9f".into(),
        uid: Some("2f9e1a7c-6b0d-4c57-9e58-0d6f3b1f2a11".into()),
        container: Some("nginx".into()),
    };
    assert_eq!(nginx.pod, Some(pod));
    let front = CRI.replacen('0', "f", 1);
    assert_eq!(
        host.get("containerd", &front).name.as_deref(),
        Some("front")
    );
    assert_eq!(
        host.get("containerd", "none"),
        container("containerd", "none", "", "")
    );
}

/// Ports in a label of nerdctl's: of a container that runs, which a file of its bundle tells.
#[test]
fn ports_that_nerdctl_publishes() {
    let mut host = Host::new();
    host.write(METADATA_PATH, METADATA);
    assert_eq!(host.containers.publishing(8081, host.now), []);
    let front = CRI.replacen('0', "f", 1);
    let bundle = format!("run/containerd/io.containerd.runtime.v2.task/default/{front}");
    host.write(&format!("{bundle}/init.pid"), "7");
    host.wait(1000);
    let found = host.containers.publishing(8081, host.now);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].named.container.name.as_deref(), Some("front"));
    assert_eq!((found[0].port, &*found[0].protocol), (80, "tcp"));
}

/// As the runtimes of Kubernetes write them for what they run.
#[test]
fn bundles_with_annotations() {
    let containerd = r#"{"ociVersion":"1.1.0","annotations":{
        "io.kubernetes.cri.container-name":"nginx",
        "io.kubernetes.cri.container-type":"container",
        "io.kubernetes.cri.image-name":"docker.io/library/nginx:1.27",
        "io.kubernetes.cri.sandbox-id":"x",
        "io.kubernetes.cri.sandbox-name":"web-7d9f",
        "io.kubernetes.cri.sandbox-namespace":"shop",
        "io.kubernetes.cri.sandbox-uid":"2f9e1a7c-6b0d-4c57-9e58-0d6f3b1f2a11"}}"#;
    let cri_o = r#"{"ociVersion":"1.1.0","annotations":{
        "io.container.manager":"cri-o",
        "io.kubernetes.container.name":"nginx",
        "io.kubernetes.cri-o.ImageName":"docker.io/library/nginx:1.27",
        "io.kubernetes.cri-o.Labels":"{\"app\":\"web\"}",
        "io.kubernetes.pod.name":"web-7d9f",
        "io.kubernetes.pod.namespace":"shop",
        "io.kubernetes.pod.uid":"2f9e1a7c-6b0d-4c57-9e58-0d6f3b1f2a11"}}"#;
    let cases = [
        (
            "containerd",
            format!("run/containerd/io.containerd.runtime.v2.task/k8s.io/{WEB}/config.json"),
            containerd,
            [].into(),
        ),
        (
            "cri-o",
            format!("run/containers/storage/overlay-containers/{WEB}/userdata/config.json"),
            cri_o,
            [("app".to_owned(), "web".to_owned())].into(),
        ),
    ];
    for (runtime, path, config, labels) in cases {
        let mut host = Host::new();
        fs::create_dir_all(host.path("var/lib/containerd/x")).unwrap();
        host.write(&path, config);
        let expected = Named {
            container: Container {
                labels,
                ..container(runtime, WEB, "nginx", "docker.io/library/nginx:1.27")
            },
            pod: Some(Pod {
                namespace: Some("shop".into()),
                name: "web-7d9f".into(),
                uid: Some("2f9e1a7c-6b0d-4c57-9e58-0d6f3b1f2a11".into()),
                container: Some("nginx".into()),
            }),
            life: Life::default(),
        };
        assert_eq!(host.named(runtime, WEB), expected);
        // Without them, or broken, it leaves the id alone.
        for config in [
            "{}",
            "{",
            r#"{"annotations":{"a":"b"}}"#,
            r#"{"annotations":[]}"#,
        ] {
            let mut host = Host::new();
            host.write(&path, config);
            assert_eq!(
                host.get(runtime, WEB),
                container(runtime, WEB, "", ""),
                "of {config}"
            );
        }
    }
}

/// Containers of cri-dockerd have their pod in labels of Docker's record.
#[test]
fn a_pod_in_dockers_labels() {
    let mut host = Host::new();
    let labels = r#""io.kubernetes.pod.name":"web-7d9f","io.kubernetes.pod.namespace":"shop","#;
    let record = DOCKER.replacen(r#""Labels":{"#, &format!(r#""Labels":{{{labels}"#), 1);
    assert_ne!(record, DOCKER);
    host.write(&docker_path(WEB), record);
    let pod = host.named("containerd", WEB).pod.unwrap();
    assert_eq!(pod.full_name(), "shop/web-7d9f");
}

/// Whatever is cut off or changed in a database, something is answered and nothing is waited for.
#[test]
fn damaged_databases() {
    let bolt = |database: &[u8]| {
        let mut host = PODMANS[0].host(database);
        host.get("podman", PODMANS[0].web);
        host.containers.publishing(8080, host.now);
    };
    let sqlite = |database: &[u8]| {
        let mut host = PODMANS[1].host(database);
        host.get("podman", PODMANS[1].web);
        host.containers.publishing(8080, host.now);
    };
    let containerd = |database: &[u8]| {
        let host = &mut Host::new();
        host.write(METADATA_PATH, database);
        host.get("containerd", "many-7");
        host.containers.publishing(8081, host.now);
    };
    for (database, ask) in [
        (BOLT, &bolt as &dyn Fn(&[u8])),
        (SQLITE, &sqlite),
        (METADATA, &containerd),
    ] {
        for length in (0..database.len()).step_by(database.len() / 23) {
            ask(&database[..length]);
        }
        // Numbers that lead elsewhere: every page's header and first elements.
        let mut random = 1_u64;
        for page in 0..database.len() / 4096 {
            let mut damaged = database.to_owned();
            for _ in 0..8 {
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                let at = page * 4096 + usize::try_from(random >> 33).unwrap() % 96;
                damaged[at] = random.to_le_bytes()[3];
            }
            ask(&damaged);
        }
    }
}

/// A page that is its own child.
#[test]
fn a_tree_that_goes_in_circles() {
    let mut circle = SQLITE.to_owned();
    // The schema's first page becomes an interior page whose only child is itself.
    circle[100..112].copy_from_slice(&[5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    let mut host = PODMANS[1].host(&circle);
    let web = PODMANS[1].web;
    assert_eq!(host.get("podman", web), container("podman", web, "", ""));
}
