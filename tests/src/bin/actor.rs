//! A process for the scenarios: it says `started`, waits for a line, and then
//! does the steps that its arguments say, in their order.
//!
//! Sockets are kept on a stack; a step concerns the one on top.
//!
//! | step | what it does |
//! |---|---|
//! | `socket=KIND` | pushes one: tcp4, tcp6, udp4, udp6, mptcp4 |
//! | `take=N` | pushes the descriptor N, which was inherited |
//! | `set=OPTION` | reuseaddr, reuseport, v6only |
//! | `bind=ADDRESS`, `bind?=ADDRESS` | bind(2); with `?` it may fail |
//! | `listen` | listen(2) |
//! | `connect=ADDRESS` | connect(2) |
//! | `accept` | pushes what accept(2) gives |
//! | `shutdown` | shutdown(2) of the sending half |
//! | `close` | pops one and closes it |
//! | `swap` | exchanges the upper two |
//! | `keep` | lets a program that is executed have it |
//! | `yield` | sched_yield(2) |
//! | `port`, `pid` | prints the local port, which `$port` in an address stands for from then on; the pid |
//! | `say=WORD`, `wait` | prints a line, reads a line |
//! | `stop` | stops itself by SIGSTOP |
//! | `stay` | waits until the test lets go of it, and leaves the lines to others |
//! | `session`, `group` | setsid(2), setpgid(2) |
//! | `refuse=ERRNO` | a seccomp filter refuses each bind(2) from now on |
//! | `uid=N`, `gid=N` | setresuid(2), setresgid(2) |
//! | `fifo`, `fifo=PID` | runs at a priority of SCHED_FIFO from now on; another task does |
//! | `comm=NAME` | names the thread |
//! | `title=TEXT` | writes over the arguments in memory |
//! | `unshare=pid`, `unshare=net` | what is forked is in a new one; a new one |
//! | `fork … end` | a child does the steps between and exits |
//! | `held=ADDRESS … end` | bind(2), which does not return before another thread has done the steps between |
//! | `alike … end` | as `fork`, but the child's id leads to the same seat as that of who is held |
//! | `thread … end` | a thread does the steps between |
//! | `repeat=N … end` | does the steps between N times |
//! | `for=SECONDS … end` | does the steps between until the time is over |
//! | `reap` | waits for the child |
//! | `exec=PROGRAM …` | executes it with all that follows as arguments, its own name first |
//! | `--` | ends the steps |

#![allow(
    clippy::unwrap_used,
    reason = "a helper of tests: what cannot go on panics"
)]

use std::ffi::{CString, OsString};
use std::io::Write as _;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, raise};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Gid, Pid, Uid, execv, fork, setresgid, setresuid};
use portwatch_common::map::CALLS_CAPACITY;
use portwatch_tests::socket::{REUSEADDR, REUSEPORT, V6ONLY, address, sockaddr};
use portwatch_tests::{Socket, held};

fn main() {
    say("started");
    wait_for_line();
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let end = arguments.iter().position(|argument| argument == "--");
    let steps = &arguments[..end.unwrap_or(arguments.len())];
    let mut player = Player {
        sockets: Vec::new(),
        child: None,
        port: 0,
        held: nix::unistd::gettid(),
    };
    player.play(steps);
}

struct Player {
    sockets: Vec<Socket>,
    child: Option<Pid>,
    port: u16,
    /// Whose bind is held.
    held: Pid,
}

/// Unbuffered, because children share the descriptor.
fn wait_for_line() {
    let mut byte = [0];
    loop {
        let read = nix::unistd::read(std::io::stdin(), &mut byte).unwrap();
        if read == 0 || byte == *b"\n" {
            return;
        }
    }
}

fn say(line: impl std::fmt::Display) {
    let mut output = std::io::stdout().lock();
    writeln!(output, "{line}").unwrap();
    output.flush().unwrap();
}

/// The steps up to the `end` of a block, and those behind it.
fn block(steps: &[OsString]) -> (&[OsString], &[OsString]) {
    let mut depth = 1;
    for (index, step) in steps.iter().enumerate() {
        match step.as_bytes() {
            b"fork" | b"alike" | b"thread" => depth += 1,
            step if [&b"repeat="[..], b"for=", b"held="]
                .iter()
                .any(|verb| step.starts_with(verb)) =>
            {
                depth += 1;
            }
            b"end" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return (&steps[..index], &steps[index + 1..]);
        }
    }
    panic!("a block without its end");
}

