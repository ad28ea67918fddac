//! Reports: what is made of events, and how each sink writes it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

#[path = "golden/samples.rs"]
#[allow(dead_code, reason = "other tests have other samples")]
mod samples;

use std::collections::BTreeMap;

use jiff::tz::TimeZone;
use jsonschema::Validator;
use portwatch::event::{
    Actor, Address, Bind, Body, Cause, Conflict, Container, Event, Evidence, HeldSocket, Holder,
    Listen, Lost, Membership, Missing, Options, Ownership, Process, Publishes, Release, Result,
    Socket, Start, State, Time, Transport,
};
use portwatch::report::{
    Finding, Job, Killed, LeftBehind, LeftContainer, LeftPort, LeftTimewait, Leftover, Report,
    Tally, read,
};
use portwatch::sink::json::Json;
use portwatch::sink::report::text::{Style, render};
use portwatch::sink::report::{github, gitlab, html, junit};
use portwatch::sink::text::Color;
use portwatch_common::record::option::REUSEADDR;
use samples::{HOSTILE, NOON, actor, failed, ok, tcp4};
use serde_json::Value;

const SECOND: i64 = 1_000_000_000;
const NETNS: u32 = 4_026_531_840;

fn at(milliseconds: i64) -> Time {
    Time(NOON + milliseconds * SECOND / 1000)
}

fn process(pid: u32, comm: &str, args: &[&str]) -> Actor {
    Actor {
        job: Some(Membership::Descendant),
        ..actor(
            pid,
            comm,
            Process {
                args: Some(args.iter().map(|arg| (*arg).into()).collect()),
                ..Process::default()
            },
        )
    }
}

fn inet(address: [u8; 4], port: u16, inode: u64) -> Socket {
    Socket {
        inode: Some(inode),
        ..tcp4(address, port)
    }
}

fn bind(result: Result, socket: Socket, process: Actor, conflict: Option<Conflict>) -> Body {
    Body::Bind(Bind {
        result,
        socket,
        requested: None,
        autobind: false,
        conflict: conflict.map(Box::new),
        process: Some(process),
    })
}

/// A bind that asked for any port.
fn bind_any(port: u16, inode: u64, process: Actor) -> Body {
    Body::Bind(Bind {
        result: ok(),
        socket: inet([127, 0, 0, 1], port, inode),
        requested: Some(Address::v4([127, 0, 0, 1], 0)),
        autobind: false,
        conflict: None,
        process: Some(process),
    })
}

fn release(socket: Socket, bound_at: Option<Time>, process: Actor) -> Body {
    Body::Release(Release {
        socket,
        bound_at,
        held_ms: None,
        binder: None,
        process: Some(process),
    })
}

fn start(boot_id: &str) -> Body {
    Body::Start(Start {
        version: "0.1.0".to_owned(),
        backend: "tracepoint".to_owned(),
        parts: [].into(),
        steps: Vec::new(),
        kernel: "6.12.0".to_owned(),
        boot_id: Some(boot_id.to_owned()),
        netns: Some(NETNS),
        local_port_range: Some((32768, 60999)),
        local_reserved_ports: Some("41000-41010".to_owned()),
        filters: [].into(),
        missing: vec![Missing {
            what: "binds by io_uring".to_owned(),
            why: "the tracepoint backend cannot see them".to_owned(),
        }],
    })
}

fn server() -> Actor {
    process(5001, "python3", &["python3", "-m", "http.server", "40000"])
}

fn holder(socket: Socket, process: Actor, bound_at: Option<Time>) -> Holder {
    Holder {
        socket: HeldSocket {
            socket: Socket {
                state: Some(State::Listen),
                ..socket
            },
            uid: Some(1001),
        },
        ownership: Some(Ownership::Verified),
        bound_at,
        expires_in_ms: None,
        processes: vec![process],
        publishes: None,
    }
}

