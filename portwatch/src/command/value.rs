//! Parsers of the flags' values. Each error says what is wrong and what would be right.

use std::ops::RangeInclusive;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use crate::kernel::hook::Backend;

/// The values of `--backend`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum BackendChoice {
    /// The first of the others that works here, for each part of the work
    Auto,
    /// Trampolines at the entry and exit of kernel functions
    Fentry,
    /// Probes at the entry and return of kernel functions
    Kprobe,
    /// Tracepoints and a cgroup hook
    Tracepoint,
}

impl From<BackendChoice> for Option<Backend> {
    fn from(choice: BackendChoice) -> Self {
        match choice {
            BackendChoice::Auto => None,
            BackendChoice::Fentry => Some(Backend::Fentry),
            BackendChoice::Kprobe => Some(Backend::Kprobe),
            BackendChoice::Tracepoint => Some(Backend::Tracepoint),
        }
    }
}

/// A port, or a range of ports as `8000-8100`.
///
/// # Errors
///
/// If it is neither.
pub fn ports(text: &str) -> Result<RangeInclusive<u16>, String> {
    let port = |text: &str| {
        text.parse::<u16>()
            .map_err(|_| format!("{text:?} is no port: a port is a number from 0 to 65535"))
    };
    match text.split_once('-') {
        None => port(text).map(|port| port..=port),
        Some((first, last)) => {
            let (first, last) = (port(first)?, port(last)?);
            if first > last {
                return Err(format!(
                    "the range {text} is empty: write {last}-{first} to mean all from {last} to {first}"
                ));
            }
            Ok(first..=last)
        }
    }
}

/// A user, by name or number.
///
/// # Errors
///
/// If there is no such user.
pub fn user(text: &str) -> Result<u32, String> {
    if let Ok(uid) = text.parse() {
        return Ok(uid);
    }
    match nix::unistd::User::from_name(text) {
        Ok(Some(user)) => Ok(user.uid.as_raw()),
        Ok(None) => Err(format!(
            "there is no user {text:?}: give the name of one, or a number"
        )),
        Err(error) => Err(format!("cannot look up the user {text:?}: {error}")),
    }
}

/// A duration as `500ms`, `30s`, `5m`, `2h`.
///
/// # Errors
///
/// If it is not of that form, or zero.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no duration: write a number with ms, s, m or h, like 30s");
    let digits = text
        .find(|character: char| !character.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let milliseconds = match unit {
        "ms" => Some(number),
        "s" => number.checked_mul(1_000),
        "m" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        _ => return Err(wrong()),
    };
    match milliseconds {
        Some(0) => Err("a duration of nothing: write at least 1ms".to_owned()),
        Some(milliseconds) => Ok(Duration::from_millis(milliseconds)),
        None => Err(wrong()),
    }
}

/// The size of the ring buffer in bytes, as `4M` or `512K`: a power of two.
///
/// # Errors
///
/// If it is not of that form, or not from 64K to 1G.
pub fn buffer(text: &str) -> Result<u32, String> {
    let wrong = || {
        format!("{text:?} is no size of a buffer: write a power of two from 64K to 1024M, like 4M")
    };
    let (number, unit) = match text.strip_suffix(['K', 'k']) {
        Some(number) => (number, 1 << 10),
        None => match text.strip_suffix(['M', 'm']) {
            Some(number) => (number, 1 << 20),
            None => (text, 1),
        },
    };
    let number: u32 = number.parse().map_err(|_| wrong())?;
    number
        .checked_mul(unit)
        .filter(|bytes| bytes.is_power_of_two() && (64 << 10..=1 << 30).contains(bytes))
        .ok_or_else(wrong)
}

/// How many events; at least one.
///
/// # Errors
///
/// If it is no such number.
pub fn count(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err(format!("{text:?} is no number of events: write 1 or more")),
        Ok(count) => Ok(count),
    }
}

/// A process's pid.
///
/// # Errors
///
/// If it is no positive number.
pub fn pid(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err(format!("{text:?} is no pid: a pid is a positive number")),
        Ok(pid) => Ok(pid),
    }
}

/// A network namespace: its inode number, a path to it, or its name as of `ip netns`.
///
/// # Errors
///
/// If there is none.
pub fn netns(text: &str) -> Result<u32, String> {
    if let Ok(inode) = text.parse() {
        return Ok(inode);
    }
    let path = if text.contains('/') {
        Path::new(text).to_owned()
    } else {
        Path::new("/run/netns").join(text)
    };
    let inode = std::fs::metadata(&path).map_err(|error| {
        format!(
            "there is no network namespace {text:?} ({}: {error}): give a name that `ip netns` \
             lists, a path like /proc/1/ns/net, or an inode number",
            path.display()
        )
    })?;
    u32::try_from(inode.ino()).map_err(|_| format!("{} is no network namespace", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_ranges() {
        assert_eq!(ports("3000"), Ok(3000..=3000));
        assert_eq!(ports("8000-8100"), Ok(8000..=8100));
        assert_eq!(ports("0-65535"), Ok(0..=65535));
        for wrong in ["", "-", "99999", "a-b", "80-", "-80", "1-2-3", " 80", "-1"] {
            assert!(ports(wrong).is_err(), "{wrong}");
        }
        assert_eq!(
            ports("90-80").unwrap_err(),
            "the range 90-80 is empty: write 80-90 to mean all from 80 to 90"
        );
    }

    #[test]
    fn users_by_name_and_number() {
        assert_eq!(user("0"), Ok(0));
        assert_eq!(user("root"), Ok(0));
        assert_eq!(user("4294967294"), Ok(4_294_967_294));
        assert_eq!(
            user("nobodyatall").unwrap_err(),
            "there is no user \"nobodyatall\": give the name of one, or a number"
        );
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(duration("2h"), Ok(Duration::from_secs(7200)));
        for wrong in [
            "",
            "x",
            "30",
            "s",
            "-1s",
            "1.5s",
            "0s",
            "30 s",
            "99999999999999999999s",
        ] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn buffers_are_powers_of_two() {
        assert_eq!(buffer("4M"), Ok(4 << 20));
        assert_eq!(buffer("65536"), Ok(1 << 16));
        for wrong in ["", "3M", "32K", "2048M", "4G", "M", "4096M"] {
            assert!(buffer(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn counts_and_pids_are_positive() {
        assert_eq!(count("7"), Ok(7));
        assert_eq!(pid("1"), Ok(1));
        for wrong in ["0", "-1", "x", ""] {
            assert!(count(wrong).is_err() && pid(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn namespaces_by_number_and_path() {
        assert_eq!(netns("4026531840"), Ok(4_026_531_840));
        let own = std::fs::metadata("/proc/self/ns/net").unwrap().ino();
        assert_eq!(netns("/proc/self/ns/net").map(u64::from), Ok(own));
        assert!(netns("there-is-none").is_err());
        assert!(netns("/nowhere").is_err());
    }
}