impl Player {
    fn top(&self) -> &Socket {
        self.sockets.last().unwrap()
    }

    fn play(&mut self, mut steps: &[OsString]) {
        while let [step, rest @ ..] = steps {
            steps = rest;
            let step = step.as_bytes();
            let (verb, value) = match step.iter().position(|byte| *byte == b'=') {
                Some(at) => (&step[..at], &step[at + 1..]),
                None => (step, &b""[..]),
            };
            let verb = std::str::from_utf8(verb).unwrap();
            match verb {
                "fork" | "alike" | "held" | "thread" | "repeat" | "for" => {
                    let (inner, behind) = block(rest);
                    self.block(verb, value, inner);
                    steps = behind;
                }
                "exec" => exec(value, rest),
                _ => self.step(verb, value),
            }
        }
    }

    fn block(&mut self, verb: &str, value: &[u8], inner: &[OsString]) {
        match verb {
            "fork" | "alike" => {
                self.child = match verb {
                    "alike" => fork_alike(self.held),
                    // SAFETY: there is one thread here.
                    _ => match unsafe { fork() }.unwrap() {
                        ForkResult::Child => None,
                        ForkResult::Parent { child } => Some(child),
                    },
                };
                if self.child.is_none() {
                    self.play(inner);
                    std::process::exit(0);
                }
            }
            "held" => {
                let socket = self.sockets.pop().unwrap();
                let bytes = sockaddr(address(&String::from_utf8_lossy(value)));
                self.held = nix::unistd::gettid();
                held::bind(&socket, &bytes, || self.play(inner)).unwrap();
                self.sockets.push(socket);
            }
            "thread" => std::thread::scope(|scope| {
                scope.spawn(|| self.play(inner));
            }),
            "for" => {
                let seconds = String::from_utf8_lossy(value).parse().unwrap();
                let begin = std::time::Instant::now();
                while begin.elapsed() < std::time::Duration::from_secs(seconds) {
                    self.play(inner);
                }
            }
            _ => {
                let times: u32 = String::from_utf8_lossy(value).parse().unwrap();
                for _ in 0..times {
                    self.play(inner);
                }
            }
        }
    }

    fn step(&mut self, verb: &str, value: &[u8]) {
        let text = String::from_utf8_lossy(value);
        let text = text.replace("$port", &self.port.to_string());
        match verb {
            "socket" => self.sockets.push(Socket::by_name(&text)),
            "take" => {
                // SAFETY: whoever executed this program left the descriptor for it.
                let taken = unsafe { OwnedFd::from_raw_fd(text.parse().unwrap()) };
                self.sockets.push(taken.into());
            }
            "set" => self.top().set(match &*text {
                "reuseaddr" => REUSEADDR,
                "reuseport" => REUSEPORT,
                "v6only" => V6ONLY,
                other => panic!("there is no option {other}"),
            }),
            "bind" => self.top().bind(&text).unwrap(),
            "bind?" => drop(self.top().bind(&text)),
            "listen" => self.top().listen(16).unwrap(),
            "connect" => self.top().connect(address(&text)).unwrap(),
            "accept" => {
                let accepted = self.top().accept().unwrap();
                self.sockets.push(accepted);
            }
            "shutdown" => self.top().shutdown(),
            "close" => drop(self.sockets.pop()),
            "yield" => std::thread::yield_now(),
            "swap" => {
                let count = self.sockets.len();
                self.sockets.swap(count - 1, count - 2);
            }
            "keep" => {
                self.top().keep();
                say(self.top().number());
            }
            "port" => {
                self.port = self.top().local().port();
                say(self.port);
            }
            "pid" => say(std::process::id()),
            "say" => say(text),
            "wait" => wait_for_line(),
            "stop" => raise(Signal::SIGSTOP).unwrap(),
            "stay" => stay(),
            "session" => drop(nix::unistd::setsid().unwrap()),
            "group" => nix::unistd::setpgid(Pid::from_raw(0), Pid::from_raw(0)).unwrap(),
            "refuse" => refuse_binds(text.parse().unwrap()),
            "uid" => {
                let uid = Uid::from_raw(text.parse().unwrap());
                setresuid(uid, uid, uid).unwrap();
            }
            "gid" => {
                let gid = Gid::from_raw(text.parse().unwrap());
                setresgid(gid, gid, gid).unwrap();
            }
            "fifo" => run_undisturbed(text.parse().unwrap_or(0)),
            "comm" => std::fs::write("/proc/thread-self/comm", value).unwrap(),
            "title" => write_title(value),
            "unshare" => unshare(match &*text {
                "pid" => CloneFlags::CLONE_NEWPID,
                "net" => CloneFlags::CLONE_NEWNET,
                other => panic!("there is no namespace {other}"),
            })
            .unwrap(),
            "reap" => drop(waitpid(self.child.take(), None).unwrap()),
            other => panic!("there is no step {other}"),
        }
    }
}

