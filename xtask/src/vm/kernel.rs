//! A kernel and its modules, unpacked from Debian's packages and kept by their
//! hashes: with a filled cache no network is needed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use object::{Object as _, ObjectSection as _};
use sha2::{Digest as _, Sha256};

use super::apt::Apt;
use super::lock::{self, Arch, BUSYBOX, Kernel, Package, Series};
use crate::package::{Provided, provide};
use crate::process::{find_program, run_silently};

/// The modules that the scenarios can use; those that a kernel has built in, or
/// does not have at all, are left out.
const WANTED: [&str; 10] = [
    "veth",
    "bridge",
    "dummy",
    "tun",
    "sctp",
    "inet_diag",
    "tcp_diag",
    "udp_diag",
    "mptcp_diag",
    "unix_diag",
];

/// A kernel ready to be started.
pub struct Unpacked {
    /// Its series and architecture.
    pub kernel: Kernel,
    /// Its image.
    pub image: PathBuf,
    /// Its modules, in the order in which they go in.
    pub modules: Vec<PathBuf>,
}

/// Where kernels are kept, with the apts they come from once these are needed.
pub struct Store {
    cache: PathBuf,
    /// By suite and architecture.
    apts: BTreeMap<(&'static str, &'static str), Apt>,
    warnings: Vec<String>,
}

impl Store {
    /// The store of this user.
    pub fn new() -> Result<Self> {
        let base = std::env::var_os("XDG_CACHE_HOME")
            .filter(|path| !path.is_empty())
            .map(PathBuf::from)
            .or_else(|| Some(std::env::home_dir()?.join(".cache")))
            .context("neither XDG_CACHE_HOME nor HOME is set")?;
        let cache = base.join("portwatch/kernels");
        fs::create_dir_all(&cache).with_context(|| cache.display().to_string())?;
        Ok(Self {
            cache,
            apts: BTreeMap::new(),
            warnings: Vec::new(),
        })
    }

    /// What has to be told again at the end.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The newest kernels of the whole matrix.
    pub fn newest(&mut self) -> Result<Vec<Kernel>> {
        let mut kernels = Vec::new();
        for series in lock::all() {
            for arch in series.arches {
                kernels.push(self.apt(series, *arch)?.newest(series)?);
            }
        }
        Ok(kernels)
    }

    /// A busybox for guests: this machine's own, or the locked one of their architecture.
    pub fn busybox(&mut self, arch: Arch) -> Result<PathBuf> {
        if arch.is_here() {
            provide(&[Provided {
                program: "busybox",
                package: "busybox-static",
            }])?;
            return find_program("busybox").context("there is no busybox");
        }
        Ok(self.files(&BUSYBOX, arch)?.join("usr/bin/busybox"))
    }

    /// The folder with the files of what is no kernel.
    pub fn files(&mut self, series: &Series, arch: Arch) -> Result<PathBuf> {
        let archives = self.archives(series.name, arch)?;
        let first = archives[0].file_stem().unwrap_or_default();
        let folder = format!("{}-{}", series.name, first.to_string_lossy());
        let folder = self.cache.join(folder);
        for archive in archives {
            run_silently(Command::new("dpkg-deb").arg("-x").arg(archive).arg(&folder))?;
        }
        Ok(folder)
    }

    /// The files of the packages that are locked for a series: their names are their hashes.
    pub fn archives(&mut self, series: &str, arch: Arch) -> Result<Vec<PathBuf>> {
        let locked = lock::find(series, arch)?;
        let available = self.available(&locked)?;
        let files = available.packages.iter().map(|package| self.file(package));
        Ok(files.collect())
    }

    /// Where something of this name is kept that was made of what is locked.
    pub fn kept(&self, name: &str) -> PathBuf {
        self.cache.join(name)
    }

    /// The locked kernel, or where it has left the archive the newest of its series.
    pub fn get(&mut self, locked: &Kernel) -> Result<Unpacked> {
        let kernel = self.available(locked)?;
        self.unpack(&kernel)
    }

    /// What is locked, or else the newest of its series, with its files fetched.
    fn available(&mut self, locked: &Kernel) -> Result<Kernel> {
        let Err(error) = self.fetch(locked) else {
            return Ok(locked.clone());
        };
        let series = lock::series(locked.series)?;
        let kernel = self.apt(series, locked.arch)?.newest(series)?;
        if kernel == *locked {
            return Err(error);
        }
        self.fetch(&kernel)?;
        self.warnings.push(format!(
            "WARNING: NOT THE LOCKED PACKAGE: {} {} instead of {} of {} ({error:#}); \
             to lock what there is now: cargo xtask vm --update-lock",
            kernel.packages[0].name,
            kernel.packages[0].version,
            locked.packages[0].version,
            locked.series,
        ));
        Ok(kernel)
    }

    fn apt(&mut self, series: &Series, arch: Arch) -> Result<&Apt> {
        let key = (series.suite, arch.name());
        if !self.apts.contains_key(&key) {
            let apt = Apt::new(&self.cache, series.suite, arch)?;
            self.apts.insert(key, apt);
        }
        self.apts.get(&key).context("no apt")
    }

    fn file(&self, package: &Package) -> PathBuf {
        self.cache.join(format!("{}.deb", package.sha256))
    }

