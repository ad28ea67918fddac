//! `cargo xtask build-ebpf`: the kernel side, built to the same bytes whatever
//! the folder.
//!
//! Three things of a machine would get into the object: the folders in the
//! line information of its BTF (renamed by `--remap-path-prefix`), the hash of
//! folders in function names (see [`crate::rustc`]), and the architecture of
//! the machine, which aya-ebpf takes for that of the kernel traced.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::process::{run, run_silently, say, top};
use crate::rustc;
use crate::shape::Shape;
use crate::stamp::{Inputs, Stamp, Tools, sha256};
use crate::toolchain::{Choice, Linker, Rust};

/// The target of the kernel side.
pub const TARGET: &str = "bpfel-unknown-none";
/// The architecture of the kernels that the object is for: it decides how
/// aya-ebpf reads registers.
const KERNEL_ARCH: &str = "x86_64";
/// The object in git.
const OBJECT: &str = "portwatch/bpf/portwatch.bpf.o";
/// Its stamp.
const STAMP: &str = "portwatch/bpf/portwatch.bpf.stamp";
/// What makes both.
const REMEDY: &str = "run `cargo xtask build-ebpf` and commit portwatch/bpf";

/// The arguments of `cargo xtask build-ebpf`.
#[derive(clap::Args)]
pub struct Args {
    /// Build anew and hold the result against the object in git, which stays as it is
    #[arg(long)]
    check: bool,
    /// Build with these features of the kernel side, for development: the object in git stays as it is
    #[arg(long, value_name = "FEATURES", conflicts_with = "check")]
    features: Option<String>,
    /// The Rust to build with
    #[arg(long, value_enum, default_value_t = Choice::Auto)]
    toolchain: Choice,
}

/// Builds the kernel side.
pub fn build(args: &Args) -> Result<()> {
    let top = top();
    if args.check {
        return check(&top, args.toolchain);
    }
    let builder = Builder::find(&top, args.toolchain)?;
    if let Some(features) = &args.features {
        let target = builder.folder().join("target");
        let object = target.join("portwatch-features.bpf.o");
        fs::write(&object, builder.build(&target, Some(features))?)
            .with_context(|| object.display().to_string())?;
        say(&format!("with features {features}: {}", object.display()));
        return Ok(());
    }
    // Read before the build: a file edited meanwhile must not be vouched for.
    let inputs = Inputs::read(&top)?;
    let bytes = builder.build(&builder.folder().join("target"), None)?;
    ensure!(
        inputs == Inputs::read(&top)?,
        "the sources changed during the build; try again"
    );
    let stamp = Stamp {
        tools: builder.tools(),
        object: sha256(&bytes),
        inputs,
    };
    write(&top.join(OBJECT), &bytes)?;
    write(&top.join(STAMP), stamp.to_string().as_bytes())?;
    say(&summary(&bytes, &stamp.tools)?);
    Ok(())
}

/// Holds the object in git against its stamp, its sources, and what they build.
fn check(top: &Path, choice: Choice) -> Result<()> {
    let stamp =
        fs::read_to_string(top.join(STAMP)).with_context(|| format!("{STAMP}; {REMEDY}"))?;
    let stamp = Stamp::parse(&stamp).with_context(|| format!("{STAMP}; {REMEDY}"))?;
    let committed = fs::read(top.join(OBJECT)).with_context(|| format!("{OBJECT}; {REMEDY}"))?;
    let changes = stamp.inputs.changes(&Inputs::read(top)?);
    ensure!(
        changes.is_empty(),
        "{OBJECT} is not of these sources; {REMEDY}\n  {}",
        changes.join("\n  ")
    );
    ensure!(
        sha256(&committed) == stamp.object,
        "{OBJECT} is not the one that its stamp is of; {REMEDY}"
    );

    let builder = Builder::find(top, choice)?;
    // From nothing, since cargo does not see when the linker changes.
    let target = builder.folder().join("target/check");
    if target.exists() {
        fs::remove_dir_all(&target).with_context(|| target.display().to_string())?;
    }
    let rebuilt = builder.build(&target, None)?;
    let differences = Shape::read(&committed)?.differences(&Shape::read(&rebuilt)?);
    let tools = builder.tools();
    if tools != stamp.tools {
        say(
            "WARNING: the toolchain here is not the one in the stamp, so the bytes CANNOT be compared;",
        );
        say(&format!(
            "WARNING:   in the stamp: {}",
            described(&stamp.tools)
        ));
        say(&format!("WARNING:   here:         {}", described(&tools)));
        say("WARNING: compared instead: the names of sections, programs, maps and globals");
    } else if rebuilt != committed {
        let kept = target.join("portwatch.bpf.o");
        fs::write(&kept, &rebuilt).with_context(|| kept.display().to_string())?;
        bail!(
            "{OBJECT} is not what its sources build: first difference at byte {}; rebuilt: {}{}",
            first_difference(&committed, &rebuilt),
            kept.display(),
            listed(&differences)
        );
    }
    ensure!(
        differences.is_empty(),
        "{OBJECT} has other parts than what its sources build; {REMEDY}{}",
        listed(&differences)
    );
    let verdict = if tools == stamp.tools {
        "rebuilt to the same bytes"
    } else {
        "rebuilt to the same parts"
    };
    say(&format!(
        "{verdict}: {}",
        summary(&committed, &stamp.tools)?
    ));
    Ok(())
}

