//! A cause in words: what happened, and what to do. One sentence each, of what is known.

mod meeting;
mod newcomer;
pub(crate) mod phrase;

use self::phrase::{
    first, in_words, is_plain, name, named, number, serves, stop_container, well_known, who,
};
use super::facts::{Facts, Held, Tie};
use super::judge::Judgement;
use crate::event::{Actor, Address, Cause, Ownership, Process};
use crate::sink::duration::Duration;

/// What is put together for one refusal.
pub(super) struct Words<'a> {
    pub(super) facts: &'a Facts,
    pub(super) judgement: &'a Judgement<'a>,
}

/// Summary and advice.
pub(super) type Sentences = (String, String);

impl Words<'_> {
    pub(super) fn sentences(&self) -> Sentences {
        match self.judgement.held {
            Some(held) => self.of_holder(held),
            None => self.of_newcomer(),
        }
    }

    fn of_holder(&self, held: &Held) -> Sentences {
        let who = who(held);
        let at = self.held_at(held);
        let stop = self.stop(held);
        match self.judgement.cause {
            Cause::Listener => (
                format!("{who} {} {at}", serves(held)),
                format!("{stop}, or use another port"),
            ),
            Cause::EphemeralCollision => self.ephemeral_collision(held),
            Cause::TimeWait | Cause::TimeWaitNoReuse => self.time_wait(held),
            Cause::LingeringConnection => self.lingering(held),
            Cause::BoundNotListening => (
                format!(
                    "{who} has bound {at} and does not listen: lsof and older ss do not show it"
                ),
                format!("{stop}{}", self.or_reuseaddr()),
            ),
            Cause::InheritedListener => self.inherited(held, &at),
            Cause::NoProcess => no_process(held, &at),
            Cause::ExitingHolder => (
                format!("{who}, which has {at}, is about to end"),
                match first(held) {
                    Some(actor) => {
                        format!(
                            "wait for its end, then try again: tail --pid={} -f /dev/null",
                            actor.pid
                        )
                    }
                    None => "wait for its end, then try again".to_owned(),
                },
            ),
            Cause::LostRace => self.lost_race(held),
            Cause::Sibling => self.sibling(held, &at),
            Cause::ListenConflict => (
                format!(
                    "{who} listens on {at} already: SO_REUSEADDR lets two sockets be bound, \
                     but only one listen"
                ),
                format!("{stop}, or use another port"),
            ),
            Cause::DualStack => self.dual_stack(held),
            Cause::WildcardOverlap => self.wildcard(held),
            Cause::ReuseportUid => (
                format!(
                    "both sockets have SO_REUSEPORT, but uid {} made the one of {who} and uid \
                     {} the new one",
                    number(held.holder.socket.uid),
                    number(self.facts.uid)
                ),
                "run both as one user".to_owned(),
            ),
            Cause::ReuseportOneSided => self.one_sided(held),
            Cause::SocketActivation => socket_activation(held, &at),
            Cause::PublishedPort => published(held, &at),
            Cause::HostNetwork => {
                let process = first(held).map(|actor| &actor.process);
                let container = process.and_then(|process| process.container.as_ref());
                let pod = process.and_then(|process| process.pod.as_ref());
                let name = container.map_or_else(|| "a container".to_owned(), |of| named(of, pod));
                (
                    format!(
                        "{who} of {name} is in the host's own network and {} {at}",
                        serves(held)
                    ),
                    format!(
                        "{stop}, or give it a network of its own: no --network host, no \
                         hostNetwork"
                    ),
                )
            }
            Cause::StaleJob => {
                let job = self.facts.job.as_ref().map(|job| job.started_at);
                let job = match held.tie {
                    Some(Tie::LeftOver { job_started_at }) => Some(job_started_at),
                    _ => job,
                };
                let since = first(held)
                    .zip(job)
                    .map(|(actor, job)| actor.start_time.0.abs_diff(job.0) / 1_000_000);
                let since = since.map_or(String::new(), |since| format!(" {}", Duration(since)));
                (
                    format!(
                        "{who}, which has {at}, was started{since} before this job and has \
                         lost its parent"
                    ),
                    format!("{stop}; end what a job leaves over before the next one starts"),
                )
            }
            Cause::KernelSocket => self.kernel_socket(held),
            Cause::BoundDevice => self.bound_device(held, &at),
            Cause::UnixPath | Cause::UnixAbstract => (
                format!("{who} has {}", self.asked()),
                format!("{stop}, or use another name"),
            ),
            _ if held.options_unknown => (
                format!(
                    "{who} has {at} in state {}, with options that are not known",
                    in_words(held)
                ),
                self.look(),
            ),
            _ => (
                format!(
                    "{who} has {at} in state {}, which does not explain it",
                    in_words(held)
                ),
                self.look(),
            ),
        }
    }

    /// The address that was asked for.
    fn asked(&self) -> String {
        let local = self.facts.socket.local.as_ref();
        local.map_or_else(|| "the address".to_owned(), Address::to_string)
    }

    fn port(&self) -> u16 {
        self.facts.port().unwrap_or_default()
    }

    /// The holder's address.
    fn held_at(&self, held: &Held) -> String {
        let local = held.holder.socket.socket.local.as_ref();
        local.map_or_else(|| self.asked(), Address::to_string)
    }

    /// How a holder is stopped by its own means: of its container, its unit, or SIGTERM. The
    /// newcomer's own unit is not to be stopped for its sake.
    fn stop(&self, held: &Held) -> String {
        let Some(actor) = first(held) else {
            return "close the socket".to_owned();
        };
        if held.holder.ownership != Some(Ownership::Verified) {
            // Its pid may be another process's by now.
            return format!("see whether {} still runs, and stop it", name(actor));
        }
        if let Some(container) = &actor.process.container {
            return stop_container(container, actor.process.pod.as_ref());
        }
        let own = self
            .facts
            .process
            .as_ref()
            .and_then(|actor| actor.process.unit.as_ref());
        let unit = actor.process.unit.as_ref().filter(|unit| {
            unit.ends_with(".service")
                && !unit.starts_with("user@")
                && is_plain(unit)
                && Some(*unit) != own
        });
        match unit {
            Some(unit) => format!(
                "stop {} ({} stop {unit})",
                name(actor),
                systemctl(&actor.process)
            ),
            None => format!("stop {} (kill {})", name(actor), actor.pid),
        }
    }

    fn look(&self) -> String {
        format!(
            "see what has the port now: ss -tunap 'sport = :{}', and what is only bound \
             (iproute2 6.8): ss -tnpB",
            self.port()
        )
    }

    fn ephemeral_collision(&self, held: &Held) -> Sentences {
        let port = self.port();
        let of = first(held).map_or(String::new(), |_| format!(" of {}", who(held)));
        let to = held.holder.socket.socket.remote.as_ref();
        let to = to.map_or(String::new(), |to| format!(" to {to}"));
        let sysctls = &self.facts.sysctls;
        let range = sysctls
            .local_port_range
            .as_ref()
            .map_or(String::new(), |range| {
                format!(
                    ": it is within net.ipv4.ip_local_port_range ({} {})",
                    range.start(),
                    range.end()
                )
            });
        let below = sysctls
            .local_port_range
            .as_ref()
            .map_or("that range".to_owned(), |range| range.start().to_string());
        let reserved = sysctls.local_reserved_ports.as_deref().map(str::trim);
        let (now, list) = match reserved {
            Some("") => (" (now empty)".to_owned(), port.to_string()),
            Some(others) => (format!(" (now {others})"), format!("{others},{port}")),
            None => (String::new(), port.to_string()),
        };
        (
            format!("an outgoing connection{of}{to} got port {port} as its source port{range}"),
            format!(
                "use a port below {below}, or reserve this one: sysctl -w \
                 net.ipv4.ip_local_reserved_ports={list}{now}"
            ),
        )
    }

    fn inherited(&self, held: &Held, at: &str) -> Sentences {
        let binder = held
            .binder
            .as_ref()
            .map_or("another process".to_owned(), name);
        (
            format!(
                "{binder} bound {at} and does not have it any more: {} inherited it",
                who(held)
            ),
            if is_fork(held) {
                // No exec was between them: FD_CLOEXEC would have closed nothing.
                format!(
                    "{}: a daemon that went to the background, or a worker that outlived its parent",
                    self.stop(held)
                )
            } else {
                format!(
                    "{}; open sockets with SOCK_CLOEXEC, so that no child gets them",
                    self.stop(held)
                )
            },
        )
    }

    fn lost_race(&self, held: &Held) -> Sentences {
        let port = self.port();
        let found = self.facts.probe.as_ref().map_or(String::new(), |probe| {
            let before = self.facts.time.0.saturating_sub(probe.released_at.0).max(0) / 1_000_000;
            let before = Duration(before.unsigned_abs());
            format!(
                "{} had found port {port} free and given it back {before} before; ",
                name(&probe.process)
            )
        });
        (
            format!("{found}{} took it in between", who(held)),
            "keep the socket that found the port and pass it on, or let the server itself bind \
             port 0"
                .to_owned(),
        )
    }

    fn sibling(&self, held: &Held, at: &str) -> Sentences {
        let own = self
            .facts
            .process
            .as_ref()
            .map_or("the new one".to_owned(), name);
        (
            format!("{} and {own} are of one job and both want {at}", who(held)),
            "give each worker a port of its own, or let each bind port 0".to_owned(),
        )
    }

    fn kernel_socket(&self, held: &Held) -> Sentences {
        let socket = held.kernel.clone().unwrap_or_default();
        let port = self.port();
        let what = match &socket.protocol {
            Some(protocol) => format!(" for {protocol}"),
            None => well_known(port)
                .map_or(String::new(), |name| format!(" (the usual port of {name})")),
        };
        let (on, down) = match &socket.interface {
            Some(interface) => (
                format!(", on interface {interface}"),
                if is_plain(interface) {
                    format!("ip link set {interface} down")
                } else {
                    "take the interface down".to_owned()
                },
            ),
            None => (
                String::new(),
                "find what it serves (ip -d link, nfsstat, lsmod) and take that down".to_owned(),
            ),
        };
        (
            format!(
                "the kernel itself has {}{what}{on}: no process does",
                self.held_at(held)
            ),
            format!("{down}, or use another port"),
        )
    }
}