fn conflict(cause: Cause, summary: &str, holders: Vec<Holder>) -> Conflict {
    Conflict {
        cause,
        summary: summary.to_owned(),
        advice: "stop it, or use another port".to_owned(),
        evidence: (!holders.is_empty()).then_some(Evidence::Walked),
        holders,
        publishes: None,
    }
}

/// What a job does.
fn story() -> Vec<(Time, Body)> {
    let fixed = || inet([0, 0, 0, 0], 40_000, 1);
    let client = || process(5003, "curl", &["curl", "http://localhost"]);
    let refused = |pid| {
        let held = holder(fixed(), server(), Some(at(0)));
        bind(
            failed("EADDRINUSE", 98),
            inet([0, 0, 0, 0], 40_000, 2),
            process(pid, "node", &["node", "server.js"]),
            Some(conflict(
                Cause::Listener,
                "python3[5001] listens on 0.0.0.0:40000",
                vec![held],
            )),
        )
    };
    let hostile = process(6666, HOSTILE, &[HOSTILE, "::error::x", "|<b>@me"]);
    vec![
        (at(-1), start("11111111-2222-3333-4444-555555555555")),
        (at(0), bind(ok(), fixed(), server(), None)),
        (
            at(1),
            Body::Listen(Listen {
                result: ok(),
                socket: fixed(),
                backlog: 5,
                conflict: None,
                process: Some(server()),
            }),
        ),
        (at(5), bind_any(50_001, 3, client())),
        (at(6), bind_any(50_002, 4, client())),
        (
            at(7),
            release(inet([127, 0, 0, 1], 50_001, 3), None, client()),
        ),
        (at(400), refused(5002)),
        (at(900), refused(5012)),
        (
            at(1000),
            bind(
                failed("EADDRINUSE", 98),
                inet([127, 0, 0, 1], 3000, 5),
                hostile.clone(),
                Some(conflict(
                    Cause::BoundNotListening,
                    &format!("{HOSTILE}[6667] is bound"),
                    vec![holder(inet([127, 0, 0, 1], 3000, 6), hostile.clone(), None)],
                )),
            ),
        ),
        (
            at(1100),
            bind(
                failed("EACCES", 13),
                inet([0, 0, 0, 0], 80, 7),
                process(5020, "nginx", &["nginx"]),
                Some(conflict(
                    Cause::PrivilegedPort,
                    "port 80 is privileged",
                    Vec::new(),
                )),
            ),
        ),
        // A mistake of the caller's, which is nothing of ports.
        (
            at(1150),
            bind(
                failed("EBADF", 9),
                inet([0, 0, 0, 0], 81, 8),
                server(),
                None,
            ),
        ),
        (
            at(1200),
            bind(ok(), inet([127, 0, 0, 1], 41_005, 9), server(), None),
        ),
        (
            at(1300),
            release(inet([127, 0, 0, 1], 41_005, 9), Some(at(1200)), server()),
        ),
        (
            at(1400),
            Body::Lost(Lost {
                count: 3,
                place: "ring".into(),
                of: [].into(),
            }),
        ),
    ]
}

fn tallied(events: &[(Time, Body)]) -> Report {
    let mut tally = Tally::new();
    for (time, body) in events {
        tally.take(*time, body);
    }
    tally.finish()
}

/// One with a name and two ports, or with none.
fn left_container(name: Option<&str>) -> LeftContainer {
    let port = |address: [u8; 16]| LeftPort {
        protocol: "tcp".to_owned(),
        address: Some(std::net::Ipv6Addr::from(address).to_canonical()),
        host_port: 8080,
        port: 80,
    };
    let mut any_v4 = [0; 16];
    any_v4[10..12].fill(0xff);
    LeftContainer {
        container: Container {
            runtime: "docker".into(),
            id: "3f4e1c0a9b7d5e2f8c6a".into(),
            name: name.map(Into::into),
            image: Some("nginx:1.27".into()),
            labels: [].into(),
        },
        pod: None,
        job: name.map_or(Membership::Label, |_| Membership::Container),
        created: name.map(|_| at(100)),
        ports: match name {
            Some(_) => vec![port(any_v4), port([0; 16])],
            None => Vec::new(),
        },
        advice: "docker rm -f 3f4e1c0a9b7d".to_owned(),
    }
}

