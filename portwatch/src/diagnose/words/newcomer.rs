//! The words of causes that have no holder.

use std::net::IpAddr;

use nix::errno::Errno;

use super::phrase::{ip, is_plain, name};
use super::{Sentences, Words};
use crate::diagnose::facts::{AddressFault, PathState};
use crate::event::{Address, Cause, Transport};

impl Words<'_> {
    pub(super) fn of_newcomer(&self) -> Sentences {
        let facts = self.facts;
        match self.judgement.cause {
            Cause::PortRangeExhausted => self.range_exhausted(),
            Cause::SyscallFiltered if facts.errno != libc::EADDRINUSE => (
                format!(
                    "the call returned {:?} without the kernel's own bind having run: the seccomp \
                     filter that the process is under answered",
                    Errno::from_raw(facts.errno)
                ),
                "allow bind in the filter: SystemCallFilter= of its unit, --security-opt \
                 seccomp=FILE of its container, or the program's own sandbox"
                    .to_owned(),
            ),
            Cause::SyscallFiltered => (
                "the call returned EADDRINUSE without the kernel's own bind having run: a \
                 seccomp supervisor in front of it answered"
                    .to_owned(),
                "look for the port outside of this kernel: under WSL with mirrored networking, \
                 on Windows (netstat -ano)"
                    .to_owned(),
            ),
            Cause::UnixPath if facts.path == Some(PathState::Stale) => (
                format!(
                    "the file {} was left over: no open socket has it",
                    self.asked()
                ),
                "remove the file before bind (unlink), as no bind replaces one".to_owned(),
            ),
            Cause::UnixPath => (
                format!("the file {} exists already", self.asked()),
                "see whether a socket has it (ss -xlp); if none has, remove it before \
                 bind"
                    .to_owned(),
            ),
            Cause::UnixAbstract => (
                format!("the name {} is in use", self.asked()),
                "see who has it (ss -xlp), or use another name".to_owned(),
            ),
            Cause::PrivilegedPort => self.privileged(),
            Cause::SecurityPolicy => (
                format!(
                    "neither the table of ports nor the rule on low ports refused {}: a \
                     security module or a program of the cgroup did",
                    self.asked()
                ),
                "look for the denial: ausearch -m avc -ts recent (SELinux), journalctl -k -g \
                 apparmor, bpftool cgroup tree"
                    .to_owned(),
            ),
            Cause::AddressNotLocal => self.address_not_local(),
            Cause::AlreadyBound => (
                format!(
                    "this socket has {} already, and a socket is bound once",
                    facts
                        .already
                        .as_ref()
                        .map_or("an address".to_owned(), Address::to_string)
                ),
                "close it and bind a new one".to_owned(),
            ),
            _ => self.unknown(),
        }
    }

    fn range_exhausted(&self) -> Sentences {
        let range = self.facts.sysctls.local_port_range.as_ref();
        let (now, all) = match range {
            Some(range) => (
                format!(" ({} {})", range.start(), range.end()),
                u32::from(range.end().saturating_sub(*range.start())) + 1,
            ),
            None => (String::new(), 0),
        };
        let usage = self.facts.range.as_ref().map_or(String::new(), |usage| {
            let most = usage.most.iter();
            let most = most.map(|(actor, count)| format!("; {} has {count}", name(actor)));
            let most: String = most.collect();
            let untried = if self.leaves_one_out(all, usage.used) {
                ", and TCP never tries the last of an odd number"
            } else {
                ""
            };
            format!(
                ": {} of {all} are in use{untried}, {} in TIME_WAIT{most}",
                usage.used, usage.timewait
            )
        });
        let most = self
            .facts
            .range
            .as_ref()
            .and_then(|usage| usage.most.first());
        let end = most.map_or(String::new(), |(actor, _)| {
            format!(", or see why {} holds so many", name(actor))
        });
        (
            format!(
                "any port was asked for, and net.ipv4.ip_local_port_range{now} has none that \
                 is free{usage}"
            ),
            format!("widen it: sysctl -w net.ipv4.ip_local_port_range=\"10240 65535\"{end}"),
        )
    }

    /// Whether the only port that is free is one that the kernel does not try: of an odd number
    /// `inet_csk_find_open_port` leaves the last out (`remaining &= ~1U`, 5.10 to 7.3).
    fn leaves_one_out(&self, all: u32, used: u32) -> bool {
        let tcp = matches!(
            self.facts.socket.transport,
            Some(Transport::Tcp | Transport::Mptcp)
        );
        let reserved = self.facts.sysctls.local_reserved_ports.as_deref();
        let none_reserved = reserved.is_none_or(|list| list.trim().is_empty());
        tcp && none_reserved && all > 1 && all % 2 == 1 && used + 1 == all
    }

    fn privileged(&self) -> Sentences {
        let facts = self.facts;
        let port = self.port();
        let start = facts.sysctls.unprivileged_port_start.unwrap_or(1024);
        let exe = facts
            .process
            .as_ref()
            .and_then(|actor| actor.process.exe.as_deref());
        let exe = exe.filter(|exe| is_plain(exe)).unwrap_or("PROGRAM");
        let lacks = match (facts.may_bind_low, facts.uid) {
            (None, Some(uid)) => format!(
                "process, of user {uid}, most likely lacked CAP_NET_BIND_SERVICE: it could not be \
                 looked at any more"
            ),
            _ => "process lacks CAP_NET_BIND_SERVICE".to_owned(),
        };
        (
            format!(
                "port {port} is below net.ipv4.ip_unprivileged_port_start ({start}) and the {lacks}"
            ),
            format!(
                "use port {start} or higher, or grant it: setcap cap_net_bind_service=+ep \
                 {exe}, or AmbientCapabilities=CAP_NET_BIND_SERVICE in its unit"
            ),
        )
    }

    fn address_not_local(&self) -> Sentences {
        let asked = ip(self.facts.socket.local.as_ref());
        match &self.facts.address_fault {
            Some(AddressFault::Tentative) => (
                format!("{asked} is still tentative: duplicate address detection is not over"),
                "wait a second or two and try again, or set IPV6_FREEBIND on the \
                 socket"
                    .to_owned(),
            ),
            Some(AddressFault::Ipv6Off) => (
                format!("{asked} is an address of IPv6, which is off in this network namespace"),
                "bind an address of IPv4, or sysctl -w \
                 net.ipv6.conf.all.disable_ipv6=0"
                    .to_owned(),
            ),
            Some(AddressFault::Absent(has)) if !has.is_empty() => {
                let has: Vec<_> = has.iter().map(IpAddr::to_string).collect();
                (
                    format!(
                        "{asked} is on no interface of this network namespace, which has {}",
                        has.join(", ")
                    ),
                    "bind one of those, or a wildcard address".to_owned(),
                )
            }
            _ => (
                format!("{asked} is on no interface of this network namespace"),
                "bind an address that ip addr shows there, or a wildcard address".to_owned(),
            ),
        }
    }

    fn unknown(&self) -> Sentences {
        let facts = self.facts;
        let seen = match (&facts.no_holder, facts.holders.len()) {
            (Some(why), _) => format!("no socket was found that has {}: {why}", self.asked()),
            (None, 0) => format!("no socket was found that has {}", self.asked()),
            (None, _) => format!(
                "no socket that was found on port {} is in the way",
                self.port()
            ),
        };
        let error = Errno::from_raw(facts.errno);
        if error == Errno::EADDRINUSE {
            (seen, self.look())
        } else {
            (
                format!("{error:?} is not explained by what was seen"),
                "see the page of the system call: man 2 bind, man 2 listen".to_owned(),
            )
        }
    }
}