/// Whether a process that has the socket runs the very program of the one that bound it.
fn is_fork(held: &Held) -> bool {
    let program = |actor: &Actor| actor.process.exe.clone();
    let binders = held.binder.as_ref().and_then(program);
    let mut holders = held.holder.processes.iter().map(program);
    binders.is_some() && holders.any(|holders| holders == binders)
}

fn no_process(held: &Held, at: &str) -> Sentences {
    let last = first(held).or(held.binder.as_ref());
    (
        format!(
            "no process has the socket on {at} open: it is on its way between two, io_uring \
             has it, or it is just being closed"
        ),
        match last {
            Some(actor) => format!(
                "see whether {} still runs, the last one known to have had it, and end it",
                name(actor)
            ),
            None => "try again; if it stays, look for a program that passes sockets on or uses \
                 io_uring"
                .to_owned(),
        },
    )
}

const SYSTEMCTL: &str = "systemctl";

/// What talks to the systemd that has a process's unit: the system's, or its user's own.
fn systemctl(process: &Process) -> &'static str {
    let groups = process.cgroup.iter().chain(&process.cgroup_v1);
    let of_user = |group: &str| group.starts_with("user@") && group.ends_with(".service");
    if groups.flat_map(|path| path.split('/')).any(of_user) {
        "systemctl --user"
    } else {
        SYSTEMCTL
    }
}