    /// Sees to it that all files of a kernel are there.
    fn fetch(&mut self, kernel: &Kernel) -> Result<()> {
        let missing = |package: &&Package| !self.file(package).exists();
        let missing: Vec<_> = kernel.packages.iter().filter(missing).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let folder = self.cache.join("download");
        // What an interrupted run has left there.
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder)?;
        let series = lock::series(kernel.series)?;
        self.apt(series, kernel.arch)?.download(&missing, &folder)?;
        for file in files_below(&folder)? {
            let sum = hexadecimal(&fs::read(&file)?);
            let package = missing.iter().find(|package| package.sha256 == sum);
            let package = package
                .with_context(|| format!("{} has the SHA256 {sum}", file.display()))
                .context("not what is locked was downloaded")?;
            let kept = self.file(package);
            fs::rename(&file, &kept).with_context(|| kept.display().to_string())?;
        }
        let lost = missing.iter().find(|package| !self.file(package).exists());
        ensure!(lost.is_none(), "apt-get left no file of {lost:?}");
        Ok(())
    }

    /// Unpacks the image and the modules, unless that was done before.
    fn unpack(&self, kernel: &Kernel) -> Result<Unpacked> {
        let mut key = WANTED.concat();
        for package in &kernel.packages {
            key += &package.sha256;
        }
        let key = hexadecimal(key.as_bytes());
        let name = format!("{}-{}-{}", kernel.series, kernel.arch.name(), &key[..16]);
        let kept = self.cache.join(&name);
        if !kept.exists() {
            let folder = self.cache.join("unpacking");
            let _ = fs::remove_dir_all(&folder);
            let (all, wanted) = (folder.join("all"), folder.join("wanted"));
            fs::create_dir_all(&wanted)?;
            for package in &kernel.packages {
                run_silently(
                    Command::new("dpkg-deb")
                        .arg("-x")
                        .arg(self.file(package))
                        .arg(&all),
                )?;
            }
            keep(&all, &wanted).with_context(|| name.clone())?;
            fs::rename(&wanted, &kept).with_context(|| kept.display().to_string())?;
            fs::remove_dir_all(&folder)?;
        }
        let order = fs::read_to_string(kept.join("order"))?;
        Ok(Unpacked {
            kernel: kernel.clone(),
            image: kept.join("vmlinuz"),
            modules: order.lines().map(|file| kept.join(file)).collect(),
        })
    }
}

/// The SHA256 of bytes, in hexadecimal.
pub fn hexadecimal(bytes: &[u8]) -> String {
    use std::fmt::Write as _;

    let mut text = String::new();
    for byte in Sha256::digest(bytes) {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// Copies what is wanted of a kernel's files, and writes down the modules' order.
fn keep(all: &Path, wanted: &Path) -> Result<()> {
    let mut image = None;
    let mut files = BTreeMap::new();
    for file in files_below(all)? {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        if name == "vmlinuz" || name.starts_with("vmlinuz-") {
            image = Some(file);
        } else if let Some((module, "ko" | "ko.xz")) = name.split_once('.') {
            // Names and dependencies are spelled either way.
            files.insert(module.replace('-', "_"), file);
        }
    }
    let image = image.context("there is no vmlinuz in its packages")?;
    fs::copy(image, wanted.join("vmlinuz"))?;
    let mut modules = Modules {
        files,
        order: Vec::new(),
    };
    for name in WANTED {
        modules.add(name, wanted)?;
    }
    fs::write(wanted.join("order"), modules.order.join("\n"))?;
    Ok(())
}

fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                files.push(entry.path());
            }
        }
    }
    Ok(files)
}

/// The modules of a kernel, and those that have been taken.
struct Modules {
    files: BTreeMap<String, PathBuf>,
    order: Vec<String>,
}

impl Modules {
    /// Takes a module, behind those that it depends on.
    fn add(&mut self, name: &str, into: &Path) -> Result<()> {
        let file = format!("{name}.ko");
        let Some(packed) = self.files.get(name) else {
            return Ok(());
        };
        if self.order.contains(&file) {
            return Ok(());
        }
        let packed = packed.clone();
        let module = into.join(&file);
        if packed.extension().is_some_and(|end| end == "xz") {
            let copy = module.with_extension("ko.xz");
            fs::copy(&packed, &copy)?;
            run_silently(Command::new("xz").args(["-d", "-q"]).arg(&copy))?;
        } else {
            fs::copy(&packed, &module)?;
        }
        let bytes = fs::read(&module)?;
        for needed in depends(&bytes).with_context(|| file.clone())? {
            self.add(&needed, into)?;
        }
        self.order.push(file);
        Ok(())
    }
}

/// The modules that one depends on: `depends=a,b` among the strings of its section `.modinfo`.
fn depends(module: &[u8]) -> Result<Vec<String>> {
    let file = object::File::parse(module).context("it is no ELF file")?;
    let section = file
        .section_by_name(".modinfo")
        .context("it has no .modinfo")?;
    let strings = String::from_utf8_lossy(section.data()?).into_owned();
    let depends = strings
        .split('\0')
        .find_map(|string| string.strip_prefix("depends="))
        .unwrap_or_default();
    let names = depends.split(',').filter(|name| !name.is_empty());
    Ok(names.map(|name| name.replace('-', "_")).collect())
}
