//! Reports: as text for people, as a page of HTML, and as what CI services and their test views read.

pub mod github;
pub mod gitlab;
pub mod html;
pub mod junit;
pub mod text;

use super::cell;
use super::conflict::{container, place, process};
use super::duration::Duration;
use crate::event::{Actor, Address, HeldSocket, Membership, State, Transport};
use crate::report::{
    Finding, Job, Killed, LeftBehind, LeftContainer, LeftPort, LeftTimewait, Leftover, PortUse,
    Refusal, Report, Risk,
};

/// A number of things.
pub(super) fn counted(count: u64, thing: &str, things: &str) -> String {
    let thing = if count == 1 { thing } else { things };
    format!("{count} {thing}")
}

/// How a job ended: "`npm test` ended with exit status 1 after 12.4 s". Not escaped.
fn ended(job: &Job) -> String {
    let command = job.command.join(" ");
    let after = Duration(job.duration_ms);
    match (&job.signal, job.status) {
        (Some(signal), _) => format!("`{command}` was ended by {signal} after {after}"),
        (None, Some(status)) => {
            format!("`{command}` ended with exit status {status} after {after}")
        }
        (None, None) => format!("`{command}` ended after {after}"),
    }
}

/// What there is to say, by number; empty if there is nothing.
fn findings(report: &Report) -> Vec<String> {
    let mut said = Vec::new();
    let mut say = |count: u64, thing: &str, things: &str| {
        if count != 0 {
            said.push(counted(count, thing, things));
        }
    };
    let sum = |conflicts: bool| -> u64 {
        let refusals = report.refusals.iter();
        let refusals = refusals.filter(|refusal| refusal.is_conflict() == conflicts);
        refusals.map(|refusal| refusal.count).sum()
    };
    let omitted = report.omitted.get("refusals").copied().unwrap_or_default();
    say(sum(true) + omitted, "conflict", "conflicts");
    say(sum(false), "other refusal", "other refusals");
    if let Some(left) = &report.left_behind {
        let count = left.processes.len() as u64;
        say(count, "process left behind", "processes left behind");
        let count = left.containers.len() as u64;
        say(count, "container left behind", "containers left behind");
        let count = left.timewaits.len() as u64;
        say(count, "port kept by TIME_WAIT", "ports kept by TIME_WAIT");
    }
    let risks = report.risks.len() as u64;
    say(risks, "flake risk", "flake risks");
    let lost: u64 = report.lost.values().sum();
    say(lost, "loss", "losses");
    said
}

/// Whether there is anything to say beyond that all is well.
fn is_clean(report: &Report) -> bool {
    let watched = report
        .job
        .as_ref()
        .is_none_or(|job| job.unwatched.is_none());
    watched && findings(report).is_empty()
}

/// Who was refused what: "node[4312] `node server.js`: bind to tcp4 0.0.0.0:3000: EADDRINUSE".
fn refused(refusal: &Refusal) -> String {
    let who = who(refusal.process.as_ref(), "a process");
    let place = refusal.process.as_ref().and_then(place);
    let place = place.map_or(String::new(), |place| format!(" in {place}"));
    let mut address = String::new();
    cell::protocol(&mut address, &refusal.socket);
    if let Some(local) = &refusal.socket.local {
        address.push(' ');
        cell::address(&mut address, local, refusal.socket.bound_device.as_deref());
    }
    let error = refusal.error.as_deref().unwrap_or("refused");
    format!("{who}{place}: {} on {address}: {error}", refusal.event)
}

/// A process, and that it is of the job by its container alone.
fn who(actor: Option<&Actor>, nobody: &str) -> String {
    let Some(actor) = actor else {
        return nobody.to_owned();
    };
    match actor.job.and_then(by_container) {
        Some(how) => format!("{} (container {how})", process(actor)),
        None => process(actor),
    }
}

/// How a container is of a job.
fn by_container(job: Membership) -> Option<&'static str> {
    match job {
        Membership::Descendant => None,
        Membership::Label => Some("labelled for the job"),
        Membership::Container => Some("created during the job"),
    }
}

/// What was refused, in few words: "EADDRINUSE on tcp4 0.0.0.0:3000".
fn title(refusal: &Refusal) -> String {
    let mut title = refusal
        .error
        .clone()
        .unwrap_or_else(|| "refused".to_owned());
    title.push_str(" on ");
    cell::protocol(&mut title, &refusal.socket);
    if let Some(local) = &refusal.socket.local {
        title.push(' ');
        title.push_str(&local.to_string());
    }
    title
}

