//! The words of causes that lie in how two sockets meet: their addresses, options and states.

use super::phrase::{first, in_words, ip, is_any_v6, serves, who};
use super::{Sentences, Words};
use crate::diagnose::facts::Held;
use crate::diagnose::rules::{Overlap, Reuseaddr, Reuseport};
use crate::event::{Cause, State};
use crate::sink::duration::Duration;

impl Words<'_> {
    /// Seconds until the last of the connections that wait out TIME_WAIT here is gone.
    pub(super) fn time_wait(&self, held: &Held) -> Sentences {
        let waiting: Vec<_> = self
            .facts
            .holders
            .iter()
            .filter(|held| held.holder.socket.socket.state == Some(State::TimeWait))
            .collect();
        let left = waiting
            .iter()
            .filter_map(|held| held.holder.expires_in_ms)
            .max();
        let wait = match left {
            Some(left) => format!("wait {}", Duration(left)),
            None => "wait up to 60 s".to_owned(),
        };
        let many = match waiting.len() {
            0 | 1 => "a closed connection waits".to_owned(),
            count => format!("{count} closed connections wait"),
        };
        let at = self.held_at(held);
        if self.judgement.cause == Cause::TimeWait {
            return (
                format!("{many} on {at} in TIME_WAIT, and the new socket has no SO_REUSEADDR"),
                format!("set SO_REUSEADDR on the new socket before bind, or {wait}"),
            );
        }
        let dead_had_reuseport = held.holder.socket.socket.options.has_reuseport();
        (
            format!(
                "{many} on {at} in TIME_WAIT, of a socket that had no SO_REUSEADDR: to set it \
                 on the new one does not help"
            ),
            if dead_had_reuseport {
                format!(
                    "set SO_REUSEPORT on the new socket before bind, as the closed one had it, \
                     or {wait}"
                )
            } else {
                format!("{wait}, or use another port")
            },
        )
    }

    pub(super) fn lingering(&self, held: &Held) -> Sentences {
        let peer = held.holder.socket.socket.remote.as_ref();
        let peer = peer.map_or(String::new(), |peer| format!(" with {peer}"));
        let of = first(held).map_or(String::new(), |_| format!(" of {}", who(held)));
        let close = match first(held) {
            Some(_) => self.stop(held),
            None => "close the peer's end of it".to_owned(),
        };
        (
            format!(
                "the listener on port {} is gone, but its connection{peer}{of} is still in \
                 state {}",
                self.port(),
                in_words(held)
            ),
            match self.judgement.conflict.map(|conflict| conflict.reuseaddr) {
                Some(Reuseaddr::HolderOnly) => {
                    format!(
                        "set SO_REUSEADDR on the new socket before bind, or end the \
                         connection: {close}"
                    )
                }
                _ => format!(
                    "end the connection: {close}; and have the server set SO_REUSEADDR before \
                     bind, so that next time its old connections do not keep it out"
                ),
            },
        )
    }

    pub(super) fn dual_stack(&self, held: &Held) -> Sentences {
        let holder = held.holder.socket.socket.local.as_ref();
        let (asked, has) = (self.asked(), self.held_at(held));
        let stop = self.stop(held);
        if is_any_v6(holder) {
            let covered = ip(self.facts.socket.local.as_ref());
            return (
                format!(
                    "{} {} [::] without IPV6_V6ONLY, which also covers {covered}",
                    who(held),
                    serves(held)
                ),
                format!("{stop}, or have it set IPV6_V6ONLY or bind one address, such as [::1]"),
            );
        }
        if is_any_v6(self.facts.socket.local.as_ref()) {
            return (
                format!(
                    "[::] without IPV6_V6ONLY also covers {}, on which {} {} {has}",
                    ip(holder),
                    who(held),
                    serves(held)
                ),
                format!("set IPV6_V6ONLY on the new socket before bind, or {stop}"),
            );
        }
        (
            format!(
                "{asked} and {has} of {} are one address of IPv4 to the kernel",
                who(held)
            ),
            format!("{stop}, or use another address"),
        )
    }

    pub(super) fn wildcard(&self, held: &Held) -> Sentences {
        let (asked, has) = (self.asked(), self.held_at(held));
        let stop = self.stop(held);
        match self.judgement.conflict.map(|conflict| conflict.overlap) {
            Some(Overlap::NewcomerWildcard) => (
                format!(
                    "{asked} stands for every address, also for {has}, which {} has",
                    who(held)
                ),
                format!("bind another address by itself, or {stop}"),
            ),
            _ => (
                format!(
                    "{} {} {has}, which stands for every address, also for {asked}",
                    who(held),
                    serves(held)
                ),
                format!("{stop}, or have it bind the one address it needs"),
            ),
        }
    }

    pub(super) fn one_sided(&self, held: &Held) -> Sentences {
        let who = who(held);
        let newcomer = self.judgement.conflict.map(|conflict| conflict.reuseport)
            == Some(Reuseport::NewcomerOnly);
        let (has, lacks) = if newcomer {
            ("the new socket".to_owned(), format!("the one of {who}"))
        } else {
            (format!("the socket of {who}"), "the new one".to_owned())
        };
        (
            format!("{has} has SO_REUSEPORT, {lacks} has not"),
            format!("set SO_REUSEPORT on {lacks} too, before bind; both must be of one user"),
        )
    }

    pub(super) fn bound_device(&self, held: &Held, at: &str) -> Sentences {
        let holder = held.holder.socket.socket.bound_device.as_deref();
        let newcomer = self.facts.socket.bound_device.as_deref();
        let who = who(held);
        let which = match (holder, newcomer) {
            (Some(device), _) => {
                format!(
                    "{who} has {at} on interface {device} alone, the new socket asks for all \
                     interfaces"
                )
            }
            (None, Some(device)) => {
                format!("{who} has {at} on all interfaces, also on {device}")
            }
            (None, None) => format!("{who} has {at}"),
        };
        (
            which,
            "bind both sockets to interfaces (SO_BINDTODEVICE), each to its own".to_owned(),
        )
    }

    /// Where SO_REUSEADDR would let both have the port, on which side it is missing.
    pub(super) fn or_reuseaddr(&self) -> &'static str {
        match self.judgement.conflict.map(|conflict| conflict.reuseaddr) {
            Some(Reuseaddr::Neither) => ", or set SO_REUSEADDR on both sockets before bind",
            Some(Reuseaddr::NewcomerOnly) => ", or set SO_REUSEADDR on its socket before bind",
            Some(Reuseaddr::HolderOnly) => ", or set SO_REUSEADDR on the new socket before bind",
            _ => "",
        }
    }
}
