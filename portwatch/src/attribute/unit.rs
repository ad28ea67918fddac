//! Which socket unit a systemd holds a socket for: by the units' files.
//!
//! See `docs/decisions/0009-socket-units.md` for why it is not asked.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use portwatch_common::record::Socket;

/// Where units lie, by precedence (systemd.unit(5)).
const SYSTEM: &[&str] = &[
    "etc/systemd/system.control",
    "run/systemd/system.control",
    "run/systemd/transient",
    "run/systemd/generator.early",
    "etc/systemd/system",
    "etc/systemd/system.attached",
    "run/systemd/system",
    "run/systemd/system.attached",
    "run/systemd/generator",
    "usr/local/lib/systemd/system",
    "usr/lib/systemd/system",
    "lib/systemd/system",
    "run/systemd/generator.late",
];
/// Those of a user's manager that lie outside of its home.
const USER: &[&str] = &[
    "etc/systemd/user",
    "run/systemd/user",
    "usr/local/lib/systemd/user",
    "usr/local/share/systemd/user",
    "usr/lib/systemd/user",
    "usr/share/systemd/user",
];
/// Those of a user's manager below its runtime directory.
const RUNTIME: &[&str] = &[
    "user.control",
    "transient",
    "generator.early",
    "user",
    "generator",
    "generator.late",
];
/// A file longer than this is no unit.
const LONGEST: u64 = 1 << 20;

/// Whose units a systemd has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manager {
    /// The system's: process 1.
    System,
    /// That of the user with this uid.
    User(u32),
}

/// The one socket unit that asks for this socket's address; nothing if there is none, or several.
/// `root` is the manager's own root directory.
#[must_use]
pub fn of(root: &Path, manager: Manager, socket: &Socket) -> Option<String> {
    let folders = folders(root, manager);
    let mut units = names(&folders)
        .into_iter()
        .filter(|name| listens(&folders, name).iter().any(|at| at.is(socket)));
    units.next().filter(|_| units.next().is_none())
}

fn folders(root: &Path, manager: Manager) -> Vec<PathBuf> {
    let below = |paths: &[&str]| paths.iter().map(|path| root.join(path)).collect::<Vec<_>>();
    match manager {
        Manager::System => below(SYSTEM),
        Manager::User(uid) => {
            let runtime = root.join(format!("run/user/{uid}/systemd"));
            let runtime = RUNTIME.iter().map(|name| runtime.join(name));
            let home = home(root, uid);
            let home = home.into_iter().flat_map(|home| {
                [
                    ".config/systemd/user.control",
                    ".config/systemd/user",
                    ".local/share/systemd/user",
                ]
                .map(|path| home.join(path))
            });
            home.chain(runtime).chain(below(USER)).collect()
        }
    }
}

fn home(root: &Path, uid: u32) -> Option<PathBuf> {
    let users = fs::read_to_string(root.join("etc/passwd")).ok()?;
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let home = fields.nth(2).filter(|id| id.parse() == Ok(uid));
        home.and_then(|_| fields.nth(2))
            .map(|home| root.join(home.trim_start_matches('/')))
    })
}

fn names(folders: &[PathBuf]) -> BTreeSet<String> {
    let entries = folders
        .iter()
        .filter_map(|folder| fs::read_dir(folder).ok());
    let names = entries.flatten().flatten().filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        // A template is none, its instances have names of their own.
        (name.ends_with(".socket") && !name.contains("@.")).then_some(name)
    });
    names.collect()
}

