//! A cgroup program that puts another port in place of the one asked for, as some hosts have.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::path::PathBuf;

use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};

// include/uapi/linux/bpf.h
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_ATTACH: libc::c_long = 8;
const BPF_PROG_TYPE_CGROUP_SOCK_ADDR: u32 = 18;
const BPF_CGROUP_INET4_BIND: u32 = 8;
/// Offset of `user_port` in `struct bpf_sock_addr`.
const USER_PORT: i16 = 24;

/// A cgroup in which every bind over IPv4 to a port is one to another port.
pub struct Rewrite {
    cgroup: PathBuf,
}

/// One instruction: opcode, destination and source register, offset, immediate.
fn instruction(opcode: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> u64 {
    let registers = source << 4 | destination;
    u64::from(opcode)
        | u64::from(registers) << 8
        | u64::from(offset.cast_unsigned()) << 16
        | u64::from(immediate.cast_unsigned()) << 32
}

/// `bpf(2)`, with the attributes as words.
///
/// # Errors
///
/// What the kernel says.
pub fn bpf(command: libc::c_long, attributes: &mut [u64]) -> io::Result<i32> {
    let size = std::mem::size_of_val(attributes);
    // SAFETY: the attributes are writable for their size, and what they point to outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), size) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(i32::try_from(result).unwrap())
}

fn load(from: u16, to: u16) -> OwnedFd {
    let port = |port: u16| i32::from(port.to_be());
    let program = [
        // r2 = *(u32 *)(r1 + user_port); if r2 != from skip one
        instruction(0x61, 2, 1, USER_PORT, 0),
        instruction(0x55, 2, 0, 2, port(from)),
        // r2 = to; *(u32 *)(r1 + user_port) = r2
        instruction(0xb7, 2, 0, 0, port(to)),
        instruction(0x63, 1, 2, USER_PORT, 0),
        // return 1
        instruction(0xb7, 0, 0, 0, 1),
        instruction(0x95, 0, 0, 0, 0),
    ];
    let mut attributes = [0u64; 16];
    attributes[0] = u64::from(BPF_PROG_TYPE_CGROUP_SOCK_ADDR) | (program.len() as u64) << 32;
    attributes[1] = program.as_ptr() as u64;
    attributes[2] = c"GPL".as_ptr() as u64;
    // expected_attach_type is at byte 68.
    attributes[8] = u64::from(BPF_CGROUP_INET4_BIND) << 32;
    // Before 5.11 programs count as locked memory. Where that cannot be raised it need not be.
    let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
    let descriptor = bpf(BPF_PROG_LOAD, &mut attributes).expect("loading a cgroup program");
    // SAFETY: the kernel has just given it to us.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

/// Where the cgroup v2 hierarchy is mounted.
fn root() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mount = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (point, kind) = (fields.nth(1)?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(point))
    });
    mount.expect("no cgroup v2 hierarchy is mounted")
}

impl Rewrite {
    /// Makes the cgroup.
    pub fn new(from: u16, to: u16) -> Self {
        let cgroup = root().join(format!("portwatch-rewrite-{}", std::process::id()));
        fs::create_dir(&cgroup).unwrap();
        let rewrite = Self { cgroup };
        let program = load(from, to);
        let directory = fs::File::open(&rewrite.cgroup).unwrap();
        let mut attributes = [0u64; 2];
        attributes[0] = word(directory.as_raw_fd()) | word(program.as_raw_fd()) << 32;
        attributes[1] = u64::from(BPF_CGROUP_INET4_BIND);
        bpf(BPF_PROG_ATTACH, &mut attributes).expect("attaching a cgroup program");
        rewrite
    }

    /// Puts a process into it.
    pub fn adopt(&self, pid: u32) {
        fs::write(self.cgroup.join("cgroup.procs"), pid.to_string()).unwrap();
    }
}

impl Drop for Rewrite {
    /// Works once its processes have ended.
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.cgroup);
    }
}

fn word(descriptor: RawFd) -> u64 {
    u64::from(descriptor.cast_unsigned())
}
