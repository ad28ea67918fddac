//! A process that does what a test tells it: see `bin/actor.rs` for the steps.

use std::ffi::OsStr;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};

use crate::{Identity, LIMIT, Netns, Printed, ended, spawn, wait};

/// The actor's program.
pub fn program() -> PathBuf {
    // Cargo builds the binaries of this package beside `deps`, where its tests are.
    let own = std::env::current_exe().unwrap();
    own.parent().unwrap().parent().unwrap().join("actor")
}

/// A running actor.
pub struct Actor {
    child: Child,
    input: ChildStdin,
    printed: Printed,
    identity: Identity,
}

impl Actor {
    /// Starts one that waits to be told to [go](Self::go).
    pub fn start(netns: &Netns, steps: &[&str]) -> Self {
        let mut command = Command::new(program());
        command.args(steps);
        Self::by(command, |command| netns.spawn(command))
    }

    /// Starts one under another name and with arguments that it ignores.
    pub fn disguised(netns: &Netns, name: &OsStr, steps: &[&str], ignored: &[&OsStr]) -> Self {
        let mut command = Command::new(program());
        command.arg0(name).args(steps).arg("--").args(ignored);
        Self::by(command, |command| netns.spawn(command))
    }

    /// Starts a command that is one.
    pub fn of(command: Command) -> Self {
        Self::by(command, spawn)
    }

    fn by(mut command: Command, start: impl FnOnce(&mut Command) -> Child) -> Self {
        // A job of its own, as from a shell.
        command.process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = start(&mut command);
        let printed = Printed::of(child.stdout.take().unwrap());
        // Until then the kernel may still be putting its arguments in place.
        assert_eq!(printed.next().as_deref(), Some("started"), "{command:?}");
        Self {
            input: child.stdin.take().unwrap(),
            identity: Identity::of(child.id()),
            printed,
            child,
        }
    }

    /// Lets it go on from where it waits.
    pub fn go(&mut self) {
        self.input.write_all(b"\n").unwrap();
    }

    /// The next line that it says.
    pub fn said(&self) -> String {
        self.printed.next().expect("the actor ended")
    }

    /// Waits until it says this.
    pub fn says(&self, word: &str) {
        assert_eq!(self.said(), word, "what the actor says");
    }

    /// The next line, which is a number.
    pub fn number<T: std::str::FromStr>(&self) -> T {
        let said = self.said();
        match said.parse() {
            Ok(number) => number,
            Err(_) => panic!("the actor says {said:?}, which is no number"),
        }
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Who it was at its start.
    pub fn identity(&self) -> Identity {
        self.identity.clone()
    }

    /// Waits for its end, which must be a good one.
    pub fn finish(&mut self) {
        let status = wait(&mut self.child, *LIMIT);
        assert!(status.success(), "the actor: {}", ended(status));
    }

    /// Kills it with SIGKILL and waits for its end.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        wait(&mut self.child, *LIMIT);
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
