//! Processes that hold a port of the host on behalf of a container.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use crate::event::{Actor, Process, Text};

/// What such a process tells by its name and arguments.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Proxy {
    /// `docker-proxy`: one for each published port and family.
    Docker {
        /// The container's address.
        address: IpAddr,
        /// The container's port.
        port: u16,
    },
    /// `podman` itself, which takes the ports and leaves them to conmon.
    Podman,
    /// `conmon` of podman, with the id of its container.
    Conmon(String),
    /// `pasta` of podman without root: the path of the container's network namespace, and the mappings.
    Pasta {
        path: String,
        tcp: Vec<Mapping>,
        udp: Vec<Mapping>,
    },
    /// `slirp4netns`: the path of the container's network namespace, and its id where that is in the name
    /// of the socket by which it is told of ports.
    Slirp4netns { path: String, id: Option<String> },
    /// `rootlessport`: it is in the container's network namespace.
    InNetns,
    /// `dockerd`, which publishes for all its containers.
    Daemon,
    /// `rootlesskit`: its daemon is in another network namespace.
    Rootlesskit,
}

/// Whether a process may hold ports of the host on behalf of a container.
pub fn is_proxy(process: &Process, comm: &str) -> bool {
    Proxy::of_process(process, comm).is_some()
}

/// Ports of the host, and the first port of the container that they lead to.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mapping {
    host: RangeInclusive<u16>,
    first: u16,
}

impl Mapping {
    /// The port of the container that a port of the host leads to.
    pub(super) fn port(&self, host: u16) -> Option<u16> {
        (self.host.contains(&host)).then(|| self.first.checked_add(host - self.host.start()))?
    }
}

impl Proxy {
    /// What a process is, if it is one of them.
    pub(super) fn of(actor: &Actor) -> Option<Self> {
        Self::of_process(&actor.process, &actor.comm)
    }

    fn of_process(process: &Process, comm: &str) -> Option<Self> {
        let exe = process.exe.as_deref().unwrap_or_default();
        let program = exe.rsplit('/').next().unwrap_or_default();
        let arguments = process.args.as_deref().unwrap_or_default();
        // An executable may have been replaced or be a script's interpreter.
        Self::told(program, arguments).or_else(|| Self::told(comm, arguments))
    }

    fn told(program: &str, arguments: &[Text]) -> Option<Self> {
        let after = |options: &[&str]| value(arguments, options);
        match program {
            "docker-proxy" => Some(Self::Docker {
                address: after(&["-container-ip"])?.parse().ok()?,
                port: after(&["-container-port"])?.parse().ok()?,
            }),
            "conmon" => after(&["-c", "--cid"]).map(|id| Self::Conmon(id.to_owned())),
            "pasta" | "pasta.avx2" => Some(Self::Pasta {
                path: netns_path(arguments)?,
                tcp: mappings(arguments, &["-t", "--tcp-ports"]),
                udp: mappings(arguments, &["-u", "--udp-ports"]),
            }),
            "slirp4netns" => Some(Self::Slirp4netns {
                path: netns_path(arguments)?,
                id: after(&["--api-socket"]).and_then(|path| {
                    let name = path.rsplit('/').next()?;
                    Some(name.strip_suffix(".net")?.to_owned())
                }),
            }),
            "podman" => Some(Self::Podman),
            // The latter is how it starts itself in the container's network namespace.
            "rootlessport" | "rootlessport-child" => Some(Self::InNetns),
            "dockerd" => Some(Self::Daemon),
            "rootlesskit" => Some(Self::Rootlesskit),
            _ => None,
        }
    }
}

/// The argument that is the path of a network namespace.
fn netns_path(arguments: &[Text]) -> Option<String> {
    let is = |argument: &&Text| argument.starts_with('/') && argument.contains("/netns/");
    Some(arguments.iter().find(is)?.to_string())
}

/// What stands after one of the options.
fn value<'a>(arguments: &'a [Text], options: &[&str]) -> Option<&'a str> {
    let at = (arguments.iter()).position(|argument| options.contains(&&**argument))?;
    arguments.get(at + 1).map(|value| &**value)
}

/// The mappings after each of the options, as `pasta` reads them: `8080-8081:80-81`,
/// with an address and `/` before it if it is bound to one.
fn mappings(arguments: &[Text], options: &[&str]) -> Vec<Mapping> {
    let of = (arguments.windows(2)).filter(|pair| options.contains(&&*pair[0]));
    of.flat_map(|pair| pair[1].split(','))
        .filter_map(mapping)
        .collect()
}

