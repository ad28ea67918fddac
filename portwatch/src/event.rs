//! The events portwatch emits: what a line of text or JSON is made from.
//!
//! The types are the JSON: the schema in `docs/schema/` is generated from them.
//! Absent knowledge is an absent key, never a made-up value.

mod conflict;
mod listed;
mod why;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use schemars::JsonSchema;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use conflict::{Cause, Conflict, Evidence, HeldSocket, Holder, Ownership, Publishes};
pub use listed::{Listed, PublishedPort, Timewaits};
pub use why::{LastUse, LastUser, Newcomer, Place, PortRange, Published, Why};

/// The version of the schema that every object names.
pub const SCHEMA: &str = "portwatch/1";

/// One event, without what its place in the stream adds (see [`Line`]).
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// When it happened.
    pub time: Time,
    /// What happened.
    pub body: Body,
}

/// One object of the JSON stream.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Line<'a> {
    /// Always `portwatch/1`.
    #[schemars(extend("const" = SCHEMA))]
    pub schema: &'static str,
    /// Number of the line, from 0 and without gaps: a gap is a lost line.
    pub seq: u64,
    /// When it happened (RFC 3339, UTC, nanoseconds).
    pub time: Time,
    /// What happened.
    #[serde(flatten)]
    pub body: Cow<'a, Body>,
}

/// A line that was read, of this version of the schema or one that only adds to it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Recorded {
    /// The number of the line.
    pub seq: u64,
    /// When it happened.
    pub time: Time,
    /// What happened.
    #[serde(flatten)]
    pub body: Body,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Body {
    /// The stream begins: every hook is in place.
    Start(Start),
    /// A bind(2) has returned.
    Bind(Bind),
    /// A listen(2) has returned.
    Listen(Listen),
    /// A bound socket has given its port back.
    Release(Release),
    /// A connection entered or left TIME_WAIT.
    Timewait(Timewait),
    /// Something was lost since the last such line.
    Lost(Lost),
    /// The stream ends.
    End(End),
    /// A socket that has a port, of a list.
    #[serde(skip_deserializing)]
    Socket(Listed),
    /// The connections in TIME_WAIT on a port, of a list.
    #[serde(skip_deserializing)]
    Timewaits(Timewaits),
    /// A port that a container publishes without a socket, of a list.
    #[serde(skip_deserializing)]
    Published(Box<PublishedPort>),
    /// Who has a port, and what a newcomer would get.
    #[serde(skip_deserializing)]
    Why(Box<Why>),
}

impl Body {
    /// The value of the key `event`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Start(_) => "start",
            Self::Bind(_) => "bind",
            Self::Listen(_) => "listen",
            Self::Release(_) => "release",
            Self::Timewait(_) => "timewait",
            Self::Lost(_) => "lost",
            Self::End(_) => "end",
            Self::Socket(_) => "socket",
            Self::Timewaits(_) => "timewaits",
            Self::Published(_) => "published",
            Self::Why(_) => "why",
        }
    }
}

/// A point in time: nanoseconds since the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub i64);

impl Time {
    /// As a timestamp of the `jiff` library.
    #[must_use]
    pub fn timestamp(self) -> jiff::Timestamp {
        // Every i64 of nanoseconds is within jiff's range.
        jiff::Timestamp::from_nanosecond(i128::from(self.0)).unwrap_or(jiff::Timestamp::UNIX_EPOCH)
    }

