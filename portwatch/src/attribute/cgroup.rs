//! What a cgroup path tells of a process: the systemd unit and the container it belongs to.
//!
//! Pure: it reads no file. A path is the word of whoever made the cgroup, and
//! a user may make some, so an id is only taken in the form its runtime gives
//! it, and a unit only if systemd could have a unit of that name.

/// Longest name of a unit, in bytes: `UNIT_NAME_MAX` of systemd without its NUL.
const MAX_UNIT: usize = 255;
/// Longest id of containerd, in bytes: `maxLength` of its pkg/identifiers.
const MAX_CONTAINERD_ID: usize = 76;
/// Longest name of an LXC container or a machine that is taken, in bytes: `NAME_MAX` of Linux.
const MAX_NAME: usize = 255;

/// What a cgroup path tells.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Place {
    /// The systemd unit, named as `systemctl` takes it: what systemd has escaped stays so.
    ///
    /// It is a unit of the host's systemd: units of a systemd within a
    /// container are not told. In a user's service manager it is the unit of
    /// that manager (`systemctl --user`).
    pub unit: Option<String>,
    /// The innermost container.
    pub container: Option<ContainerRef>,
    /// The containers around it (a node of kind, Docker in Docker), from the inside outwards.
    pub outer: Vec<ContainerRef>,
}

/// A container as its runtime knows it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ContainerRef {
    /// What runs it: `docker`, `podman`, `containerd`, `cri-o`, `lxc`, `systemd-nspawn`, `ecs`.
    pub runtime: &'static str,
    /// Its id; of `lxc` and `systemd-nspawn`, its name.
    pub id: String,
}

/// Reads a cgroup path.
#[must_use]
pub fn parse(path: &str) -> Place {
    // The kernel appends it to a cgroup that was removed under a process: proc_cgroup_show in
    // kernel/cgroup/cgroup.c (6.18).
    let path = path.strip_suffix(" (deleted)").unwrap_or(path);
    // A path begins with `/..` if it is outside of the reader's own cgroup namespace.
    let segments: Vec<&str> = path
        .split('/')
        .filter(|segment| !matches!(*segment, "" | "." | ".."))
        .collect();

    let mut containers = Vec::new();
    let mut rest = segments.as_slice();
    let mut child = None;
    while let [before @ .., segment] = rest {
        containers.extend(container(before, segment, child));
        child = Some(*segment);
        rest = before;
    }
    // Docker in Docker on version 1 repeats the path of its container.
    containers.dedup();
    let mut containers = containers.into_iter();
    Place {
        unit: unit(&segments),
        container: containers.next(),
        outer: containers.collect(),
    }
}

/// Reads the cgroup paths of one process, of version 2 and of version 1.
///
/// Both can be given: on a hybrid host the process may stay in the root of one
/// hierarchy while the other has its container. Version 2 goes first.
#[must_use]
pub fn of_process(v2: Option<&str>, v1: Option<&str>) -> Place {
    let v2 = v2.map(parse).unwrap_or_default();
    let v1 = v1.map(parse).unwrap_or_default();
    // Version 1 may also go on where version 2 stops: in the container around this one.
    let deeper = v2
        .container
        .as_ref()
        .is_none_or(|container| v1.outer.contains(container));
    let (container, outer) = if deeper && v1.container.is_some() {
        (v1.container, v1.outer)
    } else {
        (v2.container, v2.outer)
    };
    Place {
        unit: v2.unit.or(v1.unit),
        container,
        outer,
    }
}

/// Whether this is an id as Docker, podman and the runtimes of Kubernetes make them: 64 lower-case
/// hexadecimal digits.
#[must_use]
pub fn is_id(text: &str) -> bool {
    text.len() == 64 && is_hex(text)
}

