//! Pieces of sentences: names of processes, containers, addresses and states.

use std::net::IpAddr;

use crate::diagnose::facts::Held;
use crate::event::{Actor, Address, Container, State};

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
    match address {
        Some(Address::Inet { address, .. }) => address.to_string(),
        _ => "it".to_owned(),
    }
}

pub(super) fn is_any_v6(address: Option<&Address>) -> bool {
    let Some(Address::Inet { address, .. }) = address else {
        return false;
    };
    matches!(address, IpAddr::V6(address) if address.is_unspecified())
}

pub(super) fn stop_container(container: &Container) -> String {
    let runtime = match &*container.runtime {
        runtime @ ("docker" | "podman") => runtime,
        "containerd" | "cri-o" => "crictl",
        _ => return format!("stop {}", named(container)),
    };
    let short: String = container.id.chars().take(12).collect();
    let handle = container
        .name
        .as_deref()
        .filter(|name| is_plain(name) && runtime != "crictl");
    format!(
        "stop container {} ({runtime} stop {})",
        container.name.as_deref().unwrap_or(&short),
        handle.unwrap_or(&short)
    )
}

/// A container with its image and, of Compose, its project and service.
pub(super) fn named(container: &Container) -> String {
    let short: String = container.id.chars().take(12).collect();
    let name = container.name.as_deref().unwrap_or(&short);
    let compose = container
        .compose()
        .map(|compose| format!("compose {compose}"));
    let about: Vec<_> = container
        .image
        .as_deref()
        .map(str::to_owned)
        .into_iter()
        .chain(compose)
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
