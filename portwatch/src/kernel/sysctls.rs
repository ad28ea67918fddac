//! The settings that decide over ports.

use std::fs;
use std::ops::RangeInclusive;
use std::path::Path;

use crate::event::PortRange;

/// Settings below `/proc/sys/net/ipv4` of a network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sysctls {
    /// `ip_local_port_range`.
    pub local_port_range: Option<RangeInclusive<u16>>,
    /// `ip_local_reserved_ports`, as it is written there.
    pub local_reserved_ports: Option<String>,
    /// `ip_unprivileged_port_start`.
    pub unprivileged_port_start: Option<u16>,
}

impl Sysctls {
    /// Those of the network namespace of the calling thread, as far as they can be read. `proc` is `/proc`.
    #[must_use]
    pub fn read(proc: &Path) -> Self {
        let setting = |name: &str| {
            let text = fs::read_to_string(proc.join("sys/net/ipv4").join(name)).ok()?;
            Some(text.trim().to_owned())
        };
        Self {
            local_port_range: setting("ip_local_port_range").and_then(|text| port_range(&text)),
            local_reserved_ports: setting("ip_local_reserved_ports"),
            unprivileged_port_start: setting("ip_unprivileged_port_start")
                .and_then(|text| text.parse().ok()),
        }
    }

    /// What they say of a port.
    #[must_use]
    pub fn place(&self, port: u16) -> PortRange {
        let reserved = self.local_reserved_ports.as_deref();
        let reserved = reserved.unwrap_or_default().split(',').any(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let bounds = (first.trim().parse::<u16>(), last.trim().parse::<u16>());
            matches!(bounds, (Ok(first), Ok(last)) if (first..=last).contains(&port))
        });
        let within = self.local_port_range.as_ref();
        PortRange {
            ephemeral: !reserved && within.is_some_and(|range| range.contains(&port)),
            reserved,
            privileged: self
                .unprivileged_port_start
                .is_some_and(|start| port < start),
        }
    }
}

/// The two numbers of `ip_local_port_range`.
fn port_range(text: &str) -> Option<RangeInclusive<u16>> {
    let mut numbers = text.split_whitespace().map(str::parse);
    let (first, last) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    Some(first..=last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_from_where_they_lie() {
        let proc = tempfile::tempdir().unwrap();
        let net = proc.path().join("sys/net/ipv4");
        fs::create_dir_all(&net).unwrap();
        fs::write(net.join("ip_local_port_range"), "32768\t60999\n").unwrap();
        fs::write(net.join("ip_unprivileged_port_start"), "1024\n").unwrap();
        let read = Sysctls::read(proc.path());
        assert_eq!(read.local_port_range, Some(32_768..=60_999));
        assert_eq!(read.unprivileged_port_start, Some(1024));
        assert_eq!(read.local_reserved_ports, None);
    }

    #[test]
    fn a_range_has_two_numbers() {
        assert_eq!(port_range("32768\t60999\n"), Some(32768..=60999));
        assert_eq!(port_range("32768"), None);
    }

    #[test]
    fn what_settings_say() {
        let settings = Sysctls {
            local_port_range: Some(32768..=60999),
            local_reserved_ports: Some("8080,40000-40010".to_owned()),
            unprivileged_port_start: Some(1024),
        };
        let says = |port| {
            let PortRange {
                ephemeral,
                reserved,
                privileged,
            } = settings.place(port);
            (ephemeral, reserved, privileged)
        };
        assert_eq!(says(80), (false, false, true));
        assert_eq!(says(1024), (false, false, false));
        assert_eq!(says(8080), (false, true, false));
        assert_eq!(says(32768), (true, false, false));
        assert_eq!(says(40005), (false, true, false));
        assert_eq!(Sysctls::default().place(80), PortRange::default());
    }
}
