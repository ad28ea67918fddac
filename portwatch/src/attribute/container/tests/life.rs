//! When containers were created and since when they run, by each runtime's records.

use super::databases::{CRI, METADATA, METADATA_PATH, PODMANS};
use super::*;

/// When it was created, and since when it runs.
type Expected = [Option<&'static str>; 2];

fn expect(host: &mut Host, runtime: &'static str, id: &str, expected: Expected, what: &str) {
    assert_eq!(
        host.life(runtime, id),
        expected.map(|time| time.map(str::to_owned)),
        "{what}"
    );
}

#[test]
fn of_docker() {
    const CREATED: &str = "2026-01-12T09:30:00.987654321Z";
    const STARTED: &str = "2026-01-12T09:30:01.123456789Z";
    const ZERO: &str = "0001-01-01T00:00:00Z";
    let cases: &[(&str, &str, &str, Expected)] = &[
        ("running", "", "", [Some(CREATED), Some(STARTED)]),
        (
            "stopped",
            r#""Running":true"#,
            r#""Running":false"#,
            [Some(CREATED), None],
        ),
        ("never started", STARTED, ZERO, [Some(CREATED), None]),
        (
            "in another zone",
            CREATED,
            "2026-01-12T10:30:00.5+01:00",
            [Some("2026-01-12T09:30:00.500000000Z"), Some(STARTED)],
        ),
        (
            "without a fraction",
            CREATED,
            "2026-01-12T09:30:00Z",
            [Some("2026-01-12T09:30:00.000000000Z"), Some(STARTED)],
        ),
        (
            "not told",
            r#""Created":"#,
            r#""Made":"#,
            [None, Some(STARTED)],
        ),
        ("no time", CREATED, "yesterday", [None, Some(STARTED)]),
        ("too early to be one", CREATED, ZERO, [None, Some(STARTED)]),
        (
            "too late to be one",
            CREATED,
            "9999-12-31T00:00:00Z",
            [None, Some(STARTED)],
        ),
    ];
    for (what, old, new, expected) in cases {
        let mut host = Host::new();
        assert!(DOCKER.contains(old), "{what}");
        host.write(&docker_path(WEB), DOCKER.replace(old, new));
        expect(&mut host, "docker", WEB, *expected, what);
    }
}

#[test]
fn of_podman() {
    let expected: [(&str, [Expected; 2]); 2] = [
        (
            "in bolt_state.db",
            [
                [
                    Some("2026-11-25T13:41:00.311732189Z"),
                    Some("2026-11-25T13:41:00.475043736Z"),
                ],
                [Some("2026-11-25T13:41:00.509690993Z"), None],
            ],
        ),
        (
            "in db.sql",
            [
                [
                    Some("2026-11-25T13:40:59.432224711Z"),
                    Some("2026-11-25T13:40:59.516080187Z"),
                ],
                [Some("2026-11-25T13:40:59.542791553Z"), None],
            ],
        ),
    ];
    for (podman, (what, [web, second])) in PODMANS.iter().zip(expected) {
        let mut host = podman.host(podman.database);
        expect(&mut host, "podman", podman.web, web, what);
        expect(&mut host, "podman", podman.second, second, what);
    }
    // By the lists of containers/storage alone.
    let mut host = Host::new();
    host.write(STORAGE[0], PODMAN);
    let created = Some("2026-01-12T09:30:00.123456789Z");
    expect(
        &mut host,
        "podman",
        INFRA,
        [created, None],
        "in containers.json",
    );
}

#[test]
fn of_containerd_and_cri_o() {
    let mut host = Host::new();
    host.write(METADATA_PATH, METADATA);
    let cases = [
        ("web-1", "2026-11-25T13:41:01.210319686Z"),
        (CRI, "2026-11-25T13:41:01.403035455Z"),
        ("none", ""),
    ];
    for (id, created) in cases {
        let created = (!created.is_empty()).then_some(created);
        expect(&mut host, "containerd", id, [created, None], id);
    }
    let bundle = r#"{"annotations":{"io.kubernetes.cri-o.Created":"2026-01-12T09:30:00.5Z"}}"#;
    host.write(
        &format!("run/containers/storage/overlay-containers/{WEB}/userdata/config.json"),
        bundle,
    );
    host.wait(1000);
    expect(
        &mut host,
        "cri-o",
        WEB,
        [Some("2026-01-12T09:30:00.500000000Z"), None],
        "of CRI-O",
    );
}

/// All of them, whether they run, and what they publish.
#[test]
fn what_the_runtimes_keep() {
    let mut host = PODMANS[1].host(PODMANS[1].database);
    host.write(&docker_path(WEB), DOCKER);
    host.write(METADATA_PATH, METADATA);
    let bundle = "run/containerd/io.containerd.runtime.v2.task/default/web-1";
    host.write(&format!("{bundle}/init.pid"), "7");
    let all = host.containers.all(host.now);
    let kept = |name: &str| -> (&str, bool, Vec<u16>) {
        let mut all = all.iter();
        let is = |kept: &&Kept| kept.named.container.name.as_deref() == Some(name);
        let kept = all.find(is).unwrap_or_else(|| panic!("no {name}"));
        let ports = kept.publications.iter().map(|one| one.host_port).collect();
        (&kept.named.container.runtime, kept.running, ports)
    };
    assert_eq!(kept("shop-web-1"), ("docker", true, vec![8080, 8080]));
    assert_eq!(kept("second"), ("podman", false, vec![8080]));
    assert_eq!(
        kept("89d565902ba0-infra"),
        ("podman", true, vec![9090, 9091])
    );
    // Of the same name as podman's, which goes first.
    let web = all
        .iter()
        .find(|kept| &*kept.named.container.id == "web-1")
        .unwrap();
    assert!(web.running && web.publications.is_empty());
    let other = all
        .iter()
        .find(|kept| &*kept.named.container.id == "web-2")
        .unwrap();
    assert!(!other.running);

    // Each time anew.
    host.write(
        &docker_path(WEB),
        DOCKER.replace(r#""Running":true"#, r#""Running":false"#),
    );
    let all = host.containers.all(host.now);
    let web = all
        .iter()
        .find(|kept| &*kept.named.container.id == WEB)
        .unwrap();
    assert!(!web.running);
}