    /// As RFC 3339 in UTC with nanoseconds: ASCII, and always as long.
    ///
    /// By hand, because two of these stand in every line of JSON.
    #[must_use]
    pub fn rfc3339(self) -> [u8; 30] {
        const DAY: i64 = 86_400_000_000_000;
        // Days since 0000-03-01 in eras of 400 years, so that a leap day is the last of its year:
        // civil_from_days of "chrono-Compatible Low-Level Date Algorithms" by Howard Hinnant.
        let days = self.0.div_euclid(DAY) + 719_468;
        let era = days / 146_097;
        let day_of_era = days % 146_097;
        let year_of_era =
            (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = (month_from_march + 2) % 12 + 1;
        let year = era * 400 + year_of_era + i64::from(month <= 2);

        let nanosecond = self.0.rem_euclid(DAY);
        let second = nanosecond / 1_000_000_000;
        let mut text = *b"0000-00-00T00:00:00.000000000Z";
        put(&mut text[0..4], year);
        put(&mut text[5..7], month);
        put(&mut text[8..10], day);
        put(&mut text[11..13], second / 3600);
        put(&mut text[14..16], second / 60 % 60);
        put(&mut text[17..19], second % 60);
        self.put_nanoseconds(&mut text);
        text
    }

    /// Turns what [`Self::rfc3339`] made of another time in the same second into this one.
    pub fn put_nanoseconds(self, text: &mut [u8; 30]) {
        put(&mut text[20..29], self.0.rem_euclid(1_000_000_000));
    }
}

/// Writes the last digits of a number.
fn put(digits: &mut [u8], mut number: i64) {
    for digit in digits.iter_mut().rev() {
        *digit = b"0123456789"[(number % 10) as usize];
        number /= 10;
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Only ASCII is ever put there.
        f.write_str(std::str::from_utf8(&self.rfc3339()).unwrap_or_default())
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        // Only ASCII is ever put there.
        serializer.serialize_str(std::str::from_utf8(&self.rfc3339()).unwrap_or_default())
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let time = Cow::<str>::deserialize(deserializer)?;
        let time: jiff::Timestamp = time.parse().map_err(D::Error::custom)?;
        i64::try_from(time.as_nanosecond())
            .map(Self)
            .map_err(D::Error::custom)
    }
}

impl JsonSchema for Time {
    fn schema_name() -> Cow<'static, str> {
        "Time".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "RFC 3339, UTC, nanoseconds",
            "type": "string",
            "pattern": r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{9}Z$"
        })
    }
}

/// The stream begins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Start {
    /// Version of portwatch.
    pub version: String,
    /// The backend that sees bind and listen.
    pub backend: String,
    /// The backend that does each part of the work.
    pub parts: BTreeMap<String, String>,
    /// The backends that were tried for a part and not taken.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<Step>,
    /// Release of the kernel, as `uname -r` prints it.
    pub kernel: String,
    /// `/proc/sys/kernel/random/boot_id`: tells the hosts and boots of collected streams apart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<String>,
    /// Inode number of portwatch's own network namespace, which the settings are of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub netns: Option<u32>,
    /// `ip_local_port_range`: the first and last port that the kernel gives to outgoing connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_port_range: Option<(u16, u16)>,
    /// `ip_local_reserved_ports`, as it is written there: those of them that it does not give.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_reserved_ports: Option<String>,
    /// The filters in force, by the names of their options.
    pub filters: BTreeMap<String, Vec<String>>,
    /// What cannot be seen on this host, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<Missing>,
}

/// A backend that was tried and not taken.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Step {
    /// The part of the work.
    pub part: String,
    /// The backend.
    pub backend: String,
    /// Why it was not taken.
    pub why: String,
}

/// Something that cannot be seen on this host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Missing {
    /// What cannot be seen.
    pub what: String,
    /// Why not.
    pub why: String,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It was granted.
    Success,
    /// It was refused; `error` and `errno` say how.
    Failure,
}

impl Outcome {
    /// Its name in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
        }
    }
}

/// The result of a system call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Result {
    /// Whether it was granted.
    pub outcome: Outcome,
    /// Name of the errno of a failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Cow<'static, str>>,
    /// The errno of a failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub errno: Option<i32>,
}

/// A bind(2) has returned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Bind {
    /// How it ended.
    #[serde(flatten)]
    pub result: Result,
    /// The socket; `local` is what it is bound to, or after a failure what was asked for.
    pub socket: Socket,
    /// What was asked for, where it is not what the socket got, or what the kernel tried: a cgroup
    /// program may put another address in its place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requested: Option<Address>,
    /// Nobody called bind(2): connect(2), sendto(2) or the like needed a port, and there was none.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub autobind: bool,
    /// Why it was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conflict: Option<Box<Conflict>>,
    /// Who asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<Actor>,
}

/// A listen(2) has returned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Listen {
    /// How it ended.
    #[serde(flatten)]
    pub result: Result,
    /// The socket.
    pub socket: Socket,
    /// The backlog asked for.
    pub backlog: i32,
    /// Why it was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conflict: Option<Box<Conflict>>,
    /// Who asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<Actor>,
}

