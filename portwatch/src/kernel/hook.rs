//! The hooks: which program goes where, for each part of the work and each backend.
//!
//! A backend is a set of adapters around the same handlers. Each part of the
//! work takes the first backend whose hooks load, attach and fire here.

use std::fmt;

/// A way to hook into the kernel, the most exact first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Backend {
    /// Trampolines at the entry and exit of kernel functions.
    Fentry,
    /// Probes at the entry and return of kernel functions.
    Kprobe,
    /// Tracepoints and a cgroup hook.
    Tracepoint,
}

impl Backend {
    /// All, in the order in which they are tried.
    pub const LADDER: [Self; 3] = [Self::Fentry, Self::Kprobe, Self::Tracepoint];

    /// Its name, as `--backend` takes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Fentry => "fentry",
            Self::Kprobe => "kprobe",
            Self::Tracepoint => "tracepoint",
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What hooks are for: those of a part stand and fall together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Who processes are, when they fork, execute and end.
    Process,
    /// TIME_WAIT.
    Timewait,
    /// The end of bound sockets.
    Release,
    /// Ports that the kernel could not choose, without a bind.
    Autobind,
    /// The socket that the kernel's check ran into, where a bind or listen is refused.
    Conflict,
    /// bind and listen. Nothing works without it.
    Bind,
    /// What existed before.
    Snapshot,
}

impl Part {
    /// All, in the order in which they are put in place: what others rely on first.
    pub const ALL: [Self; 7] = [
        Self::Process,
        Self::Timewait,
        Self::Release,
        Self::Autobind,
        Self::Conflict,
        Self::Bind,
        Self::Snapshot,
    ];

    /// Its name in `doctor` and in the `start` event.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Timewait => "timewait",
            Self::Release => "release",
            Self::Autobind => "autobind",
            Self::Conflict => "conflict",
            Self::Bind => "bind",
            Self::Snapshot => "snapshot",
        }
    }

    /// Whether only one backend does it, whichever is chosen for the others.
    #[must_use]
    pub fn is_done_in_one_way(self) -> bool {
        matches!(self, Self::Process | Self::Snapshot)
    }

    /// What is not seen without the hooks of this part.
    #[must_use]
    pub fn loss(self) -> &'static str {
        match self {
            Self::Bind => "bind and listen",
            Self::Autobind => "that no port was left for connect(2) or sendto(2)",
            Self::Conflict => {
                "the holder as the kernel's own check meets it; the table of ports is walked just after"
            }
            Self::Release => "some releases",
            Self::Timewait => "TIME_WAIT",
            Self::Process => "the arguments of some processes",
            Self::Snapshot => "who already held sockets",
        }
    }

    /// What is not seen of this part by a backend, although its hooks are in place.
    #[must_use]
    pub fn blind_spot(self, backend: Backend) -> Option<&'static str> {
        match (self, backend) {
            (Self::Bind, Backend::Tracepoint) => {
                Some("binds and listens by io_uring and by the kernel itself")
            }
            _ => None,
        }
    }

    /// The hooks by which a backend does this part, in the order in which they are attached; nothing
    /// where it cannot. A part that needs no function of the kernel's has its hooks under
    /// [`Backend::Tracepoint`] alone.
    #[must_use]
    pub fn hooks(self, backend: Backend) -> &'static [Hook] {
        use Backend::{Fentry, Kprobe, Tracepoint};
        match (self, backend) {
            (Self::Process, Tracepoint) => PROCESS,
            (Self::Timewait, Fentry) => TIMEWAIT_FENTRY,
            (Self::Timewait, Kprobe) => TIMEWAIT_KPROBE,
            (Self::Timewait, Tracepoint) => TIMEWAIT_TRACEPOINT,
            (Self::Release, Fentry) => RELEASE_FENTRY,
            (Self::Release, Kprobe) => RELEASE_KPROBE,
            (Self::Release, Tracepoint) => RELEASE_TRACEPOINT,
            (Self::Autobind, Fentry) => AUTOBIND_FENTRY,
            (Self::Autobind, Kprobe) => AUTOBIND_KPROBE,
            (Self::Conflict, Fentry) => CONFLICT_FENTRY,
            (Self::Conflict, Kprobe) => CONFLICT_KPROBE,
            (Self::Bind, Fentry) => BIND_FENTRY,
            (Self::Bind, Kprobe) => BIND_KPROBE,
            (Self::Bind, Tracepoint) => BIND_TRACEPOINT,
            (Self::Snapshot, Tracepoint) => SNAPSHOT,
            (Self::Autobind | Self::Conflict, Tracepoint)
            | (Self::Process | Self::Snapshot, Fentry | Kprobe) => &[],
        }
    }
}

