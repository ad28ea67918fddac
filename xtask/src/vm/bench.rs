//! `cargo xtask bench --guest`: what each backend adds to a bind, beside
//! bindsnoop, in a guest whose clock counts the instructions that it executes.
//! Such numbers do not depend on what else this machine does.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::build::Built;
use super::guest::{self, Clock, End, Guest};
use super::initramfs::{add, base};
use super::kernel::Store;
use super::lock::{self, Arch, BINDSNOOP};
use crate::package::{Provided, provide};
use crate::process::{say, target_folder};

const INIT: &[u8] = include_bytes!("bench.sh");
const SERIES: &str = "6.12";
const LIMIT: Duration = Duration::from_secs(900);
/// What is done, as the bench's worker names it: bursts, operations in each, and microseconds
/// between them.
const JOBS: [(&str, &str); 5] = [
    ("udp-bind", "bind(2) alone, UDP"),
    ("tcp-bind", "bind(2) alone, TCP"),
    ("udp-any", "socket, bind, close, UDP"),
    ("tcp-any", "socket, bind, close, TCP"),
    ("getppid", "getppid"),
];
const BURSTS: &str = "15:100:100000";
const TOOLS: [&str; 5] = ["none", "bindsnoop", "fentry", "kprobe", "tracepoint"];
const PROGRAMS: &[Provided] = &[
    Provided {
        program: "qemu-system-x86_64",
        package: "qemu-system-x86",
    },
    Provided {
        program: "xz",
        package: "xz-utils",
    },
];
/// The libraries of bindsnoop, and where they are looked for.
const LIBRARIES: [(&str, &str); 5] = [
    ("/lib64", "ld-linux-x86-64.so.2"),
    ("/usr/lib/x86_64-linux-gnu", "libc.so.6"),
    ("/usr/lib/x86_64-linux-gnu", "libelf.so.1"),
    ("/usr/lib/x86_64-linux-gnu", "libz.so.1"),
    ("/usr/lib/x86_64-linux-gnu", "libzstd.so.1"),
];

/// Instructions of an operation, by tool and job.
type Results = BTreeMap<(String, String), f64>;

/// Runs it and prints its tables as Markdown.
pub fn bench() -> Result<()> {
    provide(PROGRAMS)?;
    let built = Built::new(Arch::X86_64, &["portwatch", "actor", "bench"], &[])?;
    let mut store = Store::new()?;
    let busybox = store.busybox(Arch::X86_64)?;
    let kernel = store.get(&lock::find(SERIES, Arch::X86_64)?)?;
    for warning in store.warnings() {
        say(warning);
    }

    let jobs: Vec<_> = JOBS
        .iter()
        .map(|(job, _)| format!("{job}:{BURSTS}"))
        .collect();
    let settings = format!(
        "PORT={}\nJOBS='{}'\nROUNDS='1 2'\nBACKENDS='{}'\n",
        guest::result_port(Arch::X86_64),
        jobs.join(" "),
        TOOLS[2..].join(" ")
    );
    let mut archive = base(INIT, &busybox, &settings)?;
    for program in ["portwatch", "actor", "bench"] {
        let file = built.executable("bin", program)?;
        add(&mut archive, &format!("/suite/{program}"), &file)?;
    }
    let bindsnoop = store.files(&BINDSNOOP, Arch::X86_64)?;
    add(
        &mut archive,
        "/suite/bindsnoop",
        &bindsnoop.join("usr/sbin/bindsnoop-libbpf"),
    )?;
    for (place, library) in LIBRARIES {
        let file = bindsnoop.join("usr/lib/x86_64-linux-gnu").join(library);
        add(&mut archive, &format!("{place}/{library}"), &file)?;
    }

    let folder = target_folder()?.join("vm/bench");
    fs::create_dir_all(&folder)?;
    let guest = Guest {
        arch: Arch::X86_64,
        image: kernel.image,
        initramfs: folder.join("initramfs.cpio"),
        root: None,
        console: folder.join("console.log"),
        clock: Clock::Instructions,
    };
    fs::write(&guest.initramfs, archive.finish())?;
    let mut results = Results::new();
    let mut done = false;
    let end = guest.run(LIMIT, |line| {
        done |= line == "@done";
        if !take(&mut results, line) {
            say(line);
        }
    })?;
    ensure!(
        done && end == End::Off,
        "the guest did not come to its end:\n{}",
        guest.console_tail()
    );
    print!("{}", render(&results)?);
    Ok(())
}

/// Takes a result, `@result TOOL JOB NUMBER…`: of the rounds the best, of each the median.
fn take(results: &mut Results, line: &str) -> bool {
    let mut words = line.split_ascii_whitespace();
    let (Some("@result"), Some(tool), Some(job)) = (words.next(), words.next(), words.next())
    else {
        return line.starts_with('@');
    };
    let mut bursts: Vec<f64> = words.filter_map(|word| word.parse().ok()).collect();
    bursts.sort_by(f64::total_cmp);
    if let Some(median) = bursts.get(bursts.len() / 2) {
        results
            .entry((tool.to_owned(), job.to_owned()))
            .and_modify(|best| *best = best.min(*median))
            .or_insert(*median);
    }
    true
}

/// The tables.
fn render(results: &Results) -> Result<String> {
    let mut text = format!("| instructions, {SERIES} |");
    for tool in TOOLS {
        text += &format!(" {tool} |");
    }
    text += "\n| --- |";
    text += &" ---: |".repeat(TOOLS.len());
    text.push('\n');
    for (job, title) in JOBS {
        let get = |tool: &str| {
            let key = (tool.to_owned(), job.to_owned());
            let found = results.get(&key).copied();
            found.with_context(|| format!("{tool} has no result of {job}"))
        };
        let none = get("none")?;
        let peer = get("bindsnoop")? - none;
        write!(text, "| {title} | {none:.0} |")?;
        for tool in &TOOLS[1..] {
            let added = get(tool)? - none;
            write!(text, " +{added:.0}")?;
            if *tool != "bindsnoop" && job != "getppid" {
                write!(text, " ({:.2})", added / peer)?;
            }
            text += " |";
        }
        text.push('\n');
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::{JOBS, Results, TOOLS, render, take};

    #[test]
    fn of_the_rounds_the_best_and_of_each_the_median() {
        let mut results = Results::new();
        assert!(take(&mut results, "@result none udp-any 5.0 1.0 9.0"));
        assert!(take(&mut results, "@result none udp-any 4.0 7.0 2.0"));
        assert!(!take(&mut results, "cannot open"));
        let key = ("none".to_owned(), "udp-any".to_owned());
        assert_eq!(results, [(key, 4.0)].into());
    }

    #[test]
    fn what_is_added_is_held_against_bindsnoop() {
        let mut results = Results::new();
        for (job, _) in JOBS {
            for (tool, count) in TOOLS.iter().zip([100, 300, 200, 250, 110]) {
                take(&mut results, &format!("@result {tool} {job} {count}"));
            }
        }
        let text = render(&results).unwrap();
        assert_eq!(
            text.lines().nth(2),
            Some("| bind(2) alone, UDP | 100 | +200 | +100 (0.50) | +150 (0.75) | +10 (0.05) |")
        );
        results.clear();
        assert!(render(&results).is_err());
    }
}
