//! What but a seccomp filter could refuse a bind: programs of a cgroup and security modules.

use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::path::Path;

use aya::programs::loaded_programs;
use aya_obj::generated::{bpf_attach_type, bpf_cmd, bpf_prog_type};

use super::bpf;

/// `BPF_F_QUERY_EFFECTIVE`: those of the cgroups above too.
const EFFECTIVE: u32 = 1;
/// lsm_list_modules(2), from 6.8 on: the same number on all architectures.
const SYS_LSM_LIST_MODULES: i64 = 461;
const MODULES: &str = "/sys/kernel/security/lsm";

/// The errors with which a process may be refused a bind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Denials {
    /// EPERM.
    pub eperm: bool,
    /// EACCES, apart from a low port.
    pub eacces: bool,
}

const ANY: Denials = Denials {
    eperm: true,
    eacces: true,
};

/// What a security module's `socket_bind` refuses with, 5.10 to 7.3, by its name and its number
/// (include/uapi/linux/lsm.h). Others may refuse with anything; `bpf` does what its programs do.
const KNOWN: [(&str, u64, bool); 13] = [
    ("capability", 100, false),
    ("selinux", 101, true),
    ("apparmor", 104, true),
    ("yama", 105, false),
    ("loadpin", 106, false),
    ("safesetid", 107, false),
    ("lockdown", 108, false),
    ("bpf", 109, false),
    ("landlock", 110, true),
    ("ima", 111, false),
    ("evm", 112, false),
    ("ipe", 113, false),
    ("integrity", 0, false),
];

/// TOMOYO, by its name and its number. Some distributions have it in force without a policy.
const TOMOYO: (&str, u64) = ("tomoyo", 103);
const TOMOYO_PROFILES: &str = "/sys/kernel/security/tomoyo/profile";

/// What may refuse a process a bind; nothing if that cannot be told.
#[must_use]
pub fn of(proc: &Path, tgid: u32) -> Option<Denials> {
    let modules = numbers().map_or_else(names, Some)?;
    let mut programs = loaded_programs();
    let lsm = programs.any(|program| match program {
        Ok(program) => program.program_type() == bpf_prog_type::BPF_PROG_TYPE_LSM,
        // One that is gone by now.
        Err(_) => false,
    });
    if lsm || has_programs(proc, tgid)? {
        return Some(ANY);
    }
    Some(modules)
}

/// What the modules in force may do, by their numbers; nothing before 6.8.
fn numbers() -> Option<Denials> {
    let mut ids = [0_u64; 32];
    let mut size = size_of_val(&ids) as u32;
    // SAFETY: the kernel writes at most `size` bytes there, and how many it wanted to into `size`.
    let count =
        unsafe { libc::syscall(SYS_LSM_LIST_MODULES, ids.as_mut_ptr(), &raw mut size, 0_u32) };
    let ids = ids.get(..usize::try_from(count).ok()?)?;
    let ids = ids
        .iter()
        .filter(|id| **id != TOMOYO.1 || enforces_tomoyo());
    Some(sum(
        ids.map(|id| KNOWN.iter().find(|(_, known, _)| known == id))
    ))
}

/// The same by their names, where securityfs is mounted.
fn names() -> Option<Denials> {
    let names = fs::read_to_string(MODULES).ok()?;
    let names = names.trim().split(',');
    let names = names.filter(|name| *name != TOMOYO.0 || enforces_tomoyo());
    Some(sum(names.map(|name| {
        KNOWN.iter().find(|(known, _, _)| *known == name)
    })))
}

/// Whether TOMOYO may refuse anything: a profile of its policy says so. Where they cannot be read, one may.
fn enforces_tomoyo() -> bool {
    fs::read_to_string(TOMOYO_PROFILES).map_or(true, |profiles| profiles.contains("mode=enforcing"))
}

fn sum<'a>(modules: impl Iterator<Item = Option<&'a (&'a str, u64, bool)>>) -> Denials {
    modules.fold(
        Denials {
            eperm: false,
            eacces: false,
        },
        |sum, module| match module {
            Some((_, _, eacces)) => Denials {
                eacces: sum.eacces || *eacces,
                ..sum
            },
            None => ANY,
        },
    )
}

/// Whether programs of its cgroup are run at a process's binds.
fn has_programs(proc: &Path, tgid: u32) -> Option<bool> {
    let cgroups = fs::read_to_string(proc.join(tgid.to_string()).join("cgroup")).ok()?;
    // Without version 2 there are none.
    let Some(own) = cgroups.lines().find_map(|line| line.strip_prefix("0::/")) else {
        return Some(false);
    };
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let mount = mounts.lines().find(|line| line.contains(" - cgroup2 "))?;
    let folder = File::open(Path::new(mount.split(' ').nth(4)?).join(own)).ok()?;
    let kinds = [
        bpf_attach_type::BPF_CGROUP_INET4_BIND,
        bpf_attach_type::BPF_CGROUP_INET6_BIND,
        bpf_attach_type::BPF_CGROUP_INET4_POST_BIND,
        bpf_attach_type::BPF_CGROUP_INET6_POST_BIND,
    ];
    let mut any = false;
    for kind in kinds {
        any |= programs_of(&folder, kind)? != 0;
    }
    Some(any)
}

/// How many programs of a kind are in force in a cgroup.
fn programs_of(folder: &File, kind: bpf_attach_type) -> Option<u32> {
    let mut attributes = bpf::zeroed();
    attributes.query.__bindgen_anon_1.target_fd = folder.as_raw_fd().unsigned_abs();
    attributes.query.attach_type = kind as u32;
    attributes.query.query_flags = EFFECTIVE;
    bpf::bpf(bpf_cmd::BPF_PROG_QUERY, &mut attributes).ok()?;
    // SAFETY: the command has filled in the counterpart of this field, an integer.
    Some(unsafe { attributes.query.__bindgen_anon_2.prog_cnt })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_that_nobody_knows_may_do_anything() {
        let of = |ids: &[u64]| {
            sum(ids
                .iter()
                .map(|id| KNOWN.iter().find(|(_, known, _)| known == id)))
        };
        let neither = Denials {
            eperm: false,
            eacces: false,
        };
        assert_eq!(of(&[100, 105, 109]), neither);
        assert_eq!(
            of(&[100, 110]),
            Denials {
                eacces: true,
                ..neither
            }
        );
        // TOMOYO
        assert_eq!(of(&[100, 103]), ANY);
        assert_eq!(of(&[114]), ANY);
    }
}
