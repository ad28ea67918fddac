//! Containers that a job starts under `portwatch run`.

use std::fs;
use std::net::TcpStream;
use std::process::Command;
use std::time::Instant;

use portwatch_tests::job::Place;
use portwatch_tests::{Actor, LIMIT, Netns, look_again_soon};
use serde_json::{Value, json};

use crate::daemon::{Docker, IMAGE};
use crate::podman::{self, Podman};

/// A daemon, and a place for a job beside it.
fn host() -> (Docker, Place) {
    let docker = Docker::alone(&[]);
    let place = Place::within(&docker.netns);
    (docker, place)
}

/// Somebody who listens on port 9090.
fn holder(netns: &Netns) -> Actor {
    let bind = "bind=0.0.0.0:9090";
    let steps = ["socket=tcp4", bind, "listen", "say=listens", "wait"];
    let mut holder = Actor::start(netns, &steps);
    holder.go();
    holder.says("listens");
    holder
}

/// Waits until somebody listens on a port of the place.
fn serves(place: &Place, port: u16) {
    let begin = Instant::now();
    while place
        .netns
        .run(|| TcpStream::connect(("127.0.0.1", port)).is_err())
    {
        assert!(begin.elapsed() < *LIMIT, "nobody listens on {port}");
        look_again_soon();
    }
}

/// `docker run`, as a job.
fn run(docker: &Docker, options: &[&str], busybox: &[&str]) -> Command {
    let mut command = docker.command();
    command.args(Docker::run_arguments(options, busybox));
    command
}

#[test]
fn a_container_that_is_refused_its_port() {
    let (docker, place) = host();
    // Of before the job, and wanting the same.
    docker.docker(&[
        "create",
        "--name",
        "before",
        "-p",
        "9090:80",
        IMAGE,
        "/bin/busybox",
    ]);
    let holder = holder(&place.netns);
    let job = run(
        &docker,
        &["--name", "web-1", "-p", "9090:80"],
        &["sleep", "600"],
    );
    let ran = place.finish(place.around(&["--fail-on", "conflict"], &job));
    // Of docker, when a container was not started.
    assert_eq!(ran.status.code(), Some(125), "{ran:?}");
    let refusal = &ran.report["refusals"][0];
    assert_eq!(refusal["process"]["comm"], "docker-proxy", "{ran:?}");
    assert_eq!(refusal["process"]["job"], "container", "{ran:?}");
    let conflict = &refusal["conflict"];
    assert_eq!(
        conflict["publishes"]["container"]["name"], "web-1",
        "{ran:?}"
    );
    assert_eq!(conflict["publishes"]["port"], 80, "{ran:?}");
    let held = &conflict["holders"][0]["processes"][0];
    assert_eq!(held["pid"], holder.pid(), "{ran:?}");
    assert_eq!(held["job"], Value::Null, "{ran:?}");
    let told = " (container created during the job): bind on tcp4 0.0.0.0:9090: EADDRINUSE\n\
                \x20             wanted by container web-1 (docker, portwatch-test:1), to publish its port 80\n";
    assert!(ran.stderr.contains(told), "{}", ran.stderr);
    // It does not run.
    assert_eq!(
        ran.report["left_behind"]["containers"],
        json!([]),
        "{ran:?}"
    );
}