fn socket_activation(held: &Held, at: &str) -> Sentences {
    let unit = held.socket_unit.as_deref();
    let of = unit.map_or("a socket unit".to_owned(), str::to_owned);
    let stop = match unit {
        Some(unit) if is_plain(unit) => {
            let systemctl = first(held).map_or(SYSTEMCTL, |actor| systemctl(&actor.process));
            format!("{systemctl} stop {unit}")
        }
        _ => "find the unit (systemctl list-sockets) and stop it".to_owned(),
    };
    (
        format!("systemd has {at} for {of}"),
        format!("{stop}, or take the socket that it passes on (LISTEN_FDS)"),
    )
}

fn published(held: &Held, at: &str) -> Sentences {
    let by = who(held);
    match &held.holder.publishes {
        Some(publishes) => {
            let (container, pod) = (&publishes.container, publishes.pod.as_ref());
            let of = named(container, pod);
            (
                match publishes.port {
                    Some(port) => format!("{of} publishes its port {port} on {at}"),
                    None => format!("{of} publishes a port of its own on {at}"),
                },
                format!(
                    "{}, or change its mapping of ports",
                    stop_container(container, pod)
                ),
            )
        }
        None => (
            format!("{by} has {at} on behalf of a container"),
            "find the container that publishes it (docker ps, podman ps) and stop it, or \
             change its mapping of ports"
                .to_owned(),
        ),
    }
}
