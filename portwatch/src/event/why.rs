//! What `portwatch why` tells of a port.

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::Serialize;

use super::{
    Actor, Cause, Conflict, Container, Holder, Options, Pod, Result, Text, Time, Transport,
};

/// A port: who has it, and what a newcomer would get.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Why {
    /// The port.
    pub port: u16,
    /// Whether somebody has it: a socket, or a container that publishes it without one.
    pub held: bool,
    /// Where sockets have it, a network namespace and protocol each.
    pub places: Vec<Place>,
    /// Containers that publish it by their runtime's records, also where no socket has it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub published: Vec<Published>,
    /// Who used it last, by a recording.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_use: Option<LastUse>,
    /// What the settings of the host's own network namespace say of the port.
    pub range: PortRange,
}

/// The sockets of a protocol that have the port in a network namespace.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Place {
    /// The transport protocol.
    pub transport: Transport,
    /// Inode number of the network namespace.
    pub netns: u32,
    /// The name of the network namespace, if it is kept by one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub netns_name: Option<Text>,
    /// It is the host's own network namespace.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub host: bool,
    /// What has the port.
    pub holders: Vec<Holder>,
    /// What a bind of each kind would get.
    pub newcomers: Vec<Newcomer>,
    /// Why, and what to do, of the first one that would be refused; its holders are those above.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conflict: Option<Conflict>,
    /// What the namespace's settings say of the port.
    pub range: PortRange,
}

/// A bind that was not tried, and what it would get.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Newcomer {
    /// The address that it asks for.
    pub address: IpAddr,
    /// Its options.
    pub options: Options,
    /// Its user.
    pub uid: u32,
    /// What it would get.
    #[serde(flatten)]
    pub result: Result,
    /// Of a refusal: why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
}

/// What the settings of a network namespace say of a port.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct PortRange {
    /// It lies in `ip_local_port_range` and is not reserved: any outgoing connection may get it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub ephemeral: bool,
    /// It is one of `ip_local_reserved_ports`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub reserved: bool,
    /// It lies below `ip_unprivileged_port_start`: binding it takes CAP_NET_BIND_SERVICE.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub privileged: bool,
}

/// A container that publishes the port.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Published {
    /// The container.
    pub container: Container,
    /// The pod it is in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<Pod>,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// The address of the host; absent if the record does not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// The container's port.
    pub port: u16,
    /// A socket above has it for the container; otherwise the packet filter alone does the work.
    pub by_socket: bool,
}

/// The last use of a port in a recording.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct LastUse {
    /// When.
    pub time: Time,
    /// What it was: `bind`, `listen` or `release`.
    pub event: String,
    /// The transport protocol, as the recording names it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transport: Option<Text>,
    /// The process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<LastUser>,
}

/// Who used a port last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct LastUser {
    /// Its pid then.
    pub pid: u32,
    /// Its name.
    pub comm: Text,
    /// Its arguments.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<Text>,
}

/// The processes that have the port in this place.
impl Place {
    /// Each once.
    pub fn processes(&self) -> impl Iterator<Item = &Actor> {
        self.holders.iter().flat_map(|holder| &holder.processes)
    }
}
