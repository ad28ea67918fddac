//! Options that several subcommands have.

use std::fs::{File, OpenOptions, Permissions};
use std::io::IsTerminal;
use std::ops::RangeInclusive;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use jiff::tz::TimeZone;
use portwatch_common::map::FILTER_CAPACITY;

use super::Usage;
use super::value::{self, BackendChoice};
use crate::filter::{Filter, Kind};
use crate::sink::text::Color;

/// Which sockets, and whose.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Filters")]
pub(super) struct SocketFilter {
    /// Only these processes
    #[arg(short, long, value_name = "PID", value_delimiter = ',', value_parser = value::pid)]
    pid: Vec<u32>,

    /// Only these local ports and ranges of ports (3000,8000-8100)
    #[arg(short = 'P', long, value_name = "PORTS", value_delimiter = ',', value_parser = value::ports)]
    port: Vec<RangeInclusive<u16>>,

    /// Only these users, by name or number
    #[arg(short, long, value_name = "USER", value_delimiter = ',', value_parser = value::user)]
    uid: Vec<u32>,

    /// Only these containers, by name, id, label or pod
    #[arg(short, long, value_name = "NAME|ID|KEY=VALUE", value_delimiter = ',')]
    container: Vec<String>,

    /// Only processes of this name
    #[arg(long, value_name = "NAME")]
    comm: Vec<String>,

    /// Only these network namespaces: name as of `ip netns`, path, or inode number
    #[arg(long, value_name = "NETNS", value_delimiter = ',', value_parser = value::netns)]
    netns: Vec<u32>,

    /// Only IPv4
    #[arg(short = '4', long)]
    ipv4: bool,

    /// Only IPv6
    #[arg(short = '6', long)]
    ipv6: bool,

    /// Only TCP
    #[arg(long)]
    tcp: bool,

    /// Only UDP
    #[arg(long)]
    udp: bool,
}

impl SocketFilter {
    /// The filter that this is.
    pub(super) fn filter(self) -> Filter {
        Filter {
            pids: self.pid.into_iter().collect(),
            ports: self.port,
            uids: self.uid.into_iter().collect(),
            containers: self.container.into_iter().collect(),
            comms: self.comm.into_iter().collect(),
            netns: self.netns.into_iter().collect(),
            ipv4: self.ipv4,
            ipv6: self.ipv6,
            tcp: self.tcp,
            udp: self.udp,
            ..Filter::default()
        }
    }
}

/// Which events.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Filters")]
pub(super) struct FilterOptions {
    #[command(flatten)]
    sockets: SocketFilter,

    /// Only failures
    #[arg(short = 'x', long)]
    failed: bool,

    /// Only these kinds of events
    #[arg(short, long, value_name = "EVENTS", value_delimiter = ',', value_enum)]
    events: Vec<Kind>,

    /// AF_UNIX too
    #[arg(long)]
    unix: bool,
}

impl FilterOptions {
    /// The filter that this is.
    pub(super) fn filter(self) -> Result<Filter, Usage> {
        let filter = Filter {
            failed: self.failed,
            unix: self.unix,
            events: self.events.into_iter().collect(),
            ..self.sockets.filter()
        };
        check(&filter)?;
        Ok(filter)
    }
}

/// How something is written to standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// A line of columns an event
    Text,
    /// A JSON object a line
    Json,
}

/// When to colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum When {
    /// On a terminal, unless NO_COLOR is set
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

impl When {
    /// Whether what goes to this stream is coloured.
    fn of(self, stream: &impl IsTerminal) -> Color {
        let colored = match self {
            Self::Always => true,
            Self::Never => false,
            // https://no-color.org: set and not empty.
            Self::Auto => {
                stream.is_terminal()
                    && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            }
        };
        if colored { Color::On } else { Color::Off }
    }
}

/// How text for people is written.
#[derive(Debug, Clone, Copy, Args)]
#[command(next_help_heading = "Output")]
pub(super) struct StyleOptions {
    /// Tell times in UTC instead of local time
    #[arg(long)]
    utc: bool,

    /// When to colour
    #[arg(long, value_enum, default_value_t = When::Auto, value_name = "WHEN")]
    color: When,
}

impl StyleOptions {
    /// The zone that times are told in.
    pub(super) fn zone(self) -> TimeZone {
        if self.utc {
            TimeZone::UTC
        } else {
            TimeZone::system()
        }
    }

    /// Whether what goes to this stream is coloured.
    pub(super) fn color(self, stream: &impl IsTerminal) -> Color {
        self.color.of(stream)
    }
}

/// How it is traced.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct TraceOptions {
    /// How to hook into the kernel
    #[arg(long, value_enum, default_value_t = BackendChoice::Auto)]
    pub(super) backend: BackendChoice,

    /// Size of the kernel's ring buffer: a power of two (64K to 1024M)
    #[arg(long, value_name = "SIZE", default_value = "4M", value_parser = value::buffer)]
    pub(super) buffer: u32,

    /// How long an event may wait for what explains it
    #[arg(long, value_name = "TIME", default_value = "250ms", value_parser = value::duration)]
    pub(super) explain_within: Duration,
}

/// Whether a filter fits the kernel side.
pub(super) fn check(filter: &Filter) -> Result<(), Usage> {
    for (option, values) in [
        ("--pid", &filter.pids),
        ("--uid", &filter.uids),
        ("--netns", &filter.netns),
    ] {
        let count = values.len();
        if count > FILTER_CAPACITY as usize {
            return Err(Usage(format!(
                "{count} values for {option}: {FILTER_CAPACITY} is the most"
            )));
        }
    }
    Ok(())
}

/// Opens a file to write to that is its owner's alone, so that what is wrong with it is told before
/// anything is attached.
pub(super) fn create_private(path: &Path) -> anyhow::Result<File> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("cannot write to {}", path.display()))?;
    // A file that was there already keeps its mode otherwise; a device is left alone.
    if file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        file.set_permissions(Permissions::from_mode(0o600))
            .with_context(|| format!("cannot set the mode of {}", path.display()))?;
    }
    Ok(file)
}