/// A bound socket has given its port back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Release {
    /// The socket, as it was then.
    pub socket: Socket,
    /// When it was bound, if that was seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bound_at: Option<Time>,
    /// For how long it was bound, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_ms: Option<u64>,
    /// Who bound it, if that was seen and was another process than the one that closed it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub binder: Option<Actor>,
    /// Who closed the last descriptor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<Actor>,
}

/// Whether a connection entered or left TIME_WAIT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// It entered.
    Enter,
    /// It left.
    Exit,
}

/// Why a connection left TIME_WAIT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Reason {
    /// Its time was up.
    Expired,
    /// A new connection took its addresses and ports over.
    Reused,
    /// A RST, or an administrator, ended it.
    Reset,
    /// Its network namespace was taken down.
    Purged,
}

/// A connection entered or left TIME_WAIT.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Timewait {
    /// Which of the two.
    pub phase: Phase,
    /// The connection.
    pub socket: Socket,
    /// On enter: in how many milliseconds it will be over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_in_ms: Option<u64>,
    /// On enter: for how many milliseconds it waited in FIN_WAIT2 for the peer to close, already
    /// without a socket of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fin_wait2_ms: Option<u64>,
    /// On exit: why, as far as it could be known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// On exit: how many milliseconds it lasted, if its beginning was seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lasted_ms: Option<u64>,
    /// Who closed the connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<Actor>,
}

/// Something was lost since the last such line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Lost {
    /// How much.
    pub count: u64,
    /// Where: `ring` (the ring buffer was full: the reader was too slow), `recursion` (a program
    /// was skipped while it ran already), `bound` (more bound sockets than portwatch can follow:
    /// their release will not be seen), `tree` (the job of `portwatch run` has more processes than it
    /// can follow), `lookup` (who has a port, or why, was not asked in time).
    #[serde(rename = "where")]
    pub place: Cow<'static, str>,
    /// How much of it by kind of record (`ring`) or by program (`recursion`).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub of: BTreeMap<Cow<'static, str>, u64>,
}

/// The stream ends.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct End {
    /// How many events of each kind were written.
    pub counts: BTreeMap<Cow<'static, str>, u64>,
    /// How many of the binds and listens among them had failed.
    pub failed: u64,
    /// How many of those were refused a port that nobody was found to have.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub without_holder: u64,
    /// How much was lost, by where.
    pub lost: BTreeMap<Cow<'static, str>, u64>,
    /// How long the stream was, in milliseconds.
    pub duration_ms: u64,
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde hands the field over so"
)]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// A transport protocol, in the words of `ss`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    /// IPPROTO_TCP.
    Tcp,
    /// IPPROTO_UDP.
    Udp,
    /// IPPROTO_MPTCP.
    Mptcp,
    /// IPPROTO_SCTP.
    Sctp,
    /// IPPROTO_DCCP.
    Dccp,
    /// IPPROTO_UDPLITE.
    Udplite,
    /// IPPROTO_ICMP or IPPROTO_ICMPV6 with SOCK_DGRAM: ping sockets.
    Icmp,
    /// SMC's own sockets.
    Smc,
    /// SOCK_RAW.
    Raw,
    /// SOCK_STREAM of AF_UNIX.
    Stream,
    /// SOCK_DGRAM of AF_UNIX.
    Dgram,
    /// SOCK_SEQPACKET of AF_UNIX.
    Seqpacket,
    /// Any other, by its number.
    Other(u16),
}

impl Transport {
    /// Those that have a name.
    const NAMED: [Self; 12] = [
        Self::Tcp,
        Self::Udp,
        Self::Mptcp,
        Self::Sctp,
        Self::Dccp,
        Self::Udplite,
        Self::Icmp,
        Self::Smc,
        Self::Raw,
        Self::Stream,
        Self::Dgram,
        Self::Seqpacket,
    ];

    /// Its name, if it has one.
    #[must_use]
    pub fn name(&self) -> Option<&'static str> {
        Some(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Mptcp => "mptcp",
            Self::Sctp => "sctp",
            Self::Dccp => "dccp",
            Self::Udplite => "udplite",
            Self::Icmp => "icmp",
            Self::Smc => "smc",
            Self::Raw => "raw",
            Self::Stream => "stream",
            Self::Dgram => "dgram",
            Self::Seqpacket => "seqpacket",
            Self::Other(_) => return None,
        })
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.name(), self) {
            (Some(name), _) => f.write_str(name),
            (None, Self::Other(number)) => write!(f, "{number}"),
            (None, _) => Ok(()),
        }
    }
}

