//! Refusals, from their records and the answers to what is asked for them.

use std::sync::{Arc, Mutex};

use portwatch_common::record::{Bind, Holder, Socket, evidence, task_flag};
use zerocopy::{FromZeros as _, IntoBytes as _};

use super::lookup::{Finding, FoundSocket, Owner, Place, Question, Subject};
use super::*;
use crate::event::{Cause, Conflict, Evidence, Ownership};
use crate::filter;
use crate::kernel::sysctls::Sysctls;

const NETNS: u32 = 7;

type Asked = Arc<Mutex<Vec<Question>>>;

fn attribution() -> (Attribution, Asked) {
    let asked = Asked::default();
    let to = Arc::clone(&asked);
    let ask = move |questions: Vec<Question>| {
        to.lock().unwrap().extend(questions);
        Ok(())
    };
    let patience = Patience::within(Duration::from_millis(250));
    (Attribution::new(&[], Box::new(ask), patience), asked)
}

fn socket(address: u64, state: u8) -> Socket {
    let mut socket = Socket::new_zeroed();
    socket.address = address;
    socket.inode = address;
    socket.family = libc::AF_INET as u16;
    socket.protocol = libc::IPPROTO_TCP as u16;
    socket.sock_type = libc::SOCK_STREAM as u16;
    socket.netns = NETNS;
    socket.local_port = 80;
    socket.state = state;
    socket
}

/// A process that nobody finds in `/proc`.
fn task(tgid: u32) -> record::Task {
    let mut task = record::Task::new_zeroed();
    task.tgid = tgid;
    task.tid = tgid;
    task.start = 1;
    task.comm[..3].copy_from_slice(b"web");
    task
}

const NEWCOMER: u32 = 0x3fff_fff0;
const OWNER: u32 = 0x3fff_fff1;

fn refusal(time: u64) -> Bind {
    let mut bind = Bind::new_zeroed();
    bind.header.kind = kind::BIND;
    bind.header.time = time;
    bind.task = task(NEWCOMER);
    bind.socket = socket(1, 7);
    bind.socket.local_port = 0;
    bind.requested.family = libc::AF_INET as u16;
    bind.requested.read = 8;
    bind.requested.port = 80;
    bind.result = -libc::EADDRINUSE;
    bind
}

fn holder(time: u64) -> Holder {
    let mut holder = Holder::new_zeroed();
    holder.header.kind = kind::HOLDER;
    holder.header.time = time;
    holder.tid = NEWCOMER;
    holder.evidence = evidence::WALKED;
    holder.socket = socket(2, 10);
    holder
}

/// Takes records in; the conflicts that are told by then.
fn feed(attribution: &mut Attribution, records: &[&[u8]]) -> Vec<Conflict> {
    let mut told = Vec::new();
    let until = clock::monotonic() + 10 * order::SLACK;
    attribution.batch(&Batch::of(records.iter().copied(), until), |event| {
        told.extend(conflict(event));
    });
    told
}

fn answer(attribution: &mut Attribution, subject: Subject, finding: Finding) -> Vec<Conflict> {
    let mut told = Vec::new();
    attribution.answered(vec![(subject, finding)], |event| {
        told.extend(conflict(event));
    });
    told
}

/// Answers all that was asked; the conflicts that are told by then.
fn answer_all(
    attribution: &mut Attribution,
    asked: &Asked,
    finding: impl Fn(&Subject) -> Finding,
) -> Vec<Conflict> {
    let mut told = Vec::new();
    for subject in subjects(asked) {
        let finding = finding(&subject);
        told.extend(answer(attribution, subject, finding));
    }
    told
}

fn conflict(event: &Event) -> Option<Conflict> {
    match &event.body {
        Body::Bind(bind) => bind.conflict.as_deref().cloned(),
        _ => None,
    }
}

fn owner() -> Owner {
    Owner {
        task: task(OWNER),
        standing: None,
        unit: None,
    }
}

fn subjects(asked: &Asked) -> Vec<Subject> {
    let asked = std::mem::take(&mut *asked.lock().unwrap());
    asked.into_iter().map(|question| question.subject).collect()
}

fn settings() -> Subject {
    let Subject::Process(by) = newcomer() else {
        unreachable!("a process is one")
    };
    Subject::Settings { netns: NETNS, by }
}

fn newcomer() -> Subject {
    Subject::Process(Key::of(&task(NEWCOMER)))
}

const HELD: Subject = Subject::Socket {
    address: 2,
    inode: 2,
};

