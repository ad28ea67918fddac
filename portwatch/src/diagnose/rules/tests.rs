use proptest::prelude::*;
use proptest::sample::select;

use super::*;

const NAMED: Search = Search::Named;

/// A plain TCP socket of user 1000 with this address, written as `bind` takes it.
fn tcp_at(text: &str) -> Endpoint {
    let address: std::net::SocketAddr = text.parse().unwrap();
    Endpoint {
        table: Table::Tcp,
        address: address.ip(),
        port: address.port(),
        v6only: false,
        reuseaddr: false,
        reuseport: false,
        uid: Some(1000),
        device: None,
        state: State::Bound,
        netns: 1,
    }
}

fn udp_at(text: &str) -> Endpoint {
    Endpoint {
        table: Table::Udp,
        ..tcp_at(text)
    }
}

/// The socket with SO_REUSEADDR (`a`), SO_REUSEPORT (`p`), IPV6_V6ONLY (`6`).
fn with(flags: &str, endpoint: Endpoint) -> Endpoint {
    Endpoint {
        reuseaddr: flags.contains('a'),
        reuseport: flags.contains('p'),
        v6only: flags.contains('6'),
        ..endpoint
    }
}

fn in_state(state: State, endpoint: Endpoint) -> Endpoint {
    let uid = if state == State::TimeWait {
        None
    } else {
        endpoint.uid
    };
    Endpoint {
        state,
        uid,
        ..endpoint
    }
}

/// What newcomers with no option, with SO_REUSEADDR and with SO_REUSEPORT get: `o` or `x` each.
fn granted(holder: &Endpoint) -> String {
    ["", "a", "p"]
        .map(|flags| {
            let newcomer = Endpoint {
                uid: Some(1000),
                state: State::Bound,
                ..with(flags, holder.clone())
            };
            match verdict(&newcomer, holder, NAMED) {
                None => 'o',
                Some(_) => 'x',
            }
        })
        .iter()
        .collect()
}

/// What was measured on Linux 6.18.
#[test]
fn what_a_newcomer_gets_by_what_the_holder_is() {
    let at = "127.0.0.1:3000";
    for (holder, expected) in [
        (in_state(State::Listen, tcp_at(at)), "xxx"),
        (with("a", in_state(State::Listen, tcp_at(at))), "xxx"),
        (with("p", in_state(State::Listen, tcp_at(at))), "xxo"),
        (
            Endpoint {
                uid: Some(0),
                ..with("p", in_state(State::Listen, tcp_at(at)))
            },
            "xxx",
        ),
        (tcp_at(at), "xxx"),
        (with("a", tcp_at(at)), "xox"),
        (in_state(State::Established, tcp_at(at)), "xxx"),
        (with("a", in_state(State::Established, tcp_at(at))), "xox"),
        (in_state(State::TimeWait, tcp_at(at)), "xxx"),
        (with("a", in_state(State::TimeWait, tcp_at(at))), "xox"),
        (with("p", in_state(State::TimeWait, tcp_at(at))), "xxo"),
        (in_state(State::FinWait2, tcp_at(at)), "xxx"),
        (with("a", in_state(State::FinWait2, tcp_at(at))), "xox"),
        (udp_at(at), "xxx"),
        (with("a", udp_at(at)), "xox"),
        (with("p", udp_at(at)), "xxo"),
    ] {
        assert_eq!(granted(&holder), expected, "{holder:?}");
    }
}