/// An address that a unit listens on.
#[derive(Debug, Clone, PartialEq, Eq)]
struct At {
    kind: i32,
    address: Where,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Where {
    /// A port of all addresses: over IPv6 if there is such, else over IPv4.
    Any(u16),
    Address(SocketAddr),
}

impl At {
    fn is(&self, socket: &Socket) -> bool {
        let local = match i32::from(socket.family) {
            libc::AF_INET => {
                let [a, b, c, d, ..] = socket.local;
                IpAddr::from([a, b, c, d])
            }
            libc::AF_INET6 => IpAddr::from(socket.local),
            _ => return false,
        };
        self.kind == i32::from(socket.sock_type)
            && match self.address {
                Where::Any(port) => port == socket.local_port && local.is_unspecified(),
                Where::Address(at) => at.port() == socket.local_port && at.ip() == local,
            }
    }
}

/// What a unit listens on: its file of the highest precedence, then its drop-ins by name.
fn listens(folders: &[PathBuf], name: &str) -> Vec<At> {
    let mut drop_ins = BTreeMap::new();
    for folder in folders {
        let entries = fs::read_dir(folder.join(format!("{name}.d")));
        for entry in entries.into_iter().flatten().flatten() {
            let file = entry.file_name();
            if file.as_encoded_bytes().ends_with(b".conf") {
                drop_ins.entry(file).or_insert_with(|| entry.path());
            }
        }
    }
    let file = folders.iter().map(|folder| folder.join(name));
    let file = file.filter(|path| path.symlink_metadata().is_ok()).take(1);
    let mut at = Vec::new();
    for path in file.chain(drop_ins.into_values()) {
        if let Some(text) = read(&path) {
            add(&text, &mut at);
        }
    }
    at
}

/// A masked unit is a link to /dev/null.
fn read(path: &Path) -> Option<String> {
    let metadata = fs::metadata(path).ok()?;
    let fits = metadata.is_file() && metadata.len() <= LONGEST;
    fits.then(|| fs::read_to_string(path).ok())?
}

/// Adds what a file's section `[Socket]` says (systemd.syntax(7), systemd.socket(5)).
fn add(text: &str, at: &mut Vec<At>) {
    let mut within = false;
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if line.starts_with('[') {
            within = line == "[Socket]";
            continue;
        }
        let mut whole = line.to_owned();
        while let Some(begin) = whole.strip_suffix('\\') {
            let next = lines.next().unwrap_or_default().trim();
            whole = format!("{begin} {next}");
        }
        let Some((key, value)) = whole.split_once('=').filter(|_| within) else {
            continue;
        };
        let kind = match key.trim() {
            "ListenStream" => libc::SOCK_STREAM,
            "ListenDatagram" => libc::SOCK_DGRAM,
            _ => continue,
        };
        let value = value.trim();
        if value.is_empty() {
            at.clear();
        } else if let Some(address) = address(value) {
            at.push(At { kind, address });
        }
    }
}

