//! A job behaves as it would without portwatch before it.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Command, Stdio};

use nix::sys::signal::{SigHandler, Signal, signal};
use portwatch_tests::{LIMIT, Printed, portwatch, signal as send, spawn, wait};

use crate::Place;

/// The numbers of `nobody` and `nogroup` in Debian.
const NOBODY: u32 = 65534;

#[test]
fn exit_statuses_are_the_commands_own() {
    let place = Place::new();
    for status in [0, 1, 7, 99, 255] {
        let ran = place.sh(&[], &format!("exit {status}"));
        assert_eq!(ran.status.code(), Some(status), "{ran:?}");
        assert_eq!(ran.report["job"]["status"], status);
    }
}

#[test]
fn signals_that_end_the_command_end_portwatch() {
    let place = Place::new();
    for (name, number) in [
        ("TERM", 15),
        ("KILL", 9),
        ("SEGV", 11),
        ("PIPE", 13),
        ("HUP", 1),
    ] {
        let ran = place.sh(&[], &format!("ulimit -c 0; kill -{name} $$"));
        assert_eq!(ran.status.signal(), Some(number), "{ran:?}");
        assert!(!ran.status.core_dumped());
        assert_eq!(ran.report["job"]["signal"], format!("SIG{name}"));
    }
}

#[test]
fn what_cannot_be_started_is_told_as_by_a_shell() {
    let place = Place::new();
    let plain = place.path().join("plain");
    fs::write(&plain, "x").unwrap();
    let strange = place.path().join("strange");
    fs::write(&strange, "#!/nonexistent/interpreter\n").unwrap();
    fs::set_permissions(&strange, fs::Permissions::from_mode(0o755)).unwrap();
    let told = |program: &str| {
        let ran = place.run(&[], &[program]);
        assert!(ran.report.is_null(), "there was no job: {ran:?}");
        (
            ran.status.code(),
            ran.stderr.replace(place.path().to_str().unwrap(), "…"),
        )
    };
    let not_found = "portwatch: nonexistent-command: command not found\n";
    assert_eq!(
        told("nonexistent-command"),
        (Some(127), not_found.to_owned())
    );
    let no_file = "no such file, or the interpreter in its first line does not exist";
    let of = |what: &str, why: &str| format!("portwatch: {what}{why}\n");
    assert_eq!(
        told("/nonexistent/command"),
        (Some(127), of("/nonexistent/command: ", no_file))
    );
    assert_eq!(
        told(strange.to_str().unwrap()),
        (Some(127), of("…/strange: ", no_file))
    );
    assert_eq!(
        told(plain.to_str().unwrap()),
        (
            Some(126),
            of("cannot execute …/plain: ", "Permission denied")
        )
    );
    assert_eq!(
        told("/tmp"),
        (Some(126), of("cannot execute /tmp: ", "Permission denied"))
    );
}

