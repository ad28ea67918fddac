//! What `portwatch list` tells: not what happens, but what there is.

use schemars::JsonSchema;
use serde::Serialize;

use super::{Holder, Text, Transport};

/// A socket that has a port.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Listed {
    /// The socket, and who has it.
    #[serde(flatten)]
    pub holder: Holder,
    /// The name of its network namespace, if that is kept by one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub netns_name: Option<Text>,
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