impl Serialize for Transport {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match self.name() {
            Some(name) => serializer.serialize_str(name),
            None => serializer.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for Transport {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let name = Cow::<str>::deserialize(deserializer)?;
        let known = Self::NAMED
            .iter()
            .find(|known| known.name() == Some(&*name));
        match known {
            Some(known) => Ok(known.clone()),
            None => name.parse().map(Self::Other).map_err(D::Error::custom),
        }
    }
}

impl JsonSchema for Transport {
    fn schema_name() -> Cow<'static, str> {
        "Transport".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "tcp, udp, mptcp, sctp, dccp, udplite, icmp, smc, raw; stream, dgram, seqpacket of AF_UNIX; else the protocol's number",
            "type": "string"
        })
    }
}

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// AF_INET.
    Ipv4,
    /// AF_INET6.
    Ipv6,
    /// AF_UNIX.
    Unix,
}

impl Family {
    /// Its name in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
            Self::Unix => "unix",
        }
    }
}

/// A socket's state, in the words of `ss`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// ESTABLISHED.
    Established,
    /// SYN_SENT.
    SynSent,
    /// SYN_RECV or NEW_SYN_RECV.
    SynRecv,
    /// FIN_WAIT1.
    #[serde(rename = "fin-wait-1")]
    FinWait1,
    /// FIN_WAIT2.
    #[serde(rename = "fin-wait-2")]
    FinWait2,
    /// TIME_WAIT.
    TimeWait,
    /// CLOSE, and bound to a port.
    Bound,
    /// CLOSE, and not bound.
    Close,
    /// CLOSE_WAIT.
    CloseWait,
    /// LAST_ACK.
    LastAck,
    /// LISTEN.
    Listen,
    /// CLOSING.
    Closing,
}

impl State {
    /// Its name, as in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Established => "established",
            Self::SynSent => "syn-sent",
            Self::SynRecv => "syn-recv",
            Self::FinWait1 => "fin-wait-1",
            Self::FinWait2 => "fin-wait-2",
            Self::TimeWait => "time-wait",
            Self::Bound => "bound",
            Self::Close => "close",
            Self::CloseWait => "close-wait",
            Self::LastAck => "last-ack",
            Self::Listen => "listen",
            Self::Closing => "closing",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A socket.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Socket {
    /// The transport protocol; absent when the descriptor was no socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transport: Option<Transport>,
    /// The address family.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub family: Option<Family>,
    /// The local address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local: Option<Address>,
    /// The peer's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote: Option<Address>,
    /// The state; not told of a bind, which is `bound` if it succeeded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<State>,
    /// The options that decide over binding: `reuseaddr`, `reuseport`, `v6only`, `freebind`,
    /// `transparent`, `bind-address-no-port`.
    pub options: Options,
    /// Name of the interface the socket is bound to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bound_device: Option<Text>,
    /// Inode number of the network namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub netns: Option<u32>,
    /// The socket's cookie, if it was ever asked for one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cookie: Option<u64>,
    /// Inode number of the socket, as in `/proc/PID/fd` and `ss -e`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inode: Option<u64>,
    /// The socket is the kernel's own: no descriptor leads to it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub kernel: bool,
}

/// Options of a socket: a set of bits of [`portwatch_common::record::option`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options(pub u16);

impl Options {
    /// The names of the bits.
    pub const NAMES: [(u16, &'static str); 6] = {
        use portwatch_common::record::option;
        [
            (option::REUSEADDR, "reuseaddr"),
            (option::REUSEPORT, "reuseport"),
            (option::V6ONLY, "v6only"),
            (option::FREEBIND, "freebind"),
            (option::TRANSPARENT, "transparent"),
            (option::BIND_ADDRESS_NO_PORT, "bind-address-no-port"),
        ]
    };

    /// Whether SO_REUSEADDR is set.
    #[must_use]
    pub fn has_reuseaddr(self) -> bool {
        self.0 & portwatch_common::record::option::REUSEADDR != 0
    }

    /// Whether SO_REUSEPORT is set.
    #[must_use]
    pub fn has_reuseport(self) -> bool {
        self.0 & portwatch_common::record::option::REUSEPORT != 0
    }

    /// The names of the options that are set.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Self::NAMES
            .into_iter()
            .filter(move |(bit, _)| self.0 & bit != 0)
            .map(|(_, name)| name)
    }
}

impl Serialize for Options {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_seq(self.names())
    }
}