/// As fork(2), by clone3(2): the child's id leads to the first seat of this task as well. The child gets
/// nothing.
fn fork_alike(task: Pid) -> Option<Pid> {
    let apart = i32::try_from(CALLS_CAPACITY).unwrap();
    for times in 1.. {
        let id = task.as_raw() % apart + times * apart;
        if id == task.as_raw() {
            continue;
        }
        // SAFETY: integers, of which those that are zero say that there is nothing.
        let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
        arguments.exit_signal = libc::SIGCHLD as u64;
        arguments.set_tid = (&raw const id).expose_provenance() as u64;
        arguments.set_tid_size = 1;
        // SAFETY: the only other thread is in the kernel, and has no lock of this process's.
        let child = unsafe {
            libc::syscall(
                libc::SYS_clone3,
                &raw mut arguments,
                size_of::<libc::clone_args>(),
            )
        };
        let error = std::io::Error::last_os_error();
        // Somebody has the id.
        if child >= 0 || error.raw_os_error() != Some(libc::EEXIST) {
            assert!(child >= 0, "{error}");
            return (child != 0).then(|| Pid::from_raw(child as libc::pid_t));
        }
    }
    panic!("no id is free");
}

/// Until nobody can write to standard input any more.
fn stay() {
    let mut input = libc::pollfd {
        fd: 0,
        events: 0,
        revents: 0,
    };
    // SAFETY: it points to one valid element.
    while unsafe { libc::poll(&raw mut input, 1, -1) } < 1 {}
}

/// seccomp(2): a filter that answers bind(2) with an error.
fn refuse_binds(errno: u32) {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, jf, k| libc::sock_filter { code, jt: 0, jf, k };
    let mut steps = [
        // `nr` is the first of `struct seccomp_data`.
        step(LOAD, 0, 0),
        step(JUMP_EQUAL, 1, libc::SYS_bind as u32),
        step(RETURN, 0, libc::SECCOMP_RET_ERRNO | errno),
        step(RETURN, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: steps.len() as u16,
        filter: steps.as_mut_ptr(),
    };
    // SAFETY: the program points to as many steps as it says.
    let result = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

fn exec(program: &[u8], arguments: &[OsString]) {
    let program = CString::new(program).unwrap();
    let arguments = arguments.iter().cloned().map(OsString::into_vec);
    let arguments: Vec<_> = arguments
        .map(|bytes| CString::new(bytes).unwrap())
        .collect();
    let Err(error) = execv(&program, &arguments);
    panic!("{program:?}: {error}");
}

/// Nobody of the same priority preempts whoever runs at one of SCHED_FIFO; children inherit it. 0 is
/// this process.
fn run_undisturbed(pid: libc::pid_t) {
    let priority = libc::sched_param { sched_priority: 1 };
    // SAFETY: the parameter is valid.
    let result = unsafe { libc::sched_setscheduler(pid, libc::SCHED_FIFO, &raw const priority) };
    let error = std::io::Error::last_os_error();
    // One that has ended needs none.
    let ended = pid != 0 && error.raw_os_error() == Some(libc::ESRCH);
    assert!(result == 0 || ended, "{error}");
}

/// Writes a text over the arguments and fills the rest with NULs, as setproctitle(3) does.
fn write_title(text: &[u8]) {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let fields: Vec<_> = fields.split_ascii_whitespace().collect();
    let field = |number: usize| fields[number - 3].parse::<usize>().unwrap();
    let (begin, end) = (field(48), field(49));
    let memory = std::ptr::with_exposed_provenance_mut::<u8>(begin);
    // SAFETY: the kernel put the arguments there for this process to write to; nobody else does.
    let memory = unsafe { std::slice::from_raw_parts_mut(memory, end - begin) };
    memory.fill(0);
    memory[..text.len()].copy_from_slice(text);
}