/// The report of a job that left something behind.
fn of_job() -> Report {
    Report {
        job: Some(Job {
            command: vec!["npm".into(), "test".into(), HOSTILE.into()],
            status: Some(1),
            signal: None,
            duration_ms: 1500,
            unwatched: None,
        }),
        left_behind: Some(LeftBehind {
            processes: vec![
                Leftover {
                    process: server(),
                    sockets: vec![HeldSocket {
                        socket: Socket {
                            state: Some(State::Listen),
                            ..inet([0, 0, 0, 0], 40_000, 1)
                        },
                        uid: Some(1001),
                    }],
                    killed: Some(Killed::Term),
                },
                Leftover {
                    process: process(6666, HOSTILE, &[HOSTILE]),
                    sockets: Vec::new(),
                    killed: Some(Killed::Kill),
                },
            ],
            containers: vec![left_container(Some(HOSTILE)), left_container(None)],
            timewaits: vec![LeftTimewait {
                transport: Transport::Tcp,
                port: 40_000,
                netns: NETNS,
                count: 2,
                expires_in_ms: 58_200,
            }],
        }),
        ..tallied(&story())
    }
}

/// The report of recordings.
fn of_recordings() -> Report {
    let mut lines = Vec::new();
    let mut json = Json::default();
    for (time, body) in story() {
        json.render(&Event { time, body }, &mut lines);
    }
    lines.extend_from_slice(b"no event\n{\"schema\":\"portwatch/1\",\"se");
    let mut tally = Tally::new();
    let take = |recorded: &portwatch::event::Recorded| tally.take(recorded.time, &recorded.body);
    let source = read(&*lines, "ci.json".to_owned(), take).unwrap();
    Report {
        sources: vec![source],
        ..tally.finish()
    }
}

fn quiet(report: Report) -> Report {
    Report {
        job: of_job().job.map(|job| Job {
            command: vec!["true".into()],
            status: Some(0),
            ..job
        }),
        left_behind: Some(LeftBehind::default()),
        ..report
    }
}

/// A report of a job that has nothing to complain of, though it used ports.
fn of_clean_job() -> Report {
    let clean: Vec<_> = story().into_iter().take(2).collect();
    let mut clean = quiet(tallied(&clean));
    clean.risks.clear();
    clean
}

fn style(whole: bool, color: Color) -> Style {
    Style {
        zone: TimeZone::UTC,
        color,
        whole,
    }
}

#[test]
fn text_of_a_job() {
    insta::assert_snapshot!(render(&of_job(), &style(false, Color::Off)));
}

#[test]
fn text_of_recordings() {
    insta::assert_snapshot!(render(&of_recordings(), &style(true, Color::Off)));
}

#[test]
fn nothing_to_say_is_one_line_unless_all_is_wanted() {
    assert_eq!(
        render(&of_clean_job(), &style(false, Color::Off)),
        "portwatch: `true` ended with exit status 0 after 1.5 s: no conflicts, nothing left behind\n"
    );
    let whole = render(&of_clean_job(), &style(true, Color::Off));
    assert!(
        whole.contains("ports used\n  tcp4  0.0.0.0:40000"),
        "{whole}"
    );
}

