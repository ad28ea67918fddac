//! What the scenarios are made of: a trace of this host, network namespaces of
//! their own, processes that do as they are told, and the comparison of whole
//! events.
//!
//! Nothing here sleeps in the place of an event. What has to have happened is
//! waited for as the event or the line that says so, or looked at until it is
//! there; the time limits only keep a failure from hanging.

#![allow(
    clippy::unwrap_used,
    reason = "a support library of tests: what cannot go on panics"
)]

use std::cell::Cell;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read};
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{LazyLock, RwLock};
use std::thread;
use std::time::Duration;

pub mod actor;
pub mod expect;
pub mod held;
pub mod identity;
pub mod job;
pub mod netns;
pub mod rewrite;
pub mod scenario;
pub mod socket;
pub mod trace;
pub mod uring;

pub use actor::Actor;
pub use identity::Identity;
pub use netns::Netns;
pub use scenario::Scenario;
pub use socket::Socket;
pub use trace::Trace;

/// How many times slower than usual this machine may be: `PORTWATCH_TEST_PATIENCE`, or once.
pub fn patience() -> u32 {
    let patience = std::env::var("PORTWATCH_TEST_PATIENCE");
    patience.map_or(1, |times| times.parse().unwrap())
}

/// As many as this where nothing is slow, and a fifth where a machine is emulated: what each of many
/// costs is the same there, and in the sum it would be most of what a guest does.
pub fn many(usual: u32) -> u32 {
    usual / patience().min(5)
}

/// Whether the whole machine is the tests' own and systemd runs it: the guest of `cargo xtask vm --systemd`.
pub fn systemd() -> bool {
    std::env::var_os("PORTWATCH_TEST_SYSTEMD").is_some()
}

/// How long anything may take before it has failed.
pub static LIMIT: LazyLock<Duration> = LazyLock::new(|| Duration::from_secs(10) * patience());

/// Between fork and exec a child has a copy of every descriptor: it is told as one who has the sockets
/// open, and as who released one if it closes the last.
static FORKING: RwLock<()> = RwLock::new(());

thread_local! {
    /// Whether no child is made because of what this thread does.
    static UNFORKED: Cell<bool> = const { Cell::new(false) };
}

/// Does something with descriptors of which nobody else may have a copy. No child is made meanwhile.
pub fn unforked<T>(act: impl FnOnce() -> T) -> T {
    // A second lock would wait for who waits for the first.
    if UNFORKED.get() {
        return act();
    }
    let _alone = FORKING.read().unwrap_or_else(|lock| lock.into_inner());
    unforked_for(act)
}

/// The same in a thread whose starter is [`unforked`].
pub(crate) fn unforked_for<T>(act: impl FnOnce() -> T) -> T {
    struct Over;
    impl Drop for Over {
        fn drop(&mut self) {
            UNFORKED.set(false);
        }
    }
    UNFORKED.set(true);
    let _over = Over;
    act()
}

/// Lets others run before something is looked at again of which nothing tells. At one real-time
/// priority, as in a guest, a yield gives way to nobody who has a lower one: not to the kernel's
/// threads either, which may be what is waited for.
pub fn look_again_soon() {
    thread::sleep(Duration::from_millis(5));
}

/// Starts a program; when this returns the child has executed it.
pub fn spawn(command: &mut Command) -> Child {
    let _alone = FORKING.write().unwrap_or_else(|lock| lock.into_inner());
    match command.spawn() {
        Ok(child) => child,
        Err(error) => panic!("cannot start {command:?}: {error}"),
    }
}

/// Runs a program that tells who has a socket to its end, and gives what it printed. No other child is
/// made meanwhile, which it would tell as one who has it too.
pub fn output_alone(command: &mut Command) -> Output {
    let _alone = FORKING.write().unwrap_or_else(|lock| lock.into_inner());
    match command.output() {
        Ok(output) => output,
        Err(error) => panic!("cannot start {command:?}: {error}"),
    }
}

/// A program that is killed when nobody waits for its end any more.
pub struct Program(Child);

/// Starts a program as [`spawn`] does.
pub fn start(command: &mut Command) -> Program {
    Program(spawn(command))
}

impl std::ops::Deref for Program {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.0
    }
}

impl std::ops::DerefMut for Program {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Of one that has been waited for already this does nothing.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The portwatch that is tested.
pub fn portwatch() -> PathBuf {
    std::env::var_os("PORTWATCH_BIN").map_or_else(
        || {
            let repository = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
            PathBuf::from(repository).join("target/release/portwatch")
        },
        PathBuf::from,
    )
}

/// A command that starts a subcommand of [`portwatch`], through the backend that
/// `PORTWATCH_TEST_BACKEND` names, if it names one.
pub fn portwatch_command(subcommand: &str) -> Command {
    let mut command = Command::new(portwatch());
    command.arg(subcommand);
    if let Some(backend) = std::env::var_os("PORTWATCH_TEST_BACKEND") {
        command.arg("--backend").arg(backend);
    }
    command
}

/// Sends a signal to a child that has not been waited for.
pub fn signal(child: &Child, signal: nix::sys::signal::Signal) {
    let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
    nix::sys::signal::kill(pid, signal).unwrap();
}

/// Waits for a child's end, which must come within the time limit.
pub fn wait(child: &mut Child, limit: Duration) -> ExitStatus {
    let (say, said) = channel();
    let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
    thread::scope(|scope| {
        scope.spawn(|| {
            let status = child.wait().unwrap();
            let _ = say.send(status);
        });
        match said.recv_timeout(limit) {
            Ok(status) => status,
            Err(_) => {
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
                panic!("process {pid} did not end within {limit:?}");
            }
        }
    })
}

/// How a process ended, in words.
pub fn ended(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => status.to_string(),
    }
}

/// Lines that a process prints, read beside it.
pub struct Printed(Receiver<Vec<u8>>);

impl Printed {
    /// The lines of a pipe.
    pub fn of(pipe: impl Read + Send + 'static) -> Self {
        let (say, said) = channel();
        thread::spawn(move || {
            for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
                if say.send(line).is_err() {
                    break;
                }
            }
        });
        Self(said)
    }

    /// The next line; nothing at the end.
    pub fn next(&self) -> Option<String> {
        match self.0.recv_timeout(*LIMIT) {
            Ok(line) => Some(String::from_utf8_lossy(&line).into_owned()),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("no line within {:?}", *LIMIT),
        }
    }

    /// All lines up to the end.
    pub fn rest(&self) -> Vec<String> {
        std::iter::from_fn(|| self.next()).collect()
    }
}

/// Inode number of an open file.
pub fn inode(file: &File) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    file.metadata().unwrap().ino()
}
