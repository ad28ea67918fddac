//! Options that several subcommands have.

use std::ops::RangeInclusive;

use clap::{Args, ValueEnum};

use super::value;
use crate::filter::Filter;

/// Which sockets, and whose.
#[derive(Debug, Args)]
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

/// How something is written to standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// A line of columns an event
    Text,
    /// A JSON object a line
    Json,
}