impl<'de> Deserialize<'de> for Options {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let names = Vec::<Cow<str>>::deserialize(deserializer)?;
        let bits = Self::NAMES
            .iter()
            .filter(|(_, known)| names.iter().any(|name| name == known));
        Ok(Self(bits.fold(0, |all, (bit, _)| all | bit)))
    }
}

impl JsonSchema for Options {
    fn schema_name() -> Cow<'static, str> {
        "Options".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let names: Vec<_> = Self::NAMES.iter().map(|(_, name)| *name).collect();
        schemars::json_schema!({
            "type": "array",
            "items": { "enum": names }
        })
    }
}

/// An address a socket is bound or connected to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Address {
    /// Of AF_INET or AF_INET6.
    Inet {
        /// The IP address.
        address: IpAddr,
        /// The port.
        port: u16,
        /// Index of the interface that a link-local address belongs to.
        #[serde(skip_serializing_if = "Option::is_none")]
        scope: Option<u32>,
    },
    /// An AF_UNIX socket in the file system.
    Path {
        /// The path as it was given.
        #[serde(flatten)]
        path: PathText,
    },
    /// An AF_UNIX socket in the abstract namespace.
    Abstract {
        /// The name without the NUL at its head.
        #[serde(flatten)]
        name: AbstractText,
    },
    /// An AF_UNIX socket that the kernel is to name by itself (autobind).
    Unnamed {
        /// Always true.
        unnamed: bool,
    },
}

/// As `ss` shows it. What stands in a path or a name is not fit for a terminal: see [`Text`].
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inet {
                address,
                port,
                scope,
            } => {
                let zone = scope.map(|scope| format!("%{scope}")).unwrap_or_default();
                match address {
                    IpAddr::V4(address) => write!(f, "{address}{zone}:{port}"),
                    IpAddr::V6(address) => write!(f, "[{address}]{zone}:{port}"),
                }
            }
            Self::Path { path } => f.write_str(&path.path),
            Self::Abstract { name } => write!(f, "@{}", name.name),
            Self::Unnamed { .. } => f.write_str("any name"),
        }
    }
}

/// A path, lossless: see [`Text`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PathText {
    /// The path; bytes that are not UTF-8 are replaced by U+FFFD.
    pub path: Text,
    /// The bytes in hexadecimal, if they are not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_hex: Option<String>,
}

/// An abstract name, lossless: see [`Text`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AbstractText {
    /// The name; bytes that are not UTF-8 are replaced by U+FFFD.
    #[serde(rename = "abstract")]
    pub name: Text,
    /// The bytes in hexadecimal, if they are not UTF-8.
    #[serde(rename = "abstract_hex", skip_serializing_if = "Option::is_none")]
    pub name_hex: Option<String>,
}

impl Address {
    /// An IPv4 address from network order.
    #[must_use]
    pub fn v4(address: [u8; 4], port: u16) -> Self {
        Self::Inet {
            address: Ipv4Addr::from(address).into(),
            port,
            scope: None,
        }
    }

    /// An IPv6 address from network order; scope 0 is none.
    #[must_use]
    pub fn v6(address: [u8; 16], port: u16, scope: u32) -> Self {
        Self::Inet {
            address: Ipv6Addr::from(address).into(),
            port,
            scope: (scope != 0).then_some(scope),
        }
    }

    /// The IP address, of an address that has one.
    #[must_use]
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Self::Inet { address, .. } => Some(*address),
            _ => None,
        }
    }

    /// The port, of an address that has one.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        match self {
            Self::Inet { port, .. } => Some(*port),
            _ => None,
        }
    }
}

/// A string from outside the project: a comm, an argument, a path. Bytes that are not UTF-8 are
/// replaced by U+FFFD, and then stand beside it in hexadecimal under the same key with `_hex`.
///
/// Such a string is not fit for a terminal: see [`crate::sink::escape`].
pub type Text = Arc<str>;

/// Bytes from outside as [`Text`], with the hexadecimal form if they are not UTF-8.
#[must_use]
pub fn text(bytes: &[u8]) -> (Text, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(valid) => (valid.into(), None),
        Err(_) => (String::from_utf8_lossy(bytes).into(), Some(hex(bytes))),
    }
}

