//! A job at a terminal, as a shell with job control starts it: what is typed reaches it as without
//! portwatch before it.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::Stdio;
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use nix::pty::{OpenptyResult, openpty};
use nix::unistd::setsid;
use portwatch_tests::{LIMIT, Program, start};

use crate::{PYTHON, Place};

nix::ioctl_write_int_bad!(
    /// Makes a terminal the controlling one.
    set_controlling,
    nix::libc::TIOCSCTTY
);

/// What a shell does for a job in the foreground: a process group of its own, which has the terminal;
/// and `fg` whenever it has stopped. A job that has stopped itself is continued by the process alone.
const SHELL: &str = "
import os, signal, sys
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
job = os.fork()
if job == 0:
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpid())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    os.execv(sys.argv[1], sys.argv[1:])
while True:
    _, status = os.waitpid(job, os.WUNTRACED)
    if not os.WIFSTOPPED(status): break
    stopped = os.WSTOPSIG(status)
    print('shell: stopped by', stopped, flush=True)
    os.tcsetpgrp(0, job)
    if stopped == signal.SIGSTOP: os.kill(job, signal.SIGCONT)
    else: os.killpg(job, signal.SIGCONT)
os.tcsetpgrp(0, os.getpid())
print('shell: exit status', os.waitstatus_to_exitcode(status), flush=True)
";

/// A job at a terminal of its own.
struct Session {
    keyboard: File,
    screen: Receiver<String>,
    _shell: Program,
}

impl Session {
    fn start(place: &Place, script: &str) -> Self {
        let OpenptyResult { master, slave } = openpty(None, None).unwrap();
        let job = place.command(&[], &["bash", "-c", script]);
        let mut line = vec![OsString::from("-c"), SHELL.into(), job.get_program().into()];
        line.extend(job.get_args().map(Into::into));
        let mut command = place.netns.command(PYTHON);
        let stdio = || Stdio::from(slave.try_clone().unwrap());
        command
            .args(line)
            .current_dir(place.path())
            .stdin(stdio())
            .stdout(stdio())
            .stderr(stdio());
        // SAFETY: only system calls are made.
        unsafe {
            command.pre_exec(|| {
                setsid()?;
                set_controlling(0, 0)?;
                Ok(())
            });
        }
        let shell = start(&mut command);
        drop((command, slave));
        let keyboard = File::from(master);
        let lines = BufReader::new(keyboard.try_clone().unwrap());
        let (say, screen) = channel();
        thread::spawn(move || {
            // At the end of the last one who has it the terminal gives EIO.
            for line in lines.lines().map_while(Result::ok) {
                if say.send(line.trim_end().to_owned()).is_err() {
                    break;
                }
            }
        });
        Self {
            keyboard,
            screen,
            _shell: shell,
        }
    }

    fn types(&mut self, keys: &[u8]) {
        self.keyboard.write_all(keys).unwrap();
    }

    /// Reads until a line that contains this.
    fn reads(&self, wanted: &str) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            match self.screen.recv_timeout(*LIMIT) {
                Ok(line) => lines.push(line),
                Err(_) => panic!("{wanted:?} did not come: {lines:?}"),
            }
            if lines.last().is_some_and(|line| line.contains(wanted)) {
                return lines;
            }
        }
    }
}

#[test]
fn an_interrupt_reaches_the_command_once() {
    let place = Place::new();
    let script = "trap 'echo interrupted; n=$((n+1))' INT; n=0; echo ready
        while [ $n = 0 ]; do sleep 0.01; done; read line; echo \"$n times\"; exit 6";
    let mut session = Session::start(&place, script);
    session.reads("ready");
    session.types(b"\x03");
    session.reads("interrupted");
    session.types(b"\n");
    session.reads("1 times");
    session.reads("ended with exit status 6");
    session.reads("shell: exit status 6");
}

#[test]
fn a_stop_stops_both_and_both_go_on() {
    let place = Place::new();
    let mut session = Session::start(&place, "echo ready; read line; echo \"got $line\"");
    session.reads("ready");
    session.types(b"\x1a");
    session.reads("shell: stopped by 20");
    session.types(b"it\n");
    session.reads("got it");
    session.reads("ended with exit status 0");
    session.reads("shell: exit status 0");
}

#[test]
fn a_command_that_stops_itself_stops_portwatch() {
    let place = Place::new();
    let session = Session::start(&place, "echo ready; kill -STOP $$; echo continued");
    session.reads("ready");
    session.reads("shell: stopped by 19");
    session.reads("continued");
    session.reads("shell: exit status 0");
}

#[test]
fn the_terminal_is_the_commands() {
    let place = Place::new();
    let session = Session::start(
        &place,
        "test -t 0 && test -t 1 && test -t 2 && tty && ps -o tpgid= -p $$ && ps -o pgid= -p $$",
    );
    let lines = session.reads("ended with exit status 0");
    assert!(lines[0].starts_with("/dev/pts/"), "{lines:?}");
    assert_eq!(
        lines[1].trim(),
        lines[2].trim(),
        "it is in the foreground: {lines:?}"
    );
    session.reads("shell: exit status 0");
}