#[test]
fn addresses_that_meet() {
    use Overlap::{DualStack, HolderWildcard, NewcomerWildcard, Same};
    for (newcomer, flags, holder, holder_flags, expected) in [
        ("0.0.0.0:1", "", "0.0.0.0:1", "", Some(Same)),
        ("0.0.0.0:1", "", "127.0.0.1:1", "", Some(NewcomerWildcard)),
        ("127.0.0.1:1", "", "0.0.0.0:1", "", Some(HolderWildcard)),
        ("127.0.0.1:1", "", "127.0.0.2:1", "", None),
        ("127.0.0.1:1", "", "127.0.0.1:2", "", None),
        ("[::]:1", "", "[::]:1", "", Some(Same)),
        ("[::]:1", "6", "[::]:1", "", Some(Same)),
        ("[::]:1", "", "[::1]:1", "6", Some(NewcomerWildcard)),
        ("[::1]:1", "", "[::]:1", "6", Some(HolderWildcard)),
        ("[::1]:1", "", "[::1]:1", "6", Some(Same)),
        ("[::1]:1", "", "[::2]:1", "6", None),
        // Dual-stack sockets.
        ("0.0.0.0:1", "", "[::]:1", "", Some(DualStack)),
        ("127.0.0.1:1", "", "[::]:1", "", Some(DualStack)),
        ("0.0.0.0:1", "", "[::]:1", "6", None),
        ("127.0.0.1:1", "", "[::]:1", "6", None),
        ("[::]:1", "", "0.0.0.0:1", "", Some(DualStack)),
        ("[::]:1", "", "127.0.0.1:1", "", Some(DualStack)),
        ("[::]:1", "6", "0.0.0.0:1", "", None),
        ("[::1]:1", "", "0.0.0.0:1", "", None),
        ("0.0.0.0:1", "", "[::1]:1", "6", None),
        // A client of AF_INET6 that was never bound is not v6only, and meets 0.0.0.0.
        ("0.0.0.0:1", "", "[::1]:1", "", Some(DualStack)),
        ("127.0.0.1:1", "", "[::1]:1", "", None),
        ("127.0.0.6:1", "", "[::1]:1", "", None),
        // v4-mapped addresses.
        (
            "[::ffff:127.0.0.1]:1",
            "",
            "127.0.0.1:1",
            "",
            Some(DualStack),
        ),
        (
            "127.0.0.1:1",
            "",
            "[::ffff:127.0.0.1]:1",
            "",
            Some(DualStack),
        ),
        ("127.0.0.2:1", "", "[::ffff:127.0.0.1]:1", "", None),
        ("[::ffff:127.0.0.1]:1", "", "[::]:1", "", Some(DualStack)),
        ("[::ffff:127.0.0.1]:1", "", "[::]:1", "6", None),
        ("[::ffff:0.0.0.0]:1", "", "127.0.0.1:1", "", Some(DualStack)),
        ("[::ffff:0.0.0.0]:1", "", "[::1]:1", "6", None),
        ("[::]:1", "6", "[::ffff:0.0.0.0]:1", "", None),
    ] {
        let newcomer = with(flags, tcp_at(newcomer));
        let holder = with(holder_flags, tcp_at(holder));
        let found = verdict(&newcomer, &holder, NAMED).map(|conflict| conflict.overlap);
        assert_eq!(found, expected, "{newcomer:?}\n{holder:?}");
        if newcomer.address != IpAddr::from([127, 0, 0, 6]) {
            let udp = |endpoint| Endpoint {
                table: Table::Udp,
                ..endpoint
            };
            let found = verdict(&udp(newcomer), &udp(holder), NAMED);
            assert_eq!(found.map(|conflict| conflict.overlap), expected);
        }
    }
}

#[test]
fn each_option_says_why_it_does_not_help() {
    use Reuseaddr as A;
    use Reuseport as P;
    let at = "0.0.0.0:80";
    let listen = |flags| with(flags, in_state(State::Listen, tcp_at(at)));
    for (newcomer, holder, reuseaddr, reuseport) in [
        ("", listen(""), A::Neither, P::Neither),
        ("a", listen(""), A::NewcomerOnly, P::Neither),
        ("", listen("a"), A::HolderOnly, P::Neither),
        ("a", listen("a"), A::HolderListens, P::Neither),
        ("p", listen("a"), A::HolderOnly, P::NewcomerOnly),
        ("ap", listen("a"), A::HolderListens, P::NewcomerOnly),
        ("a", listen("ap"), A::HolderListens, P::HolderOnly),
        (
            "p",
            Endpoint {
                uid: Some(0),
                ..listen("p")
            },
            A::Neither,
            P::OtherUser,
        ),
    ] {
        let newcomer = with(newcomer, tcp_at(at));
        let expected = Conflict {
            overlap: Overlap::Same,
            reuseaddr,
            reuseport,
        };
        assert_eq!(verdict(&newcomer, &holder, NAMED), Some(expected));
    }
}

#[test]
fn any_port_is_searched_more_strictly() {
    let at = "127.0.0.1:40000";
    let strict = Search::Any {
        autobind_reuse: false,
    };
    let relaxed = Search::Any {
        autobind_reuse: true,
    };
    for (newcomer, holder, search, refused) in [
        ("", with("", tcp_at(at)), strict, true),
        ("a", with("a", tcp_at(at)), strict, true),
        ("a", with("a", tcp_at(at)), relaxed, false),
        ("ap", with("ap", tcp_at(at)), relaxed, true),
        ("ap", with("a", tcp_at(at)), relaxed, false),
        ("p", with("p", tcp_at(at)), strict, true),
        ("p", with("p", tcp_at(at)), relaxed, true),
        ("p", with("p", udp_at(at)), strict, false),
        ("a", with("a", udp_at(at)), strict, false),
        ("", with("", udp_at(at)), strict, true),
        ("", with("", tcp_at("127.0.0.2:40000")), strict, false),
    ] {
        let newcomer = Endpoint {
            port: 0,
            address: [127, 0, 0, 1].into(),
            ..with(newcomer, holder.clone())
        };
        let found = verdict(&newcomer, &holder, search);
        assert_eq!(found.is_some(), refused, "{newcomer:?}\n{holder:?}");
    }
}