#[test]
fn a_container_that_is_left_behind() {
    let (docker, place) = host();
    docker.run(
        &["--name", "before", "-p", "7070:70"],
        &["httpd", "-f", "-p", "70"],
    );
    let label = ["--label", "com.gitlab.gitlab-runner.job.id=8"];
    let script = format!(
        "docker run -d --name web-1 -p 8080:80 {IMAGE} /bin/busybox httpd -f -p 80
         docker run -d --name other {} {IMAGE} /bin/busybox httpd -f -p 81
         docker run --rm --name brief {IMAGE} /bin/busybox true
         docker restart -t 0 before",
        label.join(" ")
    );
    let mut job = Command::new("sh");
    job.args(["-e", "-c", &script]).env("CI_JOB_ID", "7");
    docker.reached_by(&mut job);
    let options = ["--kill-leftovers", "--fail-on", "leak", "--ci", "github"];
    let ran = place.finish(place.around(&options, &job));
    assert_eq!(ran.status.code(), Some(99), "{ran:?}");
    let left = &ran.report["left_behind"];
    assert_eq!(left["processes"], json!([]), "{ran:?}");
    let containers = left["containers"].as_array().unwrap();
    assert_eq!(containers.len(), 1, "{containers:#?}");
    let id = docker.docker(&["inspect", "--format", "{{.Id}}", "web-1"]);
    // As docker writes it, without zeros at the end.
    let created = docker.docker(&["inspect", "--format", "{{.Created}}", "web-1"]);
    let created: jiff::Timestamp = created.parse().unwrap();
    let port = |address: &str| json!({"protocol": "tcp", "address": address, "host_port": 8080, "port": 80});
    assert_eq!(
        containers[0],
        json!({
            "container": {"runtime": "docker", "id": id, "name": "web-1", "image": IMAGE},
            "job": "container",
            "created": format!("{created:.9}"),
            "ports": [port("0.0.0.0"), port("::")],
            "advice": "docker rm -f web-1",
        })
    );
    let told = "container web-1 (docker, portwatch-test:1), publishing 0.0.0.0:8080 → 80/tcp, [::]:8080 → \
                80/tcp, created during the job: docker rm -f web-1\n";
    assert!(
        ran.stderr.contains(&format!("\nleft behind\n  {told}")),
        "{}",
        ran.stderr
    );
    let annotation = format!("\n::warning title=container left behind::{told}");
    assert!(ran.stderr.contains(&annotation), "{}", ran.stderr);
    // It is nobody's to end but its daemon's.
    let running = docker.docker(&["inspect", "--format", "{{.State.Running}}", "web-1"]);
    assert_eq!(running, "true");

    // What it did, what docker-proxy did for it, and nothing of the other two.
    let ports = ran.report["ports"].as_array().unwrap();
    let mut ports: Vec<_> = ports
        .iter()
        .map(|used| {
            let process = &used["process"];
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            (
                used["port"].as_u64(),
                text(&process["comm"]),
                text(&process["job"]),
            )
        })
        .collect();
    ports.sort();
    let used = |port, comm: &str| (Some(port), comm.to_owned(), "container".to_owned());
    let proxy = used(8080, "docker-proxy");
    assert_eq!(
        ports,
        [used(80, "busybox"), proxy.clone(), proxy],
        "{ran:?}"
    );
}

/// One that the job takes away again: its ports are told with their ends. Another one has ended when the job
/// does, which its record may not tell yet.
#[test]
fn a_container_that_is_not_left_behind() {
    for options in [&[][..], &["--userland-proxy=false"]] {
        let docker = Docker::alone(options);
        let place = Place::within(&docker.netns);
        let script = format!(
            "docker run -d --name web-1 -p 8080:80 {IMAGE} /bin/busybox sleep 600
             docker rm -f web-1
             docker run --name ended {IMAGE} /bin/busybox true"
        );
        let mut job = Command::new("sh");
        job.args(["-e", "-c", &script]);
        docker.reached_by(&mut job);
        let ran = place.finish(place.around(&["--fail-on", "leak", "-v"], &job));
        assert_eq!(ran.status.code(), Some(0), "{ran:?}");
        assert_eq!(
            ran.report["left_behind"]["containers"],
            json!([]),
            "{ran:?}"
        );
        let ports = ran.report["ports"].as_array().unwrap();
        assert!(!ports.is_empty(), "{options:?}: {ran:?}");
        for used in ports {
            assert_eq!(used["port"], 8080, "{options:?}: {used}");
            assert_eq!(used["process"]["job"], "container", "{options:?}: {used}");
            assert!(used["until"].is_string(), "{options:?}: {used}");
        }
    }
}

/// A process of the job is refused the port that a container of the job has.
#[test]
fn a_container_that_is_in_the_jobs_own_way() {
    let (docker, place) = host();
    let script = format!(
        "docker run -d --name web-1 -p 8080:80 {IMAGE} /bin/busybox sleep 600
         busybox nc -l -p 8080 || true"
    );
    let mut job = Command::new("sh");
    job.args(["-e", "-c", &script]);
    docker.reached_by(&mut job);
    let ran = place.finish(place.around(&[], &job));
    assert_eq!(ran.status.code(), Some(0), "{ran:?}");
    let refusal = &ran.report["refusals"][0];
    assert_eq!(refusal["process"]["job"], "descendant", "{ran:?}");
    let holder = &refusal["conflict"]["holders"][0];
    assert_eq!(holder["publishes"]["container"]["name"], "web-1", "{ran:?}");
    assert_eq!(holder["processes"][0]["comm"], "docker-proxy", "{ran:?}");
    assert_eq!(holder["processes"][0]["job"], "container", "{ran:?}");
}

