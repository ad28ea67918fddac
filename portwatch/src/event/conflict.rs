//! Who keeps a refused socket from its port, why, and what to do: the object `conflict` of a
//! failed bind or listen.

use std::borrow::Cow;

use clap::ValueEnum;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use super::{Actor, Container, Pod, Socket, Time};

/// Why a bind or a listen was refused, and what to do about it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Conflict {
    /// The cause, by its code; `portwatch explain` has a page on each.
    pub cause: Cause,
    /// What happened, in a sentence for people.
    pub summary: String,
    /// What to do, in a sentence for people.
    pub advice: String,
    /// How the holders were found; absent where the cause is not one that has holders.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evidence: Option<Evidence>,
    /// The sockets that have the port; the first one is the one that the cause is about.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub holders: Vec<Holder>,
    /// The container that the refused process, a container runtime's, wanted to publish a port of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub publishes: Option<Publishes>,
}

/// How holders were found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Evidence {
    /// Under the lock of the kernel's table of ports, by the check that failed.
    Locked,
    /// By a walk of that table without its lock, just after.
    Walked,
    /// By sock_diag and /proc, afterwards.
    Userspace,
}

/// A socket that has the port.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Holder {
    /// The socket.
    pub socket: HeldSocket,
    /// What is known of who has it; absent where that could not be asked in time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ownership: Option<Ownership>,
    /// When it was bound, if that was seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bound_at: Option<Time>,
    /// Of a socket in TIME_WAIT: in how many milliseconds it frees the port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_in_ms: Option<u64>,
    /// The processes that have it open, or had.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub processes: Vec<Actor>,
    /// The container whose port it publishes, if it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub publishes: Option<Publishes>,
}

/// A socket with the user it is of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HeldSocket {
    /// The socket.
    #[serde(flatten)]
    pub socket: Socket,
    /// The user who made it, as seen from the initial user namespace. A timewait socket has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
}

/// What is known of who has a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Ownership {
    /// These processes have it open now.
    Verified,
    /// They had it.
    LastKnown,
    /// No process has it.
    None,
}

/// A port of a container that a socket of the host stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Publishes {
    /// The container.
    pub container: Container,
    /// The pod it is in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<Pod>,
    /// Its port, if the runtime's records or arguments tell it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

macro_rules! causes {
    ($($variant:ident, $id:literal, $gist:literal;)+) => {
        /// Why a bind or a listen was refused.
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, JsonSchema, ValueEnum,
        )]
        pub enum Cause {
            $(
                #[doc = $gist]
                #[serde(rename = $id)]
                #[value(name = $id)]
                $variant,
            )+
        }

        impl Cause {
            /// All of them, in the order of the catalogue.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// Its code, which never changes.
            #[must_use]
            pub fn id(self) -> &'static str {
                match self {
                    $(Self::$variant => $id,)+
                }
            }

            /// What it is, in one line.
            #[must_use]
            pub fn gist(self) -> &'static str {
                match self {
                    $(Self::$variant => $gist,)+
                }
            }

            /// Its page: what happens, how to recognise it, how to fix it, in Markdown.
            #[must_use]
            pub fn page(self) -> &'static str {
                match self {
                    $(Self::$variant => {
                        include_str!(concat!("../diagnose/pages/", $id, ".md"))
                    })+
                }
            }
        }
    };
}

impl<'de> Deserialize<'de> for Cause {
    /// One that a later version may have added is unknown.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let id = Cow::<str>::deserialize(deserializer)?;
        let known = Self::ALL.iter().find(|cause| cause.id() == id);
        Ok(known.copied().unwrap_or(Self::Unknown))
    }
}

causes! {
    Listener, "listener", "A live process serves this port";
    EphemeralCollision, "ephemeral-collision", "An outgoing connection got this number as its source port";
    TimeWait, "time-wait", "A closed connection waits out its minute, and the newcomer lacks SO_REUSEADDR";
    TimeWaitNoReuse, "time-wait-no-reuse", "A closed connection waits out its minute, and its own socket lacked SO_REUSEADDR";
    LingeringConnection, "lingering-connection", "The listener is gone, a connection of it is not";
    BoundNotListening, "bound-not-listening", "A socket is bound and never listened, so most tools do not show it";
    InheritedListener, "inherited-listener", "The process that bound the port is gone, a child has its descriptor";
    NoProcess, "no-process", "The socket lives, but no process has it open";
    ExitingHolder, "exiting-holder", "The process that holds the port is still ending";
    LostRace, "lost-race", "A free port was looked for, found and given back; another took it first";
    Sibling, "sibling", "Two workers of one job use the same fixed port";
    ListenConflict, "listen-conflict", "Both sockets could be bound, but only one may listen";
    DualStack, "dual-stack", "A socket of IPv6 also covers the address of IPv4";
    WildcardOverlap, "wildcard-overlap", "A wildcard address covers the specific one";
    ReuseportUid, "reuseport-uid", "Both set SO_REUSEPORT, but are of different users";
    ReuseportOneSided, "reuseport-one-sided", "Only one of the two set SO_REUSEPORT";
    SocketActivation, "socket-activation", "systemd holds the port for a socket unit";
    PublishedPort, "published-port", "A container publishes the port";
    HostNetwork, "host-network", "A container or pod uses the host's network";
    StaleJob, "stale-job", "A process of an earlier job was left over";
    KernelSocket, "kernel-socket", "The kernel itself holds the port; there is no process";
    PortRangeExhausted, "port-range-exhausted", "Any port was asked for, and none is free";
    BoundDevice, "bound-device", "Only one of the two is bound to an interface";
    UnixPath, "unix-path", "The path of an AF_UNIX socket exists already";
    UnixAbstract, "unix-abstract", "The abstract name of an AF_UNIX socket is in use";
    SyscallFiltered, "syscall-filtered", "Something in front of the kernel answered the system call";
    PrivilegedPort, "privileged-port", "Low ports need a capability that the process lacks";
    SecurityPolicy, "security-policy", "A security module or a cgroup's program refused it";
    AddressNotLocal, "address-not-local", "The address is on no interface of this network namespace";
    AlreadyBound, "already-bound", "This socket has a port already";
    Unknown, "unknown", "What was seen does not tell";
}