fn is_hex(text: &str) -> bool {
    text.bytes()
        .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// The container that a segment stands for, `before` and `child` being what is around it.
fn container(before: &[&str], segment: &str, child: Option<&str>) -> Option<ContainerRef> {
    if is_id(segment) {
        return bare(before, segment, child);
    }
    prefixed(segment)
        .or_else(|| scope_of_ctr(segment))
        .or_else(|| group_of_ctr(before, segment))
        .or_else(|| lxc(before, segment))
        .or_else(|| nspawn(segment, child))
        .or_else(|| ecs(segment))
}

fn reference(runtime: &'static str, id: &str) -> ContainerRef {
    ContainerRef {
        runtime,
        id: id.to_owned(),
    }
}

/// An id without any prefix: the segments around it tell whose it is.
fn bare(before: &[&str], id: &str, child: Option<&str>) -> Option<ContainerRef> {
    let runtime = match before {
        [.., "docker" | "actions_job"] => "docker",
        // A pod of podman. Its containers lie within, and its conmon is in none.
        [.., "libpod_parent"] => return None,
        _ if child.is_some_and(|child| child == "conmon" || child.starts_with("libpod-")) => {
            return None;
        }
        ["default" | "k8s.io"] => "containerd",
        // cri-dockerd has the same form; Docker's own records tell it apart.
        [around @ .., pod]
            if pod.starts_with("pod") && around.iter().any(|s| s.contains("kubepods")) =>
        {
            "containerd"
        }
        // Docker with a cgroup parent.
        _ => "docker",
    };
    Some(reference(runtime, id))
}

/// `<runtime>-<id>`, with `.scope` or without, and `<slice>:<runtime>:<id>`.
///
/// What is not a container falls through, as its last part but one is none of
/// these words: `crio-conmon-<id>`, `libpod-conmon-<id>`.
fn prefixed(segment: &str) -> Option<ContainerRef> {
    let name = segment.strip_suffix(".scope").unwrap_or(segment);
    let (prefix, id) = match name.rsplit_once(':') {
        // runc was given systemd's form but told to use cgroupfs.
        Some((front, id)) => (front.rsplit(':').next()?, id),
        None => name.rsplit_once('-')?,
    };
    let runtime = match prefix {
        "docker" => "docker",
        // The latter with `--cgroups=split`, which is what Quadlet uses.
        "libpod" | "libpod-payload" => "podman",
        "cri-containerd" | "nerdctl" => "containerd",
        "crio" => "cri-o",
        _ => return None,
    };
    is_id(id).then(|| reference(runtime, id))
}

/// `ctr-<id>.scope`.
fn scope_of_ctr(segment: &str) -> Option<ContainerRef> {
    let id = segment.strip_prefix("ctr-")?.strip_suffix(".scope")?;
    is_containerd_id(id).then(|| reference("containerd", id))
}

/// `/<namespace>/<id>`, of the namespaces that are known: any cgroup in a cgroup has that form.
fn group_of_ctr(before: &[&str], segment: &str) -> Option<ContainerRef> {
    let known = matches!(before, ["default" | "k8s.io"]);
    (known && is_containerd_id(segment)).then(|| reference("containerd", segment))
}

/// Whether this is an id as containerd takes it: letters and digits, with single `.`, `_` and `-` between them: pkg/identifiers of containerd.
#[must_use]
pub fn is_containerd_id(text: &str) -> bool {
    text.len() <= MAX_CONTAINERD_ID
        && text
            .split(['.', '_', '-'])
            .all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric()))
}

/// `lxc.payload.NAME`, `lxc.payload/NAME`, `lxc/NAME`.
fn lxc(before: &[&str], segment: &str) -> Option<ContainerRef> {
    let name = match before {
        [.., "lxc" | "lxc.payload"] => segment,
        _ => segment.strip_prefix("lxc.payload.")?,
    };
    is_name(name).then(|| reference("lxc", name))
}

/// `machine-NAME.scope/payload`, `systemd-nspawn@NAME.service/payload`.
///
/// Virtual machines have the same scope, but another child (`libvirt`).
/// On version 1 the payload's own groups lie directly within.
fn nspawn(segment: &str, child: Option<&str>) -> Option<ContainerRef> {
    if !matches!(
        child,
        Some("payload" | "init.scope" | "system.slice" | "user.slice")
    ) {
        return None;
    }
    let name = if let Some(rest) = segment.strip_prefix("machine-") {
        unescape(rest.strip_suffix(".scope")?)?
    } else {
        let rest = segment.strip_prefix("systemd-nspawn@")?;
        unescape(rest.strip_suffix(".service")?)?
    };
    is_name(&name).then(|| reference("systemd-nspawn", &name))
}

