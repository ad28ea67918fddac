//! What became of a job's ports, or of a host's: the report of `portwatch run` and
//! `portwatch report`.
//!
//! [`Tally`] makes it of events, of a running stream or of recordings, in
//! memory that does not grow with their number.

mod reader;
mod tally;

use std::collections::BTreeMap;
use std::net::IpAddr;

use schemars::JsonSchema;
use serde::Serialize;

use crate::event::{
    Actor, Cause, Conflict, Container, HeldSocket, Membership, Missing, Options, Pod, Socket, Text,
    Time, Transport,
};

pub use reader::{Flaw, Source, read};
pub use tally::Tally;

/// The version of the schema that every report names.
pub const SCHEMA: &str = "portwatch-report/1";

/// A report. Absent knowledge is an absent key.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Report {
    /// Always `portwatch-report/1`.
    #[schemars(extend("const" = SCHEMA))]
    pub schema: &'static str,
    /// When the first event was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Time>,
    /// When the last event was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Time>,
    /// The job, of `portwatch run`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<Job>,
    /// The recordings, of `portwatch report`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<Source>,
    /// The hosts, one for each boot, that events are of. Where there are several, `host` is the
    /// place in this list.
    pub hosts: Vec<Host>,
    /// How many events of each kind there were.
    pub events: BTreeMap<String, u64>,
    /// Binds and listens that were refused, repeated ones folded; the earliest first.
    pub refusals: Vec<Refusal>,
    /// How many refusals of each cause there were.
    pub causes: BTreeMap<&'static str, u64>,
    /// Ports that were refused, the most often refused first.
    pub contested: Vec<Contested>,
    /// Who got into whose way, the most frequent first.
    pub collisions: Vec<Collision>,
    /// Ports that were used; the earliest first.
    pub ports: Vec<PortUse>,
    /// What the job has left behind, of `portwatch run`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left_behind: Option<LeftBehind>,
    /// Ports that were taken by number although the kernel gives them to outgoing connections.
    pub risks: Vec<Risk>,
    /// Who held which port when, of ports that were taken by number or refused.
    pub timeline: Vec<Lane>,
    /// What was lost, by where.
    pub lost: BTreeMap<String, u64>,
    /// What could not be seen at all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<Missing>,
    /// How much of what there was stands nowhere in the report, by the list it would be in: each has
    /// room for so many.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub omitted: BTreeMap<&'static str, u64>,
}

/// A job that `portwatch run` has watched.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Job {
    /// The command.
    pub command: Vec<Text>,
    /// Its exit status, if it exited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<i32>,
    /// The name of the signal that ended it, if one did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<String>,
    /// How long it ran, in milliseconds.
    pub duration_ms: u64,
    /// Why it was not watched (`--best-effort`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unwatched: Option<String>,
}

/// A boot of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Host {
    /// Its `boot_id`, if that was recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<String>,
    /// Its kernel, if that was recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
}

/// Binds or listens that were refused alike: to the same command, of the same address, for the same
/// cause and the sake of the same holder.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Refusal {
    /// `bind` or `listen`.
    pub event: &'static str,
    /// Name of the errno.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// How often.
    pub count: u64,
    /// When first.
    pub first: Time,
    /// When last.
    pub last: Time,
    /// Where, if there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<usize>,
    /// The socket, the first time.
    pub socket: Socket,
    /// Who was refused, the first time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<Actor>,
    /// Why, the first time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conflict: Option<Conflict>,
}

impl Refusal {
    /// Whether somebody else has what was asked for, and not a rule or a mistake refused it.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        self.error.as_deref() == Some("EADDRINUSE")
    }

    /// Its cause, if it is known.
    #[must_use]
    pub fn cause(&self) -> Cause {
        self.conflict
            .as_ref()
            .map_or(Cause::Unknown, |conflict| conflict.cause)
    }
}

/// A port that was refused.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Contested {
    /// The port.
    pub port: u16,
    /// The transport protocol.
    pub transport: Transport,
    /// How often it was refused.
    pub count: u64,
    /// How often for which cause.
    pub causes: BTreeMap<&'static str, u64>,
}

/// Two that got into each other's way: a pod, service of Compose, container, unit or command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Collision {
    /// Who was refused.
    pub newcomer: String,
    /// Who had the port; absent where no process had it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub holder: Option<String>,
    /// How often.
    pub count: u64,
}

