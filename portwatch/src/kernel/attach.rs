//! Loads and attaches one program, and says why where the kernel refuses.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use aya::programs::{
    BtfTracePoint, CgroupAttachMode, CgroupSock, FEntry, FExit, Iter, KProbe, Program, ProgramError,
};
use aya::{Btf, Ebpf};
use nix::errno::Errno;

use super::hook::{Attach, Hook};
use super::side::describe;

/// A hook is not in place.
#[derive(Debug, thiserror::Error)]
pub(super) enum AttachError {
    /// The kernel does not have what it goes to.
    #[error("{0}")]
    Absent(String),
    /// The kernel refuses.
    #[error("{what}: {why}")]
    Refused {
        /// What it refuses.
        what: &'static str,
        /// What it says.
        why: String,
        /// With which errno, where it tells.
        errno: Option<Errno>,
    },
}

impl AttachError {
    /// Whether it says nothing of this hook but of its kind: it is not permitted, or this kernel
    /// cannot do it.
    pub(super) fn is_of_the_backend(&self) -> bool {
        /// `ENOTSUPP`, which is the kernel's own (include/linux/errno.h).
        const ENOTSUPP: i32 = 524;
        match self {
            Self::Absent(_) => false,
            Self::Refused { errno, why, .. } => match errno {
                Some(errno) => {
                    matches!(errno, Errno::EPERM | Errno::EOPNOTSUPP | Errno::ENODEV)
                        || why.contains(&ENOTSUPP.to_string())
                }
                // There is no PMU of kprobes, nor a file to make one.
                None => true,
            },
        }
    }
}

/// Loads the program of a hook and attaches it to one of its targets.
pub(super) fn hook(
    ebpf: &mut Ebpf,
    hook: Hook,
    target: &str,
    btf: &Btf,
) -> Result<(), AttachError> {
    let program = ebpf.program_mut(hook.program).ok_or_else(|| {
        AttachError::Absent(format!(
            "there is no program {} in the object",
            hook.program
        ))
    })?;
    let loading = |error| refused("the kernel refuses to load it", &error);
    let attaching = |error| refused("the kernel refuses to attach it", &error);
    match hook.attach {
        Attach::Fentry => {
            let program: &mut FEntry = of(program)?;
            program.load(target, btf).map_err(loading)?;
            program.attach().map_err(attaching)?;
        }
        Attach::Fexit => {
            let program: &mut FExit = of(program)?;
            program.load(target, btf).map_err(loading)?;
            program.attach().map_err(attaching)?;
        }
        Attach::Kprobe | Attach::Kretprobe => {
            let program: &mut KProbe = of(program)?;
            program.load().map_err(loading)?;
            program.attach(target, 0).map_err(attaching)?;
        }
        Attach::Tracepoint => {
            let program: &mut BtfTracePoint = of(program)?;
            program.load(target, btf).map_err(loading)?;
            program.attach().map_err(attaching)?;
        }
        Attach::CgroupSockRelease => {
            let absent = |why: String| AttachError::Absent(why);
            let root = cgroup_root(Path::new("/")).map_err(absent)?;
            let cgroup = File::open(&root)
                .map_err(|error| absent(format!("{}: {error}", root.display())))?;
            let program: &mut CgroupSock = of(program)?;
            program.load().map_err(loading)?;
            // A link takes no flags, and always lives beside others.
            program
                .attach(cgroup, CgroupAttachMode::Single)
                .map_err(attaching)?;
        }
        Attach::Iterator => {
            let program: &mut Iter = of(program)?;
            program.load(target, btf).map_err(loading)?;
        }
    }
    Ok(())
}

