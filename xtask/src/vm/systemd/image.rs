//! The root file system of the guest: a tree of Debian's packages, kept as an
//! image by what it was made of.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::package::{Provided, provide};
use crate::process::{run_silently, say};
use crate::vm::kernel::{Store, hexadecimal};
use crate::vm::lock::Arch;

const SCRIPT: &str = include_str!("image.sh");
const PROGRAMS: &[Provided] = &[
    Provided {
        program: "fakeroot",
        package: "fakeroot",
    },
    Provided {
        program: "depmod",
        package: "kmod",
    },
    Provided {
        program: "mkfs.ext4",
        package: "e2fsprogs",
    },
];

/// The image of a system with the modules of a kernel, made unless that was done before.
pub fn get(store: &mut Store, system: &str, kernel: &str) -> Result<PathBuf> {
    let mut archives = store.archives(system, Arch::X86_64)?;
    archives.extend(store.archives(kernel, Arch::X86_64)?);

    let names: Vec<_> = archives.iter().map(|file| file.to_string_lossy()).collect();
    let list = names.join("\n");
    let key = hexadecimal(format!("{SCRIPT}{list}").as_bytes());
    let kept = store.kept(&format!("{system}-{}.image", &key[..16]));
    if !kept.exists() {
        make(&list, &store.kept("making"), &kept)?;
        forget_others(&kept, system)?;
    }
    Ok(kept)
}

/// Makes it of these archives, a line each, in a folder of its own.
fn make(archives: &str, folder: &Path, image: &Path) -> Result<()> {
    provide(PROGRAMS)?;
    say("making the file system of the guest with systemd");
    // What an interrupted run has left there.
    let _ = fs::remove_dir_all(folder);
    fs::create_dir_all(folder)?;
    fs::write(folder.join("archives"), format!("{archives}\n"))?;
    fs::write(folder.join("image.sh"), SCRIPT)?;
    let mut command = Command::new("fakeroot");
    run_silently(command.args(["sh", "image.sh"]).current_dir(folder))?;
    fs::rename(folder.join("image"), image).with_context(|| image.display().to_string())?;
    fs::remove_dir_all(folder).with_context(|| folder.display().to_string())
}

/// Takes away what was made of other packages of a system, or by another script.
fn forget_others(image: &Path, system: &str) -> Result<()> {
    let folder = image.parent().context("the image lies in no folder")?;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let of_system = name.starts_with(&format!("{system}-")) && name.ends_with(".image");
        if path != image && of_system {
            fs::remove_file(&path).with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}