/// A port that a command used, or all of those that the kernel chose for it.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct PortUse {
    /// The transport protocol.
    pub transport: Transport,
    /// The address.
    pub address: IpAddr,
    /// The port; absent if the kernel chose it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Inode number of the network namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub netns: Option<u32>,
    /// Where, if there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<usize>,
    /// The socket's options, the first time.
    pub options: Options,
    /// Who bound it, the first time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<Actor>,
    /// How often it was bound.
    pub count: u64,
    /// When it was bound first.
    pub from: Time,
    /// When it was given back last; absent if it still was held at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Time>,
}

/// What a job has left behind.
#[derive(Debug, Clone, Default, PartialEq, Serialize, JsonSchema)]
pub struct LeftBehind {
    /// Processes that still ran when its first process had ended.
    pub processes: Vec<Leftover>,
    /// Containers of the job that still ran then.
    pub containers: Vec<LeftContainer>,
    /// TIME_WAITs that would keep the same command from its port again.
    pub timewaits: Vec<LeftTimewait>,
}

/// A process that was left behind.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Leftover {
    /// The process.
    pub process: Actor,
    /// The ports that it holds.
    pub sockets: Vec<HeldSocket>,
    /// What `--kill-leftovers` has done to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub killed: Option<Killed>,
}

/// What has ended a process that was left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
pub enum Killed {
    /// It ended by itself meanwhile.
    #[serde(rename = "ended")]
    Ended,
    /// SIGTERM did.
    #[serde(rename = "SIGTERM")]
    Term,
    /// SIGKILL did, which it was sent when SIGTERM had done nothing.
    #[serde(rename = "SIGKILL")]
    Kill,
    /// It could not be ended.
    #[serde(rename = "failed")]
    Failed,
}

/// A container that was left behind.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct LeftContainer {
    /// The container.
    pub container: Container,
    /// The pod it is in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<Pod>,
    /// How it belongs to the job.
    pub job: Membership,
    /// When it was created.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<Time>,
    /// The ports that it publishes.
    pub ports: Vec<LeftPort>,
    /// What to do, in words for people.
    pub advice: String,
}

/// A port that a container publishes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct LeftPort {
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// The address of the host; absent where the runtime's record does not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// The port of the host.
    pub host_port: u16,
    /// The port of the container.
    pub port: u16,
}

/// TIME_WAITs on a port of the job whose dead sockets had no SO_REUSEADDR.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct LeftTimewait {
    /// The transport protocol.
    pub transport: Transport,
    /// The port.
    pub port: u16,
    /// Inode number of the network namespace.
    pub netns: u32,
    /// How many there are.
    pub count: u64,
    /// In how many milliseconds the last of them frees the port.
    pub expires_in_ms: u64,
}

/// A port that was taken by number although it is in the range from which the kernel gives ports to
/// outgoing connections: one day one of these has it first.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Risk {
    /// The transport protocol.
    pub transport: Transport,
    /// The address.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
    /// Who took it, the first time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<Actor>,
    /// The range (`ip_local_port_range`): its first and last port.
    pub range: (u16, u16),
}

/// What happened on a port.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Lane {
    /// The port.
    pub port: u16,
    /// The transport protocol.
    pub transport: Transport,
    /// Inode number of the network namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub netns: Option<u32>,
    /// Where, if there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<usize>,
    /// Who held it.
    pub spans: Vec<Span>,
    /// Who was refused.
    pub marks: Vec<Mark>,
}

/// That somebody held a port.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Span {
    /// From when.
    pub from: Time,
    /// Until when; absent if it still was held at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Time>,
    /// The address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// Its pid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Its pod, service, container, unit or command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub holder: Option<String>,
}

/// That somebody was refused a port.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Mark {
    /// When.
    pub time: Time,
    /// Name of the errno.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Its pid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Its pod, service, container, unit or command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub newcomer: Option<String>,
    /// Why.
    pub cause: Cause,
}

/// Something that a job can be failed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Finding {
    /// A bind or listen was refused because somebody else has the port.
    Conflict,
    /// A process or a container was left behind.
    Leak,
    /// A port was taken by number out of the range for outgoing connections.
    FlakeRisk,
}

impl Report {
    /// Whether it has one of these.
    #[must_use]
    pub fn has(&self, finding: Finding) -> bool {
        match finding {
            Finding::Conflict => self.refusals.iter().any(Refusal::is_conflict),
            Finding::Leak => self
                .left_behind
                .as_ref()
                .is_some_and(|left| !left.processes.is_empty() || !left.containers.is_empty()),
            Finding::FlakeRisk => !self.risks.is_empty(),
        }
    }
}
