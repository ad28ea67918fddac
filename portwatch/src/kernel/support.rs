//! Whether portwatch can work here at all, and if not, why and what to do.

use std::fs;
use std::path::Path;

/// portwatch cannot work here. Exit status 3.
#[derive(Debug, thiserror::Error)]
#[error("{what}\n  why: {why}\n  do:  {remedy}")]
pub struct Unsupported {
    /// What cannot be done.
    pub what: String,
    /// Why.
    pub why: String,
    /// What the user can do about it.
    pub remedy: String,
}

impl Unsupported {
    /// With all three parts.
    pub fn new(what: impl Into<String>, why: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            why: why.into(),
            remedy: remedy.into(),
        }
    }
}

/// The capabilities portwatch needs, with their numbers (include/uapi/linux/capability.h).
pub const CAPABILITIES: [(&str, u8, &str); 4] = [
    ("CAP_BPF", 39, "to load programs"),
    ("CAP_PERFMON", 38, "to read kernel memory in them"),
    ("CAP_NET_ADMIN", 12, "to see sockets being released"),
    ("CAP_SYSLOG", 34, "to find the TIME_WAIT timer's address"),
];

const CAP_SYS_ADMIN: u8 = 21;

/// A process's effective capabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities(u64);

impl Capabilities {
    /// From the text of `/proc/PID/status`; nothing if it does not say.
    #[must_use]
    pub fn parse(status: &str) -> Option<Self> {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("CapEff:"))?;
        u64::from_str_radix(line.trim(), 16).ok().map(Self)
    }

    /// Whether this one is among them. CAP_SYS_ADMIN stands for CAP_BPF and CAP_PERFMON, which
    /// were split from it in 5.8.
    #[must_use]
    pub fn has(self, number: u8) -> bool {
        let has = |number: u8| self.0 >> number & 1 == 1;
        has(number) || (matches!(number, 38 | 39) && has(CAP_SYS_ADMIN))
    }
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What was checked.
    pub name: &'static str,
    /// What was found.
    pub found: String,
    /// What is wrong with it and what to do, if something is.
    pub problem: Option<Problem>,
}

/// What is wrong with what a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Whether nothing works because of it.
    pub fatal: bool,
    /// Why it is a problem.
    pub why: String,
    /// What to do.
    pub remedy: String,
}

/// Everything that is checked before the kernel is asked for anything. `root` is `/`, but for tests.
#[must_use]
pub fn checks(root: &Path) -> Vec<Check> {
    vec![
        privileges(root),
        pid_namespace(root),
        btf(root),
        lockdown(root),
        addresses(root),
    ]
}

/// The first problem that leaves nothing to work with.
///
/// # Errors
///
/// If there is one.
pub fn preflight(root: &Path) -> Result<(), Unsupported> {
    for check in checks(root) {
        if let Some(problem) = check.problem
            && problem.fatal
        {
            return Err(Unsupported::new(
                format!("cannot trace: {}: {}", check.name, check.found),
                problem.why,
                problem.remedy,
            ));
        }
    }
    Ok(())
}

fn read(root: &Path, path: &str) -> std::io::Result<String> {
    fs::read_to_string(root.join(path))
}

fn privileges(root: &Path) -> Check {
    let name = "privileges";
    let capabilities = read(root, "proc/self/status")
        .ok()
        .and_then(|status| Capabilities::parse(&status));
    let Some(capabilities) = capabilities else {
        return Check {
            name,
            found: "unknown: /proc/self/status cannot be read".to_owned(),
            problem: Some(Problem {
                fatal: true,
                why: "/proc is not mounted".to_owned(),
                remedy: "mount it: mount -t proc proc /proc".to_owned(),
            }),
        };
    };
    let missing: Vec<_> = CAPABILITIES
        .iter()
        .filter(|(_, number, _)| !capabilities.has(*number))
        .collect();
    if missing.is_empty() {
        return Check {
            name,
            found: "sufficient".to_owned(),
            problem: None,
        };
    }
    let names = missing
        .iter()
        .map(|(name, _, _)| *name)
        .collect::<Vec<_>>()
        .join(", ");
    let uses = missing
        .iter()
        .map(|(name, _, what)| format!("{name} is needed {what}"))
        .collect::<Vec<_>>()
        .join("; ");
    Check {
        name,
        found: format!("without {names}"),
        problem: Some(Problem {
            // Without these two nothing can be loaded.
            fatal: !capabilities.has(38) || !capabilities.has(39),
            why: uses,
            remedy: "run it as root (sudo portwatch …), or give it the capabilities: \
                     setcap cap_bpf,cap_perfmon,cap_net_admin,cap_syslog,cap_sys_ptrace,cap_dac_read_search+ep portwatch; \
                     in a container, add them (--cap-add), or SYS_ADMIN for CAP_BPF and CAP_PERFMON"
                .to_owned(),
        }),
    }
}