fn mapping(text: &str) -> Option<Mapping> {
    let text = text.rsplit('/').next()?;
    let (host, container) = text.split_once(':').unwrap_or((text, text));
    let range = |text: &str| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        Some(first.parse().ok()?..=last.parse().ok()?)
    };
    Some(Mapping {
        host: range(host)?,
        first: *range(container)?.start(),
    })
}

#[cfg(test)]
mod tests {
    use super::{Mapping, Proxy, mapping};

    fn told(line: &str) -> Option<Proxy> {
        let arguments: Vec<_> = line.split(' ').map(Into::into).collect();
        let program = line.split(' ').next()?.rsplit('/').next()?;
        Proxy::told(program, &arguments)
    }

    #[test]
    fn what_arguments_tell() {
        let pasta = |tcp, udp| {
            Some(Proxy::Pasta {
                path: "/run/user/1000/netns/netns-1".to_owned(),
                tcp,
                udp,
            })
        };
        let slirp4netns = |id: Option<&str>| {
            Some(Proxy::Slirp4netns {
                path: "/run/user/1000/netns/netns-1".to_owned(),
                id: id.map(str::to_owned),
            })
        };
        let cases = [
            (
                "/usr/bin/docker-proxy -proto tcp -host-ip 0.0.0.0 -host-port 8080 \
                 -container-ip 172.17.0.2 -container-port 80",
                Some(Proxy::Docker {
                    address: [172, 17, 0, 2].into(),
                    port: 80,
                }),
            ),
            (
                "docker-proxy -proto udp -host-ip :: -host-port 53 -container-ip fd00::2 \
                 -container-port 5353 -use-listen-fd",
                Some(Proxy::Docker {
                    address: "fd00::2".parse().unwrap(),
                    port: 5353,
                }),
            ),
            ("docker-proxy -container-ip 1.2.3.4 -container-port", None),
            ("docker-proxy -container-ip x -container-port 80", None),
            (
                "docker-proxy -container-ip 1.2.3.4 -container-port 65536",
                None,
            ),
            (
                "/usr/bin/conmon --api-version 1 -c 12ab -u 34cd -n web",
                Some(Proxy::Conmon("12ab".to_owned())),
            ),
            ("conmon -c", None),
            (
                "pasta --config-net -t 8080-8081:80-81 -t 127.0.0.1/443-443:8443-8443 -u 53 \
                 --netns /run/user/1000/netns/netns-1",
                pasta(
                    vec![map(8080, 8081, 80), map(443, 443, 8443)],
                    vec![map(53, 53, 53)],
                ),
            ),
            (
                "slirp4netns -c -r 3 --netns-type=path /run/user/1000/netns/netns-1 tap0",
                slirp4netns(None),
            ),
            (
                "slirp4netns -c --api-socket /run/user/1000/libpod/tmp/12ab.net \
                 --netns-type=path /run/user/1000/netns/netns-1 tap0",
                slirp4netns(Some("12ab")),
            ),
            ("pasta -t none", None),
            ("/usr/bin/podman run -p 8080:80 web", Some(Proxy::Podman)),
            ("rootlessport", Some(Proxy::InNetns)),
            ("/usr/sbin/dockerd -H fd://", Some(Proxy::Daemon)),
            ("rootlesskit --net=slirp4netns", Some(Proxy::Rootlesskit)),
            ("nginx -c /etc/nginx.conf", None),
        ];
        for (line, expected) in cases {
            assert_eq!(told(line), expected, "of {line}");
        }
    }

    fn map(first: u16, last: u16, container: u16) -> Mapping {
        Mapping {
            host: first..=last,
            first: container,
        }
    }

    #[test]
    fn ports_of_mappings() {
        let ports = |text: &str, host| mapping(text)?.port(host);
        assert_eq!(ports("8080-8082:80-82", 8082), Some(82));
        assert_eq!(ports("8080-8082:80-82", 8083), None);
        assert_eq!(ports("65534-65535:65535-65536", 65535), None);
        assert_eq!(ports("9:65535", 9), Some(65535));
        assert_eq!(ports("8-9:65535", 9), None);
        assert_eq!(mapping("auto"), None);
        assert_eq!(mapping("all"), None);
        assert_eq!(mapping(""), None);
    }
}
