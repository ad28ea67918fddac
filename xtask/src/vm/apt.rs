//! Debian's archive, through an apt of its own: other suites and other
//! architectures than this machine's, whose own lists stay as they are.

use std::cmp::Ordering;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::lock::{Arch, Kernel, Package, Packages, Series};
use crate::process::{capture, run_silently, say};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// An apt for one suite and one architecture, with its lists updated.
pub struct Apt {
    root: PathBuf,
    arch: Arch,
    available: Vec<(String, Package)>,
}

impl Apt {
    /// Sets it up below `cache` and updates its lists.
    pub fn new(cache: &Path, suite: &str, arch: Arch) -> Result<Self> {
        let root = cache.join("apt").join(suite).join(arch.name());
        for folder in ["state/lists/partial", "cache/archives/partial", "etc"] {
            fs::create_dir_all(root.join(folder)).context("making the folders of apt")?;
        }
        fs::write(root.join("state/status"), "")?;
        fs::write(root.join("etc/sources.list"), source(suite)?)?;
        let place = root.display();
        // What is taken is told by its hash, so lists may be old: some suites are not signed again.
        let configuration = format!(
            "Dir::State \"{place}/state\";\n\
             Dir::State::status \"{place}/state/status\";\n\
             Dir::Cache \"{place}/cache\";\n\
             Dir::Etc::sourcelist \"{place}/etc/sources.list\";\n\
             Dir::Etc::sourceparts \"-\";\n\
             Dir::Etc::preferencesparts \"-\";\n\
             APT::Architecture \"{0}\";\n\
             APT::Architectures {{ \"{0}\"; }};\n\
             Acquire::Languages \"none\";\n\
             Acquire::Check-Valid-Until \"false\";\n",
            arch.debian()
        );
        fs::write(root.join("apt.conf"), configuration)?;
        let mut apt = Self {
            root,
            arch,
            available: Vec::new(),
        };
        say(&format!(
            "apt-get update, of {suite} for the guests with {}",
            arch.name()
        ));
        run_silently(apt.command("apt-get").args(["update", "-qq"]))?;
        apt.available = parse(&capture(apt.command("apt-cache").arg("dumpavail"))?)?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", self.root.join("apt.conf"));
        command
    }

    /// The newest kernel of a series, or of what is no kernel.
    pub fn newest(&self, series: &Series) -> Result<Kernel> {
        let packages = match series.packages {
            Packages::OfKernel => self.newest_kernel(series)?,
            Packages::Just(names) => names
                .iter()
                .map(|name| self.newest_of(name))
                .collect::<Result<_>>()?,
            Packages::WithDependencies(lists) => self.with_dependencies(&lists.concat())?,
        };
        Ok(Kernel {
            series: series.name,
            arch: self.arch,
            packages,
        })
    }

    fn newest_kernel(&self, series: &Series) -> Result<Vec<Package>> {
        let suffix = format!("-cloud-{}", self.arch.debian());
        let mut newest: Option<(&str, &Package)> = None;
        for (name, package) in &self.available {
            let release = name
                .strip_prefix("linux-image-")
                .and_then(|rest| rest.strip_suffix(&*suffix))
                .filter(|release| release.starts_with(&format!("{}.", series.name)));
            if let Some(release) = release
                && newest.is_none_or(|(_, other)| {
                    compare(&package.version, &other.version) == Ordering::Greater
                })
            {
                newest = Some((release, package));
            }
        }
        let (release, image) = newest.with_context(|| {
            format!(
                "no kernel {} for {} in {}",
                series.name,
                self.arch.debian(),
                series.suite
            )
        })?;
        let named = |kind: &str| {
            let wanted = format!("linux-{kind}-{release}{suffix}");
            let found = self.available.iter().find(|(name, _)| *name == wanted);
            found.map(|(_, package)| package.clone())
        };
        // Some kernels are split in two, and their image is an empty package.
        Ok(match (named("binary"), named("modules")) {
            (Some(binary), Some(modules)) => vec![binary, modules],
            _ => vec![image.clone()],
        })
    }

    /// Packages and what they depend on, as apt would install them into an empty system.
    fn with_dependencies(&self, names: &[&str]) -> Result<Vec<Package>> {
        let simulated = capture(
            self.command("apt-get")
                .args(["install", "--simulate", "--no-install-recommends"])
                .args(names),
        )?;
        let chosen = simulated.lines().filter_map(installed);
        chosen
            .map(|(name, version)| {
                let is = |(known, package): &&(String, Package)| {
                    known == name && package.version == version
                };
                let found = self.available.iter().find(is);
                let (_, package) =
                    found.with_context(|| format!("apt does not tell of {name} {version}"))?;
                Ok(package.clone())
            })
            .collect()
    }

