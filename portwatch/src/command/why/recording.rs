//! What a recording of `portwatch trace` tells of a port.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _, stderr};
use std::path::Path;

use anyhow::Context as _;
use serde::Deserialize;

use super::{Protocol, Wanted};
use crate::event::{LastUse, LastUser, Time};
use crate::sink::escape::escape;

/// A line of a recording, as far as it matters.
#[derive(Deserialize)]
struct Recorded {
    event: String,
    time: Option<String>,
    outcome: Option<String>,
    socket: Option<RecordedSocket>,
    process: Option<RecordedProcess>,
}

#[derive(Deserialize)]
struct RecordedSocket {
    transport: Option<String>,
    local: Option<RecordedAddress>,
}

#[derive(Deserialize)]
struct RecordedAddress {
    port: Option<u16>,
}

#[derive(Deserialize)]
struct RecordedProcess {
    pid: u32,
    comm: String,
    #[serde(default)]
    args: Vec<String>,
}

/// The last use of the port in a recording. What is no line of one, as a last line that was cut off,
/// is told of and left out.
pub(super) fn last_use(path: &Path, wanted: Wanted) -> anyhow::Result<Option<LastUse>> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut last = None;
    let mut broken = 0_u64;
    for line in BufReader::new(file).split(b'\n') {
        let line = line.with_context(|| format!("cannot read {}", path.display()))?;
        match serde_json::from_slice::<Recorded>(&line) {
            Ok(recorded) => last = used(recorded, wanted).or(last),
            Err(_) if line.is_empty() => {}
            Err(_) => broken += 1,
        }
    }
    if broken != 0 {
        let lines = if broken == 1 { "line is" } else { "lines are" };
        // Nothing can be told where standard error is closed.
        let _ = writeln!(
            stderr(),
            "{}: {broken} {lines} no event of portwatch, and left out",
            escape(&path.display().to_string())
        );
    }
    Ok(last)
}

/// What a recorded event says of the use of the port.
fn used(recorded: Recorded, wanted: Wanted) -> Option<LastUse> {
    let socket = recorded.socket?;
    let succeeded = recorded.outcome.as_deref().is_none_or(|is| is == "success");
    let protocol = match socket.transport.as_deref()? {
        "tcp" | "mptcp" | "smc" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        _ => return None,
    };
    let is_use = matches!(&*recorded.event, "bind" | "listen" | "release") && succeeded;
    let is_wanted = socket.local?.port == Some(wanted.port)
        && wanted.protocol.is_none_or(|wanted| wanted == protocol);
    if !is_use || !is_wanted {
        return None;
    }
    let time: jiff::Timestamp = recorded.time?.parse().ok()?;
    let time = i64::try_from(time.as_nanosecond()).ok()?;
    Some(LastUse {
        time: Time(time),
        event: recorded.event,
        transport: socket.transport.map(Into::into),
        process: recorded.process.map(|process| LastUser {
            pid: process.pid,
            comm: process.comm.into(),
            args: process.args.into_iter().map(Into::into).collect(),
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_use_of_a_recording() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("recording");
        let line = |second: u32, event: &str, rest: &str| {
            format!(
                r#"{{"schema":"portwatch/1","seq":1,"time":"2026-11-22T12:03:{second:02}Z","event":"{event}"{rest}}}"#
            )
        };
        let socket = |transport: &str, port: u16| {
            format!(
                r#","socket":{{"transport":"{transport}","local":{{"address":"::","port":{port}}},"options":[]}},"process":{{"pid":{port},"comm":"node","args":["node","x"]}}"#
            )
        };
        let success = r#","outcome":"success""#;
        let failure = r#","outcome":"failure""#;
        let lines = [
            line(0, "start", ""),
            line(1, "bind", &format!("{success}{}", socket("tcp", 80))),
            line(2, "release", &socket("tcp", 80)),
            line(3, "bind", &format!("{failure}{}", socket("tcp", 80))),
            line(4, "bind", &format!("{success}{}", socket("udp", 80))),
            line(5, "bind", &format!("{success}{}", socket("tcp", 81))),
            r#"{"schema":"portwatch/1","seq":7,"time":"20"#.to_owned(),
        ];
        std::fs::write(&path, lines.join("\n")).unwrap();
        let last = |text: &str| {
            let last = last_use(&path, text.parse().unwrap()).unwrap()?;
            Some((
                last.event,
                last.process?.pid,
                last.time.0 / 1_000_000_000 % 60,
            ))
        };
        assert_eq!(last("80/tcp"), Some(("release".to_owned(), 80, 2)));
        assert_eq!(last("80"), Some(("bind".to_owned(), 80, 4)));
        assert_eq!(last("81"), Some(("bind".to_owned(), 81, 5)));
        assert_eq!(last("82"), None);
        let missing = last_use(Path::new("/nonexistent"), "1".parse().unwrap()).unwrap_err();
        assert!(format!("{missing:#}").starts_with("cannot read /nonexistent: "));
    }
}