/// `8080`, `127.0.0.1:8080`, `[::1]:8080`, each perhaps with `%interface` behind it.
fn address(value: &str) -> Option<Where> {
    let value = value.split('%').next()?;
    match value.parse() {
        Ok(port) => Some(Where::Any(port)),
        Err(_) => value.parse().ok().map(Where::Address),
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros as _;

    use super::*;

    fn socket(kind: i32, at: &str) -> Socket {
        let at: SocketAddr = at.parse().unwrap();
        let mut socket = Socket::new_zeroed();
        socket.sock_type = kind as u16;
        socket.local_port = at.port();
        match at.ip() {
            IpAddr::V4(ip) => {
                socket.family = libc::AF_INET as u16;
                socket.local[..4].copy_from_slice(&ip.octets());
            }
            IpAddr::V6(ip) => {
                socket.family = libc::AF_INET6 as u16;
                socket.local = ip.octets();
            }
        }
        socket
    }

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn system(root: &tempfile::TempDir, kind: i32, at: &str) -> Option<String> {
        of(root.path(), Manager::System, &socket(kind, at))
    }

    const TCP: i32 = libc::SOCK_STREAM;
    const UDP: i32 = libc::SOCK_DGRAM;

    #[test]
    fn a_unit_is_told_by_what_it_listens_on() {
        let root = tempfile::tempdir().unwrap();
        let web = "[Unit]\nListenStream=99\n[Socket]\n# ListenStream=1\nListenStream = 80\n\
                   ListenStream=127.0.0.1:\\\n8080\nListenStream=/run/web.sock\nListenStream=[::1]:81%lo\n";
        // Two lines joined by a space are no address.
        write(root.path(), "usr/lib/systemd/system/web.socket", web);
        write(
            root.path(),
            "run/systemd/transient/run-1.socket",
            "[Socket]\nListenDatagram=53\n",
        );
        let web = Some("web.socket".to_owned());
        assert_eq!(system(&root, TCP, "[::]:80"), web);
        assert_eq!(system(&root, TCP, "0.0.0.0:80"), web);
        assert_eq!(system(&root, TCP, "127.0.0.1:80"), None);
        assert_eq!(system(&root, UDP, "[::]:80"), None);
        assert_eq!(system(&root, TCP, "[::1]:81"), web);
        assert_eq!(system(&root, TCP, "127.0.0.1:8080"), None);
        for port in ["0.0.0.0:99", "0.0.0.0:1"] {
            assert_eq!(system(&root, TCP, port), None, "{port}");
        }
        assert_eq!(
            system(&root, UDP, "0.0.0.0:53"),
            Some("run-1.socket".to_owned())
        );
    }

    #[test]
    fn drop_ins_and_precedence() {
        let root = tempfile::tempdir().unwrap();
        write(
            root.path(),
            "usr/lib/systemd/system/ssh.socket",
            "[Socket]\nListenStream=22\n",
        );
        write(
            root.path(),
            "etc/systemd/system/ssh.socket.d/port.conf",
            "[Socket]\nListenStream=\nListenStream=2222\n",
        );
        write(
            root.path(),
            "usr/lib/systemd/system/a.socket",
            "[Socket]\nListenStream=7\n",
        );
        write(
            root.path(),
            "etc/systemd/system/a.socket",
            "[Socket]\nListenStream=8\n",
        );
        let masked = root.path().join("etc/systemd/system/b.socket");
        std::os::unix::fs::symlink("/dev/null", masked).unwrap();
        write(
            root.path(),
            "usr/lib/systemd/system/b.socket",
            "[Socket]\nListenStream=9\n",
        );
        assert_eq!(system(&root, TCP, "[::]:22"), None);
        assert_eq!(
            system(&root, TCP, "[::]:2222"),
            Some("ssh.socket".to_owned())
        );
        assert_eq!(system(&root, TCP, "[::]:7"), None);
        assert_eq!(system(&root, TCP, "[::]:8"), Some("a.socket".to_owned()));
        assert_eq!(system(&root, TCP, "[::]:9"), None);
    }

    #[test]
    fn one_of_two_is_not_guessed() {
        let root = tempfile::tempdir().unwrap();
        for name in ["a", "b"] {
            let path = format!("usr/lib/systemd/system/{name}.socket");
            write(root.path(), &path, "[Socket]\nListenStream=80\n");
        }
        write(
            root.path(),
            "usr/lib/systemd/system/c@.socket",
            "[Socket]\nListenStream=81\n",
        );
        assert_eq!(system(&root, TCP, "[::]:80"), None);
        assert_eq!(system(&root, TCP, "[::]:81"), None);
    }

    #[test]
    fn a_users_manager_has_units_of_its_own() {
        let root = tempfile::tempdir().unwrap();
        write(
            root.path(),
            "etc/passwd",
            "root:x:0:0::/root:/bin/sh\nme:x:1000:1000::/home/me:/bin/sh\n",
        );
        write(
            root.path(),
            "usr/lib/systemd/system/a.socket",
            "[Socket]\nListenStream=80\n",
        );
        write(
            root.path(),
            "home/me/.config/systemd/user/b.socket",
            "[Socket]\nListenStream=81\n",
        );
        write(
            root.path(),
            "run/user/1000/systemd/transient/c.socket",
            "[Socket]\nListenStream=82\n",
        );
        let user = |uid, at| of(root.path(), Manager::User(uid), &socket(TCP, at));
        assert_eq!(user(1000, "[::]:80"), None);
        assert_eq!(user(1000, "[::]:81"), Some("b.socket".to_owned()));
        assert_eq!(user(1000, "[::]:82"), Some("c.socket".to_owned()));
        assert_eq!(user(1001, "[::]:81"), None);
    }
}
