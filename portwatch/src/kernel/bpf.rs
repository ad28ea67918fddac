//! bpf(2) for what aya has no way to do, with the attributes of include/uapi/linux/bpf.h.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use aya_obj::generated::{bpf_attr, bpf_attr__bindgen_ty_4, bpf_cmd, bpf_insn};

/// The attributes of a command, of which nothing is set yet.
pub(super) fn zeroed() -> bpf_attr {
    // SAFETY: it is made of integers; the kernel wants what is not set to be zero.
    unsafe { std::mem::zeroed() }
}

/// A descriptor, as attributes have it.
pub(super) fn number(descriptor: &OwnedFd) -> u32 {
    // A descriptor is never negative.
    descriptor.as_raw_fd().unsigned_abs()
}

/// An address, as attributes have it.
pub(super) fn address<T>(pointer: *const T) -> u64 {
    pointer.expose_provenance() as u64
}

/// bpf(2). Each address in the attributes is of something that lives until this returns.
pub(super) fn bpf(command: bpf_cmd, attributes: &mut bpf_attr) -> io::Result<i32> {
    // SAFETY: the attributes are those of the command, and as long as is said.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as u32,
            std::ptr::from_mut(attributes),
            size_of::<bpf_attr>() as u32,
        )
    };
    match i32::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A command that gives a descriptor, which the kernel opens with O_CLOEXEC.
pub(super) fn make(command: bpf_cmd, attributes: &mut bpf_attr) -> io::Result<OwnedFd> {
    let descriptor = bpf(command, attributes)?;
    // SAFETY: it is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Loads a program, of which `set` says what it is.
pub(super) fn load(
    code: &[bpf_insn],
    license: &CStr,
    set: impl FnOnce(&mut bpf_attr__bindgen_ty_4),
) -> io::Result<OwnedFd> {
    let mut attributes = zeroed();
    // SAFETY: these are the attributes of the command, which are integers.
    let program = unsafe { &mut attributes.__bindgen_anon_3 };
    program.insns = address(code.as_ptr());
    program.insn_cnt = u32::try_from(code.len()).map_err(io::Error::other)?;
    program.license = address(license.as_ptr());
    set(program);
    make(bpf_cmd::BPF_PROG_LOAD, &mut attributes)
}