#[test]
fn a_script_without_an_interpreter_is_one_of_sh() {
    let place = Place::new();
    let script = place.path().join("script");
    fs::write(&script, "echo from sh\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let ran = place.run(&[], &[&script]);
    assert_eq!((ran.status.code(), &*ran.stdout), (Some(0), "from sh\n"));
}

/// What a process can find out of what it has inherited.
const INHERITED: &str = r#"
    env | grep -v '^_=' | sort
    pwd; umask; ulimit -a; ulimit -H -a
    grep -E '^(Sig(Blk|Ign|Cgt)|Cap|Seccomp|NoNewPrivs|Uid|Gid|Groups)' /proc/self/status
    ls /proc/self/fd
    readlink /proc/self/ns/net /proc/self/ns/mnt /proc/self/ns/pid
    cut -d ' ' -f 5,6,7 /proc/$$/stat
    cat /proc/self/oom_score_adj /proc/self/cgroup
"#;

#[test]
fn the_command_inherits_what_portwatch_did() {
    let place = Place::new();
    let ignoring = |mut command: Command| {
        command
            .env("WITH_NEWLINE", "a\nb")
            .env("LANG", "C")
            .stdin(Stdio::null());
        // SAFETY: no handler is installed.
        let ignore = || unsafe {
            for ignored in [
                Signal::SIGINT,
                Signal::SIGHUP,
                Signal::SIGTERM,
                Signal::SIGUSR1,
            ] {
                signal(ignored, SigHandler::SigIgn)?;
            }
            Ok(())
        };
        // SAFETY: only system calls are made.
        unsafe { command.pre_exec(ignore) };
        place.finish(command).stdout
    };
    let with = ignoring(place.command(&[], &["sh", "-c", INHERITED]));
    let mut plain = place.netns.command("sh");
    plain
        .args(["-c", INHERITED])
        .current_dir(place.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    for of_service in [
        "GITHUB_ACTIONS",
        "GITLAB_CI",
        "SUDO_UID",
        "SUDO_GID",
        "SUDO_USER",
    ] {
        plain.env_remove(of_service);
    }
    let without = ignoring(plain);
    assert!(
        with.contains("WITH_NEWLINE=a\n") && with.lines().count() > 40,
        "{with}"
    );
    assert_eq!(with, without);
}

#[test]
fn standard_streams_are_the_commands_own() {
    let place = Place::new();
    let mut command = place.command(&["--quiet"], &["sh", "-c", "cat; echo to stderr >&2"]);
    command.stdin(Stdio::piped());
    let mut child = spawn(&mut command);
    let bytes: String = (0..100_000).map(|number| format!("{number}\n")).collect();
    let mut input = child.stdin.take().unwrap();
    let to_write = bytes.clone();
    let writing = std::thread::spawn(move || input.write_all(to_write.as_bytes()).unwrap());
    let ran = place.end(child);
    writing.join().unwrap();
    assert!(ran.stdout == bytes, "{} bytes came back", ran.stdout.len());
    assert_eq!(ran.stderr, "to stderr\n");
}

#[test]
fn who_called_sudo_runs_the_command() {
    let place = Place::new();
    let script =
        "id -u; id -g; id -G; echo $HOME $USER $LOGNAME; env | grep -c SUDO; touch made 2>&1";
    let nobody = NOBODY.to_string();
    let mut command = place.command(&[], &["sh", "-c", script]);
    command
        .env("SUDO_UID", &nobody)
        .env("SUDO_GID", &nobody)
        .env("SUDO_USER", "nobody")
        .env("HOME", "/root");
    let ran = place.finish(command);
    assert_eq!(
        ran.stdout,
        "65534\n65534\n65534\n/nonexistent nobody nobody\n0\n\
         touch: cannot touch 'made': Permission denied\n"
    );
    // The report is theirs to read.
    use std::os::unix::fs::MetadataExt as _;
    let report = fs::metadata(place.path().join("report.json")).unwrap();
    assert_eq!((report.uid(), report.mode() & 0o777), (NOBODY, 0o600));
}

#[test]
fn the_user_can_be_chosen() {
    let place = Place::new();
    let ran = place.sh(&["--user", "nobody"], "id -u");
    assert_eq!(ran.stdout, "65534\n");
    let mut command = place.command(&["--user", "root"], &["id", "-u"]);
    command.env("SUDO_UID", NOBODY.to_string());
    assert_eq!(place.finish(command).stdout, "0\n");
    for (options, why) in [
        (
            ["--user", "no-such-user"],
            "there is no user \"no-such-user\"",
        ),
        (["--user", "4000000000"], "there is no user 4000000000"),
    ] {
        let ran = place.sh(&options, "touch started");
        assert_eq!(ran.status.code(), Some(2), "{ran:?}");
        assert!(ran.stderr.contains(why), "{ran:?}");
    }
    assert!(!place.path().join("started").exists());
}

/// Runs portwatch without privileges.
fn unprivileged(place: &Place, options: &[&str]) -> crate::Ran {
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let mut command = place.netns.command("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(portwatch())
        .arg("run")
        .args(options)
        .args(["--", "sh", "-c", "touch started; exit 4"])
        .current_dir(place.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    place.finish(command)
}

#[test]
fn what_cannot_be_watched_is_not_run() {
    let place = Place::new();
    let ran = unprivileged(&place, &[]);
    assert_eq!(ran.status.code(), Some(3), "{ran:?}");
    assert!(
        ran.stderr.starts_with(
            "portwatch: the command was not run; --best-effort runs it all the same: "
        ),
        "{ran:?}"
    );
    assert!(!place.path().join("started").exists());
}

#[test]
fn unless_the_best_effort_is_enough() {
    let place = Place::new();
    let ran = unprivileged(&place, &["--best-effort", "--report", "report.json"]);
    assert_eq!(ran.status.code(), Some(4), "{ran:?}");
    assert!(place.path().join("started").exists());
    assert!(ran.stderr.contains("; not watched: "), "{ran:?}");
    assert!(ran.report["job"]["unwatched"].is_string(), "{ran:?}");
    assert!(ran.report.get("left_behind").is_none());
}

#[test]
fn files_that_cannot_be_written_are_told_before_the_job_starts() {
    let place = Place::new();
    for option in ["--report", "--junit", "--write"] {
        let path = "/nonexistent/file";
        let mut command = place.command(&[], &["touch", "started"]);
        // The last one counts.
        command = {
            let mut fresh = place.netns.command(portwatch());
            fresh
                .args(["run", option, path, "--", "touch", "started"])
                .current_dir(place.path())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
            drop(command);
            fresh
        };
        let ran = place.finish(command);
        assert_eq!(ran.status.code(), Some(1), "{option}: {ran:?}");
        assert!(
            ran.stderr.contains("cannot write to /nonexistent/file"),
            "{ran:?}"
        );
    }
    assert!(!place.path().join("started").exists());
}

#[test]
fn signals_are_passed_on_once() {
    let place = Place::new();
    let script = "
        for name in HUP INT QUIT TERM USR1 USR2; do trap \"echo $name\" $name; done
        trap 'exit 5' ALRM
        echo ready
        while :; do read line || sleep 0.01; done";
    let mut command = place.command(&[], &["bash", "-c", script]);
    // A pipe that stays open.
    command.stdin(Stdio::piped());
    let mut child = spawn(&mut command);
    let _input = child.stdin.take();
    let printed = Printed::of(child.stdout.take().unwrap());
    assert_eq!(printed.next().as_deref(), Some("ready"));
    for (which, name) in [
        (Signal::SIGHUP, "HUP"),
        (Signal::SIGINT, "INT"),
        (Signal::SIGQUIT, "QUIT"),
        (Signal::SIGTERM, "TERM"),
        (Signal::SIGUSR1, "USR1"),
        (Signal::SIGUSR2, "USR2"),
    ] {
        send(&child, which);
        assert_eq!(printed.next().as_deref(), Some(name));
    }
    send(&child, Signal::SIGALRM);
    assert_eq!(printed.rest(), Vec::<String>::new(), "none comes twice");
    assert_eq!(place.end(child).status.code(), Some(5));
}

#[test]
fn what_the_job_sends_to_its_group_it_gets_once() {
    let place = Place::new();
    let script = "trap 'echo term' TERM; kill -TERM 0; echo end";
    let mut command = place.command(&[], &["bash", "-c", script]);
    // The tests' own group is none of the job's business.
    command.process_group(0);
    let ran = place.finish(command);
    assert_eq!(ran.stdout, "term\nend\n");
    assert_eq!(ran.status.code(), Some(0), "{ran:?}");
}

#[test]
fn a_job_outlives_portwatch() {
    let place = Place::new();
    let script = "echo ready; read line; echo $line > result; echo done";
    let mut command = place.command(&[], &["sh", "-c", script]);
    command.stdin(Stdio::piped());
    let mut child = spawn(&mut command);
    let mut input = child.stdin.take().unwrap();
    let printed = Printed::of(child.stdout.take().unwrap());
    assert_eq!(printed.next().as_deref(), Some("ready"));
    send(&child, Signal::SIGKILL);
    assert_eq!(wait(&mut child, *LIMIT).signal(), Some(9));
    input.write_all(b"unharmed\n").unwrap();
    assert_eq!(printed.rest(), ["done"]);
    assert_eq!(
        fs::read_to_string(place.path().join("result")).unwrap(),
        "unharmed\n"
    );
    let mut told = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut told)
        .unwrap();
    assert_eq!(told, "");
}

#[test]
fn a_setuid_child_becomes_its_owner_and_is_watched() {
    let place = Place::new();
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = place.path().join("actor");
    fs::copy(portwatch_tests::actor::program(), &program).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).unwrap();
    // Below 1024: only root may.
    let script = format!(
        "echo | {} socket=tcp4 bind=127.0.0.1:80 >/dev/null",
        program.display()
    );
    let ran = place.sh(&["--user", "nobody"], &script);
    assert_eq!(ran.status.code(), Some(0), "{ran:?}");
    let port = &ran.report["ports"][0];
    assert_eq!(port["port"], 80, "{ran:?}");
    assert_eq!(port["process"]["uid"], 0);
    assert_eq!(port["process"]["job"], "descendant");
}
