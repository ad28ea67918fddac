//! Proves that the hooks fire: provokes each kind of event on loopback in a
//! network namespace of its own, and looks for its record.
//!
//! A hook may load and attach and still never fire.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use aya::maps::{MapData, RingBuf};
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use portwatch_common::record::{cancel, evidence, kind};

use super::decode::Record;
use super::hook::Part;
use super::side::KernelSide;
use super::sock_diag::TCP_TIME_WAIT;
use super::stream::Batch;

/// How long the records are waited for.
const PATIENCE: Duration = Duration::from_millis(400);

/// The programs that see sockets of UDP being released.
pub const RELEASES: [&str; 3] = ["fentry_inet_release", "kprobe_inet_release", "sock_release"];

/// One kind of event that was provoked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// What was provoked.
    pub name: &'static str,
    /// The part of the work whose hooks should have seen it.
    pub part: Part,
    /// Whether its record came.
    pub seen: bool,
}

/// What the self-test found.
#[derive(Debug)]
pub struct Report {
    /// One a kind of event; those whose hooks are not attached are left out.
    pub proofs: Vec<Proof>,
    /// Records of others that came meanwhile: the beginning of the stream.
    pub others: Batch,
    /// Whether records were lost meanwhile: then one that did not come proves nothing.
    pub lossy: bool,
    /// How long it took.
    pub took: Duration,
}

impl Report {
    /// The names of what did not fire.
    #[must_use]
    pub fn failed(&self) -> Vec<&'static str> {
        self.proofs
            .iter()
            .filter(|proof| !proof.seen)
            .map(|proof| proof.name)
            .collect()
    }
}

/// The ports used in the namespace, which is empty but for this.
struct Ports {
    tcp: u16,
    udp: u16,
    client: u16,
}

/// Provokes every kind of event whose hooks are attached. A part whose hooks do not fire steps down
/// to its next backend, and is proven again; what does not fire in the end is in the report.
///
/// # Errors
///
/// If the namespace cannot be made or used: then nothing is proven. If what is stepped down to
/// cannot be attached: then tracing is not possible ([`super::support::Unsupported`]).
pub fn run(side: &mut KernelSide, ring: &mut RingBuf<MapData>) -> anyhow::Result<Report> {
    let mut others = Vec::new();
    loop {
        let mut report = attempt(side, ring, &mut others)?;
        let mut failed = BTreeMap::<Part, Vec<&str>>::new();
        for proof in report.proofs.iter().filter(|proof| !proof.seen) {
            failed.entry(proof.part).or_default().push(proof.name);
        }
        let mut stepped = false;
        if !report.lossy {
            for (part, names) in failed {
                let why = format!("did not fire in the self-test: {}", names.join(", "));
                stepped |= side.step_down(part, &why)?;
            }
        }
        if !stepped {
            report.others = Batch::of(others.iter().map(Vec::as_slice), 0);
            return Ok(report);
        }
    }
}

fn attempt(
    side: &KernelSide,
    ring: &mut RingBuf<MapData>,
    others: &mut Vec<Vec<u8>>,
) -> anyhow::Result<Report> {
    let begin = Instant::now();
    // The namespace belongs to the thread and ends with it.
    let (ports, netns) = thread::spawn(provoke)
        .join()
        .map_err(|_| anyhow::anyhow!("the self-test panicked"))??;
    let mut expected = expected(side, &ports);
    let own = std::process::id();
    loop {
        while let Some(bytes) = ring.next() {
            let Ok(record) = Record::decode(&bytes) else {
                continue;
            };
            if is_own(&record, own, netns) {
                for (proof, is_it) in &mut expected {
                    proof.seen |= is_it(&record);
                }
            } else {
                others.push(bytes.to_vec());
            }
        }
        if expected.iter().all(|(proof, _)| proof.seen) || begin.elapsed() > PATIENCE {
            break;
        }
        // Records are written before the calls return but for those of timers,
        // which other processors may still be at.
        thread::yield_now();
    }
    Ok(Report {
        proofs: expected.into_iter().map(|(proof, _)| proof).collect(),
        others: Batch::of([], 0),
        lossy: side.losses().ring.values().any(|count| *count != 0),
        took: begin.elapsed(),
    })
}