/// What a process that was left behind is and has: "python3[5012] `python3 -m http.server 8000`,
/// listening on tcp4 0.0.0.0:8000".
fn left_process(left: &Leftover) -> String {
    let mut text = process(&left.process);
    if let Some(place) = place(&left.process) {
        text.push_str(", in ");
        text.push_str(&place);
    }
    for socket in left.sockets.iter().take(3) {
        text.push_str(", ");
        text.push_str(&held(socket));
    }
    match left.sockets.len().saturating_sub(3) {
        0 => {}
        more => text.push_str(&format!(" and {more} more")),
    }
    match left.killed {
        None => {}
        Some(Killed::Ended) => text.push_str(": ended by itself"),
        Some(Killed::Term) => text.push_str(": ended by SIGTERM"),
        Some(Killed::Kill) => text.push_str(": did not heed SIGTERM, ended by SIGKILL"),
        Some(Killed::Failed) => text.push_str(": could not be ended"),
    }
    text
}

/// What was left behind: processes, then containers.
fn left_behind(left: &LeftBehind) -> Vec<String> {
    let processes = left.processes.iter().map(left_process);
    let containers = left.containers.iter().map(left_container);
    processes.chain(containers).collect()
}

/// A container that was left behind: "container web-1 (docker, nginx:1.27), publishing 0.0.0.0:8080 → 80/tcp,
/// created during the job: docker rm -f web-1".
fn left_container(left: &LeftContainer) -> String {
    let mut text = container(&left.container, left.pod.as_ref());
    let mut ports: Vec<_> = left.ports.iter().take(3).map(published).collect();
    match left.ports.len().saturating_sub(3) {
        0 => {}
        more => ports.push(format!("{more} more")),
    }
    if !ports.is_empty() {
        text.push_str(", publishing ");
        text.push_str(&ports.join(", "));
    }
    if let Some(how) = by_container(left.job) {
        text.push_str(", ");
        text.push_str(how);
    }
    text.push_str(": ");
    text.push_str(&left.advice);
    text
}

fn published(port: &LeftPort) -> String {
    let host = match port.address {
        Some(address) => std::net::SocketAddr::new(address, port.host_port).to_string(),
        None => port.host_port.to_string(),
    };
    format!("{host} → {}/{}", port.port, port.protocol)
}

fn held(held: &HeldSocket) -> String {
    let socket = &held.socket;
    let datagrams = matches!(socket.transport, Some(Transport::Udp | Transport::Udplite));
    let mut text = match socket.state {
        Some(State::Listen) => "listening on ".to_owned(),
        _ if datagrams => "receiving on ".to_owned(),
        _ => "bound to ".to_owned(),
    };
    cell::protocol(&mut text, socket);
    if let Some(local) = &socket.local {
        text.push(' ');
        cell::address(&mut text, local, socket.bound_device.as_deref());
    }
    text
}

/// What keeps a port of the job's from being bound again.
fn left_timewait(left: &LeftTimewait) -> String {
    format!(
        "{} on port {}/{}: a bind to it fails for another {}, unless both the old and the new socket \
         set SO_REUSEADDR",
        counted(left.count, "TIME_WAIT", "TIME_WAITs"),
        left.port,
        left.transport,
        Duration(left.expires_in_ms)
    )
}

fn risk(risk: &Risk) -> String {
    let who = risk
        .process
        .as_ref()
        .map_or("a process".to_owned(), process);
    let (first, last) = risk.range;
    format!(
        "{who} takes port {}/{} by number, which the kernel may have given to an outgoing connection \
         (ip_local_port_range is {first} to {last}): use a port below {first}, or port 0, or reserve it \
         (sysctl net.ipv4.ip_local_reserved_ports)",
        risk.port, risk.transport
    )
}

/// A used port's protocol and address.
fn used(port: &PortUse) -> (String, String) {
    let family = if port.address.is_ipv4() { "4" } else { "6" };
    let local = Address::Inet {
        address: port.address,
        port: port.port.unwrap_or(0),
        scope: None,
    };
    let mut address = local.to_string();
    if port.port.is_none() {
        address.truncate(address.len() - 1);
        address.push('*');
    }
    (format!("{}{family}", port.transport), address)
}

/// How a finding is called on the command line.
pub(super) fn name(finding: Finding) -> &'static str {
    match finding {
        Finding::Conflict => "conflict",
        Finding::Leak => "leak",
        Finding::FlakeRisk => "flake-risk",
    }
}
