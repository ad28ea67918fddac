//! From events to a report, in bounded memory.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

use super::{Collision, Contested, Host, Lane, Mark, PortUse, Refusal, Report, Risk, SCHEMA, Span};
use crate::event::{
    Actor, Address, Body, Cause, Conflict, Container, Holder, Missing, Outcome, Release, Result,
    Socket, Start, Time, Transport,
};
use crate::kernel::sysctls::Sysctls;

/// How many refusals that are not alike are told of.
const REFUSALS: usize = 1000;
/// How many uses of ports.
const PORTS: usize = 10_000;
/// How many sockets can be open at a time: of others it is not known when they were closed.
const OPEN: usize = 65_536;
/// How many ports have a lane in the timeline.
const LANES: usize = 1000;
/// How many spans and marks are in the timeline.
const DRAWN: usize = 20_000;
/// How many pairs are counted.
const COLLISIONS: usize = 1000;
/// How many network namespaces' settings are kept.
const NAMESPACES: usize = 1000;

/// A network namespace of a host.
pub(super) type Place = (usize, Option<u32>);

/// What makes refusals alike.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Likeness {
    host: usize,
    netns: Option<u32>,
    event: &'static str,
    error: Option<String>,
    newcomer: Option<Command>,
    transport: Option<String>,
    address: Option<String>,
    cause: Cause,
    /// The first holder: its address, and its process by pid and start.
    holder: Option<(Option<String>, Option<ProcessKey>)>,
}

/// A process: its pid and when it was started.
type ProcessKey = (u32, Time);

/// A command with its arguments.
type Command = (String, Vec<String>);

#[derive(Debug, PartialEq, Eq, Hash)]
struct Use {
    place: Place,
    transport: String,
    address: std::net::IpAddr,
    port: Option<u16>,
    command: Option<Command>,
}

/// A port that is used, and how many sockets have it now.
#[derive(Debug)]
struct Used {
    told: PortUse,
    open: u64,
}

/// A socket that is open: its uses and its span.
#[derive(Debug, Clone, Copy)]
struct Open {
    used: Option<usize>,
    span: Option<(usize, usize)>,
}

/// Takes events and makes a report of them.
#[derive(Debug, Default)]
pub struct Tally {
    hosts: Vec<Host>,
    /// The one whose events are taken.
    host: usize,
    from: Option<Time>,
    until: Option<Time>,
    events: BTreeMap<String, u64>,
    alike: HashMap<Likeness, usize>,
    refusals: Vec<Refusal>,
    causes: BTreeMap<&'static str, u64>,
    contested: HashMap<(String, u16), Contested>,
    collisions: HashMap<(String, Option<String>), u64>,
    uses: HashMap<Use, usize>,
    used: Vec<Used>,
    open: HashMap<(Place, u64), Open>,
    settings: HashMap<Place, Sysctls>,
    lanes: HashMap<(Place, String, u16), usize>,
    timeline: Vec<Lane>,
    drawn: usize,
    lost: BTreeMap<String, u64>,
    missing: Vec<Missing>,
    omitted: BTreeMap<&'static str, u64>,
}