#[test]
fn what_never_meets() {
    let at = "0.0.0.0:80";
    let base = tcp_at(at);
    let on = |device: &str| Endpoint {
        device: Some(device.into()),
        ..base.clone()
    };
    let refused =
        |newcomer: &Endpoint, holder: &Endpoint| verdict(newcomer, holder, NAMED).is_some();
    assert!(refused(&base, &base));
    assert!(!refused(&base, &udp_at(at)));
    let elsewhere = Endpoint {
        netns: 2,
        ..base.clone()
    };
    assert!(!refused(&base, &elsewhere));
    assert!(!refused(&on("eth0"), &on("eth1")));
    assert!(refused(&on("eth0"), &on("eth0")));
    assert!(refused(&on("eth0"), &base));
    assert!(refused(&base, &on("eth0")));
}

#[test]
fn an_endpoint_is_made_only_of_what_is_known() {
    let socket = Socket {
        transport: Some(Transport::Mptcp),
        family: Some(crate::event::Family::Ipv4),
        local: Some(Address::v4([127, 0, 0, 1], 80)),
        remote: None,
        state: Some(State::Listen),
        options: crate::event::Options(option::REUSEADDR),
        bound_device: Some("lo".into()),
        netns: Some(1),
        cookie: None,
        inode: None,
    };
    let expected = Endpoint {
        device: Some("lo".into()),
        ..with("a", in_state(State::Listen, tcp_at("127.0.0.1:80")))
    };
    assert_eq!(Endpoint::of(&socket, Some(1000)), Some(expected));
    assert_eq!(Endpoint::of(&socket, None), None);
    let timewait = Socket {
        state: Some(State::TimeWait),
        ..socket.clone()
    };
    assert!(Endpoint::of(&timewait, None).is_some());
    for lacking in [
        Socket {
            transport: Some(Transport::Raw),
            ..socket.clone()
        },
        Socket {
            local: None,
            ..socket.clone()
        },
        Socket {
            netns: None,
            ..socket
        },
    ] {
        assert_eq!(Endpoint::of(&lacking, Some(1000)), None);
    }
}

fn endpoint() -> impl Strategy<Value = Endpoint> {
    let address = select(vec![
        "0.0.0.0:80",
        "127.0.0.1:80",
        "127.0.0.2:80",
        "[::]:80",
        "[::1]:80",
        "[::ffff:127.0.0.1]:80",
        "[::ffff:0.0.0.0]:80",
    ]);
    let table = select(vec![Table::Tcp, Table::Udp]);
    let state = select(vec![
        State::Listen,
        State::Bound,
        State::Established,
        State::TimeWait,
    ]);
    let flags = select(vec!["", "a", "p", "ap"]);
    (address, table, state, flags, any::<bool>()).prop_map(|(address, table, state, flags, v6)| {
        let endpoint = with(flags, in_state(state, tcp_at(address)));
        Endpoint {
            table,
            v6only: v6 && endpoint.address.is_ipv6() && !endpoint.is_mapped(),
            ..endpoint
        }
    })
}

proptest! {
    /// What a conflict says is missing lets both have the port, once it is there.
    #[test]
    fn what_is_missing_would_help(newcomer in endpoint(), holder in endpoint()) {
        let Some(conflict) = verdict(&newcomer, &holder, NAMED) else {
            return Ok(());
        };
        let with_both = |change: fn(&mut Endpoint)| {
            let (mut newcomer, mut holder) = (newcomer.clone(), holder.clone());
            change(&mut newcomer);
            change(&mut holder);
            verdict(&newcomer, &holder, NAMED)
        };
        let reuseaddr = with_both(|socket| socket.reuseaddr = true);
        let serves = holder.table == Table::Tcp && holder.state == State::Listen;
        match conflict.reuseaddr {
            Reuseaddr::HolderListens => prop_assert!(serves),
            Reuseaddr::NotNamed => prop_assert!(false, "it was named"),
            _ => prop_assert_eq!(reuseaddr.is_some(), serves),
        }
        if newcomer.uid == holder.uid {
            prop_assert_eq!(with_both(|socket| socket.reuseport = true), None);
            prop_assert_ne!(conflict.reuseport, Reuseport::OtherUser);
        }
        if conflict.overlap == Overlap::DualStack {
            let only = with_both(|socket| {
                socket.v6only = socket.address.is_ipv6() && !socket.is_mapped();
            });
            prop_assert!(only.is_none() || (newcomer.is_mapped() && holder.is_mapped()));
        }
    }
}
