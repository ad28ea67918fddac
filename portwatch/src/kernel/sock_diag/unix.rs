//! Sockets of AF_UNIX with their names, and the files that their paths lead to.

use std::io;

use portwatch_common::record::Socket;
use zerocopy::{FromBytes, FromZeros as _, Immutable, IntoBytes, KnownLayout};

use super::{Header, ask, attribute, broken};

// include/uapi/linux/unix_diag.h
const UDIAG_SHOW_NAME: u32 = 1;
const UDIAG_SHOW_VFS: u32 = 2;
const UNIX_DIAG_NAME: u16 = 0;
const UNIX_DIAG_VFS: u16 = 1;

const AF_UNIX: u8 = libc::AF_UNIX as u8;

/// `struct nlmsghdr` and `struct unix_diag_req` behind it.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Request {
    header: Header,
    family: u8,
    protocol: u8,
    pad: u16,
    states: u32,
    inode: u32,
    show: u32,
    cookie: [u32; 2],
}

/// `struct unix_diag_msg`.
#[derive(Clone, Copy, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Message {
    family: u8,
    sock_type: u8,
    state: u8,
    pad: u8,
    inode: u32,
    cookie: [u32; 2],
}

/// `struct unix_diag_vfs`.
#[derive(Clone, Copy, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Vfs {
    inode: u32,
    device: u32,
}

/// A file in the file system, by the kernel's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct File {
    /// The lower half of its inode number.
    pub inode: u32,
    /// Major and minor number of its device.
    pub device: (u32, u32),
}

/// A socket with a name.
#[derive(Debug, Clone)]
pub struct Named {
    /// The socket.
    pub socket: Socket,
    /// `sun_path`.
    pub name: Vec<u8>,
    /// The file that it has made.
    pub file: Option<File>,
}

/// The sockets with a name of the calling thread's network namespace, whose inode number is `netns`.
///
/// # Errors
///
/// If the kernel does not answer.
pub fn named(netns: u32) -> io::Result<Vec<Named>> {
    let request = Request {
        header: Header::of_dump(size_of::<Request>()),
        family: AF_UNIX,
        protocol: 0,
        pad: 0,
        states: u32::MAX,
        inode: 0,
        show: UDIAG_SHOW_NAME | UDIAG_SHOW_VFS,
        cookie: [0; 2],
    };
    let mut all = Vec::new();
    ask(request.as_bytes(), |message| {
        let (message, attributes) = Message::read_from_prefix(message).map_err(|_| broken())?;
        if let Some(name) = attribute(attributes, UNIX_DIAG_NAME) {
            let mut socket = Socket::new_zeroed();
            socket.family = AF_UNIX.into();
            socket.sock_type = message.sock_type.into();
            socket.state = message.state;
            socket.inode = message.inode.into();
            socket.cookie = u64::from(message.cookie[0]) | u64::from(message.cookie[1]) << 32;
            socket.netns = netns;
            all.push(Named {
                socket,
                name: name.to_vec(),
                file: attribute(attributes, UNIX_DIAG_VFS).and_then(file),
            });
        }
        Ok(())
    })?;
    Ok(all)
}

fn file(vfs: &[u8]) -> Option<File> {
    let (vfs, _) = Vfs::read_from_prefix(vfs).ok()?;
    // MKDEV, include/linux/kdev_t.h.
    Some(File {
        inode: vfs.inode,
        device: (vfs.device >> 20, vfs.device & 0xf_ffff),
    })
}

#[cfg(test)]
mod tests {
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::fs::MetadataExt as _;
    use std::os::unix::net::{SocketAddr, UnixListener};

    use super::*;

    #[test]
    fn own_names_are_told_with_their_files() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let _path = UnixListener::bind(&path).unwrap();
        let name = format!("portwatch-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let _abstract = UnixListener::bind_addr(&address).unwrap();
        let all = named(1).unwrap();
        let of = |name: &[u8]| {
            let all = all
                .iter()
                .find(|one| one.name.strip_suffix(b"\0").unwrap_or(&one.name) == name);
            let one = all.unwrap();
            assert_eq!((one.socket.state, one.socket.netns), (10, 1));
            one.file
        };
        let metadata = std::fs::metadata(&path).unwrap();
        let device = (libc::major(metadata.dev()), libc::minor(metadata.dev()));
        let inode = metadata.ino() as u32;
        assert_eq!(
            of(path.as_os_str().as_encoded_bytes()),
            Some(File { inode, device })
        );
        assert_eq!(of(format!("\0{name}").as_bytes()), None);
    }
}