impl Tally {
    /// One that has taken nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes an event. Those of a stream come in its order, stream after stream.
    pub fn take(&mut self, time: Time, body: &Body) {
        if let Body::Start(start) = body {
            self.begin(start);
        }
        if self.hosts.is_empty() {
            // The head of the stream is missing.
            self.hosts.push(Host {
                boot_id: None,
                kernel: None,
            });
        }
        self.from = Some(self.from.map_or(time, |from| from.min(time)));
        self.until = Some(self.until.map_or(time, |until| until.max(time)));
        match body {
            Body::Bind(bind) => {
                if bind.result.outcome == Outcome::Failure {
                    let conflict = bind.conflict.as_deref();
                    let process = bind.process.as_ref();
                    self.refused(time, "bind", &bind.result, &bind.socket, process, conflict);
                } else {
                    let asked = bind.requested.as_ref().and_then(Address::port);
                    let chosen = asked == Some(0) || bind.autobind;
                    self.bound(time, &bind.socket, bind.process.as_ref(), chosen);
                }
            }
            Body::Listen(listen) => {
                if listen.result.outcome == Outcome::Failure {
                    let conflict = listen.conflict.as_deref();
                    let process = listen.process.as_ref();
                    self.refused(
                        time,
                        "listen",
                        &listen.result,
                        &listen.socket,
                        process,
                        conflict,
                    );
                } else if !self.is_open(&listen.socket) {
                    // Of a socket that was never bound the kernel chooses the port.
                    self.bound(time, &listen.socket, listen.process.as_ref(), true);
                }
            }
            Body::Release(release) => self.released(time, release),
            Body::Lost(lost) => {
                *self.lost.entry(lost.place.to_string()).or_default() += lost.count;
                return;
            }
            Body::Timewait(_) => {}
            Body::Start(_)
            | Body::End(_)
            | Body::Socket(_)
            | Body::Timewaits(_)
            | Body::Published(_)
            | Body::Why(_) => return,
        }
        *self.events.entry(body.name().to_owned()).or_default() += 1;
    }

    /// Tells of the settings of a network namespace of the present host.
    pub fn settle(&mut self, netns: u32, settings: Sysctls) {
        let place = (self.host, Some(netns));
        if self.settings.len() < NAMESPACES || self.settings.contains_key(&place) {
            self.settings.insert(place, settings);
        }
    }

    /// The ports that were bound by number, where and with which options of the socket.
    pub fn bound_by_number(&self) -> impl Iterator<Item = &PortUse> {
        let told = self.used.iter().map(|used| &used.told);
        told.filter(|told| told.port.is_some())
    }

    /// A stream begins: nothing of the one before is open in it.
    fn begin(&mut self, start: &Start) {
        let host = Host {
            boot_id: start.boot_id.clone(),
            kernel: Some(start.kernel.clone()),
        };
        self.host = match self
            .hosts
            .iter()
            .position(|known| known.boot_id.is_some() && known.boot_id == host.boot_id)
        {
            Some(known) => known,
            None => {
                self.hosts.push(host);
                self.hosts.len() - 1
            }
        };
        self.close_all();
        for missing in &start.missing {
            if !self.missing.contains(missing) {
                self.missing.push(missing.clone());
            }
        }
        if let Some(netns) = start.netns {
            let settings = Sysctls {
                local_port_range: start.local_port_range.map(|(first, last)| first..=last),
                local_reserved_ports: start.local_reserved_ports.clone(),
                unprivileged_port_start: None,
            };
            self.settle(netns, settings);
        }
    }

    /// What was open when a stream ended is not known to have been closed, nor to be open.
    fn close_all(&mut self) {
        let Some(until) = self.until else { return };
        for (_, open) in self.open.drain() {
            if let Some(used) = open.used.and_then(|used| self.used.get_mut(used)) {
                used.open = 0;
                used.told.until = Some(until);
            }
            if let Some(span) = span_mut(&mut self.timeline, open.span) {
                span.until = Some(until);
            }
        }
    }

    fn is_open(&self, socket: &Socket) -> bool {
        let place = (self.host, socket.netns);
        let inode = socket.inode;
        inode.is_some_and(|inode| self.open.contains_key(&(place, inode)))
    }

    fn bound(&mut self, time: Time, socket: &Socket, process: Option<&Actor>, chosen: bool) {
        let Some((transport, address, port)) = inet(socket) else {
            return;
        };
        let place = (self.host, socket.netns);
        let key = Use {
            place,
            transport: transport.to_string(),
            address,
            port: (!chosen).then_some(port),
            command: process.map(command),
        };
        let used = match self.uses.get(&key) {
            Some(used) => Some(*used),
            None if self.used.len() < PORTS => {
                let told = PortUse {
                    transport: transport.clone(),
                    address,
                    port: key.port,
                    netns: socket.netns,
                    host: Some(self.host),
                    options: socket.options,
                    process: process.cloned(),
                    count: 0,
                    from: time,
                    until: None,
                };
                self.used.push(Used { told, open: 0 });
                self.uses.insert(key, self.used.len() - 1);
                Some(self.used.len() - 1)
            }
            None => {
                *self.omitted.entry("ports").or_default() += 1;
                None
            }
        };
        if let Some(used) = used.and_then(|used| self.used.get_mut(used)) {
            used.told.count += 1;
            used.told.until = None;
            used.open += 1;
        }
        let span = if chosen {
            None
        } else {
            let span = Span {
                from: time,
                until: None,
                address: Some(address),
                pid: process.map(|process| process.pid),
                holder: process.map(party),
            };
            self.draw_span(place, transport, port, span)
        };
        let Some(inode) = socket.inode else { return };
        if self.open.len() < OPEN {
            self.open.insert((place, inode), Open { used, span });
        } else {
            *self.omitted.entry("open").or_default() += 1;
        }
    }

