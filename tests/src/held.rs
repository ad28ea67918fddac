//! A bind(2) that does not return before something else is done: its address lies in a page that
//! userfaultfd(2) fills when asked to.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::thread;

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use crate::Socket;

const PAGE: usize = 64 << 10;

// include/uapi/linux/userfaultfd.h
const API: u64 = 0xaa;
const MISSING: u64 = 1;

#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct Register {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct Copy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copy: i64,
}

mod ioctl {
    use super::{API, Api, Copy, Register};

    nix::ioctl_readwrite!(api, API, 0x3f, Api);
    nix::ioctl_readwrite!(register, API, 0x00, Register);
    nix::ioctl_readwrite!(copy, API, 0x03, Copy);
}

/// Binds the socket. While this thread is in bind(2), another one does what is to be done `meanwhile`.
///
/// # Errors
///
/// That of the bind.
pub fn bind(socket: &Socket, address: &[u8], meanwhile: impl FnOnce() + Send) -> io::Result<()> {
    let mut filled = vec![0; PAGE];
    filled[..address.len()].copy_from_slice(address);
    let size = PAGE.try_into().unwrap();
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: it is new memory.
    let page = unsafe { mmap_anonymous(None, size, access, MapFlags::MAP_PRIVATE) }.unwrap();
    let start = page.as_ptr().expose_provenance() as u64;

    // SAFETY: the descriptor is new and nobody else's.
    let faults = unsafe {
        let number = libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC);
        assert!(number >= 0, "{}", io::Error::last_os_error());
        OwnedFd::from_raw_fd(number as i32)
    };
    let mut api = Api {
        api: API,
        features: 0,
        ioctls: 0,
    };
    let mut range = Register {
        start,
        len: PAGE as u64,
        mode: MISSING,
        ioctls: 0,
    };
    // SAFETY: both are as the kernel has them, and the memory is this function's own.
    unsafe {
        ioctl::api(faults.as_raw_fd(), &raw mut api).unwrap();
        ioctl::register(faults.as_raw_fd(), &raw mut range).unwrap();
    }

    let bound = thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            // `struct uffd_msg`: it is there as soon as the kernel waits for the page.
            let mut message = [0; 32];
            assert_eq!(nix::unistd::read(&faults, &mut message), Ok(message.len()));
            meanwhile();
            let mut copied = Copy {
                dst: start,
                src: filled.as_ptr().expose_provenance() as u64,
                len: PAGE as u64,
                mode: 0,
                copy: 0,
            };
            // SAFETY: it is as the kernel has it; nobody but the kernel reads the page.
            unsafe { ioctl::copy(faults.as_raw_fd(), &raw mut copied) }.unwrap();
        });
        let bound = socket.bind_at(page.as_ptr().cast_const().cast(), address.len());
        waiting.join().unwrap();
        bound
    });
    // SAFETY: nobody has it any more.
    unsafe { munmap(page, PAGE) }.unwrap();
    bound
}
