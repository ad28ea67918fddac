//! The container of a process that no cgroup tells of, by the runtime's process it descends from.
//!
//! So it is with rootless podman on cgroup v1, with `--cgroups=disabled`, and with containers of containerd
//! in namespaces that anybody has named: whose cgroup `/name/id` is cannot be told from its path.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::is_id;
use crate::attribute::cgroup::{ContainerRef, is_containerd_id};
use crate::event::Process;

/// The container that a process is in, by its ancestors and what these say in their arguments. `proc`
/// is where to look for them.
///
/// What a runtime runs beside its container, its own clean-up for one, is in the runtime's mount
/// namespace and in no container.
#[must_use]
pub fn by_ancestor(proc: &Path, process: &Process) -> Option<ContainerRef> {
    let runtime = process.ancestors.iter().find(|ancestor| {
        // As many bytes as a name of the kernel has.
        matches!(&*ancestor.comm, "conmon" | "containerd-shim")
    })?;
    let directory = proc.join(runtime.pid.to_string());
    let mntns = std::fs::metadata(directory.join("ns/mnt")).ok()?.ino();
    if u64::from(process.mntns?) == mntns {
        return None;
    }
    told(&std::fs::read(directory.join("cmdline")).ok()?)
}

/// What the arguments of such a process tell.
fn told(arguments: &[u8]) -> Option<ContainerRef> {
    let arguments: Vec<_> = arguments
        .split(|byte| *byte == 0)
        .map(String::from_utf8_lossy)
        .collect();
    let after = |options: &[&str]| {
        let at = arguments
            .iter()
            .position(|argument| options.contains(&&**argument))?;
        Some(arguments.get(at + 1)?.clone().into_owned())
    };
    let program = arguments.first()?.rsplit('/').next()?;
    let (runtime, id) = if program == "conmon" {
        ("podman", after(&["-c", "--cid"]).filter(|id| is_id(id))?)
    } else if program.starts_with("containerd-shim") {
        let id = after(&["-id"]).filter(|id| is_containerd_id(id))?;
        // Docker's own namespace in its containerd.
        match after(&["-namespace"])?.as_str() {
            "moby" => ("docker", id),
            _ => ("containerd", id),
        }
    } else {
        return None;
    };
    Some(ContainerRef { runtime, id })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Ancestor;

    const ID: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    #[test]
    fn what_the_arguments_of_runtimes_tell() {
        let of = |runtime, id: &str| {
            Some(ContainerRef {
                runtime,
                id: id.to_owned(),
            })
        };
        let cases = [
            (
                "/usr/bin/conmon --api-version 1 -c {} -u {} -n web",
                of("podman", ID),
            ),
            ("conmon --cid {}", of("podman", ID)),
            ("conmon -c web", None),
            ("conmon -c", None),
            (
                "/usr/bin/containerd-shim-runc-v2 -namespace other -id web-2 -address /run/s",
                of("containerd", "web-2"),
            ),
            (
                "containerd-shim-runc-v2 -namespace moby -id {}",
                of("docker", ID),
            ),
            ("containerd-shim-runc-v2 -namespace other -id ../web", None),
            ("containerd-shim-runc-v2 -id web", None),
            ("sleep -c {}", None),
            ("", None),
        ];
        for (line, expected) in cases {
            let arguments = line.replace("{}", ID).replace(' ', "\0");
            assert_eq!(told(arguments.as_bytes()), expected, "of {line}");
        }
    }

    #[test]
    fn what_runs_beside_a_container_is_not_in_it() {
        let proc = tempfile::tempdir().unwrap();
        let conmon = proc.path().join("7");
        std::fs::create_dir_all(conmon.join("ns")).unwrap();
        std::fs::write(conmon.join("ns/mnt"), "").unwrap();
        std::fs::write(conmon.join("cmdline"), format!("conmon\0-c\0{ID}\0")).unwrap();
        let mntns = std::fs::metadata(conmon.join("ns/mnt")).unwrap().ino();
        let mntns = u32::try_from(mntns & u64::from(u32::MAX)).unwrap();
        let process = |comm: &str, mntns| Process {
            ancestors: vec![Ancestor {
                pid: 7,
                comm: comm.into(),
                comm_hex: None,
            }],
            mntns,
            ..Process::default()
        };
        let of = |comm, mntns| by_ancestor(proc.path(), &process(comm, mntns)).is_some();
        assert!(of("conmon", Some(mntns.wrapping_add(1))));
        assert!(!of("conmon", Some(mntns)));
        assert!(!of("conmon", None));
        assert!(!of("bash", Some(mntns.wrapping_add(1))));
    }
}