    fn released(&mut self, time: Time, release: &Release) {
        let socket = &release.socket;
        let place = (self.host, socket.netns);
        let open = socket
            .inode
            .and_then(|inode| self.open.remove(&(place, inode)));
        let Some(open) = open else {
            // It was bound before the stream, or its bind was not wanted in it.
            if let (Some(from), Some((transport, address, port))) = (release.bound_at, inet(socket))
            {
                let process = release.binder.as_ref().or(release.process.as_ref());
                let span = Span {
                    from,
                    until: Some(time),
                    address: Some(address),
                    pid: process.map(|process| process.pid),
                    holder: process.map(party),
                };
                self.draw_span(place, transport, port, span);
            }
            return;
        };
        if let Some(used) = open.used.and_then(|used| self.used.get_mut(used)) {
            used.open = used.open.saturating_sub(1);
            if used.open == 0 {
                used.told.until = Some(time);
            }
        }
        if let Some(span) = span_mut(&mut self.timeline, open.span) {
            span.until = Some(time);
        }
    }

    fn refused(
        &mut self,
        time: Time,
        event: &'static str,
        result: &Result,
        socket: &Socket,
        process: Option<&Actor>,
        conflict: Option<&Conflict>,
    ) {
        if conflict.is_none() && result.error.as_deref() != Some("EADDRINUSE") {
            // A call that could never succeed is nothing of ports.
            return;
        }
        let cause = conflict.map_or(Cause::Unknown, |conflict| conflict.cause);
        *self.causes.entry(cause.id()).or_default() += 1;
        let place = (self.host, socket.netns);
        if let Some((transport, _, port)) = inet(socket) {
            self.contest(transport, port, cause);
            let mark = Mark {
                time,
                error: result.error.as_deref().map(str::to_owned),
                pid: process.map(|process| process.pid),
                newcomer: process.map(party),
                cause,
            };
            self.draw_mark(place, transport, port, mark, conflict);
        }
        if let Some(process) = process {
            let holder = conflict.and_then(|conflict| conflict.holders.first());
            self.collide(party(process), holder.and_then(holder_party));
        }
        let likeness = Likeness {
            host: self.host,
            netns: socket.netns,
            event,
            error: result.error.as_deref().map(str::to_owned),
            newcomer: process.map(command),
            transport: socket.transport.as_ref().map(ToString::to_string),
            address: socket.local.as_ref().map(ToString::to_string),
            cause,
            holder: conflict
                .and_then(|conflict| conflict.holders.first())
                .map(|holder| {
                    let process = holder.processes.first();
                    (
                        holder.socket.socket.local.as_ref().map(ToString::to_string),
                        process.map(|process| (process.pid, process.start_time)),
                    )
                }),
        };
        if let Some(refusal) = self
            .alike
            .get(&likeness)
            .and_then(|at| self.refusals.get_mut(*at))
        {
            refusal.count += 1;
            refusal.last = time;
        } else if self.refusals.len() < REFUSALS {
            self.alike.insert(likeness, self.refusals.len());
            self.refusals.push(Refusal {
                event,
                error: result.error.as_deref().map(str::to_owned),
                count: 1,
                first: time,
                last: time,
                host: Some(self.host),
                socket: socket.clone(),
                process: process.cloned(),
                conflict: conflict.cloned(),
            });
        } else {
            *self.omitted.entry("refusals").or_default() += 1;
        }
    }