/// `<32 hexadecimal digits>-<digits>`.
fn ecs(segment: &str) -> Option<ContainerRef> {
    let (task, number) = segment.split_once('-')?;
    let whole = task.len() == 32
        && is_hex(task)
        && (1..=20).contains(&number.len())
        && number.bytes().all(|byte| byte.is_ascii_digit());
    whole.then(|| reference("ecs", segment))
}

fn is_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..")
        && name.len() <= MAX_NAME
        && name.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Undoes the `\x2d` of systemd-escape(1); none if that is not text.
fn unescape(text: &str) -> Option<String> {
    let mut parts = text.split("\\x");
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        let digits = part.get(..2)?;
        if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        bytes.extend_from_slice(part.get(2..)?.as_bytes());
    }
    String::from_utf8(bytes).ok()
}

/// The unit: the first segment below the slices, by the rule of systemd's own `cg_path_get_unit`.
/// Within a user's service manager it is the unit of that manager, if there is one.
fn unit(segments: &[&str]) -> Option<String> {
    let (outer, rest) = below_slices(segments)?;
    if !(outer.starts_with("user@") && outer.ends_with(".service")) {
        return Some(outer.to_owned());
    }
    let unit = match below_slices(rest) {
        // `init.scope` is the manager itself.
        Some((inner, _)) if inner != "init.scope" => inner,
        _ => outer,
    };
    Some(unit.to_owned())
}

