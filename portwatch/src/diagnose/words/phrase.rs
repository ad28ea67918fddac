//! Pieces of sentences: names of processes, containers, addresses and states.

use std::net::IpAddr;

use crate::diagnose::facts::Held;
use crate::event::{Actor, Address, Container, Pod, State};

/// The process to speak of: the eldest, of which the others are the workers.
pub(super) fn first(held: &Held) -> Option<&Actor> {
    let processes = held.holder.processes.iter();
    processes.min_by_key(|actor| actor.start_time)
}

pub(super) fn name(actor: &Actor) -> String {
    format!("{}[{}]", actor.comm, actor.pid)
}

pub(super) fn number(uid: Option<u32>) -> String {
    uid.map_or("unknown".to_owned(), |uid| uid.to_string())
}

pub(super) fn who(held: &Held) -> String {
    match (first(held), held.holder.processes.len()) {
        (None, _) if held.holder.ownership.is_none() => "an unknown process".to_owned(),
        (None, _) => "a socket that no process has".to_owned(),
        (Some(one), 1) => name(one),
        (Some(one), count) => format!("{} (and {} more)", name(one), count - 1),
    }
}

/// What a holder of its kind does with its address.
pub(super) fn serves(held: &Held) -> &'static str {
    match held.holder.socket.socket.state {
        Some(State::Listen) => "listens on",
        _ => "receives on",
    }
}

pub(super) fn in_words(held: &Held) -> String {
    held.holder
        .socket
        .socket
        .state
        .map_or("unknown".to_owned(), |state| state.to_string())
}

pub(super) fn ip(address: Option<&Address>) -> String {
    let ip = address.and_then(Address::ip);
    ip.map_or_else(|| "it".to_owned(), |ip| ip.to_string())
}

pub(super) fn is_any_v6(address: Option<&Address>) -> bool {
    let ip = address.and_then(Address::ip);
    matches!(ip, Some(IpAddr::V6(ip)) if ip.is_unspecified())
}

/// How a container is stopped, so that it does not come back at once.
pub(super) fn stop_container(container: &Container, pod: Option<&Pod>) -> String {
    if let Some(stop) = pod.and_then(stop_pod) {
        return stop;
    }
    let Some((client, handle)) = client(container) else {
        return format!("stop {}", named(container, pod));
    };
    let stop = match client {
        "ctr" => "tasks kill",
        _ => "stop",
    };
    let name = container.short_name();
    format!("stop container {name} ({client} {stop} {handle})")
}

/// How a container is taken away, whether it runs or not: a command where there is one.
pub(crate) fn remove_container(container: &Container, pod: Option<&Pod>) -> String {
    match (client(container), pod) {
        // Podman's containers of a pod are taken away with it.
        (Some(("podman", _)), Some(pod)) if is_plain(&pod.name) => {
            format!("podman pod rm -f {}", pod.name)
        }
        (Some((client @ ("docker" | "podman" | "nerdctl"), handle)), _) => {
            format!("{client} rm -f {handle}")
        }
        _ => stop_container(container, pod),
    }
}

/// The program that knows a container, and what it is to that: its name, or the beginning of its id.
fn client(container: &Container) -> Option<(&'static str, &str)> {
    let short = container.short_id();
    let name = container.name.as_deref();
    let handle = name.filter(|name| is_plain(name)).unwrap_or(short);
    Some(match &*container.runtime {
        "docker" => ("docker", handle),
        "podman" => ("podman", handle),
        "containerd" if container.labels.contains_key("nerdctl/name") => ("nerdctl", handle),
        // Of `ctr` the id is a name.
        "containerd" if name == Some(&*container.id) => ("ctr", &container.id),
        "containerd" | "cri-o" => ("crictl", short),
        _ => return None,
    })
}

/// How a whole pod is: a container alone would be started again by Kubernetes, and in podman's the ports
/// are the pod's.
fn stop_pod(pod: &Pod) -> Option<String> {
    if !is_plain(&pod.name) {
        return None;
    }
    let by = match &pod.namespace {
        Some(namespace) if is_plain(namespace) => {
            let by = format!("kubectl -n {namespace} delete pod {}", pod.name);
            return Some(format!(
                "delete pod {} or what makes it ({by})",
                pod.full_name()
            ));
        }
        Some(_) => return None,
        None => format!("podman pod stop {}", pod.name),
    };
    Some(format!("stop pod {} ({by})", pod.name))
}

/// A container with its image and, of Compose, its project and service.
pub(super) fn named(container: &Container, pod: Option<&Pod>) -> String {
    let name = container.short_name();
    let compose = container
        .compose()
        .map(|compose| format!("compose {compose}"));
    let pod = pod.map(|pod| format!("pod {}", pod.full_name()));
    let about: Vec<_> = container
        .image
        .as_deref()
        .map(str::to_owned)
        .into_iter()
        .chain(compose)
        .chain(pod)
        .collect();
    if about.is_empty() {
        format!("container {name}")
    } else {
        format!("container {name} ({})", about.join(", "))
    }
}

/// Whether a name from outside means nothing to a shell.
pub(super) fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with('-')
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "._-@:/+".contains(c))
}

/// Protocols whose sockets the kernel opens by itself, by their ports.
pub(super) fn well_known(port: u16) -> Option<&'static str> {
    Some(match port {
        1701 => "L2TP",
        2049 => "NFS",
        4500 => "IPsec",
        4789 | 8472 => "VXLAN",
        6081 => "GENEVE",
        6635 => "MPLS over UDP",
        51_820 => "WireGuard",
        _ => return None,
    })
}
