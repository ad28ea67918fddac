//! The stamp beside the built kernel side: what it was built from, and with.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

/// The files and folders that make the kernel side.
const INPUTS: &[&str] = &[
    "portwatch-common/Cargo.toml",
    "portwatch-common/src",
    "portwatch-ebpf/Cargo.lock",
    "portwatch-ebpf/Cargo.toml",
    "portwatch-ebpf/src",
];

/// The programs that made an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tools {
    /// rustc's version, commit and date.
    pub rustc: String,
    /// bpf-linker's version.
    pub bpf_linker: String,
    /// The version of the LLVM that bpf-linker uses.
    pub llvm: String,
}

/// What an object was built from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inputs(BTreeMap<String, String>);

/// The stamp of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// What it was built with.
    pub tools: Tools,
    /// The object's SHA-256.
    pub object: String,
    /// What it was built from.
    pub inputs: Inputs,
}

/// The SHA-256 of some bytes, in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    use fmt::Write as _;
    Sha256::digest(bytes)
        .iter()
        .fold(String::new(), |mut text, byte| {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}

impl Inputs {
    /// Reads those of a checkout.
    pub fn read(top: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        for input in INPUTS {
            collect(top, Path::new(input), &mut files)?;
        }
        Ok(Self(files))
    }

    /// One hash for all.
    fn combined(&self) -> String {
        let lines: String = self
            .0
            .iter()
            .map(|(file, hash)| format!("{hash}  {file}\n"))
            .collect();
        sha256(lines.as_bytes())
    }

    /// How `now` differs from these, a line for each file.
    pub fn changes(&self, now: &Self) -> Vec<String> {
        let files: BTreeSet<&String> = self.0.keys().chain(now.0.keys()).collect();
        files
            .into_iter()
            .filter_map(|file| match (self.0.get(file), now.0.get(file)) {
                (Some(before), Some(after)) if before == after => None,
                (Some(_), Some(_)) => Some(format!("changed: {file}")),
                (Some(_), None) => Some(format!("removed: {file}")),
                _ => Some(format!("added: {file}")),
            })
            .collect()
    }
}

fn collect(top: &Path, path: &Path, files: &mut BTreeMap<String, String>) -> Result<()> {
    let full = top.join(path);
    if full.is_dir() {
        for entry in fs::read_dir(&full).with_context(|| full.display().to_string())? {
            let name = entry
                .with_context(|| full.display().to_string())?
                .file_name();
            // What editors leave behind.
            if !name.to_string_lossy().starts_with('.') && !name.to_string_lossy().ends_with('~') {
                collect(top, &path.join(name), files)?;
            }
        }
        return Ok(());
    }
    let bytes = fs::read(&full).with_context(|| full.display().to_string())?;
    let name = path
        .to_str()
        .with_context(|| format!("{} is not UTF-8", path.display()))?;
    files.insert(name.to_owned(), sha256(&bytes));
    Ok(())
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "# Of portwatch.bpf.o, written with it by `cargo xtask build-ebpf`."
        )?;
        writeln!(f, "rustc = \"{}\"", self.tools.rustc)?;
        writeln!(f, "bpf-linker = \"{}\"", self.tools.bpf_linker)?;
        writeln!(f, "llvm = \"{}\"", self.tools.llvm)?;
        writeln!(f, "object = \"{}\"", self.object)?;
        writeln!(f, "inputs = \"{}\"", self.inputs.combined())?;
        writeln!(f, "\n[files]")?;
        for (file, hash) in &self.inputs.0 {
            writeln!(f, "\"{file}\" = \"{hash}\"")?;
        }
        Ok(())
    }
}

impl Stamp {
    /// Reads what [`Display`](fmt::Display) writes.
    pub fn parse(text: &str) -> Result<Self> {
        let mut keys = BTreeMap::new();
        let mut files = BTreeMap::new();
        let mut in_files = false;
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if line == "[files]" {
                in_files = true;
                continue;
            }
            let Some((key, value)) = line.split_once(" = ") else {
                bail!("line {}: not `key = \"value\"`: {line}", number + 1);
            };
            let value = unquoted(value).with_context(|| {
                format!("line {}: the value is not in quotes: {line}", number + 1)
            })?;
            let key = unquoted(key).unwrap_or(key);
            let table = if in_files { &mut files } else { &mut keys };
            let before = table.insert(key.to_owned(), value.to_owned());
            ensure!(before.is_none(), "line {}: {key} a second time", number + 1);
        }
        let mut take = |key: &str| {
            keys.remove(key)
                .with_context(|| format!("{key} is missing"))
        };
        let stamp = Self {
            tools: Tools {
                rustc: take("rustc")?,
                bpf_linker: take("bpf-linker")?,
                llvm: take("llvm")?,
            },
            object: take("object")?,
            inputs: Inputs(files),
        };
        ensure!(
            take("inputs")? == stamp.inputs.combined(),
            "the combined hash does not match those of the files"
        );
        Ok(stamp)
    }
}