/// How a program is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attach {
    /// At the entry of a kernel function, by a trampoline.
    Fentry,
    /// At the exit of a kernel function, by a trampoline.
    Fexit,
    /// At the entry of a kernel function, by a probe.
    Kprobe,
    /// At the return of a kernel function, by a probe.
    Kretprobe,
    /// To a tracepoint, with typed arguments.
    Tracepoint,
    /// To the release of sockets, at the root of the cgroup v2 hierarchy.
    CgroupSockRelease,
    /// To an iterator, which is read on demand.
    Iterator,
}

impl Attach {
    /// The backend whose way this is.
    #[must_use]
    pub fn backend(self) -> Backend {
        match self {
            Self::Fentry | Self::Fexit => Backend::Fentry,
            Self::Kprobe | Self::Kretprobe => Backend::Kprobe,
            Self::Tracepoint | Self::CgroupSockRelease | Self::Iterator => Backend::Tracepoint,
        }
    }
}

impl fmt::Display for Attach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fentry => "fentry",
            Self::Fexit => "fexit",
            Self::Kprobe => "kprobe",
            Self::Kretprobe => "kretprobe",
            Self::Tracepoint => "tp_btf",
            Self::CgroupSockRelease => "cgroup",
            Self::Iterator => "iter",
        })
    }
}

/// A program of the kernel side and where it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hook {
    /// Name of the program.
    pub program: &'static str,
    /// How it is attached.
    pub attach: Attach,
    /// What it is attached to: the first of these that the kernel has.
    pub targets: &'static [&'static str],
    /// Whether its part can do without it: then what it tells is left out.
    pub optional: bool,
}

impl Hook {
    /// The names of the types by which it is attached, which are none for kprobes.
    pub(super) fn types(&self) -> Vec<String> {
        let prefix = match self.attach {
            Attach::Fentry | Attach::Fexit => "",
            Attach::Tracepoint => "btf_trace_",
            Attach::Iterator => "bpf_iter_",
            Attach::Kprobe | Attach::Kretprobe | Attach::CgroupSockRelease => return Vec::new(),
        };
        let names = self
            .targets
            .iter()
            .map(|target| format!("{prefix}{target}"));
        names.collect()
    }
}

/// The hooks of all parts and backends; one that several share comes more than once.
pub fn all() -> impl Iterator<Item = &'static Hook> {
    Part::ALL.into_iter().flat_map(|part| {
        Backend::LADDER
            .into_iter()
            .flat_map(move |backend| part.hooks(backend))
    })
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.attach, self.targets.join("|"))
    }
}

/// `inet_bind_sk` came with 6.7; MPTCP calls it past `inet_bind`.
pub const INET_BIND: [&str; 2] = ["inet_bind_sk", "inet_bind"];
/// The same over IPv6.
pub const INET6_BIND: [&str; 2] = ["inet6_bind_sk", "inet6_bind"];
/// `__inet_listen_sk` came with 6.6, for the same reason.
pub const INET_LISTEN: [&str; 2] = ["__inet_listen_sk", "inet_listen"];
const REQUEST: [&str; 1] = ["inet_csk_reqsk_queue_hash_add"];
/// `inet_twsk_hashdance_schedule` took its place in 6.11.
pub const HASHDANCE: [&str; 2] = ["inet_twsk_hashdance_schedule", "inet_twsk_hashdance"];