#[test]
fn a_refusal_waits_for_its_answers() {
    let (mut attribution, asked) = attribution();
    let now = clock::monotonic();
    let told = feed(
        &mut attribution,
        &[holder(now).as_bytes(), refusal(now + 1).as_bytes()],
    );
    assert!(told.is_empty() && attribution.is_asking());
    let settings = settings();
    assert_eq!(subjects(&asked), [settings.clone(), newcomer(), HELD]);
    let owners = Finding::Owners(vec![owner()]);
    assert!(answer(&mut attribution, HELD, owners).is_empty());
    assert!(answer(&mut attribution, settings, Finding::Unknown).is_empty());
    let told = answer(&mut attribution, newcomer(), Finding::Standing(None));
    assert_eq!(told[0].evidence, Some(Evidence::Walked));
    let holder = &told[0].holders[0];
    assert_eq!(holder.ownership, Some(Ownership::Verified));
    assert_eq!(holder.processes[0].pid, OWNER);
    // It was gone by the time it was looked at.
    assert_eq!(told[0].cause, Cause::ExitingHolder);
    assert!(!attribution.is_asking());
}

/// A user's process that is refused a low port and has ended is told as one that lacked the right to it.
#[test]
fn a_low_port_of_a_user_who_is_gone() {
    let (mut attribution, asked) = attribution();
    let mut refusal = refusal(clock::monotonic());
    refusal.result = -libc::EACCES;
    refusal.task.uid = 1000;
    assert!(feed(&mut attribution, &[refusal.as_bytes()]).is_empty());
    let settings = Sysctls {
        unprivileged_port_start: Some(1024),
        ..Sysctls::default()
    };
    let told = answer_all(&mut attribution, &asked, |subject| match subject {
        Subject::Settings { .. } => Finding::Settings(settings.clone()),
        _ => Finding::Standing(None),
    });
    assert_eq!(told[0].cause, Cause::PrivilegedPort);
}

/// The kernel side lets everything through before its filters are in force.
#[test]
fn a_refusal_that_is_not_wanted_is_not_asked_about() {
    let filters = [
        Filter {
            pids: [OWNER].into(),
            ..Filter::default()
        },
        Filter {
            uids: [1].into(),
            ..Filter::default()
        },
        Filter {
            netns: [NETNS + 1].into(),
            ..Filter::default()
        },
        Filter {
            ports: vec![81..=90],
            ..Filter::default()
        },
        Filter {
            comms: ["nginx".to_owned()].into(),
            ..Filter::default()
        },
    ];
    for filter in filters {
        let (mut attribution, asked) = attribution();
        attribution.choose(filter);
        feed(&mut attribution, &[refusal(clock::monotonic()).as_bytes()]);
        assert_eq!(subjects(&asked), []);
        assert!(!attribution.is_asking());
    }
}

fn attribution_of_a_job() -> (Attribution, Asked) {
    let (mut attribution, asked) = attribution();
    attribution.choose(Filter {
        job: Some(filter::Job::Own),
        ..Filter::default()
    });
    (attribution, asked)
}

/// Where only a job's own events are wanted, but for a container that may be of it.
#[test]
fn what_a_stranger_is_refused_is_not_asked_about_for_a_job() {
    for (comm, flags, wanted) in [
        ("nginx", 0, false),
        ("nginx", task_flag::IN_TREE, true),
        ("dockerd", 0, true),
    ] {
        let (mut attribution, asked) = attribution_of_a_job();
        let now = clock::monotonic();
        let mut process = record::Process::new_zeroed();
        process.header.kind = kind::PROCESS;
        process.header.time = now;
        process.task = task(NEWCOMER);
        process.task.comm[..comm.len()].copy_from_slice(comm.as_bytes());
        let mut bind = refusal(now + 1);
        bind.task = process.task;
        bind.task.flags = flags;
        feed(&mut attribution, &[process.as_bytes(), bind.as_bytes()]);
        let is_asked = !subjects(&asked).is_empty();
        assert_eq!(is_asked, wanted, "{comm}, {flags}");

        // Who it is has arrived before, and is not heeded yet.
        let (mut attribution, asked) = attribution_of_a_job();
        let early = Batch::of([process.as_bytes()], 0);
        attribution.batch(&early, |_| {});
        feed(&mut attribution, &[bind.as_bytes()]);
        let is_asked = !subjects(&asked).is_empty();
        assert_eq!(is_asked, wanted, "{comm}, {flags}, in two batches");
    }
}