fn unquoted(text: &str) -> Option<&str> {
    text.strip_prefix('"')?.strip_suffix('"')
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;

    use super::{Inputs, Stamp, Tools, sha256};

    fn inputs(files: &[(&str, &str)]) -> Inputs {
        let files: BTreeMap<_, _> = files
            .iter()
            .map(|(file, text)| ((*file).to_owned(), sha256(text.as_bytes())))
            .collect();
        Inputs(files)
    }

    fn stamp() -> Stamp {
        Stamp {
            tools: Tools {
                rustc: "1.95.0 (59807616e 2026-04-14)".to_owned(),
                bpf_linker: "0.13.0".to_owned(),
                llvm: "22.1.8".to_owned(),
            },
            object: sha256(b"object"),
            inputs: inputs(&[
                ("portwatch-ebpf/Cargo.toml", "a"),
                ("portwatch-ebpf/src/main.rs", "b"),
            ]),
        }
    }

    #[test]
    fn sha256_is_the_standard_one() {
        assert_eq!(
            sha256(b"abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn what_is_written_is_read_back() {
        assert_eq!(Stamp::parse(&stamp().to_string()).unwrap(), stamp());
    }

    #[test]
    fn a_damaged_stamp_is_refused_with_the_reason() {
        let text = stamp().to_string();
        let refused = |text: &str| Stamp::parse(text).unwrap_err().to_string();
        assert_eq!(refused(""), "rustc is missing");
        assert_eq!(
            refused(&text.replace("\"0.13.0\"", "0.13.0")),
            "line 3: the value is not in quotes: bpf-linker = 0.13.0"
        );
        assert_eq!(
            refused(&format!("{text}x\n")),
            "line 11: not `key = \"value\"`: x"
        );
        assert_eq!(
            refused(&text.replace("src/main.rs", "src/other.rs")),
            "the combined hash does not match those of the files"
        );
        let doubled = text.replace("[files]", "llvm = \"23\"\n[files]");
        assert_eq!(refused(&doubled), "line 8: llvm a second time");
    }

    #[test]
    fn changes_name_each_file() {
        let before = inputs(&[("a", "1"), ("b", "1"), ("c", "1")]);
        let after = inputs(&[("b", "2"), ("c", "1"), ("d", "1")]);
        assert_eq!(
            before.changes(&after),
            ["removed: a", "changed: b", "added: d"]
        );
        assert!(before.changes(&before).is_empty());
    }

    #[test]
    fn inputs_are_all_files_but_those_of_editors() {
        let top =
            std::env::temp_dir().join(format!("portwatch-xtask-stamp-{}", std::process::id()));
        for (file, text) in [
            ("portwatch-common/Cargo.toml", "1"),
            ("portwatch-common/src/deep/er.rs", "2"),
            ("portwatch-common/src/.lib.rs.swp", "no"),
            ("portwatch-common/src/lib.rs~", "no"),
            ("portwatch-common/tests/t.rs", "no"),
            ("portwatch-ebpf/Cargo.lock", "3"),
            ("portwatch-ebpf/Cargo.toml", "4"),
            ("portwatch-ebpf/src/main.rs", "5"),
            ("portwatch-ebpf/target/x", "no"),
        ] {
            let path = top.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let read = Inputs::read(&top);
        fs::remove_dir_all(&top).unwrap();
        let expected = inputs(&[
            ("portwatch-common/Cargo.toml", "1"),
            ("portwatch-common/src/deep/er.rs", "2"),
            ("portwatch-ebpf/Cargo.lock", "3"),
            ("portwatch-ebpf/Cargo.toml", "4"),
            ("portwatch-ebpf/src/main.rs", "5"),
        ]);
        assert_eq!(read.unwrap(), expected);
    }
}