const fn hook(program: &'static str, attach: Attach, targets: &'static [&'static str]) -> Hook {
    Hook {
        program,
        attach,
        targets,
        optional: false,
    }
}

const fn optional(hook: Hook) -> Hook {
    Hook {
        optional: true,
        ..hook
    }
}

const fn fentry(program: &'static str, targets: &'static [&'static str]) -> Hook {
    hook(program, Attach::Fentry, targets)
}

const fn fexit(program: &'static str, targets: &'static [&'static str]) -> Hook {
    hook(program, Attach::Fexit, targets)
}

const fn kprobe(program: &'static str, targets: &'static [&'static str]) -> Hook {
    hook(program, Attach::Kprobe, targets)
}

const fn kretprobe(program: &'static str, targets: &'static [&'static str]) -> Hook {
    hook(program, Attach::Kretprobe, targets)
}

/// A tracepoint, whose program is called like it.
const fn tracepoint(name: &'static [&'static str; 1]) -> Hook {
    hook(name[0], Attach::Tracepoint, name)
}

const SET_STATE: Hook = tracepoint(&["inet_sock_set_state"]);
const DESTROY_SOCK: Hook = tracepoint(&["tcp_destroy_sock"]);

const PROCESS: &[Hook] = &[
    optional(tracepoint(&["sched_process_free"])),
    optional(tracepoint(&["sched_process_exec"])),
    optional(tracepoint(&["sched_process_fork"])),
    optional(tracepoint(&["cgroup_attach_task"])),
];

const SNAPSHOT: &[Hook] = &[
    hook("task_file", Attach::Iterator, &["task_file"]),
    hook("owners", Attach::Iterator, &["task_file"]),
];

const TIMEWAIT_FENTRY: &[Hook] = &[
    SET_STATE,
    fentry("fentry_inet_twsk_kill", &["inet_twsk_kill"]),
    fentry(
        "fentry_inet_twsk_deschedule_put",
        &["inet_twsk_deschedule_put"],
    ),
    optional(fentry("fentry_reqsk_queue_hash_add", &REQUEST)),
    fentry("fentry_inet_twsk_schedule", &["__inet_twsk_schedule"]),
    fentry("fentry_inet_twsk_hashdance", &HASHDANCE),
];

const TIMEWAIT_KPROBE: &[Hook] = &[
    SET_STATE,
    kprobe("kprobe_inet_twsk_kill", &["inet_twsk_kill"]),
    kprobe(
        "kprobe_inet_twsk_deschedule_put",
        &["inet_twsk_deschedule_put"],
    ),
    optional(kprobe("kprobe_reqsk_queue_hash_add", &REQUEST)),
    kprobe("kprobe_inet_twsk_schedule", &["__inet_twsk_schedule"]),
    kprobe("kprobe_inet_twsk_hashdance", &HASHDANCE),
];

const TIMEWAIT_TRACEPOINT: &[Hook] = &[
    optional(tracepoint(&["timer_expire_entry"])),
    optional(tracepoint(&["timer_cancel"])),
    optional(tracepoint(&["timer_start"])),
    optional(SET_STATE),
    optional(hook("bpf_map", Attach::Iterator, &["bpf_map"])),
];

const RELEASE_FENTRY: &[Hook] = &[
    DESTROY_SOCK,
    fentry("fentry_inet_release", &["inet_release"]),
];

const RELEASE_KPROBE: &[Hook] = &[
    DESTROY_SOCK,
    kprobe("kprobe_inet_release", &["inet_release"]),
];

const RELEASE_TRACEPOINT: &[Hook] = &[
    optional(DESTROY_SOCK),
    optional(hook(
        "sock_release",
        Attach::CgroupSockRelease,
        &["sock_release"],
    )),
];

const AUTOBIND_FENTRY: &[Hook] = &[
    fexit("fexit_inet_hash_connect", &["inet_hash_connect"]),
    optional(fexit("fexit_inet6_hash_connect", &["inet6_hash_connect"])),
    fexit("fexit_udp_v4_get_port", &["udp_v4_get_port"]),
    optional(fexit("fexit_udp_v6_get_port", &["udp_v6_get_port"])),
];

const AUTOBIND_KPROBE: &[Hook] = &[
    kprobe("kprobe_inet_hash_connect", &["inet_hash_connect"]),
    kretprobe("kretprobe_inet_hash_connect", &["inet_hash_connect"]),
    optional(kprobe("kprobe_inet6_hash_connect", &["inet6_hash_connect"])),
    optional(kretprobe(
        "kretprobe_inet6_hash_connect",
        &["inet6_hash_connect"],
    )),
    kprobe("kprobe_udp_v4_get_port", &["udp_v4_get_port"]),
    kretprobe("kretprobe_udp_v4_get_port", &["udp_v4_get_port"]),
    optional(kprobe("kprobe_udp_v6_get_port", &["udp_v6_get_port"])),
    optional(kretprobe("kretprobe_udp_v6_get_port", &["udp_v6_get_port"])),
];

const CONFLICT_FENTRY: &[Hook] = &[
    optional(fexit("fexit_inet_bind_conflict", &["inet_bind_conflict"])),
    fexit("fexit_inet_rcv_saddr_equal", &["inet_rcv_saddr_equal"]),
];

const CONFLICT_KPROBE: &[Hook] = &[
    optional(kprobe("kprobe_inet_bind_conflict", &["inet_bind_conflict"])),
    optional(kretprobe(
        "kretprobe_inet_bind_conflict",
        &["inet_bind_conflict"],
    )),
    kprobe("kprobe_inet_rcv_saddr_equal", &["inet_rcv_saddr_equal"]),
    kretprobe("kretprobe_inet_rcv_saddr_equal", &["inet_rcv_saddr_equal"]),
];

const BIND_FENTRY: &[Hook] = &[
    fentry("fentry_sys_bind", &["__sys_bind"]),
    fexit("fexit_sys_bind", &["__sys_bind"]),
    fentry("fentry_sys_listen", &["__sys_listen"]),
    fexit("fexit_sys_listen", &["__sys_listen"]),
    fentry("fentry_inet_bind", &INET_BIND),
    fexit("fexit_inet_bind", &INET_BIND),
    optional(fentry("fentry_inet6_bind", &INET6_BIND)),
    optional(fexit("fexit_inet6_bind", &INET6_BIND)),
    fexit("fexit_inet_listen", &INET_LISTEN),
];

/// The returns of system calls come before their entries: what an entry keeps for a return that is not
/// probed yet would stay, and at the thread's next call seem to be one whose return was missed.
const BIND_KPROBE: &[Hook] = &[
    kretprobe("kretprobe_sys_bind", &["__sys_bind"]),
    kprobe("kprobe_sys_bind", &["__sys_bind"]),
    kretprobe("kretprobe_sys_listen", &["__sys_listen"]),
    kprobe("kprobe_sys_listen", &["__sys_listen"]),
    kprobe("kprobe_inet_bind", &INET_BIND),
    kretprobe("kretprobe_inet_bind", &INET_BIND),
    optional(kprobe("kprobe_inet6_bind", &INET6_BIND)),
    optional(kretprobe("kretprobe_inet6_bind", &INET6_BIND)),
    kprobe("kprobe_inet_listen", &INET_LISTEN),
    kretprobe("kretprobe_inet_listen", &INET_LISTEN),
];

const BIND_TRACEPOINT: &[Hook] = &[tracepoint(&["sys_exit"])];

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_program_is_attached_in_one_way() {
        let mut hooks = BTreeMap::<&str, Hook>::new();
        for hook in all() {
            let first = hooks.entry(hook.program).or_insert(*hook);
            assert_eq!((first.attach, first.targets), (hook.attach, hook.targets));
        }
        assert!(hooks.len() > 40, "{hooks:?}");
    }

    #[test]
    fn every_part_can_be_done_by_some_backend() {
        for part in Part::ALL {
            assert!(
                Backend::LADDER
                    .iter()
                    .any(|backend| !part.hooks(*backend).is_empty())
            );
        }
    }
}
