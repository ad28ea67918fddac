//! What `portwatch list` tells: not what happens, but what there is.

use std::net::{IpAddr, Ipv4Addr};

use schemars::JsonSchema;
use serde::Serialize;

use super::{Actor, Address, Family, HeldSocket, Ownership, Publishes, Socket, Text, Transport};

/// A socket that has a port: the keys of a [`Holder`](super::Holder), as far as a list knows them.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Listed {
    /// The socket.
    pub socket: HeldSocket,
    /// Whether processes have it; absent where not all of them could be looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ownership: Option<Ownership>,
    /// Of a socket in TIME_WAIT: in how many milliseconds it frees the port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_in_ms: Option<u64>,
    /// The processes that have it open.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub processes: Vec<Actor>,
    /// The port of a container for which a runtime's process has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub publishes: Option<Publishes>,
    /// The name of its network namespace, if that is kept by one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub netns_name: Option<Text>,
}

/// A port of the host that leads to a container's by the packet filter alone: no socket has it.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct PublishedPort {
    /// The transport protocol.
    pub transport: Transport,
    /// The address of the host; absent if the runtime's record does not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// The port of the host.
    pub port: u16,
    /// Inode number of the network namespace that it is a port of, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub netns: Option<u32>,
    /// The name of the network namespace, if it is kept by one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub netns_name: Option<Text>,
    /// The port of the container.
    pub publishes: Publishes,
}

impl PublishedPort {
    /// The socket that would have it: of no family, on the wildcard address, where the record does not tell.
    #[must_use]
    pub fn socket(&self) -> Socket {
        Socket {
            transport: Some(self.transport.clone()),
            family: self.address.map(|address| match address {
                IpAddr::V4(_) => Family::Ipv4,
                IpAddr::V6(_) => Family::Ipv6,
            }),
            local: Some(Address::Inet {
                address: self.address.unwrap_or(Ipv4Addr::UNSPECIFIED.into()),
                port: self.port,
                scope: None,
            }),
            netns: self.netns,
            ..Socket::default()
        }
    }
}

/// The connections of a network namespace that are in TIME_WAIT on a local port, whatever their
/// addresses.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Timewaits {
    /// The transport protocol.
    pub transport: Transport,
    /// The local port.
    pub port: u16,
    /// Inode number of the network namespace.
    pub netns: u32,
    /// The name of the network namespace, if it is kept by one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub netns_name: Option<Text>,
    /// How many.
    pub count: u64,
    /// In how many milliseconds the last of them is over.
    pub expires_in_ms: u64,
    /// The port lies in the namespace's `ip_local_port_range`: they most likely are of clients.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub ephemeral: bool,
}