/// Whether a record came of the self-test.
fn is_own(record: &Record, own: u32, netns: u32) -> bool {
    match record {
        Record::Bind(bind, _) => bind.task.tgid == own,
        Record::Listen(listen, _) => listen.task.tgid == own,
        Record::Release(release) => release.socket.netns == netns,
        // The record that tells of a successor has no socket; nobody else's
        // TIME_WAIT can have been reused within these milliseconds.
        Record::Timewait(timewait) => {
            timewait.socket.netns == netns || timewait.header.kind == kind::TIMEWAIT_REUSE
        }
        Record::Process(process) => process.task.tgid == own,
        Record::Holder(holder) => holder.socket.netns == netns,
        Record::Fork(fork) => fork.parent_tgid == own,
        Record::Gone(gone) => gone.tgid == own,
    }
}

type IsIt = Box<dyn Fn(&Record) -> bool>;

/// What should be seen, and how it is told.
fn expected(side: &KernelSide, ports: &Ports) -> Vec<(Proof, IsIt)> {
    let mut expected: Vec<(Proof, IsIt)> = Vec::new();
    let mut expect = |attached: bool, part, name, is_it: IsIt| {
        if attached {
            let seen = false;
            expected.push((Proof { name, part, seen }, is_it));
        }
    };
    let Ports { tcp, udp, client } = *ports;
    expect(
        true,
        Part::Bind,
        "bind",
        Box::new(move |record| {
            matches!(record, Record::Bind(bind, _)
                if bind.result == 0 && bind.socket.local_port == tcp)
        }),
    );
    expect(
        true,
        Part::Bind,
        "bind refused",
        Box::new(move |record| {
            matches!(record, Record::Bind(bind, _)
                if bind.result == -libc::EADDRINUSE && bind.requested.port == tcp)
        }),
    );
    expect(
        true,
        Part::Bind,
        "listen",
        Box::new(move |record| {
            matches!(record, Record::Listen(listen, _)
                if listen.result == 0 && listen.socket.local_port == tcp)
        }),
    );
    expect(
        true,
        Part::Bind,
        "identity",
        Box::new(|record| {
            matches!(record, Record::Process(process)
                if process.args.as_ref().is_some_and(|args| !args.is_empty()) && process.exe.is_some())
        }),
    );
    let met = side.has(&[
        "fexit_inet_rcv_saddr_equal",
        "kretprobe_inet_rcv_saddr_equal",
    ]);
    for (name, part, wanted, attached) in [
        ("holder met", Part::Conflict, evidence::LOCKED, met),
        ("holder walked to", Part::Bind, evidence::WALKED, true),
    ] {
        expect(
            attached,
            part,
            name,
            Box::new(move |record| {
                matches!(record, Record::Holder(holder)
                    if holder.evidence == wanted && holder.socket.local_port == tcp)
            }),
        );
    }
    expect(
        side.has(&["tcp_destroy_sock"]),
        Part::Release,
        "release of TCP",
        Box::new(move |record| {
            matches!(record, Record::Release(release)
                if release.socket.local_port == tcp)
        }),
    );
    expect(
        side.has(&RELEASES),
        Part::Release,
        "release of UDP",
        Box::new(move |record| {
            matches!(record, Record::Release(release)
                if release.socket.local_port == udp)
        }),
    );
    let timewait = move |kind: u32| {
        move |record: &Record| match record {
            Record::Timewait(timewait)
                if timewait.header.kind == kind && timewait.socket.remote_port == client =>
            {
                Some(*timewait)
            }
            _ => None,
        }
    };
    expect(
        side.has(&["inet_sock_set_state"])
            && side.has(&[
                "fentry_inet_twsk_hashdance",
                "kprobe_inet_twsk_hashdance",
                "timer_start",
            ]),
        Part::Timewait,
        "timewait enter",
        Box::new(move |record| {
            timewait(kind::TIMEWAIT_START)(record)
                .is_some_and(|timewait| timewait.task.tgid == std::process::id())
        }),
    );
    // A timer that is moved within its slot of the wheel has no tracepoint.
    expect(
        side.has(&["fentry_inet_twsk_schedule", "kprobe_inet_twsk_schedule"]),
        Part::Timewait,
        "timewait behind FIN_WAIT2",
        Box::new(move |record| {
            timewait(kind::TIMEWAIT_START)(record)
                .is_some_and(|timewait| timewait.socket.substate == TCP_TIME_WAIT)
        }),
    );
    expect(
        side.has(&[
            "fentry_inet_twsk_kill",
            "kprobe_inet_twsk_kill",
            "timer_cancel",
        ]),
        Part::Timewait,
        "timewait exit",
        Box::new(move |record| {
            timewait(kind::TIMEWAIT_CANCEL)(record)
                .is_some_and(|timewait| timewait.reason == cancel::UNKNOWN)
        }),
    );
    expected
}