/// Who is of the job by a container alone is marked as such: it may be a guess.
#[test]
fn what_is_of_the_job_by_its_container_is_marked() {
    let by = |job: Option<Membership>| {
        let proxy = Actor {
            job,
            ..process(5100, "docker-proxy", &["docker-proxy"])
        };
        let refused = bind(
            failed("EADDRINUSE", 98),
            inet([0, 0, 0, 0], 8080, 20),
            proxy.clone(),
            None,
        );
        let bound = bind(ok(), inet([0, 0, 0, 0], 8081, 21), proxy, None);
        let report = quiet(tallied(&[(at(0), bound), (at(1), refused)]));
        let text = render(&report, &style(false, Color::Off));
        let lines = text
            .lines()
            .filter(|line| line.contains("docker-proxy[5100]"));
        let lines: Vec<_> = lines
            .map(|line| line.split_once("docker-proxy[5100]").unwrap().1.to_owned())
            .collect();
        (lines, github::annotations(&report))
    };
    for (job, mark) in [
        (Membership::Descendant, ""),
        (Membership::Container, " (container created during the job)"),
        (Membership::Label, " (container labelled for the job)"),
    ] {
        let (lines, annotations) = by(Some(job));
        let [refused, bound] = &lines[..] else {
            panic!("{lines:?}")
        };
        assert!(
            refused.starts_with(&format!(" `docker-proxy`{mark}: bind on tcp4 0.0.0.0:8080")),
            "{refused}"
        );
        assert!(
            bound.starts_with(&format!(" `docker-proxy`{mark}  ")),
            "{bound}"
        );
        assert!(
            annotations.contains(&format!("`docker-proxy`{mark}: bind")),
            "{annotations}"
        );
    }
}

#[test]
fn a_container_that_is_left_behind_is_a_leak() {
    let left = |containers| Report {
        left_behind: Some(LeftBehind {
            containers,
            ..LeftBehind::default()
        }),
        ..of_clean_job()
    };
    assert!(!left(Vec::new()).has(Finding::Leak));
    let report = left(vec![left_container(None)]);
    assert!(report.has(Finding::Leak));
    assert_eq!(
        render(&report, &style(false, Color::Off))
            .lines()
            .take(3)
            .collect::<Vec<_>>(),
        [
            "portwatch: `true` ended with exit status 0 after 1.5 s: 1 container left behind",
            "left behind",
            "  container 3f4e1c0a9b7d (docker, nginx:1.27), labelled for the job: docker rm -f 3f4e1c0a9b7d",
        ]
    );
}

#[test]
fn what_was_not_watched_is_told() {
    let mut report = quiet(tallied(&[]));
    report.job.as_mut().unwrap().unwatched = Some("no right\x1b".to_owned());
    report.left_behind = None;
    assert_eq!(
        render(&report, &style(false, Color::Off)),
        "portwatch: `true` ended with exit status 0 after 1.5 s; not watched: no right\\x1b\n"
    );
}

#[test]
fn colour_marks_the_error_only() {
    let colored = render(&of_job(), &style(false, Color::On));
    let plain = render(&of_job(), &style(false, Color::Off));
    assert!(
        colored.contains(": \x1b[1;31mEADDRINUSE\x1b[0m"),
        "{colored}"
    );
    let stripped = colored.replace("\x1b[1;31m", "").replace("\x1b[0m", "");
    assert_eq!(stripped, plain);
}

#[test]
fn what_github_is_told() {
    insta::assert_snapshot!("github_annotations", github::annotations(&of_job()));
    insta::assert_snapshot!("github_summary", github::summary(&of_job()));
    insta::assert_snapshot!(
        "github_summary_of_nothing",
        github::summary(&of_clean_job())
    );
}

#[test]
fn annotations_are_a_line_each() {
    let told = github::annotations(&of_job());
    for line in told.lines() {
        assert!(
            line.starts_with("::error title=") || line.starts_with("::warning title="),
            "{line}"
        );
        assert!(!line.contains(['\x1b', '\r', '\u{202e}']), "{line}");
    }
    // Two conflicts, another refusal, two processes and two containers, TIME_WAITs and a risk.
    assert_eq!(told.lines().count(), 9);
}

#[test]
fn what_gitlab_is_told() {
    let text = gitlab::section(
        &render(&of_job(), &style(false, Color::Off)),
        1_700_000_000,
        false,
    );
    assert!(text.starts_with("\x1b[0Ksection_start:1700000000:portwatch\r\x1b[0Kportwatch\n"));
    assert!(text.ends_with("\x1b[0Ksection_end:1700000000:portwatch\r\x1b[0K\n"));
    // The markers' own, and no others.
    assert_eq!(text.matches('\x1b').count(), 4);
    assert_eq!(text.matches('\r').count(), 2);
}

