//! What stands in the cells of tables: the same in each.

use std::fmt::Write as _;
use std::net::IpAddr;

use super::escape::escape;
use crate::event::{Actor, Address, Container, Family, Pod, Socket, Transport};

/// A value that is not known.
pub(super) const UNKNOWN: &str = "-";

/// Writing to a String cannot fail.
pub(super) fn put(line: &mut String, text: std::fmt::Arguments<'_>) {
    let _ = line.write_fmt(text);
}

/// A number, as `fmt` has it and in a fifth of the time: lines are made of addresses.
fn number(line: &mut String, number: u32) {
    line.push_str(itoa::Buffer::new().format(number));
}

/// The transport protocol and the family, as `tcp4`.
pub(super) fn protocol(line: &mut String, socket: &Socket) {
    let Some(transport) = &socket.transport else {
        return line.push_str(UNKNOWN);
    };
    let digit = match socket.family {
        Some(Family::Unix) => return line.push_str("unix"),
        Some(Family::Ipv4) => "4",
        Some(Family::Ipv6) => "6",
        None => "",
    };
    match transport {
        // The digit must not become part of the number.
        Transport::Other(_) if !digit.is_empty() => put(line, format_args!("{transport}/{digit}")),
        _ => put(line, format_args!("{transport}{digit}")),
    }
}

/// An address as `ss` shows it, with the interface that the socket is bound to.
pub(super) fn address(line: &mut String, address: &Address, device: Option<&str>) {
    match address {
        Address::Inet {
            address,
            port,
            scope,
        } => {
            match address {
                IpAddr::V4(address) => {
                    let [first, rest @ ..] = address.octets();
                    number(line, first.into());
                    for octet in rest {
                        line.push('.');
                        number(line, octet.into());
                    }
                }
                IpAddr::V6(address) => put(line, format_args!("[{address}]")),
            }
            // A link-local address belongs to the interface that its socket is bound to: one of
            // the two is enough.
            match (device, scope) {
                (Some(device), _) => put(line, format_args!("%{}", escape(device))),
                (None, Some(scope)) => put(line, format_args!("%{scope}")),
                (None, None) => {}
            }
            line.push(':');
            number(line, (*port).into());
        }
        Address::Path { path } => line.push_str(&escape(&path.path)),
        Address::Abstract { name } => put(line, format_args!("@{}", escape(&name.name))),
        Address::Unnamed { .. } => line.push_str("any name"),
    }
}

/// Where a process belongs: to a container, else to a unit.
pub(super) fn home(line: &mut String, actor: &Actor) {
    if let Some(of) = &actor.process.container {
        container(line, of, actor.process.pod.as_ref());
    } else if let Some(unit) = &actor.process.unit {
        line.push_str(&escape(unit));
    }
}

/// A container, with its pod if that has a namespace.
pub(super) fn container(line: &mut String, container: &Container, pod: Option<&Pod>) {
    if let Some(pod) = pod.filter(|pod| pod.namespace.is_some()) {
        put(line, format_args!("{}/", escape(&pod.full_name())));
    }
    let name = escape(container.short_name());
    put(
        line,
        format_args!("{name} ({})", escape(&container.runtime)),
    );
}
