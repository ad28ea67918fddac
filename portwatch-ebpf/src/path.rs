//! Paths of executables and cgroups, written down from their end to the root.

use aya_ebpf::helpers::{
    bpf_get_current_pid_tgid,
    generated::{bpf_probe_read_kernel, bpf_probe_read_kernel_str},
};
use portwatch_common::map::Path;
use portwatch_common::record::{COMPONENT_CAPACITY, PATH_BUFFER, PATH_CAPACITY};

use crate::layout::{self, Address, read};
use crate::maps::{BLANK_PATH, PATHS};

/// Steps to the root at most, each a component or a mount point.
const STEPS: u32 = 32;

/// Writes the path of a `struct file`. Returns its length, and whether it is whole.
///
/// # Safety
///
/// `buffer` must point to writable memory.
#[inline(always)]
pub unsafe fn of_file(buffer: *mut [u8; PATH_BUFFER], file: Address) -> (u32, bool) {
    let dentry = read(file, &layout::FILE_PATH_DENTRY);
    let mount = read(file, &layout::FILE_PATH_MNT);
    // SAFETY: promised by the caller.
    unsafe { write(buffer, dentry, mount) }
}

/// Writes the path of a `struct cgroup`, in the same way.
///
/// # Safety
///
/// `buffer` must point to writable memory.
#[inline(always)]
pub unsafe fn of_cgroup(buffer: *mut [u8; PATH_BUFFER], cgroup: Address) -> (u32, bool) {
    // SAFETY: promised by the caller.
    unsafe { write(buffer, read(cgroup, &layout::CGROUP_KN), 0) }
}

/// # Safety
///
/// `buffer` must point to writable memory.
#[inline(always)]
unsafe fn write(buffer: *mut [u8; PATH_BUFFER], node: Address, mount: Address) -> (u32, bool) {
    let thread = bpf_get_current_pid_tgid();
    let Some(blank) = BLANK_PATH.get_ptr(0) else {
        return (0, false);
    };
    // SAFETY: the pointer is valid and aligned.
    let _ = PATHS.insert(thread, unsafe { &*blank }, 0);
    let Some(path) = PATHS.get_ptr_mut(thread) else {
        return (0, false);
    };
    // SAFETY: the pointer is valid and aligned for the program's duration, and only this thread uses
    // it; the caller promises the same of the buffer, which is as long as the text.
    let written = unsafe {
        (*path).node = node;
        (*path).mount = mount;
        for _ in 0..STEPS {
            if climb() == 0 {
                break;
            }
        }
        bpf_probe_read_kernel(
            buffer.cast(),
            PATH_BUFFER as u32,
            (&raw const (*path).text).cast(),
        );
        ((*path).length, (*path).whole != 0)
    };
    let _ = PATHS.remove(thread);
    written
}

/// Goes a step on in the path of the current thread; 0 at its end.
///
/// A global function: see [`crate::conflict::tell_holders`]. What it goes by is in a map, of whose
/// values the verifier knows nothing: so one step is like the other, and is followed once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn climb() -> i32 {
    let Some(path) = PATHS.get_ptr_mut(bpf_get_current_pid_tgid()) else {
        return 0;
    };
    // SAFETY: the pointer is valid and aligned for the program's duration, and only this thread uses it.
    let path = unsafe { &mut *path };
    i32::from(if path.mount != 0 {
        climb_mounts(path)
    } else {
        climb_cgroups(path)
    })
}

/// From a dentry to the one above, over mount points, as `prepend_path` in fs/d_path.c does.
#[inline(always)]
fn climb_mounts(path: &mut Path) -> bool {
    let mount_mnt = u64::from(layout::MOUNT_MNT.load());
    let parent: Address = read(path.node, &layout::DENTRY_PARENT);
    let root: Address = read(path.mount, &layout::VFSMOUNT_ROOT);
    if path.node == root {
        let mount = path.mount.wrapping_sub(mount_mnt);
        let above: Address = read(mount, &layout::MOUNT_PARENT);
        if above == mount || above == 0 {
            path.whole = 1;
            return false;
        }
        path.node = read(mount, &layout::MOUNT_MOUNTPOINT);
        path.mount = above.wrapping_add(mount_mnt);
        return true;
    }
    if path.node == parent || path.node == 0 {
        path.whole = 1;
        return false;
    }
    append(path, read(path.node, &layout::DENTRY_NAME), parent)
}

#[inline(always)]
fn climb_cgroups(path: &mut Path) -> bool {
    let parent: Address = read(path.node, &layout::KERNFS_PARENT);
    // The root's own name is empty.
    if parent == 0 {
        path.whole = 1;
        return false;
    }
    append(path, read(path.node, &layout::KERNFS_NAME), parent)
}

/// Writes a component behind the others and goes on to the one above, if there is room.
#[inline(always)]
fn append(path: &mut Path, name: Address, above: Address) -> bool {
    let length = path.length;
    if length as usize >= PATH_CAPACITY {
        return false;
    }
    // SAFETY: `length` is below PATH_CAPACITY, behind which COMPONENT_CAPACITY bytes are free.
    let written = unsafe {
        bpf_probe_read_kernel_str(
            path.text.as_mut_ptr().add(length as usize).cast(),
            COMPONENT_CAPACITY as u32,
            name as *const _,
        )
    };
    if written <= 0 {
        return false;
    }
    path.length = length + written as u32;
    path.node = above;
    true
}