#[test]
fn what_test_views_read() {
    let document = String::from_utf8(junit::render(&of_job()).unwrap()).unwrap();
    insta::assert_snapshot!(document);
}

#[test]
fn the_page() {
    let page = html::render(&of_recordings(), &TimeZone::UTC);
    assert!(page.starts_with("<!DOCTYPE html>"));
    for outside in ["<script", "src=", "href=", "@import", "url("] {
        assert!(!page.contains(outside), "{outside} in {page}");
    }
    assert!(!page.contains("<b>@me"), "markup of a name in {page}");
    assert!(page.contains("|&lt;b&gt;@me"));
    assert!(!page.contains(['\x1b', '\u{202e}']));
    insta::assert_snapshot!(page.replace("><", ">\n<"));
}

#[test]
fn a_report_is_what_its_schema_says() {
    const FILE: &str = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../docs/schema/portwatch-report-1.schema.json"
    );
    let schema: Value = schemars::generate::SchemaSettings::draft2020_12()
        .for_serialize()
        .into_generator()
        .into_root_schema_for::<Report>()
        .into();
    let text = serde_json::to_string_pretty(&schema).unwrap() + "\n";
    if std::env::var_os("UPDATE_SCHEMA").is_some() {
        std::fs::write(FILE, &text).unwrap();
    }
    let kept = std::fs::read_to_string(FILE).unwrap();
    assert!(
        kept == text,
        "{FILE} is old: UPDATE_SCHEMA=1 cargo test --test report"
    );
    let validator: Validator = jsonschema::validator_for(&schema).unwrap();
    for report in [of_job(), of_recordings(), of_clean_job(), tallied(&[])] {
        let report = serde_json::to_value(report).unwrap();
        assert!(validator.is_valid(&report), "{report:#}");
    }
    assert!(!validator.is_valid(&serde_json::json!({"schema": "portwatch/1"})));
}

#[test]
fn a_recording_and_the_running_job_say_the_same() {
    let live = tallied(&story());
    let recorded = of_recordings();
    assert_eq!(
        Report {
            sources: Vec::new(),
            ..recorded
        },
        live
    );
}

