//! Detaching without waiting for it.
//!
//! Who closes the last descriptor of a link that patches a function waits until nobody can be in what
//! was patched: on a preemptible kernel 100 ms and more for each function, since a grace period of RCU
//! tasks ends with a pause (`gp_sleep`, kernel/rcu/tasks.h), and one after the other, since they are
//! waited for under ftrace's lock (`ftrace_shutdown`, kernel/trace/ftrace.c). A link that a file of bpffs
//! has as well is put by a worker of the kernel's when that file is gone (`bpf_link_put`,
//! kernel/bpf/syscall.c, since 5.7), and nobody waits.

use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};

use aya_obj::generated::bpf_cmd;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use rustix::mount::{fsconfig_create, fsmount, fsopen};

use super::bpf::{address, bpf, zeroed};

/// What the kernel calls the file of a link.
const LINK: &str = "anon_inode:bpf_link";

/// Gives each link of this process a file in a bpffs of its own, which is mounted nowhere and is gone
/// with the descriptor that is returned. Once that is closed behind the links' own, they are detached
/// soon after, whoever lives then.
///
/// # Errors
///
/// If such a file system cannot be had, which takes CAP_SYS_ADMIN. A link that gets no file, as those
/// of perf events before 5.15 do not, is detached where it is closed.
pub(super) fn in_background() -> io::Result<OwnedFd> {
    let context = fsopen("bpf", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    let nowhere = fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )?;
    for entry in fs::read_dir("/proc/self/fd")?.flatten() {
        let is_link = fs::read_link(entry.path()).is_ok_and(|file| file.as_os_str() == LINK);
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.parse::<RawFd>().ok());
        if let Some(number) = number.filter(|_| is_link) {
            let path = format!("/proc/self/fd/{}/{number}", nowhere.as_raw_fd());
            pin(number, &CString::new(path)?)?;
        }
    }
    Ok(nowhere)
}

/// Gives a link this file, for which aya wants a link that it gives up.
fn pin(link: RawFd, path: &CStr) -> io::Result<()> {
    let mut attributes = zeroed();
    // SAFETY: these are the attributes of the command, which are integers.
    let object = unsafe { &mut attributes.__bindgen_anon_4 };
    object.pathname = address(path.as_ptr());
    object.bpf_fd = link.cast_unsigned();
    bpf(bpf_cmd::BPF_OBJ_PIN, &mut attributes).map(drop)
}