/// Cargo for the kernel side, with what every use of it needs.
fn cargo(top: &Path, rust: &Rust, subcommand: &str) -> Command {
    command_of(Command::new(&rust.cargo), top, rust, subcommand)
}

/// The same for clippy, where this Rust comes with it. It is started past
/// cargo, which would take the first `cargo-clippy` it finds, of any Rust.
pub fn clippy(top: &Path, rust: &Rust) -> Option<Command> {
    let clippy = rust.cargo.with_file_name("cargo-clippy");
    clippy.is_file().then(|| {
        let mut command = command_of(Command::new(clippy), top, rust, "clippy");
        command.env("CARGO", &rust.cargo);
        command
    })
}

fn command_of(mut command: Command, top: &Path, rust: &Rust, subcommand: &str) -> Command {
    command
        .args([subcommand, "--quiet", "--release", "--locked"])
        .args(["-Z", "build-std=core", "--target", TARGET])
        .current_dir(top.join("portwatch-ebpf"))
        .env("RUSTC", &rust.rustc)
        // For build-std, which is not stable; the compiler is.
        .env("RUSTC_BOOTSTRAP", "1")
        // It would split the crates differently.
        .env("CARGO_INCREMENTAL", "0")
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER");
    command
}

/// The flag that tells aya-ebpf the architecture of the kernel traced.
pub fn arch_flag() -> OsString {
    OsString::from(format!("--cfg=bpf_target_arch=\"{KERNEL_ARCH}\""))
}

/// Flags for rustc as cargo takes them from CARGO_ENCODED_RUSTFLAGS, which
/// leaves spaces in paths alone.
pub fn encoded(flags: &[OsString]) -> OsString {
    flags.join(OsStr::new("\u{1f}"))
}

struct Builder {
    top: PathBuf,
    rust: Rust,
    linker: Linker,
}

impl Builder {
    fn find(top: &Path, choice: Choice) -> Result<Self> {
        let rust = Rust::find(choice)?;
        let linker = Linker::find(&rust)?;
        Ok(Self {
            top: top.to_path_buf(),
            rust,
            linker,
        })
    }

    fn folder(&self) -> PathBuf {
        self.top.join("portwatch-ebpf")
    }

    fn tools(&self) -> Tools {
        Tools {
            rustc: self.rust.version.clone(),
            bpf_linker: self.linker.version.clone(),
            llvm: self.linker.llvm_version.clone(),
        }
    }

    /// Builds in the target folder given and returns the object's bytes.
    fn build(&self, target: &Path, features: Option<&str>) -> Result<Vec<u8>> {
        // The folders of crates can be listed only once they are there.
        let mut fetch = Command::new(&self.rust.cargo);
        fetch
            .args(["fetch", "--quiet", "--locked"])
            .env("RUSTC", &self.rust.rustc)
            .current_dir(self.folder());
        run(&mut fetch)?;

        let folders = self.folders()?;
        let mut flags: Vec<OsString> = vec![
            "-Clink-arg=--btf".into(),
            "-Cdebuginfo=2".into(),
            arch_flag(),
        ];
        flags.extend(folders.iter().map(Renamed::flag));

        let mut command = cargo(&self.top, &self.rust, "build");
        command.arg("--target-dir").arg(target);
        if let Some(features) = features {
            command.args(["--features", features]);
        }
        command
            .env("CARGO_ENCODED_RUSTFLAGS", encoded(&flags))
            .env("PATH", path_after(&self.linker.folder)?);
        rustc::wrap_in(&mut command)?;
        say("building the kernel side");
        run(&mut command)?;

        let built = target.join(TARGET).join("release/portwatch");
        let stripped = target.join("portwatch.bpf.o");
        // Takes the DWARF, which the BTF was made from; the BTF stays.
        run_silently(
            Command::new(&self.linker.objcopy)
                .arg("--strip-debug")
                .args([&built, &stripped]),
        )?;
        let bytes = fs::read(&stripped).with_context(|| stripped.display().to_string())?;
        verify(&bytes, &folders)?;
        Ok(bytes)
    }

    /// The folders of this machine that sources lie in, the general before the
    /// special: of two that fit rustc takes the later.
    fn folders(&self) -> Result<Vec<Renamed>> {
        let home = cargo_home()?;
        let mut folders = vec![
            Renamed::new(&home, "/@cargo"),
            Renamed::new(&self.rust.sysroot, "/@sysroot"),
            Renamed::new(&self.rust.source(), "/@rust"),
            Renamed::new(&self.top, "/@portwatch"),
        ];
        // A folder for each registry, named after the server the crates came
        // from, which may be a mirror.
        let registries = home.join("registry/src");
        if let Ok(entries) = fs::read_dir(&registries) {
            for entry in entries {
                let folder = entry
                    .with_context(|| registries.display().to_string())?
                    .path();
                folders.push(Renamed::new(&folder, "/@crates"));
            }
        }
        // The same folders as they are without symbolic links.
        let real: Vec<Renamed> = folders
            .iter()
            .filter_map(|folder| {
                let real = folder.path.canonicalize().ok()?;
                (real != folder.path).then(|| Renamed::new(&real, folder.name))
            })
            .collect();
        folders.extend(real);
        Ok(folders)
    }
}

