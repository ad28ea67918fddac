//! The kernels of the matrix, and the very packages they are taken from.
//!
//! The lock file has one package a line, in columns: series, architecture,
//! package, version, size in bytes, SHA256.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;

use crate::process::top;

/// A series of kernels, and the suite of Debian that has its packages.
#[derive(Debug, PartialEq, Eq)]
pub struct Series {
    /// The first numbers of its versions.
    pub name: &'static str,
    /// The suite.
    pub suite: &'static str,
    /// The architectures it is tested on.
    pub arches: &'static [Arch],
    /// What is taken of the suite.
    pub packages: Packages,
}

/// Which packages a series consists of.
#[derive(Debug, PartialEq, Eq)]
pub enum Packages {
    /// Those of the kernel that is the newest by its version.
    OfKernel,
    /// Just these.
    Just(&'static [&'static str]),
    /// These, told in several lists, and all that they depend on.
    WithDependencies(&'static [&'static [&'static str]]),
}

/// What the matrix consists of.
pub const MATRIX: [Series; 5] = [
    Series {
        name: "5.10",
        suite: "bullseye-security",
        arches: &[Arch::X86_64],
        packages: Packages::OfKernel,
    },
    Series {
        name: "6.1",
        suite: "bookworm-security",
        arches: &[Arch::X86_64, Arch::Aarch64],
        packages: Packages::OfKernel,
    },
    Series {
        name: "6.12",
        suite: "bookworm-security",
        arches: &[Arch::X86_64],
        packages: Packages::OfKernel,
    },
    Series {
        name: "6.18",
        suite: "trixie-backports",
        arches: &[Arch::X86_64],
        packages: Packages::OfKernel,
    },
    Series {
        name: "7.3",
        suite: "trixie-backports",
        arches: &[Arch::X86_64, Arch::Aarch64],
        packages: Packages::OfKernel,
    },
];

/// The shell of guests of another architecture than this machine's.
pub const BUSYBOX: Series = Series {
    name: "busybox",
    suite: "trixie",
    arches: &[Arch::Aarch64],
    packages: Packages::Just(&["busybox-static"]),
};

/// What the bench in a guest compares with, and its libraries. Bookworm's reads a field that 6.12
/// does not have.
pub const BINDSNOOP: Series = Series {
    name: "bindsnoop",
    suite: "trixie",
    arches: &[Arch::X86_64],
    packages: Packages::Just(&["libbpf-tools", "libc6", "libelf1t64", "libzstd1", "zlib1g"]),
};

/// A system whose first process is systemd, with Docker.
const WITH_DOCKER: &[&str] = &[
    "base-files",
    "base-passwd",
    "busybox-static",
    "containerd",
    "coreutils",
    "dash",
    "dbus-user-session",
    "docker-cli",
    "docker.io",
    "findutils",
    "grep",
    "iproute2",
    "iptables",
    "kmod",
    "libpam-systemd",
    "mount",
    "nftables",
    "runc",
    "sed",
    "systemd-sysv",
    "tar",
    "util-linux",
];

/// What podman needs besides, and what its users do.
const WITH_PODMAN: &[&str] = &[
    "aardvark-dns",
    "catatonit",
    "crun",
    "netavark",
    "passt",
    "podman",
    "slirp4netns",
    "uidmap",
];

/// The system of the guest with systemd and container runtimes.
pub const SYSTEM: Series = Series {
    name: "system",
    suite: "trixie",
    arches: &[Arch::X86_64],
    packages: Packages::WithDependencies(&[WITH_DOCKER, WITH_PODMAN]),
};

/// The system of the guest with Docker 28, whose daemon binds published ports itself.
pub const DOCKER: Series = Series {
    name: "docker",
    suite: "forky",
    arches: &[Arch::X86_64],
    packages: Packages::WithDependencies(&[WITH_DOCKER]),
};

/// The series of the lock file.
pub fn all() -> impl Iterator<Item = &'static Series> {
    MATRIX
        .iter()
        .chain([&BUSYBOX, &BINDSNOOP, &SYSTEM, &DOCKER])
}

/// The series of a name.
pub fn series(name: &str) -> Result<&'static Series> {
    all()
        .find(|series| series.name == name)
        .with_context(|| format!("there is no series {name}"))
}

/// An architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Arch {
    /// As Rust calls it; Debian's amd64.
    #[value(name = "x86_64")]
    X86_64,
    /// As Rust calls it; Debian's arm64.
    #[value(name = "aarch64")]
    Aarch64,
}

impl Arch {
    /// The name it has in Rust and in qemu.
    pub fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    /// This machine's.
    pub fn here() -> Result<Self> {
        let known = Self::value_variants().iter();
        let mut here = known.copied().filter(|arch| arch.is_here());
        here.next()
            .with_context(|| format!("not known for {}", std::env::consts::ARCH))
    }

