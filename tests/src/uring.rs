//! bind and listen by io_uring, which goes past the system calls of these names.

use std::os::fd::RawFd;

use io_uring::{IoUring, Probe, opcode, squeue, types};

/// This kernel has no such operation, or no io_uring.
#[derive(Debug)]
pub struct Unsupported;

/// An io_uring that does one operation at a time.
pub struct Ring(IoUring);

impl Ring {
    /// A new one.
    pub fn new() -> Result<Self, Unsupported> {
        let ring = IoUring::new(2).map_err(|_| Unsupported)?;
        let mut probe = Probe::new();
        ring.submitter()
            .register_probe(&mut probe)
            .map_err(|_| Unsupported)?;
        let has = |code| probe.is_supported(code);
        if has(opcode::Bind::CODE) && has(opcode::Listen::CODE) {
            Ok(Self(ring))
        } else {
            Err(Unsupported)
        }
    }

    /// Binds a socket; 0, or a negative errno.
    pub fn bind(&mut self, descriptor: RawFd, address: &[u8]) -> Result<i32, Unsupported> {
        let length = u32::try_from(address.len()).unwrap();
        let bind = opcode::Bind::new(types::Fd(descriptor), address.as_ptr().cast(), length);
        Ok(self.run(&bind.build()))
    }

    /// Makes a socket listen; 0, or a negative errno.
    pub fn listen(&mut self, descriptor: RawFd, backlog: i32) -> Result<i32, Unsupported> {
        Ok(self.run(&opcode::Listen::new(types::Fd(descriptor), backlog).build()))
    }

    fn run(&mut self, entry: &squeue::Entry) -> i32 {
        // SAFETY: what the entry points to lives until it has completed, which is waited for below.
        unsafe { self.0.submission().push(entry) }.unwrap();
        self.0.submit_and_wait(1).unwrap();
        self.0.completion().next().unwrap().result()
    }
}
