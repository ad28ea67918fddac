//! The text of `portwatch list`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

#[path = "golden/samples.rs"]
#[allow(dead_code, reason = "other tests have other samples")]
mod samples;

use std::collections::HashMap;

use portwatch::event::{
    Address, Body, Family, Listed, Options, Process, Socket, State, Timewaits, Transport,
};
use portwatch::sink::list::{Columns, render};
use portwatch_common::record::option;
use samples::{HOSTILE, actor, listed, socket, tcp4, tcp6};

const HOST: u32 = 4_026_531_840;

fn sample(name: &str) -> Body {
    let mut samples = samples::samples().into_iter();
    samples.find(|(of, _)| *of == name).unwrap().1.body
}

fn timewaits(port: u16, count: u64, ephemeral: bool) -> Body {
    Body::Timewaits(Timewaits {
        transport: Transport::Tcp,
        port,
        netns: HOST,
        netns_name: None,
        count,
        expires_in_ms: count * 1000,
        ephemeral,
    })
}

fn bodies() -> Vec<Body> {
    let bound = Socket {
        state: Some(State::Bound),
        bound_device: Some("eth0".into()),
        ..tcp4([10, 0, 0, 5], 8080)
    };
    let udp = Socket {
        state: Some(State::Bound),
        options: Options(option::REUSEADDR | option::REUSEPORT),
        ..socket(Transport::Udp, Family::Ipv6, Address::v6([0; 16], 5353, 0))
    };
    let elsewhere = Socket {
        state: Some(State::Listen),
        netns: Some(4_026_532_201),
        ..tcp6("::1", 6379, 0)
    };
    let named = Listed {
        netns_name: Some(HOSTILE.into()),
        ..listed(elsewhere.clone(), Vec::new())
    };
    let workers = (1..=5).map(|pid| actor(pid, "worker", Process::default()));
    vec![
        sample("socket of two processes"),
        sample("timewaits"),
        Body::Socket(listed(udp, workers.collect())),
        Body::Socket(listed(bound, vec![actor(77, "java", samples::runner())])),
        sample("socket of a published port"),
        sample("published without a socket"),
        timewaits(8080, 3, false),
        timewaits(40_000, 1, true),
        timewaits(40_001, 2, true),
        Body::Socket(listed(elsewhere, Vec::new())),
        Body::Socket(named),
    ]
}

fn text(bodies: &[Body], columns: Columns) -> String {
    let counts = HashMap::from([((HOST, 8080), 3), ((HOST, 3000), 12)]);
    let bytes = render(bodies, columns, &counts, Some(HOST), true);
    String::from_utf8(bytes).unwrap()
}

#[test]
fn ports() {
    insta::assert_snapshot!(text(&bodies(), Columns::Bound), @r"
    PROTO  LOCAL               STATE      OPTIONS              TIMEWAIT  NETNS                      PROCESS                                     WHERE
    tcp6   [::]:443            listen     reuseaddr,v6only     -         host                       nginx[812], \x1b[2J\u{202e}a\r\n\t\\b[813]  web-1 (docker)
    tcp    *:3000              time-wait  -                    12        host                       -                                           the last frees in 59 s
    udp6   [::]:5353           bound      reuseaddr,reuseport  -         host                       worker[1], worker[2], worker[3] +2
    tcp4   10.0.0.5%eth0:8080  bound      -                    3         host                       java[77]                                    ci-runner.service, bound-not-listening
    tcp4   0.0.0.0:8080        -          -                    3         host                       docker-proxy[900]                           published by web-1 (docker) → 80
    tcp4   0.0.0.0:8081        -          -                    -         host                       -                                           published by \x1b[2J\u{202e}a\r\n\t\\b (docker) → 80, no socket
    tcp6   [::1]:6379          listen     -                    -         4026532201                 -                                           no process
    tcp6   [::1]:6379          listen     -                    -         \x1b[2J\u{202e}a\r\n\t\\b  -                                           no process
    tcp    2 ports             time-wait  -                    3         host                       -                                           ephemeral, the last frees in 2 s
    ");
}

#[test]
fn connections() {
    let bodies = [
        sample("socket of two processes"),
        sample("socket in TIME_WAIT"),
        sample("published without a socket"),
    ];
    insta::assert_snapshot!(text(&bodies, Columns::All), @r"
    PROTO  LOCAL            PEER            STATE      OPTIONS           NETNS  PROCESS                                     WHERE
    tcp6   [::]:443         -               listen     reuseaddr,v6only  host   nginx[812], \x1b[2J\u{202e}a\r\n\t\\b[813]  web-1 (docker)
    tcp4   127.0.0.1:40000  127.0.0.1:5432  time-wait  -                 blue   -                                           frees in 42 s
    tcp4   0.0.0.0:8081     -               -          -                 host   -                                           published by \x1b[2J\u{202e}a\r\n\t\\b (docker) → 80, no socket
    ");
}

#[test]
fn nothing_is_no_line() {
    let bytes = render(&[], Columns::Bound, &HashMap::new(), None, false);
    assert_eq!(bytes, b"");
}
