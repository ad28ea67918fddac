//! portwatch itself in a container: with what it needs, and with less.

use portwatch_tests::{LIMIT, Socket, Trace, netns, portwatch};
use serde_json::{Value, json};

use crate::daemon::{Docker, IMAGE};
use crate::room::output;

/// What lets it see the whole host, as docs/containers.md says. Docker 20.10 does not know CAP_BPF and
/// CAP_PERFMON.
const RIGHTS: &[&str] = &[
    "--cap-add=SYS_ADMIN",
    "--cap-add=NET_ADMIN",
    "--cap-add=SYSLOG",
    "--cap-add=SYS_PTRACE",
    "--cap-add=DAC_READ_SEARCH",
    "--security-opt=apparmor=unconfined",
];

/// `docker run` of the portwatch that is tested, and of the host's libraries for it.
fn run(docker: &Docker, options: &[&str], portwatch_arguments: &[&str]) -> std::process::Command {
    let mut command = docker.command();
    command.args(["run", "--rm", "--net=host"]).args(options);
    command
        .arg("--volume")
        .arg(format!("{}:/portwatch:ro", portwatch().display()));
    for folder in ["/usr", "/lib", "/lib64"] {
        command.arg("--volume").arg(format!("{folder}:{folder}:ro"));
    }
    command
        .args([IMAGE, "/portwatch"])
        .args(portwatch_arguments);
    command
}

/// What it says where it cannot trace: its exit status and its words.
fn refusal(docker: &Docker, options: &[&str]) -> String {
    let output = output(&mut run(docker, options, &["trace", "--json"]));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{told}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
    told
}

/// The refused bind of a container's process by another container, as a trace within a third tells it.
fn traced(docker: &Docker, options: &[&str]) -> (Value, Value) {
    let options = [RIGHTS, &["--pid=host"], options].concat();
    let trace = Trace::of(run(docker, &options, &["trace", "--json"]));
    let wait = |wanted: &str, is: &dyn Fn(&Value) -> bool| {
        let seen = trace.wait_for(0, *LIMIT, is);
        seen.unwrap_or_else(|why| panic!("{wanted} did not come: {why}"))
    };
    let start = wait("the start", &|event| event["event"] == "start");
    let id = docker.run(
        &["--name", "web-1", "--net", "host"],
        &["nc", "-l", "-p", "7070"],
    );
    let inode = docker.netns.inode();
    let at_port = |event: &Value| {
        event["event"] == "bind"
            && event["socket"]["netns"] == inode
            && event["socket"]["local"]["port"] == 7070
    };
    let web = json!({"runtime": "docker", "id": id, "name": "web-1", "image": IMAGE});
    let bound = wait("the bind", &|event| {
        at_port(event) && event["outcome"] == "success"
    });
    assert_eq!(bound["process"]["container"], web, "{bound}");
    docker.netns.run(|| {
        let error = Socket::tcp4().bind("0.0.0.0:7070").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EADDRINUSE));
    });
    let refused = wait("the refused bind", &|event| {
        at_port(event) && event["error"] == "EADDRINUSE"
    });
    // By its number on the host.
    assert_eq!(refused["process"]["pid"], std::process::id(), "{refused}");
    assert_eq!(refused["process"]["comm"], netns::COMM, "{refused}");
    let holder = &refused["conflict"]["holders"][0];
    assert_eq!(
        holder["processes"][0]["pid"], bound["process"]["pid"],
        "{refused}"
    );
    assert_eq!(holder["processes"][0]["container"], web, "{refused}");
    docker.docker(&["rm", "--force", "web-1"]);
    trace.stop();
    (start, refused)
}

/// What is not seen for want of the root of the cgroup v2 hierarchy.
fn missing_of_cgroups(start: &Value) -> Option<&Value> {
    // Where nothing is, there is no such list.
    let mut missing = start["missing"].as_array().into_iter().flatten();
    missing.find(|one| one["why"].as_str().unwrap().contains("cgroup v2"))
}

#[test]
fn with_what_it_needs_it_sees_the_host() {
    let docker = Docker::start(&[]);
    let (_, refused) = traced(&docker, &["--cgroupns=host"]);
    let cgroup = &refused["process"]["cgroup"];
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    assert!(own.contains(cgroup.as_str().unwrap()), "{cgroup} in {own}");
}

/// As packaging/kubernetes/daemonset.yaml has it.
#[test]
fn with_nothing_else_and_the_hosts_cgroups() {
    let docker = Docker::start(&[]);
    let options = [
        "--cgroupns=private",
        "--cap-drop=ALL",
        "--read-only",
        "--security-opt=no-new-privileges",
        "--volume=/sys/fs/cgroup:/sys/fs/cgroup:ro",
    ];
    let (start, _) = traced(&docker, &options);
    assert_eq!(missing_of_cgroups(&start), None, "{start}");
}

/// Paths of cgroups are the kernel's own, whatever namespace portwatch is in.
#[test]
fn a_cgroup_namespace_of_its_own_changes_no_name() {
    let docker = Docker::start(&[]);
    let (start, refused) = traced(&docker, &["--cgroupns=private"]);
    let cgroup = &refused["process"]["cgroup"];
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    assert!(own.contains(cgroup.as_str().unwrap()), "{cgroup} in {own}");
    // Where that is what releases are seen by, some are not without the root of the hierarchy, and it
    // says so.
    let missing = missing_of_cgroups(&start).map(|one| one["what"].clone());
    let by_cgroups = start["parts"]["release"] == "tracepoint";
    let expected = by_cgroups.then(|| json!("some releases"));
    assert_eq!(missing, expected, "{start}");
}

#[test]
fn with_too_little_it_says_what_is_missing() {
    let docker = Docker::start(&[]);
    let told = refusal(&docker, &["--pid=host"]);
    assert!(told.contains("without CAP_BPF, CAP_PERFMON"), "{told}");
    assert!(told.contains("--cap-add"), "{told}");
    let told = refusal(&docker, RIGHTS);
    assert!(told.contains("pid namespace: one of a container"), "{told}");
    assert!(told.contains("docker run --pid=host"), "{told}");
}