    fn contest(&mut self, transport: &Transport, port: u16, cause: Cause) {
        let key = (transport.to_string(), port);
        let contested = self.contested.entry(key).or_insert_with(|| Contested {
            port,
            transport: transport.clone(),
            count: 0,
            causes: BTreeMap::new(),
        });
        contested.count += 1;
        *contested.causes.entry(cause.id()).or_default() += 1;
    }

    fn collide(&mut self, newcomer: String, holder: Option<String>) {
        let key = (newcomer, holder);
        if self.collisions.len() < COLLISIONS || self.collisions.contains_key(&key) {
            *self.collisions.entry(key).or_default() += 1;
        } else {
            *self.omitted.entry("collisions").or_default() += 1;
        }
    }

    /// The lane of a port, if there is room for it.
    fn lane(&mut self, place: Place, transport: &Transport, port: u16) -> Option<usize> {
        let key = (place, transport.to_string(), port);
        if let Some(lane) = self.lanes.get(&key) {
            return Some(*lane);
        }
        if self.timeline.len() >= LANES {
            *self.omitted.entry("timeline").or_default() += 1;
            return None;
        }
        self.timeline.push(Lane {
            port,
            transport: transport.clone(),
            netns: place.1,
            host: Some(place.0),
            spans: Vec::new(),
            marks: Vec::new(),
        });
        self.lanes.insert(key, self.timeline.len() - 1);
        Some(self.timeline.len() - 1)
    }

    /// Whether there is room for one more span or mark.
    fn may_draw(&mut self) -> bool {
        if self.drawn >= DRAWN {
            *self.omitted.entry("timeline").or_default() += 1;
            return false;
        }
        self.drawn += 1;
        true
    }

    fn draw_span(
        &mut self,
        place: Place,
        transport: &Transport,
        port: u16,
        span: Span,
    ) -> Option<(usize, usize)> {
        if !self.may_draw() {
            return None;
        }
        let lane = self.lane(place, transport, port)?;
        let spans = &mut self.timeline.get_mut(lane)?.spans;
        spans.push(span);
        Some((lane, spans.len() - 1))
    }

    fn draw_mark(
        &mut self,
        place: Place,
        transport: &Transport,
        port: u16,
        mark: Mark,
        conflict: Option<&Conflict>,
    ) {
        if !self.may_draw() {
            return;
        }
        let Some(lane) = self.lane(place, transport, port) else {
            return;
        };
        let Some(lane) = self.timeline.get_mut(lane) else {
            return;
        };
        // The holder may be one whose bind was not seen, such as a connection.
        let holders = conflict.map_or(&[][..], |conflict| &conflict.holders);
        for holder in holders {
            let process = holder.processes.first();
            let pid = process.map(|process| process.pid);
            let from = holder.bound_at.unwrap_or(mark.time);
            let known = |span: &Span| {
                span.pid == pid
                    && span.from <= mark.time
                    && span.until.is_none_or(|until| until >= from)
            };
            match lane.spans.iter_mut().rev().find(|span| known(span)) {
                Some(span) => {
                    // One of these only is known to have lasted until somebody was refused.
                    if let Some(until) = &mut span.until {
                        *until = mark.time.max(*until);
                    }
                }
                None if self.drawn < DRAWN => {
                    self.drawn += 1;
                    lane.spans.push(Span {
                        from,
                        until: Some(mark.time),
                        address: holder.socket.socket.local.as_ref().and_then(Address::ip),
                        pid,
                        holder: holder_party(holder),
                    });
                }
                None => *self.omitted.entry("timeline").or_default() += 1,
            }
        }
        lane.marks.push(mark);
    }