/// A folder of this machine, and what it is called in the object.
///
/// No machine has a folder of such a name: LLVM would copy the sources that it
/// finds there into the BTF.
#[derive(Debug)]
struct Renamed {
    path: PathBuf,
    name: &'static str,
}

impl Renamed {
    fn new(path: &Path, name: &'static str) -> Self {
        Self {
            path: path.to_path_buf(),
            name,
        }
    }

    fn flag(&self) -> OsString {
        let mut flag = OsString::from("--remap-path-prefix=");
        flag.push(&self.path);
        flag.push("=");
        flag.push(self.name);
        flag
    }
}

/// Refuses an object that has lost its BTF, still has DWARF, or tells where it
/// was built.
fn verify(bytes: &[u8], folders: &[Renamed]) -> Result<()> {
    let shape = Shape::read(bytes)?;
    for section in [".BTF", ".BTF.ext"] {
        ensure!(shape.has_section(section), "the object has no {section}");
    }
    ensure!(
        !shape.has_section(".debug_info"),
        "the object still has DWARF"
    );
    ensure!(shape.programs() > 0, "the object has no program");
    let homes = env::home_dir().into_iter();
    for folder in folders
        .iter()
        .map(|folder| folder.path.clone())
        .chain(homes)
    {
        ensure!(
            !mentions(bytes, &folder),
            "the object mentions {}, so it would differ from machine to machine",
            folder.display()
        );
    }
    Ok(())
}

/// Whether a path below `folder` stands in the bytes.
fn mentions(bytes: &[u8], folder: &Path) -> bool {
    let mut prefix = folder.as_os_str().as_encoded_bytes().to_vec();
    prefix.push(b'/');
    // Of a path that merely ends alike, what is before the slash goes on.
    bytes
        .windows(prefix.len())
        .enumerate()
        .any(|(start, window)| window == prefix && (start == 0 || !is_in_path(bytes[start - 1])))
}

fn is_in_path(byte: u8) -> bool {
    byte.is_ascii_graphic()
}

fn cargo_home() -> Result<PathBuf> {
    if let Some(home) = env::var_os("CARGO_HOME") {
        return Ok(PathBuf::from(home));
    }
    let home = env::home_dir().context("neither CARGO_HOME nor HOME is set")?;
    Ok(home.join(".cargo"))
}

fn path_after(folder: &Path) -> Result<OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(folder.to_path_buf()).chain(env::split_paths(&path));
    env::join_paths(folders).with_context(|| format!("{} cannot stand in PATH", folder.display()))
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    fs::write(path, bytes).with_context(|| path.display().to_string())
}

fn summary(bytes: &[u8], tools: &Tools) -> Result<String> {
    let shape = Shape::read(bytes)?;
    Ok(format!(
        "{OBJECT}: {} programs, {} maps, {} bytes, by {}",
        shape.programs(),
        shape.maps(),
        bytes.len(),
        described(tools)
    ))
}

fn described(tools: &Tools) -> String {
    format!(
        "rustc {}, bpf-linker {}, LLVM {}",
        tools.rustc, tools.bpf_linker, tools.llvm
    )
}

fn listed(lines: &[String]) -> String {
    lines.iter().map(|line| format!("\n  {line}")).collect()
}

fn first_difference(one: &[u8], other: &[u8]) -> usize {
    one.iter()
        .zip(other)
        .position(|(a, b)| a != b)
        .unwrap_or(one.len().min(other.len()))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Renamed, encoded, first_difference, mentions};

    #[test]
    fn a_folder_is_mentioned_where_a_path_below_it_stands() {
        let root = Path::new("/home/me");
        assert!(mentions(b"x\0/home/me/a.rs\0", root));
        assert!(mentions(b"/home/me/", root));
        assert!(!mentions(b"\0/home/meow/a.rs\0", root));
        assert!(!mentions(b"\0/@portwatch/home/me/a.rs\0", root));
        assert!(!mentions(b"", root));
    }

    #[test]
    fn flags_survive_spaces() {
        let folder = Renamed::new(Path::new("/a b"), "/@c");
        let flags = encoded(&["-Cdebuginfo=2".into(), folder.flag()]);
        assert_eq!(flags, "-Cdebuginfo=2\u{1f}--remap-path-prefix=/a b=/@c");
    }

    #[test]
    fn the_first_difference_may_be_an_end() {
        assert_eq!(first_difference(b"abc", b"abd"), 2);
        assert_eq!(first_difference(b"ab", b"abd"), 2);
        assert_eq!(first_difference(b"", b"a"), 0);
    }
}
