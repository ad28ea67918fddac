//! How many instructions the verifier went through for each program on each
//! kernel, held against what was recorded: a jump is paid at each start, and
//! the verifier gives up at a million.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::process::top;

/// By how much a count may grow, in percent.
const MARGIN: u32 = 25;
/// Growth below this many instructions does not matter.
const SMALL: u32 = 200;

/// Counts by kernel (`6.1 x86_64`) and program (`tp_btf/sys_exit`).
pub type Counts = BTreeMap<(String, String), u32>;

fn path() -> PathBuf {
    top().join("xtask/vm/verified-instructions.txt")
}

/// The recorded counts.
pub fn read() -> Result<Counts> {
    let path = path();
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    parse(&text).with_context(|| path.display().to_string())
}

/// Records counts, in the place of those of the same kernels.
pub fn record(counts: &Counts) -> Result<()> {
    let mut all = read().unwrap_or_default();
    all.retain(|(kernel, _), _| !counts.keys().any(|(measured, _)| measured == kernel));
    all.extend(counts.iter().map(|(key, count)| (key.clone(), *count)));
    let path = path();
    fs::write(&path, print(&all)).with_context(|| path.display().to_string())
}

fn parse(text: &str) -> Result<Counts> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let fields: Vec<_> = line.split_ascii_whitespace().collect();
            let [series, arch, program, count] = fields[..] else {
                anyhow::bail!("{line:?} has not four columns");
            };
            let key = (format!("{series} {arch}"), program.to_owned());
            Ok((key, count.parse().with_context(|| line.to_owned())?))
        })
        .collect()
}

fn print(counts: &Counts) -> String {
    let mut text = "# Written by `cargo xtask vm --record`: \
                    series, architecture, program, verified instructions.\n"
        .to_owned();
    for ((kernel, program), count) in counts {
        text += &format!("{kernel} {program} {count}\n");
    }
    text
}

/// What is wrong with the counts of a kernel.
pub fn complaints(recorded: &Counts, kernel: &str, seen: &BTreeMap<String, u32>) -> Vec<String> {
    let complain = |(program, count): (&String, &u32)| {
        let key = (kernel.to_owned(), program.clone());
        let why = match recorded.get(&key) {
            None => "none were recorded".to_owned(),
            Some(before) => {
                let allowed = before + (before / 100 * MARGIN).max(SMALL);
                if *count <= allowed {
                    return None;
                }
                format!("recorded were {before}, and up to {allowed} are let pass")
            }
        };
        Some(format!(
            "{program}: {count} instructions verified; {why}. If that is meant to be: cargo xtask vm --record"
        ))
    };
    seen.iter().filter_map(complain).collect()
}

#[cfg(test)]
mod tests {
    use super::{complaints, parse, print};

    #[test]
    fn a_jump_is_told() {
        let recorded = parse("# x\n6.1 x86_64 tp_btf/a 1000\n6.1 x86_64 tp_btf/b 10\n").unwrap();
        assert_eq!(parse(&print(&recorded)).unwrap(), recorded);
        let check = |program: &str, count| {
            let seen = [(program.to_owned(), count)].into();
            complaints(&recorded, "6.1 x86_64", &seen)
        };
        assert_eq!(check("tp_btf/a", 1250), Vec::<String>::new());
        assert!(check("tp_btf/a", 1251)[0].contains("recorded were 1000"));
        assert_eq!(check("tp_btf/b", 210), Vec::<String>::new());
        assert!(check("tp_btf/c", 1)[0].contains("none were recorded"));
    }
}