/// The first segment that is no slice, if it is a unit, and what follows it.
fn below_slices<'a, 'b>(segments: &'b [&'a str]) -> Option<(&'a str, &'b [&'a str])> {
    let mut rest = segments;
    while let [segment, below @ ..] = rest {
        // systemd puts a `_` before a name that a controller's file might have: `_cpu.service`.
        let name = segment.strip_prefix('_').unwrap_or(segment);
        if !is_unit(name, &[".slice"]) {
            let is_unit = is_unit(name, &[".service", ".scope", ".socket", ".mount", ".swap"]);
            return is_unit.then_some((name, below));
        }
        rest = below;
    }
    None
}

/// Whether systemd could have a unit of that name: `unit_name_is_valid` of its basic/unit-name.c.
fn is_unit(name: &str, suffixes: &[&str]) -> bool {
    name.len() <= MAX_UNIT
        && suffixes.iter().any(|suffix| {
            name.strip_suffix(suffix)
                .is_some_and(|stem| !stem.is_empty() && !stem.starts_with('@'))
        })
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b":-_.\\@".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const UID: &str = "2f9e1a7c-6b0d-4c57-9e58-0d6f3b1f2a11";

    /// A place by unit and containers, from the inside outwards.
    fn place(unit: &str, containers: &[(&'static str, &str)]) -> Place {
        let mut containers = containers
            .iter()
            .map(|(runtime, id)| reference(runtime, &fill(id)));
        Place {
            unit: (!unit.is_empty()).then(|| fill(unit)),
            container: containers.next(),
            outer: containers.collect(),
        }
    }

    fn fill(text: &str) -> String {
        text.replace("{A}", A)
            .replace("{B}", B)
            .replace("{UID}", UID)
            .replace("{U_ID}", &UID.replace('-', "_"))
    }

    type Row = (
        &'static str,
        &'static str,
        &'static [(&'static str, &'static str)],
    );

    #[track_caller]
    fn check(rows: &[Row]) {
        for (path, unit, containers) in rows {
            assert_eq!(parse(&fill(path)), place(unit, containers), "of {path}");
        }
    }

    #[test]
    fn docker() {
        check(&[
            ("/docker/{A}", "", &[("docker", "{A}")]),
            ("/docker/{A}/nested/by/it", "", &[("docker", "{A}")]),
            ("/my/parent/{A}", "", &[("docker", "{A}")]),
            ("/{A}", "", &[("docker", "{A}")]),
            (
                "/system.slice/docker-{A}.scope",
                "docker-{A}.scope",
                &[("docker", "{A}")],
            ),
            (
                "/my.slice/my-own.slice/docker-{A}.scope",
                "docker-{A}.scope",
                &[("docker", "{A}")],
            ),
            // The daemon and its docker-proxy are in no container.
            ("/system.slice/docker.service", "docker.service", &[]),
            // A systemd within has units, but they are not the host's.
            (
                "/system.slice/docker-{A}.scope/system.slice/nginx.service",
                "docker-{A}.scope",
                &[("docker", "{A}")],
            ),
            (
                "/docker/{A}/system.slice/nginx.service",
                "",
                &[("docker", "{A}")],
            ),
            // Docker in Docker.
            (
                "/docker/{A}/docker/{B}",
                "",
                &[("docker", "{B}"), ("docker", "{A}")],
            ),
            ("/docker/{A}/docker/{A}", "", &[("docker", "{A}")]),
            // Rootless Docker.
            (
                "/user.slice/user-1000.slice/user@1000.service/user.slice/docker-{A}.scope",
                "docker-{A}.scope",
                &[("docker", "{A}")],
            ),
            ("/actions_job/{A}", "", &[("docker", "{A}")]),
            ("/docker/{A} (deleted)", "", &[("docker", "{A}")]),
            ("/../docker/{A}", "", &[("docker", "{A}")]),
        ]);
    }

    #[test]
    fn podman() {
        check(&[
            ("/libpod_parent/libpod-{A}", "", &[("podman", "{A}")]),
            ("/libpod_parent/{B}/libpod-{A}", "", &[("podman", "{A}")]),
            ("/my/parent/{B}/libpod-{A}", "", &[("podman", "{A}")]),
            ("/libpod_parent/conmon", "", &[]),
            ("/libpod_parent/{B}", "", &[]),
            ("/my/parent/{B}/conmon", "", &[]),
            (
                "/machine.slice/libpod-{A}.scope/container",
                "libpod-{A}.scope",
                &[("podman", "{A}")],
            ),
            (
                "/machine.slice/machine-libpod_pod_{B}.slice/libpod-{A}.scope/container",
                "libpod-{A}.scope",
                &[("podman", "{A}")],
            ),
            (
                "/machine.slice/libpod-conmon-{A}.scope",
                "libpod-conmon-{A}.scope",
                &[],
            ),
            // conmon stays with its caller.
            (
                "/user.slice/user-0.slice/session-3.scope",
                "session-3.scope",
                &[],
            ),
            // Rootless.
            (
                "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{A}.scope/container",
                "libpod-{A}.scope",
                &[("podman", "{A}")],
            ),
            // Quadlet: `--cgroups=split`.
            (
                "/system.slice/web.service/libpod-payload-{A}",
                "web.service",
                &[("podman", "{A}")],
            ),
            ("/system.slice/web.service/runtime", "web.service", &[]),
            // podman in Docker.
            (
                "/docker/{A}/libpod_parent/libpod-{B}",
                "",
                &[("podman", "{B}"), ("docker", "{A}")],
            ),
        ]);
    }

    #[test]
    fn containerd() {
        check(&[
            ("/default/c1", "", &[("containerd", "c1")]),
            ("/default/my-web_1.a", "", &[("containerd", "my-web_1.a")]),
            ("/default/c1/below", "", &[("containerd", "c1")]),
            ("/default/{A}", "", &[("containerd", "{A}")]),
            ("/k8s.io/{A}", "", &[("containerd", "{A}")]),
            ("/default", "", &[]),
            ("/default/-c1", "", &[]),
            ("/default/c..1", "", &[]),
            ("/elsewhere/c1", "", &[]),
            (
                "/system.slice/ctr-c2.scope",
                "ctr-c2.scope",
                &[("containerd", "c2")],
            ),
            ("/system.slice/ctr-.scope", "ctr-.scope", &[]),
            (
                "/system.slice/nerdctl-{A}.scope",
                "nerdctl-{A}.scope",
                &[("containerd", "{A}")],
            ),
            (
                "/system.slice/containerd.service",
                "containerd.service",
                &[],
            ),
        ]);
    }

    #[test]
    fn kubernetes() {
        check(&[
            (
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{U_ID}.slice/cri-containerd-{A}.scope",
                "cri-containerd-{A}.scope",
                &[("containerd", "{A}")],
            ),
            (
                "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{U_ID}.slice/crio-{A}.scope",
                "crio-{A}.scope",
                &[("cri-o", "{A}")],
            ),
            (
                "/kubepods.slice/kubepods-pod{U_ID}.slice/docker-{A}.scope",
                "docker-{A}.scope",
                &[("docker", "{A}")],
            ),
            (
                "/kubepods.slice/kubepods-pod{U_ID}.slice/crio-{A}.scope/container",
                "crio-{A}.scope",
                &[("cri-o", "{A}")],
            ),
            (
                "/kubepods.slice/kubepods-pod{U_ID}.slice/crio-conmon-{A}.scope",
                "crio-conmon-{A}.scope",
                &[],
            ),
            (
                "/kubepods/burstable/pod{UID}/{A}",
                "",
                &[("containerd", "{A}")],
            ),
            ("/kubepods/pod{UID}/{A}", "", &[("containerd", "{A}")]),
            ("/kubepods/pod{UID}/crio-{A}", "", &[("cri-o", "{A}")]),
            ("/kubepods/pod{UID}/crio-conmon-{A}", "", &[]),
            ("/kubepods/pod{UID}", "", &[]),
            (
                "/kubepods-burstable-pod{U_ID}.slice:cri-containerd:{A}",
                "",
                &[("containerd", "{A}")],
            ),
            (
                "/system.slice/containerd.service/kubepods-burstable-pod{U_ID}.slice:cri-containerd:{A}",
                "containerd.service",
                &[("containerd", "{A}")],
            ),
            // kind and minikube.
            (
                "/system.slice/docker-{B}.scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod{U_ID}.slice/cri-containerd-{A}.scope",
                "docker-{B}.scope",
                &[("containerd", "{A}"), ("docker", "{B}")],
            ),
            (
                "/docker/{B}/kubelet/kubepods/besteffort/pod{UID}/{A}",
                "",
                &[("containerd", "{A}"), ("docker", "{B}")],
            ),
            (
                "/docker/{B}/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{U_ID}.slice/crio-conmon-{A}.scope",
                "",
                &[("docker", "{B}")],
            ),
            (
                "/docker/{B}/system.slice/kubelet.service",
                "",
                &[("docker", "{B}")],
            ),
        ]);
    }

    #[test]
    fn others() {
        check(&[
            ("/lxc.payload.web-1", "", &[("lxc", "web-1")]),
            (
                "/lxc.payload.proj_web/system.slice/ssh.service",
                "",
                &[("lxc", "proj_web")],
            ),
            ("/lxc.payload/web", "", &[("lxc", "web")]),
            ("/lxc/101/ns/system.slice", "", &[("lxc", "101")]),
            ("/lxc.monitor.web", "", &[]),
            ("/lxc.monitor/web", "", &[]),
            ("/lxc.payload.", "", &[]),
            ("/lxc", "", &[]),
            ("/lxc/a b", "", &[]),
            (
                "/machine.slice/machine-web.scope/payload/system.slice/ssh.service",
                "machine-web.scope",
                &[("systemd-nspawn", "web")],
            ),
            (
                "/machine.slice/machine-my\\x2dweb.scope/payload",
                "machine-my\\x2dweb.scope",
                &[("systemd-nspawn", "my-web")],
            ),
            (
                "/machine.slice/machine-web.scope/system.slice/ssh.service",
                "machine-web.scope",
                &[("systemd-nspawn", "web")],
            ),
            (
                "/machine.slice/systemd-nspawn@my-web.service/payload",
                "systemd-nspawn@my-web.service",
                &[("systemd-nspawn", "my-web")],
            ),
            (
                "/machine.slice/systemd-nspawn@web.service/supervisor",
                "systemd-nspawn@web.service",
                &[],
            ),
            (
                "/machine.slice/machine-qemu\\x2d1\\x2dvm.scope/libvirt/emulator",
                "machine-qemu\\x2d1\\x2dvm.scope",
                &[],
            ),
            (
                "/machine.slice/machine-.scope/payload",
                "machine-.scope",
                &[],
            ),
            (
                "/machine.slice/machine-\\x2.scope/payload",
                "machine-\\x2.scope",
                &[],
            ),
            ("/machine.slice/machine-\\x+1.scope/payload", "", &[]),
            (
                "/ecs/c1b9e0f2a3d44e5f8a7b6c5d4e3f2a10/c1b9e0f2a3d44e5f8a7b6c5d4e3f2a10-1234567890",
                "",
                &[("ecs", "c1b9e0f2a3d44e5f8a7b6c5d4e3f2a10-1234567890")],
            ),
            ("/ecs/c1b9e0f2a3d44e5f8a7b6c5d4e3f2a10-", "", &[]),
            (
                "/ecs/c1b9e0f2a3d44e5f8a7b6c5d4e3f2a10/{A}",
                "",
                &[("docker", "{A}")],
            ),
        ]);
    }

    #[test]
    fn units() {
        check(&[
            ("/system.slice/nginx.service", "nginx.service", &[]),
            ("/system.slice/nginx.service/worker", "nginx.service", &[]),
            ("/system.slice/x.service (deleted)", "x.service", &[]),
            ("/../x.service", "x.service", &[]),
            ("/foo.slice/foo-bar.slice/x@y.service", "x@y.service", &[]),
            (
                "/system.slice/system-getty.slice/getty@tty1.service",
                "getty@tty1.service",
                &[],
            ),
            (
                "/system.slice/dev-disk\\x2dby.swap",
                "dev-disk\\x2dby.swap",
                &[],
            ),
            (
                "/system.slice/my\\x2dweb.service",
                "my\\x2dweb.service",
                &[],
            ),
            ("/system.slice/_cpu.service", "cpu.service", &[]),
            ("/system.slice/cups.socket", "cups.socket", &[]),
            ("/system.slice/var-lib.mount", "var-lib.mount", &[]),
            ("/init.scope", "init.scope", &[]),
            ("/system.slice/run-r0a1b2c.scope", "run-r0a1b2c.scope", &[]),
            (
                "/user.slice/user-1000.slice/session-3.scope",
                "session-3.scope",
                &[],
            ),
            (
                "/user.slice/user-1000.slice/user@1000.service/app.slice/app-web.slice/web@1.service",
                "web@1.service",
                &[],
            ),
            (
                "/user.slice/user-1000.slice/user@1000.service/app.slice/app-gnome-x\\x2dy-12.scope",
                "app-gnome-x\\x2dy-12.scope",
                &[],
            ),
            (
                "/user.slice/user-1000.slice/user@1000.service/init.scope",
                "user@1000.service",
                &[],
            ),
            (
                "/user.slice/user-1000.slice/user@1000.service",
                "user@1000.service",
                &[],
            ),
            (
                "/user.slice/user-1000.slice/user@1000.service/app.slice",
                "user@1000.service",
                &[],
            ),
            // A unit within a unit's own groups is none of systemd's.
            ("/system.slice/a.service/b.service", "a.service", &[]),
            ("/mine/b.service", "", &[]),
            ("/system.slice", "", &[]),
            ("/user.slice/user-1000.slice", "", &[]),
            ("/system.slice/notaunit", "", &[]),
            ("/system.slice/.service", "", &[]),
            ("/system.slice/@y.service", "", &[]),
            ("/system.slice/a b.service", "", &[]),
            ("/system.slice/a\u{1b}[31m.service", "", &[]),
        ]);
    }

    #[test]
    fn hostile() {
        let short = &A[1..];
        let long = format!("{A}a");
        let upper = A.to_uppercase();
        for path in [
            "",
            "/",
            "//////",
            "..",
            "/../..",
            "/./..",
            " (deleted)",
            "/ (deleted)",
            ":",
            "/::",
            "/-",
            "/\\x",
            "/docker",
            "/docker/web",
            "/docker/ééééééééééééééééééééééééééééééééé",
            "/x/docker-.scope",
            "/lxc/..",
            "/lxc.payload...",
            &format!("/docker/{short}"),
            &format!("/docker/{long}"),
            &format!("/docker/{upper}"),
            &format!("/x/docker-{short}.scope"),
            &format!("/x/docker-{long}.scope"),
            &format!("/x/evil-{A}.scope"),
            &"/a".repeat(1 << 20),
            &"a".repeat(1 << 20),
            &format!("/system.slice/{}.service", "a".repeat(255)),
            &format!("/lxc/{}", "a".repeat(256)),
            &format!("/default/{}", "a".repeat(77)),
        ] {
            assert_eq!(parse(path), Place::default(), "of {path:.80}");
        }
    }

    #[test]
    fn of_both_versions() {
        let cases: &[(Option<&str>, Option<&str>, Place)] = &[
            (None, None, Place::default()),
            (
                Some("/system.slice/docker-{A}.scope"),
                None,
                place("docker-{A}.scope", &[("docker", "{A}")]),
            ),
            (
                Some("/"),
                Some("/docker/{A}"),
                place("", &[("docker", "{A}")]),
            ),
            (
                None,
                Some("/system.slice/docker-{A}.scope"),
                place("docker-{A}.scope", &[("docker", "{A}")]),
            ),
            (
                Some("/system.slice/x.service"),
                Some("/docker/{B}/docker/{A}"),
                place("x.service", &[("docker", "{A}"), ("docker", "{B}")]),
            ),
            (
                Some("/docker/{A}"),
                Some("/system.slice/x.service"),
                place("x.service", &[("docker", "{A}")]),
            ),
            (
                Some("/a.slice/a.service"),
                Some("/b.slice/b.service"),
                place("a.service", &[]),
            ),
            (
                Some("/docker/{A}"),
                Some("/docker/{B}"),
                place("", &[("docker", "{A}")]),
            ),
            (
                Some("/docker/{A}"),
                Some("/docker/{A}/docker/{B}"),
                place("", &[("docker", "{B}"), ("docker", "{A}")]),
            ),
        ];
        for (v2, v1, expected) in cases {
            let (v2, v1) = (v2.map(fill), v1.map(fill));
            assert_eq!(
                &of_process(v2.as_deref(), v1.as_deref()),
                expected,
                "of {v2:?}, {v1:?}"
            );
        }
    }

    /// Parts that paths are made of, and others.
    fn segment() -> impl Strategy<Value = String> {
        prop_oneof![
            proptest::sample::select(vec![
                "docker",
                "lxc",
                "lxc.payload",
                "default",
                "k8s.io",
                "payload",
                "kubepods",
                "libpod_parent",
                "system.slice",
                "user@1.service",
                "..",
                "{A}",
                "docker-{A}.scope",
                "x.slice:crio:{A}",
                "pod1",
                "machine-a\\x2d.scope",
                "libpod-{B}",
                "x.service",
            ])
            .prop_map(fill),
            "[a-z]{0,9}[-:@][0-9a-f]{0,70}(\\.scope|\\.service|\\.slice)?",
            "machine-(\\\\x[0-9a-fé]{0,3}|a){0,4}\\.scope",
            ".{0,12}",
        ]
    }

    proptest! {
        #[test]
        fn never_panics(path in ".*", v1 in proptest::option::of(".*")) {
            let _ = parse(&path);
            let _ = of_process(Some(&path), v1.as_deref());
        }

        #[test]
        fn tells_only_what_is_well_formed(segments in proptest::collection::vec(segment(), 0..9)) {
            let path = format!("/{}", segments.join("/"));
            let place = parse(&path);
            for container in place.container.iter().chain(&place.outer) {
                prop_assert!(is_name(&container.id), "{container:?} of {path}");
                prop_assert!(!container.id.contains('/'), "{container:?} of {path}");
            }
            if let Some(unit) = &place.unit {
                prop_assert!(path.contains(unit.as_str()), "{unit} of {path}");
                prop_assert!(unit.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/'));
            }
            prop_assert!(place.container.is_some() || place.outer.is_empty());
        }
    }
}
