//! A machine of the test's own, with units in it.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use portwatch_tests::trace::shown;
use portwatch_tests::{LIMIT, Trace, spawn, systemd};
use serde_json::Value;

/// The user of the guest who has a systemd too.
pub const USER: u32 = 54_321;

/// Whose units they are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Manager {
    /// The system's.
    System,
    /// Those of [`USER`].
    User,
}

/// A trace, and units that go with it.
pub struct Machine {
    trace: Arc<Trace>,
    from: usize,
    manager: Manager,
    units: Vec<&'static str>,
}

impl Machine {
    /// One with these units: name and content.
    pub fn new(manager: Manager, units: &[(&'static str, &str)]) -> Self {
        assert!(systemd(), "units are tested by cargo xtask vm --systemd");
        let trace = Trace::shared(&[]);
        let machine = Self {
            from: trace.seen(),
            trace,
            manager,
            units: units.iter().map(|(name, _)| *name).collect(),
        };
        if manager == Manager::User {
            let user = format!("user@{USER}.service");
            printed(Command::new("systemctl").args(["start", &user]));
        }
        for (name, content) in units {
            let path = machine.path(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        machine.systemctl(&["daemon-reload"]);
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        let folder = match self.manager {
            Manager::System => "/run/systemd/system".to_owned(),
            Manager::User => format!("/run/user/{USER}/systemd/user"),
        };
        PathBuf::from(folder).join(name)
    }

    /// `systemctl` of the manager.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = match self.manager {
            Manager::System => Command::new("systemctl"),
            Manager::User => {
                let id = USER.to_string();
                let mut command = Command::new("setpriv");
                command.args(["--reuid", &id, "--regid", &id, "--clear-groups"]);
                command.env("XDG_RUNTIME_DIR", format!("/run/user/{USER}"));
                command.args(["systemctl", "--user"]);
                command
            }
        };
        command.args(arguments);
        command
    }

    /// Runs `systemctl` of the manager, which succeeds; gives what it printed.
    pub fn systemctl(&self, arguments: &[&str]) -> String {
        printed(&mut self.command(arguments))
    }

    /// The pid of a service.
    pub fn pid(&self, service: &str) -> u64 {
        let pid = self.systemctl(&["show", "--property=MainPID", "--value", service]);
        pid.parse().unwrap()
    }

    /// Starts a service, which is refused a port, and waits for that.
    pub fn refused(&self, service: &str, port: u16) -> Value {
        self.systemctl(&["start", service]);
        self.wait("bind", "failure", port)
    }

    /// Waits for the first event of a port of this kind and outcome.
    pub fn wait(&self, event: &str, outcome: &str, port: u16) -> Value {
        let seen = self.trace.wait_for(self.from, *LIMIT, |seen| {
            seen["event"] == event
                && seen["outcome"] == outcome
                && seen["socket"]["local"]["port"] == port
        });
        seen.unwrap_or_else(|why| {
            let lines = shown(&self.trace.lines(self.from));
            panic!("the {event} of {port} did not come: {why}; seen:\n{lines}")
        })
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let units: Vec<_> = self
            .units
            .iter()
            .filter(|name| !name.contains("@."))
            .collect();
        let _ = output(self.command(&["stop"]).args(units));
        for name in &self.units {
            let _ = fs::remove_file(self.path(name));
        }
    }
}

fn output(command: &mut Command) -> Output {
    command.stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    spawn(command).wait_with_output().unwrap()
}

fn printed(command: &mut Command) -> String {
    let output = output(command);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {told}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