/// Detaches and unloads the program of a hook, so that it can be loaded again.
pub(super) fn unload(ebpf: &mut Ebpf, hook: Hook) {
    // It fails only for what is not loaded.
    let _ = match ebpf.program_mut(hook.program) {
        Some(Program::FEntry(program)) => program.unload(),
        Some(Program::FExit(program)) => program.unload(),
        Some(Program::KProbe(program)) => program.unload(),
        Some(Program::BtfTracePoint(program)) => program.unload(),
        Some(Program::CgroupSock(program)) => program.unload(),
        Some(Program::Iter(program)) => program.unload(),
        _ => Ok(()),
    };
}

fn of<'a, T>(program: &'a mut Program) -> Result<T, AttachError>
where
    T: TryFrom<&'a mut Program, Error = ProgramError>,
{
    program
        .try_into()
        .map_err(|error| AttachError::Absent(describe(&error)))
}

/// What the kernel says, without the verifier's whole log.
fn refused(what: &'static str, error: &ProgramError) -> AttachError {
    let (why, errno) = match error {
        ProgramError::LoadError {
            io_error,
            verifier_log,
        } => {
            let log = verifier_log.to_string();
            // The last lines say what was wrong.
            let lines: Vec<_> = log.lines().filter(|line| !line.is_empty()).collect();
            let tail = lines[lines.len().saturating_sub(4)..].join(" | ");
            let why = if tail.is_empty() {
                io_error.to_string()
            } else {
                format!("{io_error}: {tail}")
            };
            (why, io_error.raw_os_error())
        }
        ProgramError::SyscallError(error) => {
            (describe(&error.io_error), error.io_error.raw_os_error())
        }
        error => (describe(error), None),
    };
    AttachError::Refused {
        what,
        why,
        errno: errno.map(Errno::from_raw),
    }
}

/// Where the whole cgroup v2 hierarchy is mounted, or why nowhere. `root` is `/`, but for tests.
///
/// In a cgroup namespace of its own the origin of a mount does not tell: it is `/` for the namespace's part
/// and `/../..` for the whole.
///
/// # Errors
///
/// If it is not, or a part of it only.
pub fn cgroup_root(root: &Path) -> Result<PathBuf, String> {
    // mount(8)'s fields: ID parent major:minor root mountpoint options … - type source options
    let mounts = fs::read_to_string(root.join("proc/self/mountinfo")).unwrap_or_default();
    let points = mounts.lines().filter_map(|line| {
        let (mount, rest) = line.split_once(" - ")?;
        rest.starts_with("cgroup2 ")
            .then(|| mount.split(' ').nth(4))?
    });
    let mut part = None;
    for point in points {
        // Every group has this file but the root of the hierarchy.
        let of_group = Path::new(point.trim_start_matches('/')).join("cgroup.type");
        if !root.join(of_group).exists() {
            return Ok(point.into());
        }
        part = Some(point);
    }
    Err(match part {
        Some(part) => format!(
            "{part} is a part of the cgroup v2 hierarchy only: mount the host's /sys/fs/cgroup, or in a \
             container use --cgroupns=host"
        ),
        None => "no cgroup v2 hierarchy is mounted".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroup_root_is_found_where_it_is() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let mounts = |text: &str| {
            write("proc/self/mountinfo", text);
            cgroup_root(root.path())
        };
        let hybrid = "30 20 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
            31 30 0:27 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(mounts(hybrid), Ok("/sys/fs/cgroup/unified".into()));
        let none = Err("no cgroup v2 hierarchy is mounted".to_owned());
        assert_eq!(mounts("nonsense\n - \n"), none);

        // A part of the hierarchy is not its root, whatever the mount says.
        write("sys/fs/cgroup/cgroup.type", "domain\n");
        for origin in ["/", "/kubepods"] {
            let part = format!("31 30 0:27 {origin} /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
            let why = mounts(&part).unwrap_err();
            assert!(why.contains("--cgroupns=host"), "{why}");
            let whole = format!("{part}32 30 0:27 /../.. /host rw - cgroup2 cgroup2 rw\n");
            assert_eq!(mounts(&whole), Ok("/host".into()));
        }
    }
}