    fn newest_of(&self, wanted: &str) -> Result<Package> {
        let all = self.available.iter().filter(|(name, _)| name == wanted);
        let newest = all.max_by(|(_, one), (_, other)| compare(&one.version, &other.version));
        let (_, package) = newest.with_context(|| format!("there is no package {wanted}"))?;
        Ok(package.clone())
    }

    /// Downloads packages into a folder.
    pub fn download(&self, packages: &[&Package], folder: &Path) -> Result<()> {
        let wanted = packages
            .iter()
            .map(|package| format!("{}={}", package.name, package.version));
        let wanted: Vec<_> = wanted.collect();
        let size: u64 = packages.iter().map(|package| package.size).sum();
        let what = match &wanted[..] {
            [one] => one.clone(),
            several => format!("of {} packages", several.len()),
        };
        say(&format!("apt-get download {what} ({} MB)", size >> 20));
        run_silently(
            self.command("apt-get")
                .args(["download", "-qq"])
                .args(&wanted)
                .current_dir(folder),
        )
    }
}

/// The source of a suite, from the mirror that this machine uses for Debian.
fn source(suite: &str) -> Result<String> {
    ensure!(
        Path::new(KEYRING).exists(),
        "the kernels come from Debian, and there is no {KEYRING}"
    );
    let targets = capture(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(LABEL) $(REPO_URI)",
        "Created-By: Packages",
    ]))?;
    let label = if suite.ends_with("-security") {
        "Debian-Security"
    } else {
        "Debian"
    };
    let of_label = |line: &str| {
        let (found, uri) = line.split_once(' ')?;
        (found == label).then(|| uri.to_owned())
    };
    let mirror = targets.lines().find_map(of_label).with_context(|| {
        format!(
            "this machine's apt has no source of {label} whose lists are there (apt-get update)"
        )
    })?;
    Ok(format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n"))
}

/// The packages of a list, with their names.
fn parse(list: &str) -> Result<Vec<(String, Package)>> {
    let mut packages = Vec::new();
    for stanza in list.split("\n\n").filter(|stanza| !stanza.is_empty()) {
        let field = |name: &str| {
            stanza.lines().find_map(|line| {
                let (key, value) = line.split_once(": ")?;
                (key == name).then_some(value)
            })
        };
        let (Some(name), Some(version), Some(size), Some(sha256)) = (
            field("Package"),
            field("Version"),
            field("Size"),
            field("SHA256"),
        ) else {
            bail!("a package without its name, version, size or hash:\n{stanza}");
        };
        let package = Package {
            name: name.to_owned(),
            version: version.to_owned(),
            size: size.parse()?,
            sha256: sha256.to_owned(),
        };
        packages.push((name.to_owned(), package));
    }
    Ok(packages)
}

/// The package and version in a line of a simulation: `Inst dash (0.5.12-12 Debian:13/stable [amd64])`.
fn installed(line: &str) -> Option<(&str, &str)> {
    let (name, rest) = line.strip_prefix("Inst ")?.split_once(" (")?;
    Some((name, rest.split_once(' ')?.0))
}

/// Compares two versions as Debian does.
fn compare(left: &str, right: &str) -> Ordering {
    let is = |relation: &str| {
        run_silently(Command::new("dpkg").args(["--compare-versions", left, relation, right]))
            .is_ok()
    };
    if is("lt") {
        Ordering::Less
    } else if is("gt") {
        Ordering::Greater
    } else {
        Ordering::Equal
    }
}

#[cfg(test)]
mod tests {
    use super::{installed, parse};

    #[test]
    fn what_apt_would_install_is_read() {
        let line = "Inst base-files (13.8+deb13u7 Debian:13.7/stable [amd64]) []";
        assert_eq!(installed(line), Some(("base-files", "13.8+deb13u7")));
        let other = "Conf base-files (13.8+deb13u7 Debian:13.7/stable [amd64])";
        assert_eq!(installed(other), None);
    }

    #[test]
    fn a_list_is_read() {
        let list = "Package: a\nVersion: 1:2-3\nSize: 45\nSHA256: 67\nDescription: x\n  y: z\n\n\
                    Package: b\nVersion: 1\nSize: 2\nSHA256: 3\n\n";
        let packages = parse(list).unwrap();
        assert_eq!(packages.len(), 2);
        assert_eq!(packages[0].0, "a");
        assert_eq!(packages[0].1.version, "1:2-3");
        assert_eq!(packages[0].1.size, 45);
        assert!(parse("Package: a\n\n").is_err());
    }
}