/// In a namespace of its own: binds, is refused, listens, closes a connection
/// into TIME_WAIT, and takes it over with a new one. Leaves nothing behind
/// that would end later.
fn provoke() -> anyhow::Result<(Ports, u32)> {
    unshare(CloneFlags::CLONE_NEWNET)
        .context("making a network namespace (needs CAP_SYS_ADMIN)")?;
    loopback_up().context("bringing loopback up")?;
    let netns = std::fs::read_link("/proc/thread-self/ns/net")?
        .to_str()
        .and_then(|link| link.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok())
        .context("reading the namespace's number")?;

    let localhost = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let listener = TcpListener::bind(localhost)?;
    let address = listener.local_addr()?;
    anyhow::ensure!(
        TcpListener::bind(address).is_err(),
        "a port was given twice"
    );
    let udp = UdpSocket::bind(localhost)?;

    let client = TcpStream::connect(address)?;
    let client_port = client.local_addr()?;
    let (server, _) = listener.accept()?;
    // The server closes first, so TIME_WAIT is on its side, and the client's port is free at once.
    drop(server);
    wait_for_end(client)?;
    // The same client again: its SYN ends the TIME_WAIT.
    let client = connect_from(client_port, address)?;
    let (server, _) = listener.accept()?;
    // A reset leaves no TIME_WAIT behind.
    reset_on_close(&server)?;
    drop(server);
    drop(client);

    let ports = Ports {
        tcp: address.port(),
        udp: udp.local_addr()?.port(),
        client: client_port.port(),
    };
    Ok((ports, netns))
}

/// Reads until the peer has closed, then closes.
fn wait_for_end(mut stream: TcpStream) -> std::io::Result<()> {
    stream.read_to_end(&mut Vec::new())?;
    stream.flush()
}

fn connect_from(local: SocketAddr, remote: SocketAddr) -> anyhow::Result<TcpStream> {
    use nix::sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt,
    };

    let (SocketAddr::V4(local), SocketAddr::V4(remote)) = (local, remote) else {
        anyhow::bail!("the self-test speaks IPv4");
    };
    let socket = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    // The former socket may still wait for the last acknowledgement, out of a softirq, which may need
    // this very processor.
    let begin = Instant::now();
    while let Err(error) = bind(socket.as_raw_fd(), &SockaddrIn::from(local)) {
        if error != Errno::EADDRINUSE || begin.elapsed() > PATIENCE {
            return Err(error.into());
        }
        thread::sleep(Duration::from_millis(1));
    }
    connect(socket.as_raw_fd(), &SockaddrIn::from(remote))?;
    Ok(socket.into())
}

fn reset_on_close(stream: &TcpStream) -> anyhow::Result<()> {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    nix::sys::socket::setsockopt(stream, nix::sys::socket::sockopt::Linger, &linger)?;
    Ok(())
}

/// Brings the namespace's loopback interface up.
fn loopback_up() -> anyhow::Result<()> {
    nix::ioctl_write_ptr_bad!(set_flags, libc::SIOCSIFFLAGS, libc::ifreq);

    let socket = UdpSocket::bind(("0.0.0.0", 0))?;
    // SAFETY: an ifreq of zeros is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // A char of C has a sign on x86_64 and none on aarch64.
    for (to, from) in request.ifr_name.iter_mut().zip(*b"lo") {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_UP | libc::IFF_RUNNING)?;
    // SAFETY: the descriptor is open and the request lives as long as the call.
    unsafe { set_flags(socket.as_raw_fd(), &raw const request) }?;
    Ok(())
}