/// Whether this is the initial pid namespace, if that can be told: `PROC_PID_INIT_INO` of
/// include/linux/proc_ns.h (`nsfs.h` from 6.18), the same in all versions.
#[must_use]
pub fn is_in_initial_pidns(root: &Path) -> Option<bool> {
    let target = fs::read_link(root.join("proc/self/ns/pid")).ok()?;
    Some(target == Path::new("pid:[4026531836]"))
}

fn pid_namespace(root: &Path) -> Check {
    let (found, problem) = match is_in_initial_pidns(root) {
        None => ("not known (no /proc/self/ns/pid)", None),
        Some(true) => ("the host's", None),
        Some(false) => (
            "one of a container",
            Some(Problem {
                fatal: true,
                why: "the kernel tells of processes by their numbers on the host, and other \
                      processes have these numbers here"
                    .to_owned(),
                remedy: "share the host's: docker run --pid=host, podman run --pid=host, in a pod \
                         hostPID: true"
                    .to_owned(),
            }),
        ),
    };
    Check {
        name: "pid namespace",
        found: found.to_owned(),
        problem,
    }
}

fn btf(root: &Path) -> Check {
    let name = "kernel types (BTF)";
    let path = "sys/kernel/btf/vmlinux";
    match fs::metadata(root.join(path)) {
        Ok(file) => Check {
            name,
            found: format!("/{path}, {} bytes", file.len()),
            problem: None,
        },
        Err(error) => Check {
            name,
            found: format!("no /{path}: {error}"),
            problem: Some(Problem {
                fatal: true,
                why: "without its types portwatch cannot know where this kernel keeps what"
                    .to_owned(),
                remedy: "use a kernel built with CONFIG_DEBUG_INFO_BTF=y, as those of all large \
                         distributions are; in a container, mount /sys"
                    .to_owned(),
            }),
        },
    }
}

fn lockdown(root: &Path) -> Check {
    let name = "lockdown";
    let text = read(root, "sys/kernel/security/lockdown").unwrap_or_default();
    let mode = text
        .split_whitespace()
        .find_map(|word| word.strip_prefix('[')?.strip_suffix(']'));
    match mode {
        None => Check {
            name,
            found: "not known (no /sys/kernel/security/lockdown)".to_owned(),
            problem: None,
        },
        Some("confidentiality") => Check {
            name,
            found: "confidentiality".to_owned(),
            problem: Some(Problem {
                fatal: true,
                why: "in this mode no BPF program may read kernel memory".to_owned(),
                remedy: "boot with lockdown=integrity, or without secure boot".to_owned(),
            }),
        },
        Some(mode) => Check {
            name,
            found: mode.to_owned(),
            problem: None,
        },
    }
}