/// Bytes in hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::new(), |mut hex, byte| {
        // Writing to a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// The process, through one of its threads, that did something.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Actor {
    /// The process, in the initial pid namespace.
    pub pid: u32,
    /// The thread, in the initial pid namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tid: Option<u32>,
    /// The thread's name at that moment.
    pub comm: Text,
    /// Its bytes in hexadecimal, if they are not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comm_hex: Option<String>,
    /// Effective uid at that moment, as seen from the initial user namespace.
    pub uid: u32,
    /// When the process was started.
    pub start_time: Time,
    /// Effective gid at that moment, as seen from the initial user namespace.
    pub gid: u32,
    /// That it is of the job that `portwatch run` watches, and how it belongs to that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<Membership>,
    /// What else is known of the process.
    #[serde(flatten)]
    pub process: Arc<Process>,
}

/// How a process belongs to the job that `portwatch run` watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Membership {
    /// It descends from the job's first process.
    Descendant,
    /// Its container has a label that names the job; or the process has a port for such a container.
    Label,
    /// Its container was created while the job ran; or the process has a port for such a container.
    /// A guess: somebody else may have made it just then.
    Container,
}

/// What is known of a process, but for what changes from event to event.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Process {
    /// The arguments.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub args: Option<Vec<Text>>,
    /// The arguments' bytes in hexadecimal, if one of them is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub args_hex: Option<Vec<String>>,
    /// True if there were more than 4096 bytes of arguments: the rest is missing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub args_truncated: bool,
    /// The executable's path, in the process's own mount namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exe: Option<Text>,
    /// Its bytes in hexadecimal, if they are not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exe_hex: Option<String>,
    /// The pid in the process's own pid namespace, where it is another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace_pid: Option<u32>,
    /// Inode number of its network namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub netns: Option<u32>,
    /// Inode number of its pid namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pidns: Option<u32>,
    /// Inode number of its mount namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mntns: Option<u32>,
    /// Its parent, the parent's parent and so on, 16 at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ancestors: Vec<Ancestor>,
    /// Its cgroup: of version 2, or where that is the root, of version 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<Text>,
    /// Its cgroup of version 1, where that is not the root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup_v1: Option<Text>,
    /// The systemd unit it belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<Text>,
    /// The container it belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<Container>,
    /// The pod its container is in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<Pod>,
}

/// An ancestor of a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Ancestor {
    /// In the initial pid namespace.
    pub pid: u32,
    /// Its name.
    pub comm: Text,
    /// Its bytes in hexadecimal, if they are not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comm_hex: Option<String>,
}

/// A container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Container {
    /// What runs it: `docker`, `podman`, `containerd`, …
    pub runtime: Text,
    /// Its id.
    pub id: Text,
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<Text>,
    /// Its image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<Text>,
    /// Its labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// A pod, of Kubernetes or podman.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Pod {
    /// Its namespace, of Kubernetes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Text>,
    /// Its name.
    pub name: Text,
    /// Its uid; of podman, its id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<Text>,
    /// The container's name within the pod, of Kubernetes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<Text>,
}

impl Pod {
    /// As `kubectl` names it: with its namespace.
    #[must_use]
    pub fn full_name(&self) -> String {
        match &self.namespace {
            Some(namespace) => format!("{namespace}/{}", self.name),
            None => self.name.to_string(),
        }
    }
}

impl Container {
    /// The beginning of its id, as `docker ps` shows it.
    #[must_use]
    pub fn short_id(&self) -> &str {
        match self.id.char_indices().nth(12) {
            Some((end, _)) => &self.id[..end],
            None => &self.id,
        }
    }

    /// What people call it: its name, else the beginning of its id.
    #[must_use]
    pub fn short_name(&self) -> &str {
        self.name.as_deref().unwrap_or_else(|| self.short_id())
    }

    /// The project and service of Compose that it is of, as `project/service`.
    #[must_use]
    pub fn compose(&self) -> Option<String> {
        let project = self.labels.get("com.docker.compose.project")?;
        Some(match self.labels.get("com.docker.compose.service") {
            Some(service) => format!("{project}/{service}"),
            None => project.clone(),
        })
    }
}