    /// Whether it is this machine's.
    pub fn is_here(self) -> bool {
        self.name() == std::env::consts::ARCH
    }

    /// The name it has in Debian.
    pub fn debian(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
        }
    }
}

/// A package, down to its last bit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its size in bytes.
    pub size: u64,
    /// The hash of its file, in hexadecimal.
    pub sha256: String,
}

/// The packages of one kernel of the matrix, or of what else a guest needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Its series.
    pub series: &'static str,
    /// Its architecture.
    pub arch: Arch,
    /// One package, or several where the kernel is split.
    pub packages: Vec<Package>,
}

impl Kernel {
    /// Whether it is one.
    pub fn is_kernel(&self) -> bool {
        MATRIX.iter().any(|series| series.name == self.series)
    }
}

fn path() -> PathBuf {
    top().join("xtask/vm/kernels.lock")
}

/// The kernels of the lock file.
pub fn read() -> Result<Vec<Kernel>> {
    let path = path();
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    parse(&text).with_context(|| path.display().to_string())
}

/// What is locked of a series for an architecture.
pub fn find(series: &str, arch: Arch) -> Result<Kernel> {
    let mut locked = read()?.into_iter();
    locked
        .find(|locked| locked.series == series && locked.arch == arch)
        .with_context(|| format!("no {series} for {} is locked", arch.name()))
}

/// Writes the lock file.
pub fn write(kernels: &[Kernel]) -> Result<()> {
    let path = path();
    fs::write(&path, print(kernels)).with_context(|| path.display().to_string())
}

fn parse(text: &str) -> Result<Vec<Kernel>> {
    let mut kernels: Vec<Kernel> = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let fields: Vec<_> = line.split_ascii_whitespace().collect();
        let [series, arch, name, version, size, sha256] = fields[..] else {
            bail!("{line:?} has not six columns");
        };
        let series = self::series(series).with_context(|| format!("{line:?}"))?;
        let arch = Arch::from_str(arch, false)
            .map_err(|_| anyhow::anyhow!("{line:?}: there is no architecture {arch}"))?;
        ensure!(
            sha256.len() == 64 && sha256.bytes().all(|digit| digit.is_ascii_hexdigit()),
            "{line:?}: {sha256} is no SHA256"
        );
        let package = Package {
            name: name.to_owned(),
            version: version.to_owned(),
            size: size.parse().with_context(|| format!("{line:?}: {size}"))?,
            sha256: sha256.to_owned(),
        };
        match kernels.last_mut() {
            Some(last) if last.series == series.name && last.arch == arch => {
                last.packages.push(package);
            }
            _ => kernels.push(Kernel {
                series: series.name,
                arch,
                packages: vec![package],
            }),
        }
    }
    Ok(kernels)
}

fn print(kernels: &[Kernel]) -> String {
    let mut text = "# Written by `cargo xtask vm --update-lock`: \
                    series, architecture, package, version, size, SHA256.\n"
        .to_owned();
    for kernel in kernels {
        for package in &kernel.packages {
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "{} {} {} {} {} {}",
                kernel.series,
                kernel.arch.name(),
                package.name,
                package.version,
                package.size,
                package.sha256
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{Arch, all, parse, print, read};

    #[test]
    fn what_is_written_is_read() {
        let sum = "5".repeat(64);
        let text = format!(
            "# a comment\n6.1 x86_64 linux-image 6.1.2-3 45 {sum}\n\
             7.3 aarch64 linux-binary 7.3-1 6 {sum}\n7.3 aarch64 linux-modules 7.3-1 7 {sum}\n"
        );
        let kernels = parse(&text).unwrap();
        assert_eq!(kernels.len(), 2);
        assert_eq!((kernels[1].series, kernels[1].arch), ("7.3", Arch::Aarch64));
        assert_eq!(kernels[1].packages[1].size, 7);
        assert_eq!(parse(&print(&kernels)).unwrap(), kernels);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let message = |text| format!("{:#}", parse(text).unwrap_err());
        assert!(message("6.1 x86_64 linux").contains("six columns"));
        assert!(message("0.9 x86_64 linux 1 2 3").contains("no series 0.9"));
        assert!(message("6.1 vax linux 1 2 3").contains("no architecture vax"));
        assert!(message("6.1 x86_64 linux 1 2 3").contains("3 is no SHA256"));
    }

    #[test]
    fn the_whole_matrix_is_locked() {
        let locked: Vec<_> = read()
            .unwrap()
            .iter()
            .map(|kernel| (kernel.series, kernel.arch))
            .collect();
        let matrix: Vec<_> = all()
            .flat_map(|series| series.arches.iter().map(|arch| (series.name, *arch)))
            .collect();
        assert_eq!(locked, matrix);
    }
}