/// One service gets its port, the other one's is a container's of before the job.
#[test]
fn services_of_compose() {
    let (docker, place) = host();
    docker.run(
        &["--net", "host", "--name", "before"],
        &["httpd", "-f", "-p", "0.0.0.0:9090"],
    );
    serves(&place, 9090);
    fs::write(
        place.path().join("docker-compose.yml"),
        format!(
            r#"
services:
  web:
    image: {IMAGE}
    command: /bin/busybox httpd -f -p 80
    ports: ["8080:80"]
  api:
    image: {IMAGE}
    command: /bin/busybox sleep 600
    ports: ["9090:90"]
"#
        ),
    )
    .unwrap();
    let mut job = Command::new("docker-compose");
    job.args(["-p", "shop", "up", "-d"]);
    docker.reached_by(&mut job);
    let ran = place.finish(place.around(&["--fail-on", "conflict,leak"], &job));
    assert_eq!(ran.status.code(), Some(1), "{ran:?}");
    ran.expect(
        "portwatch: `docker-compose -p shop up -d` ended with exit status 1 after LONG: 1 conflict, 1 container left behind
conflicts
  TIME  docker-proxy[#1] `/usr/sbin/docker-proxy -proto tcp -host-ip 0.0.0.0 -host-por…` (container labelled for the job): bind on tcp4 0.0.0.0:9090: EADDRINUSE
              wanted by container shop_api_1 (docker, portwatch-test:1, compose shop/api), to publish its port 90
              held by   busybox[#2] `/bin/busybox httpd -f -p 0.0.0.0:9090`, listening on 0.0.0.0:9090 in container before (docker, portwatch-test:1)
              why       listener: busybox[#2] listens on 0.0.0.0:9090
              do        stop container before (docker stop before), or use another port    more: portwatch explain listener
left behind
  container shop_web_1 (docker, portwatch-test:1, compose shop/web), publishing 0.0.0.0:8080 → 80/tcp, [::]:8080 → 80/tcp, labelled for the job: docker rm -f shop_web_1
ports used
  tcp6  [::1]:*  docker-compose[#3] `/usr/bin/python3 /usr/bin/docker-compose -p shop up -d`  TIME to TIME
  tcp4  0.0.0.0:8080  docker-proxy[#4] `/usr/sbin/docker-proxy -proto tcp -host-ip 0.0.0.0 -host-por…` (container labelled for the job)  from TIME on
  tcp6  [::]:8080  docker-proxy[#5] `/usr/sbin/docker-proxy -proto tcp -host-ip :: -host-port 808…` (container labelled for the job)  from TIME on
  tcp6  [::]:80  busybox[#6] `/bin/busybox httpd -f -p 80` (container labelled for the job)  from TIME on
",
    );
}

/// Podman has no daemon: what it starts descends from it, and the record only adds the name.
#[test]
fn containers_of_podman() {
    let podman = Podman::alone();
    let place = Place::within(&podman.room.netns);
    podman.run(&["--name", "before", "-p", "7070:70"], &["sleep", "600"]);
    let options = ["--name", "web-1", "-p", "8080:80"];
    let job = podman.command(&podman.run_arguments(&options, &["sleep", "600"]));
    let ran = place.finish(place.around(&["--kill-leftovers"], &job));
    assert_eq!(ran.status.code(), Some(0), "{ran:?}");
    let left = &ran.report["left_behind"];
    let containers = left["containers"].as_array().unwrap();
    assert_eq!(containers.len(), 1, "{containers:#?}");
    let web = &containers[0];
    assert_eq!(web["container"]["name"], "web-1", "{web}");
    assert_eq!(web["container"]["image"], podman::IMAGE, "{web}");
    assert_eq!(web["job"], "descendant", "{web}");
    let port = json!({"protocol": "tcp", "address": "0.0.0.0", "host_port": 8080, "port": 80});
    assert_eq!(web["ports"], json!([port]), "{web}");
    assert_eq!(web["advice"], "podman rm -f web-1", "{web}");
    // It ends with its processes, which are of the job.
    let processes = left["processes"].as_array().unwrap();
    let mut ended: Vec<_> = processes
        .iter()
        .map(|left| left["process"]["comm"].as_str().unwrap())
        .collect();
    ended.sort_unstable();
    assert_eq!(ended, ["busybox", "conmon"], "{processes:#?}");
    for process in processes {
        assert_eq!(process["process"]["job"], "descendant", "{process}");
        assert_ne!(process["killed"], "failed", "{process}");
    }

    let holder = holder(&podman.room.netns);
    let options = ["--name", "web-2", "-p", "9090:80"];
    let job = podman.command(&podman.run_arguments(&options, &["sleep", "600"]));
    let ran = place.finish(place.around(&[], &job));
    assert_eq!(ran.status.code(), Some(126), "{ran:?}");
    let refusal = &ran.report["refusals"][0];
    assert_eq!(refusal["process"]["comm"], "podman", "{ran:?}");
    assert_eq!(refusal["process"]["job"], "descendant", "{ran:?}");
    let conflict = &refusal["conflict"];
    assert_eq!(
        conflict["publishes"]["container"]["name"], "web-2",
        "{ran:?}"
    );
    assert_eq!(
        conflict["holders"][0]["processes"][0]["pid"],
        holder.pid(),
        "{ran:?}"
    );
    assert_eq!(
        ran.report["left_behind"]["containers"],
        json!([]),
        "{ran:?}"
    );
}