/// With no hook and no walk: sock_diag's word.
#[test]
fn a_refusal_without_a_holders_record_has_it_from_user_space() {
    let (mut attribution, asked) = attribution();
    let now = clock::monotonic();
    assert!(feed(&mut attribution, &[refusal(now).as_bytes()]).is_empty());
    let place = Place {
        netns: NETNS,
        protocol: 6,
        port: 80,
    };
    let (settings, port) = (settings(), Subject::Port(place));
    assert_eq!(
        subjects(&asked),
        [settings.clone(), newcomer(), port.clone()]
    );
    answer(&mut attribution, settings, Finding::Unknown);
    answer(&mut attribution, newcomer(), Finding::Standing(None));
    let found = FoundSocket {
        socket: socket(2, 10),
        name: Vec::new(),
        uid: Some(33),
        expires_in_ms: None,
        owners: Some(vec![owner()]),
    };
    let told = answer(&mut attribution, port, Finding::Sockets(vec![found]));
    assert_eq!(told[0].evidence, Some(Evidence::Userspace));
    assert_eq!(told[0].holders[0].processes[0].pid, OWNER);
    assert_eq!(told[0].holders[0].socket.uid, Some(33));
}

/// Nobody has it any more when it is looked for: who was seen binding it before had it.
#[test]
fn a_holder_that_is_gone_is_known_by_its_bind() {
    let (mut attribution, _) = attribution();
    let now = clock::monotonic();
    let mut bound = refusal(now);
    bound.task = task(OWNER);
    bound.socket = socket(2, 7);
    bound.result = 0;
    feed(
        &mut attribution,
        &[bound.as_bytes(), refusal(now + 1).as_bytes()],
    );
    let place = Place {
        netns: NETNS,
        protocol: 6,
        port: 80,
    };
    answer(&mut attribution, settings(), Finding::Unknown);
    answer(&mut attribution, newcomer(), Finding::Standing(None));
    let none = Finding::Sockets(Vec::new());
    let told = answer(&mut attribution, Subject::Port(place), none);
    assert_eq!(told[0].evidence, Some(Evidence::Userspace));
    let holder = &told[0].holders[0];
    assert_eq!(holder.ownership, Some(Ownership::LastKnown));
    assert_eq!(holder.processes[0].pid, OWNER);
}

/// Nothing says who had it: that is said, and no cause is made up.
#[test]
fn a_refusal_that_nothing_explains_says_so() {
    let (mut attribution, asked) = attribution();
    feed(&mut attribution, &[refusal(clock::monotonic()).as_bytes()]);
    let told = answer_all(&mut attribution, &asked, |subject| match subject {
        Subject::Port(_) => Finding::Sockets(Vec::new()),
        _ => Finding::Unknown,
    });
    assert_eq!(told[0].cause, Cause::Unknown);
    assert_eq!(
        told[0].summary,
        "no socket was found that has 0.0.0.0:80: whoever had it gave it back before it could be \
         looked for"
    );
    assert!(told[0].holders.is_empty());
}

/// A process that could not be asked for is not said to be none.
#[test]
fn an_owner_that_is_not_known_is_left_out() {
    let (mut attribution, asked) = attribution();
    let now = clock::monotonic();
    feed(
        &mut attribution,
        &[holder(now).as_bytes(), refusal(now + 1).as_bytes()],
    );
    let told = answer_all(&mut attribution, &asked, |_| Finding::Unknown);
    assert_eq!(told[0].cause, Cause::Listener);
    assert_eq!(told[0].holders[0].ownership, None);
    assert!(told[0].holders[0].processes.is_empty());
}

/// What a holder forks inherits its socket, and is no part of a refusal before it.
#[test]
fn an_owner_that_was_started_since_is_left_out_unless_it_is_alone() {
    let clock = nix::time::ClockId::CLOCK_BOOTTIME;
    let booted = Duration::from(nix::time::clock_gettime(clock).unwrap());
    let mut forked = owner();
    forked.task.tgid += 1;
    forked.task.start = (booted + Duration::from_secs(1)).as_nanos() as u64;
    for (owners, told) in [
        (vec![owner(), forked.clone()], OWNER),
        (vec![forked], OWNER + 1),
    ] {
        let (mut attribution, asked) = attribution();
        let now = clock::monotonic();
        feed(
            &mut attribution,
            &[holder(now).as_bytes(), refusal(now + 1).as_bytes()],
        );
        let conflicts = answer_all(&mut attribution, &asked, |subject| match subject {
            &HELD => Finding::Owners(owners.clone()),
            _ => Finding::Unknown,
        });
        let holder = &conflicts[0].holders[0];
        assert_eq!(holder.ownership, Some(Ownership::Verified));
        let pids: Vec<_> = holder.processes.iter().map(|actor| actor.pid).collect();
        assert_eq!(pids, [told]);
    }
}