#[test]
fn alike_refusals_are_folded() {
    let report = tallied(&story());
    let told: Vec<_> = report
        .refusals
        .iter()
        .map(|refusal| {
            (
                refusal.error.clone().unwrap(),
                refusal.count,
                refusal.first,
                refusal.last,
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            ("EADDRINUSE".to_owned(), 2, at(400), at(900)),
            ("EADDRINUSE".to_owned(), 1, at(1000), at(1000)),
            ("EACCES".to_owned(), 1, at(1100), at(1100)),
        ]
    );
    assert_eq!(report.contested[0].port, 40_000);
    assert_eq!(report.contested[0].count, 2);
    assert_eq!(report.collisions[0].newcomer, "node");
    assert_eq!(report.collisions[0].holder.as_deref(), Some("python3"));
    assert_eq!(report.causes["listener"], 2);
}

#[test]
fn a_container_without_a_name_collides_by_the_beginning_of_its_id() {
    let container = Container {
        runtime: "docker".into(),
        id: "0123456789abcdef0123456789abcdef".into(),
        name: None,
        image: None,
        labels: BTreeMap::new(),
    };
    let within = Process {
        container: Some(container.clone()),
        ..Process::default()
    };
    let held = Holder {
        publishes: Some(Publishes {
            container,
            pod: None,
            port: Some(80),
        }),
        ..holder(inet([0, 0, 0, 0], 8080, 1), server(), None)
    };
    let refused = bind(
        failed("EADDRINUSE", 98),
        inet([0, 0, 0, 0], 8080, 2),
        actor(7, "nginx", within),
        Some(conflict(Cause::PublishedPort, "published", vec![held])),
    );
    let collisions = tallied(&[(at(0), refused)]).collisions;
    assert_eq!(collisions[0].newcomer, "0123456789ab");
    assert_eq!(collisions[0].holder.as_deref(), Some("0123456789ab"));
}

#[test]
fn ports_chosen_by_the_kernel_are_one_use() {
    let report = tallied(&story());
    let used: Vec<_> = report
        .ports
        .iter()
        .map(|port| (port.port, port.count, port.from, port.until))
        .collect();
    assert_eq!(
        used,
        [
            (Some(40_000), 1, at(0), None),
            // One of the two is open still.
            (None, 2, at(5), None),
            (Some(41_005), 1, at(1200), Some(at(1300))),
        ]
    );
}

#[test]
fn ports_of_outgoing_connections_are_risks_unless_reserved() {
    let report = tallied(&story());
    let risks: Vec<_> = report
        .risks
        .iter()
        .map(|risk| (risk.port, risk.range))
        .collect();
    assert_eq!(risks, [(40_000, (32768, 60999))]);
}

#[test]
fn a_stream_that_ends_leaves_nothing_open_and_hosts_are_told_apart() {
    let mut events = story();
    events.push((at(5000), start("99999999-2222-3333-4444-555555555555")));
    // Of another host, with the number of a socket of the first.
    let other = process(70, "go", &["./server"]);
    events.push((
        at(5001),
        bind(ok(), inet([0, 0, 0, 0], 8080, 1), other, None),
    ));
    let report = tallied(&events);
    assert_eq!(report.hosts.len(), 2);
    let used: Vec<_> = report
        .ports
        .iter()
        .map(|port| (port.port, port.host, port.until))
        .collect();
    assert_eq!(
        used,
        [
            (Some(40_000), Some(0), Some(at(1400))),
            (None, Some(0), Some(at(1400))),
            (Some(41_005), Some(0), Some(at(1300))),
            (Some(8080), Some(1), None),
        ]
    );
}

#[test]
fn a_holder_whose_bind_was_not_seen_is_drawn() {
    let report = tallied(&story());
    let lane = |port| {
        let lanes = report.timeline.iter();
        lanes.into_iter().find(|lane| lane.port == port).unwrap()
    };
    let spans = |port| -> Vec<_> {
        let spans = lane(port).spans.iter();
        spans
            .map(|span| (span.pid, span.from, span.until))
            .collect()
    };
    assert_eq!(spans(40_000), [(Some(5001), at(0), None)]);
    assert_eq!(lane(40_000).marks.len(), 2);
    // Known of the time of the refusal only.
    assert_eq!(spans(3000), [(Some(6666), at(1000), Some(at(1000)))]);
    assert_eq!(spans(41_005), [(Some(5001), at(1200), Some(at(1300)))]);
}

#[test]
fn a_report_does_not_grow_without_bound() {
    let mut tally = Tally::new();
    let port = |number: u32| u16::try_from(1024 + number % 30_000).unwrap();
    for number in 0..60_000_u32 {
        let who = process(number, "x", &[&number.to_string()]);
        let socket = inet([127, 0, 0, 1], port(number), number.into());
        tally.take(at(0), &bind(ok(), socket.clone(), who.clone(), None));
        let refused = bind(failed("EADDRINUSE", 98), socket, who, None);
        tally.take(at(1), &refused);
    }
    let report = tally.finish();
    assert_eq!(report.events["bind"], 120_000);
    let drawn: usize = report
        .timeline
        .iter()
        .map(|lane| lane.spans.len() + lane.marks.len())
        .sum();
    assert!(drawn <= 20_000 && report.timeline.len() <= 1000);
    assert_eq!(report.refusals.len(), 1000);
    assert_eq!(report.ports.len(), 10_000);
    assert_eq!(report.omitted["refusals"], 59_000);
    assert_eq!(report.omitted["ports"], 50_000);
    // What is left out is counted all the same.
    assert_eq!(report.causes["unknown"], 60_000);
    assert_eq!(
        report.contested.iter().map(|port| port.count).sum::<u64>(),
        60_000
    );
}

#[test]
fn findings_a_job_can_be_failed_for() {
    use portwatch::report::Finding;
    let all = [Finding::Conflict, Finding::Leak, Finding::FlakeRisk];
    assert!(all.iter().all(|finding| of_job().has(*finding)));
    assert!(!all.iter().any(|finding| of_clean_job().has(*finding)));
    // Not allowed is no conflict.
    let refused: Vec<_> = story()
        .into_iter()
        .filter(|(time, _)| *time == at(1100))
        .collect();
    let report = tallied(&refused);
    assert_eq!(report.refusals.len(), 1);
    assert!(!report.has(Finding::Conflict));
}

mod recordings {
    use portwatch::report::{Flaw, Source};

    use super::*;

    fn line(seq: u64) -> String {
        let mut line = Vec::new();
        let (time, body) = story().remove(1);
        Json::default().render(&Event { time, body }, &mut line);
        let line = String::from_utf8(line).unwrap();
        line.replacen(r#""seq":0"#, &format!(r#""seq":{seq}"#), 1)
    }

    fn source(text: &str) -> (Source, usize) {
        let mut taken = 0;
        let source = read(text.as_bytes(), "f".to_owned(), |_| taken += 1).unwrap();
        (source, taken)
    }

    #[test]
    fn whole_ones_have_no_flaws() {
        let text = format!("{}{}\n{}", line(0), line(1), line(0));
        let (source, taken) = source(&text);
        assert_eq!((source.events, source.flaws, taken), (3, vec![], 3));
        let without_newline = line(0).trim_end().to_owned();
        assert_eq!(super::recordings::source(&without_newline).0.flaws, []);
    }

    #[test]
    fn flaws_are_told_and_left_out() {
        let other = line(0).replace("portwatch/1", "portwatch/2");
        let spaced = line(3).replacen(r#"{"schema":"#, r#"{ "schema" : "#, 1);
        let cut = &line(4)[..200];
        let text = format!("x\n{}y\n{other}{other}{spaced}{cut}", line(0));
        let (source, taken) = source(&text);
        assert_eq!((source.events, taken), (2, 2));
        let told: Vec<_> = source.flaws.iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "2 lines are no events of portwatch, and left out; the first is line 1",
                "2 lines are of the schema portwatch/2, which this portwatch does not know, and left out",
                "2 lines are missing",
                "the last line is cut off, and left out",
            ]
        );
        assert_eq!(source.flaws[0], Flaw::Foreign { count: 2, first: 1 });
    }

    #[test]
    fn an_empty_one_says_nothing() {
        assert_eq!(
            source(""),
            (
                Source {
                    file: "f".to_owned(),
                    events: 0,
                    flaws: vec![]
                },
                0
            )
        );
        assert_eq!(source("\n\n").0.flaws, []);
    }

    #[test]
    fn bytes_that_are_no_text_do_not_end_it() {
        let mut bytes = vec![0xff, 0xfe, b'\n'];
        bytes.extend(line(0).into_bytes());
        let source = read(&*bytes, "f".to_owned(), |_| {}).unwrap();
        assert_eq!(source.events, 1);
        assert_eq!(source.flaws, [Flaw::Foreign { count: 1, first: 1 }]);
    }
}

#[test]
fn options_are_those_of_the_first_bind() {
    let socket = Socket {
        options: Options(REUSEADDR),
        ..inet([0, 0, 0, 0], 8080, 1)
    };
    let mut tally = Tally::new();
    tally.take(at(0), &bind(ok(), socket, server(), None));
    let told: Vec<_> = tally
        .bound_by_number()
        .map(|port| port.options.has_reuseaddr())
        .collect();
    assert_eq!(told, [true]);
}