    /// The report.
    #[must_use]
    pub fn finish(mut self) -> Report {
        let several = self.hosts.len() > 1;
        let host = |host: &mut Option<usize>| *host = host.filter(|_| several);
        let risks = self.risks();
        let mut ports: Vec<_> = self.used.into_iter().map(|used| used.told).collect();
        ports.iter_mut().for_each(|port| host(&mut port.host));
        ports.sort_by_key(|port| port.from);
        self.refusals
            .iter_mut()
            .for_each(|refusal| host(&mut refusal.host));
        self.timeline
            .iter_mut()
            .for_each(|lane| host(&mut lane.host));
        self.timeline
            .sort_by_key(|lane| (lane.host, lane.netns, lane.port));
        let mut contested: Vec<_> = self.contested.into_values().collect();
        contested.sort_by_key(|port| (std::cmp::Reverse(port.count), port.port));
        let collisions = self.collisions.into_iter();
        let mut collisions: Vec<_> = collisions
            .map(|((newcomer, holder), count)| Collision {
                newcomer,
                holder,
                count,
            })
            .collect();
        collisions.sort_by(|a, b| {
            let key = |one: &Collision| (one.newcomer.clone(), one.holder.clone());
            b.count.cmp(&a.count).then_with(|| key(a).cmp(&key(b)))
        });
        Report {
            schema: SCHEMA,
            from: self.from,
            until: self.until,
            job: None,
            sources: Vec::new(),
            hosts: self.hosts,
            events: self.events,
            refusals: self.refusals,
            causes: self.causes,
            contested,
            collisions,
            ports,
            left_behind: None,
            risks,
            timeline: self.timeline,
            lost: self.lost,
            missing: self.missing,
            omitted: self.omitted,
        }
    }

    fn risks(&self) -> Vec<Risk> {
        let mut risks = Vec::<Risk>::new();
        for told in self.bound_by_number() {
            let Some((port, host)) = told.port.zip(told.host) else {
                continue;
            };
            let settings = self.settings.get(&(host, told.netns));
            let Some(range) = settings.and_then(|settings| {
                let is_ephemeral = settings.place(port).ephemeral;
                settings.local_port_range.clone().filter(|_| is_ephemeral)
            }) else {
                continue;
            };
            let risk = Risk {
                transport: told.transport.clone(),
                address: told.address,
                port,
                process: told.process.clone(),
                range: range.into_inner(),
            };
            let known = |known: &Risk| (&known.transport, known.port) == (&risk.transport, port);
            if !risks.iter().any(known) {
                risks.push(risk);
            }
        }
        risks
    }
}

fn span_mut(timeline: &mut [Lane], at: Option<(usize, usize)>) -> Option<&mut Span> {
    let (lane, span) = at?;
    timeline.get_mut(lane)?.spans.get_mut(span)
}

/// The protocol, address and port of a socket that has all of them.
fn inet(socket: &Socket) -> Option<(&Transport, std::net::IpAddr, u16)> {
    match (&socket.transport, &socket.local) {
        (Some(transport), Some(Address::Inet { address, port, .. })) if *port != 0 => {
            Some((transport, *address, *port))
        }
        _ => None,
    }
}

fn command(actor: &Actor) -> Command {
    let args = actor.process.args.as_deref().unwrap_or_default();
    (
        actor.comm.to_string(),
        args.iter().map(ToString::to_string).collect(),
    )
}

/// What containers that follow each other have in common, else a container's own name.
fn shared_name(container: &Container) -> String {
    container
        .compose()
        .unwrap_or_else(|| container.short_name().to_owned())
}

/// Whom somebody is of, as far as that outlives a process: a pod, a service of Compose, a container, a unit,
/// else the command.
fn party(actor: &Actor) -> String {
    let process = &actor.process;
    if let Some(pod) = &process.pod {
        return pod.full_name();
    }
    if let Some(container) = &process.container {
        return shared_name(container);
    }
    match &process.unit {
        Some(unit) => unit.to_string(),
        None => actor.comm.to_string(),
    }
}

/// Who holds a port: of one that publishes it for a container, the container.
fn holder_party(holder: &Holder) -> Option<String> {
    if let Some(publishes) = &holder.publishes {
        if let Some(pod) = &publishes.pod {
            return Some(pod.full_name());
        }
        return Some(shared_name(&publishes.container));
    }
    holder.processes.first().map(party)
}