fn addresses(root: &Path) -> Check {
    let name = "kernel addresses";
    match read(root, "proc/sys/kernel/kptr_restrict")
        .as_deref()
        .map(str::trim)
    {
        Ok("2") => Check {
            name,
            found: "hidden (kernel.kptr_restrict is 2)".to_owned(),
            problem: Some(Problem {
                fatal: false,
                why: "TIME_WAIT is found by the address of its timer's function".to_owned(),
                remedy: "sysctl kernel.kptr_restrict=1".to_owned(),
            }),
        },
        Ok(value) => Check {
            name,
            found: format!("visible (kernel.kptr_restrict is {value})"),
            problem: None,
        },
        Err(_) => Check {
            name,
            found: "not known".to_owned(),
            problem: None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    const ROOT: (&str, &str) = ("proc/self/status", "Name:\tx\nCapEff:\t000001ffffffffff\n");
    const BTF: (&str, &str) = ("sys/kernel/btf/vmlinux", "btf");

    #[test]
    fn a_host_that_has_everything_passes() {
        let root = tree(&[
            ROOT,
            BTF,
            (
                "sys/kernel/security/lockdown",
                "[none] integrity confidentiality\n",
            ),
            ("proc/sys/kernel/kptr_restrict", "1\n"),
        ]);
        assert!(preflight(root.path()).is_ok());
        assert!(
            checks(root.path())
                .iter()
                .all(|check| check.problem.is_none())
        );
    }

    #[test]
    fn an_ordinary_user_is_told_what_is_missing() {
        let root = tree(&[("proc/self/status", "CapEff:\t0000000000000000\n"), BTF]);
        let error = preflight(root.path()).unwrap_err();
        assert_eq!(
            error.what,
            "cannot trace: privileges: without CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN, CAP_SYSLOG"
        );
        assert!(error.remedy.contains("sudo portwatch"));
        assert!(error.remedy.contains("setcap"));
    }

    #[test]
    fn what_only_some_events_need_is_not_fatal() {
        // CAP_BPF and CAP_PERFMON alone.
        let root = tree(&[("proc/self/status", "CapEff:\t000000c000000000\n"), BTF]);
        assert!(preflight(root.path()).is_ok());
        let problem = checks(root.path())[0].problem.clone().unwrap();
        assert_eq!(
            problem.why,
            "CAP_NET_ADMIN is needed to see sockets being released; \
             CAP_SYSLOG is needed to find the TIME_WAIT timer's address"
        );
    }

    #[test]
    fn the_old_capability_stands_for_the_new_ones() {
        let capabilities = Capabilities::parse("CapEff:\t0000000000200000\n").unwrap();
        assert!(capabilities.has(38) && capabilities.has(39));
        assert!(!capabilities.has(12));
        assert_eq!(Capabilities::parse("CapEff:\tnonsense\n"), None);
        assert_eq!(Capabilities::parse(""), None);
    }

    #[test]
    fn a_pid_namespace_of_its_own_is_fatal() {
        let root = tree(&[ROOT, BTF]);
        let link = root.path().join("proc/self/ns/pid");
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        assert!(preflight(root.path()).is_ok(), "nothing is known");
        std::os::unix::fs::symlink("pid:[4026531836]", &link).unwrap();
        assert!(preflight(root.path()).is_ok());
        fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink("pid:[4026532804]", &link).unwrap();
        let error = preflight(root.path()).unwrap_err();
        assert_eq!(
            error.what,
            "cannot trace: pid namespace: one of a container"
        );
        assert!(error.remedy.contains("--pid=host"), "{}", error.remedy);
    }

    #[test]
    fn without_btf_nothing_works() {
        let root = tree(&[ROOT]);
        let error = preflight(root.path()).unwrap_err();
        assert!(
            error.what.contains("no /sys/kernel/btf/vmlinux"),
            "{}",
            error.what
        );
        assert!(error.remedy.contains("CONFIG_DEBUG_INFO_BTF"));
    }

    #[test]
    fn confidentiality_is_fatal_and_integrity_is_not() {
        for (mode, fatal) in [
            ("none integrity [confidentiality]", true),
            ("none [integrity] confidentiality", false),
        ] {
            let root = tree(&[ROOT, BTF, ("sys/kernel/security/lockdown", mode)]);
            assert_eq!(preflight(root.path()).is_err(), fatal, "{mode}");
        }
    }

    #[test]
    fn hidden_addresses_are_told() {
        let root = tree(&[ROOT, BTF, ("proc/sys/kernel/kptr_restrict", "2\n")]);
        assert!(preflight(root.path()).is_ok());
        let problem = addresses(root.path()).problem.unwrap();
        assert_eq!(problem.remedy, "sysctl kernel.kptr_restrict=1");
    }
}
