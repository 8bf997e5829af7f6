//! A coordinator in the world: the raft node on its disk, the controller, the gateway, and what joins them in the program
//! (`process/lead.rs`).

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use tokio::sync::watch;
use tramontane_coordinator::control::command::{Command, Outcome, Proposal};
use tramontane_coordinator::control::controller::{
    AskRefusal, Controller, ControllerOptions, Effect, Event, ProposalResult, SessionId,
};
use tramontane_coordinator::control::state::CoordinatorEntry;
use tramontane_coordinator::gateway::{Gateway, Routes};
use tramontane_coordinator::process::routes::routes;
use tramontane_coordinator::raft::node::{Effects, Outbound, StepError, Ticket};
use tramontane_coordinator::raft::storage::Position;
use tramontane_coordinator::raft::{
    Identity, LogStore, Members, Node, NodeError, NodeOptions, ProposeError, ReadError, Role, StoreError,
};
use tramontane_model::ids::{CoordinatorId, WorkerId};
use tramontane_model::time::Tick;
use tramontane_proto::Directive;
use tramontane_sim::Disk;

use super::heads::Heads;
use super::history::{self, Machine};
use super::invariants::{Violation, ensure, lease, rf2};
use super::network::{ConnId, Message, Proc};
use super::scenario::{self, LEASE_MS, TICK_MS};
use super::world::{Happening, World};

/// Ticks that a proposal may take: 5 s.
const PROPOSAL_TICKS: u64 = 100;
/// Ticks between two looks at what all schedulers do.
const LOAD_TICKS: u64 = 20;

pub(super) struct Coordinator {
    identity: Identity,
    pub(super) disk: Disk,
    used: bool,
    /// Grows with each start and end.
    pub(super) epoch: u64,
    pub(super) up: Option<Box<Running>>,
}

struct Session {
    conn: ConnId,
    worker: WorkerId,
    heard: lease::Heard,
}

pub(super) struct Running {
    pub(super) node: Node<Machine>,
    pub(super) controller: Controller,
    pub(super) gateway: Gateway,
    routes: watch::Sender<Arc<Routes>>,
    started: u64,
    proposer: u64,
    known: Option<(Option<u64>, Option<CoordinatorId>)>,
    leads_since: u64,
    tickets: BTreeMap<Ticket, u64>,
    sessions: BTreeMap<SessionId, Session>,
    by_conn: BTreeMap<ConnId, SessionId>,
    /// What this leader last heard of each worker, sessions that are over included.
    heard: BTreeMap<WorkerId, lease::Heard>,
    next_session: u64,
    ticks: u64,
    durable: rf2::Durable,
}

/// What a node gave out during one call, each with the disk's syncs by then.
struct Outbox<'a> {
    disk: &'a Disk,
    sent: Vec<(Outbound, u64)>,
    applied: Vec<(Position, u64)>,
    proposed: Vec<(Ticket, Result<Outcome, ProposeError>, u64)>,
}

impl Effects<Machine> for Outbox<'_> {
    fn send(&mut self, message: Outbound) {
        self.sent.push((message, self.disk.syncs()));
    }
    fn applied(&mut self, _machine: &Machine, last: Position) {
        self.applied.push((last, self.disk.syncs()));
    }
    fn proposed(&mut self, ticket: Ticket, result: Result<Outcome, ProposeError>) {
        self.proposed.push((ticket, result, 0));
    }
    fn read(&mut self, _ticket: Ticket, _result: Result<u64, ReadError>) {}
}

impl Coordinator {
    pub(super) fn new(id: u64, size: u64) -> Self {
        let members = Members::new((1..=size).map(CoordinatorId)).expect("an odd number");
        Self {
            identity: Identity::new("sim", CoordinatorId(id), members).expect("a member"),
            disk: Disk::default(),
            used: false,
            epoch: 0,
            up: None,
        }
    }
}

fn entry(id: u64) -> CoordinatorEntry {
    CoordinatorEntry {
        raft_address: format!("c{id}:1"),
        http_address: format!("c{id}:2"),
        pid: 1,
        version: "0".to_owned(),
    }
}

/// What became of a proposal, as the program tells its controller.
fn result(proposed: Result<Outcome, ProposeError>) -> ProposalResult {
    match proposed {
        Ok(outcome) => ProposalResult::Committed(outcome),
        Err(ProposeError::TimedOut | ProposeError::Unknown | ProposeError::ShuttingDown) => {
            ProposalResult::Unknown
        }
        Err(
            error @ (ProposeError::NotLeader { .. }
            | ProposeError::Empty
            | ProposeError::TooLarge { .. }
            | ProposeError::Busy
            | ProposeError::Dropped),
        ) => ProposalResult::Dropped {
            reason: error.to_string(),
        },
    }
}

impl World {
    pub(super) fn running_coordinators(&self) -> Vec<u64> {
        let all = self.coordinators.iter();
        all.filter(|(_, one)| one.up.is_some())
            .map(|(&id, _)| id)
            .collect()
    }

    /// The leader of the highest term.
    pub(super) fn leader(&self) -> Option<u64> {
        let up = self
            .coordinators
            .iter()
            .filter_map(|(&id, one)| Some((id, one.up.as_ref()?)));
        let leads = up.filter(|(_, running)| running.node.is_leader());
        leads
            .max_by_key(|(_, running)| running.node.status().term)
            .map(|(id, _)| id)
    }

    pub(super) fn start_coordinator(&mut self, id: u64) {
        let proposer = self.rng.next();
        let options = ControllerOptions {
            id: CoordinatorId(id),
            entry: entry(id),
            model: self.model.clone(),
            replicas: self.scenario.replicas,
            wishes: self.scenario.wishes,
            steps: self.scenario.steps,
            settle_ms: 1000,
            leases: scenario::leases(),
        };
        let one = self.coordinators.get_mut(&id).expect("a coordinator");
        one.disk.repair();
        one.epoch += 1;
        let opened = LogStore::open_backend(one.disk.open(), "sim", &one.identity, one.used);
        let node = opened.map_err(NodeError::from).and_then(|store| {
            let options = NodeOptions {
                checkpoint_entries: 6,
                kept_entries: 2,
                election_timeout_ticks: one.identity.election_timeout_ticks(0),
                ..NodeOptions::new(&one.identity)
            };
            Node::new(store, &one.identity, options, Machine::default())
        });
        one.used = true;
        let node = match node {
            Ok(node) => node,
            Err(error) => {
                let what = format!("coordinator {id} cannot start: {error}");
                return self.check(Err(Violation { rule: "RF-1", what }));
            }
        };
        let heads = Heads {
            from: (id, one.epoch),
            desk: self.desk.clone(),
        };
        let (routes, receiver) = watch::channel(Arc::new(Routes::unknown()));
        let running = Running {
            durable: rf2::Durable {
                last: node.status().last_index,
                term: node.status().term,
                syncs: 0,
            },
            node,
            controller: Controller::new(options),
            gateway: Gateway::new(receiver, Arc::new(heads), scenario::gateway()),
            routes,
            started: self.now,
            proposer,
            known: None,
            leads_since: 0,
            tickets: BTreeMap::new(),
            sessions: BTreeMap::new(),
            by_conn: BTreeMap::new(),
            heard: BTreeMap::new(),
            next_session: 1,
            ticks: 0,
        };
        let epoch = one.epoch;
        one.up = Some(Box::new(running));
        let (now, first) = (self.now, 1 + self.rng.below(TICK_MS));
        self.trace.add(now, || format!("coordinator {id} starts"));
        self.after(first, Happening::Tick { id, epoch });
        self.with_coordinator(id, |_, _| Vec::new());
    }

    /// Cuts a coordinator's power.
    pub(super) fn crash_coordinator(&mut self, id: u64) {
        let one = self.coordinators.get_mut(&id).expect("a coordinator");
        if one.up.take().is_none() {
            return;
        }
        one.epoch += 1;
        one.disk.crash(&mut self.rng);
        one.disk.repair();
        self.coverage.restarts += 1;
        self.after_crash(Proc::Coordinator(id));
        self.forget_streams(id);
        for client in 0..self.clients.len() {
            let one = &mut self.clients[client];
            if one.at == Some(id) && !one.over {
                one.at = None;
                if let Some(task) = one.task.take() {
                    task.abort();
                }
                // What its task still told is void.
                one.tries += 1;
                self.coverage.retried += 1;
                let pause = 1 + self.rng.below(500);
                self.after(pause, Happening::Ask { client });
            }
        }
    }

    /// Closes what a process had open, and forgets what waited for it.
    pub(super) fn after_crash(&mut self, process: Proc) {
        self.frozen.remove(&process);
        let now = self.now;
        self.trace.add(now, || format!("{process:?} dies"));
        for (conn, _) in self.net.of(process) {
            self.hang_up(conn, process);
        }
    }

    /// Does something with a coordinator that runs, then all that follows from it.
    fn with_coordinator(&mut self, id: u64, act: impl FnOnce(&mut Self, &mut Running) -> Vec<Event>) {
        let Some(mut running) = self.coordinators.get_mut(&id).and_then(|one| one.up.take()) else {
            return;
        };
        let mut events = VecDeque::from(act(self, &mut running));
        loop {
            let survived = self.drive(id, &mut running, &mut events);
            if !survived {
                self.coordinators.get_mut(&id).expect("a coordinator").up = Some(running);
                return self.crash_coordinator(id);
            }
            let Some(event) = events.pop_front() else { break };
            self.control(id, &mut running, event, &mut events);
        }
        self.coordinators.get_mut(&id).expect("a coordinator").up = Some(running);
    }

    /// What raft has made ready. Says whether the disk took it.
    fn drive(&mut self, id: u64, running: &mut Running, events: &mut VecDeque<Event>) -> bool {
        let disk = self.coordinators[&id].disk.clone();
        let mut outbox = Outbox {
            disk: &disk,
            sent: Vec::new(),
            applied: Vec::new(),
            proposed: Vec::new(),
        };
        running.durable.syncs = disk.syncs();
        let ready = running.node.ready(&mut outbox);
        let Outbox {
            sent,
            applied,
            proposed,
            ..
        } = outbox;
        let durable = running.durable;
        for (message, syncs) in sent {
            self.check(rf2::check_sent(durable, &message, syncs));
            self.coverage.checkpoints_sent += u64::from(message.is_snapshot);
            for at in self.net.datagram(self.now, &mut self.rng) {
                let happening = Happening::Raft {
                    from: id,
                    to: message.to.0,
                    is_snapshot: message.is_snapshot,
                    bytes: message.bytes.clone(),
                };
                self.at(at, happening);
            }
        }
        for (last, syncs) in &applied {
            self.check(rf2::check_applied(durable, last.index, *syncs));
        }
        let changes = running.node.machine().0.commands;
        if proposed.iter().any(|(_, result, _)| result.is_ok()) {
            history::with(|history| history.log.acknowledged(changes));
        }
        match ready {
            Ok(()) => {}
            Err(NodeError::Store(StoreError::Write { .. })) => {
                self.coverage.torn += 1;
                return false;
            }
            Err(error) => {
                let what = format!("coordinator {id} cannot go on: {error}");
                self.check(Err(Violation { rule: "RF-1", what }));
            }
        }
        let status = running.node.status();
        running.durable.last = status.last_index;
        running.durable.term = status.term;
        self.follow(id, running, events);
        if !applied.is_empty() {
            events.push_back(Event::StateChanged);
            publish(running);
        }
        for (ticket, proposed, _) in proposed {
            if let Some(sequence) = running.tickets.remove(&ticket) {
                let result = result(proposed);
                events.push_back(Event::Proposed { sequence, result });
            }
        }
        true
    }

    /// Tells the controller who leads, if that has changed.
    fn follow(&mut self, id: u64, running: &mut Running, events: &mut VecDeque<Event>) {
        let status = running.node.status();
        let known = match status.role {
            Role::Leader => (Some(status.term), None),
            Role::Follower | Role::Candidate | Role::PreCandidate => {
                (None, status.leader.filter(|leader| *leader != status.id))
            }
        };
        if running.known.replace(known) == Some(known) {
            return;
        }
        let now = self.now;
        match known {
            (Some(term), _) => {
                running.leads_since = now;
                running.heard.clear();
                let checked = history::with(|history| history.log.leads(term, id));
                self.check(checked);
                self.trace
                    .add(now, || format!("coordinator {id} leads in term {term}"));
                events.push_back(Event::Leads { term });
            }
            (None, leader) => events.push_back(Event::Follows { leader }),
        }
    }

    fn control(&mut self, id: u64, running: &mut Running, event: Event, events: &mut VecDeque<Event>) {
        let now = Tick(self.now - running.started);
        let mut effects = Vec::new();
        let state = &running.node.machine().0;
        running.controller.step(now, state, event, &mut effects);
        for effect in effects {
            match effect {
                Effect::Propose { sequence, command } => {
                    self.check_proposal(running, &command);
                    let now = self.now;
                    self.trace
                        .add(now, || format!("coordinator {id} proposes {}", short(&command)));
                    let proposal = Proposal {
                        proposer: running.proposer,
                        sequence,
                        command,
                    };
                    let entry = proposal.encode().expect("a proposal within its limits");
                    match running.node.propose(entry, PROPOSAL_TICKS) {
                        Ok(ticket) => drop(running.tickets.insert(ticket, sequence)),
                        Err(error) => events.push_back(Event::Proposed {
                            sequence,
                            result: result(Err(error)),
                        }),
                    }
                }
                Effect::Admit { session } => {
                    let now = self.now;
                    if let Some(session) = running.sessions.get_mut(&session) {
                        session.heard.since = now;
                        running.heard.insert(session.worker.clone(), session.heard);
                    }
                }
                Effect::Direct { session, directive } => self.direct(id, running, session, directive),
                Effect::Refuse { session, error: why } | Effect::EndSession { session, why } => {
                    self.end_session(id, running, session, &why);
                }
                Effect::Answer { .. } => {}
            }
        }
    }

    fn direct(&mut self, id: u64, running: &Running, session: SessionId, directive: Directive) {
        let Some(session) = running.sessions.get(&session) else {
            return;
        };
        self.send(session.conn, Proc::Coordinator(id), Message::Directive(directive));
    }

    fn end_session(&mut self, id: u64, running: &mut Running, session: SessionId, why: &AskRefusal) {
        let Some(session) = running.sessions.remove(&session) else {
            return;
        };
        running.by_conn.remove(&session.conn);
        let leader = match why {
            AskRefusal::NotLeader { leader } => leader.map(|leader| leader.0),
            AskRefusal::Refused(_) | AskRefusal::Unavailable(_) => None,
        };
        self.send(session.conn, Proc::Coordinator(id), Message::SessionOver(leader));
    }

    /// A leader may give up only workers that it has not heard of for long enough.
    fn check_proposal(&mut self, running: &Running, command: &Command) {
        if let Command::WorkerLost { worker, .. } = command {
            let heard = running.heard.get(worker).copied().unwrap_or_default();
            let leads = running.leads_since;
            self.check(lease::check(worker.as_str(), self.now, leads, heard, LEASE_MS));
            self.coverage.workers_lost += 1;
        }
        if let Command::Place { .. } = command {
            self.coverage.placements += 1;
        }
    }

    pub(super) fn tick_coordinator(&mut self, id: u64) {
        let loads = self.loads_for(id);
        self.with_coordinator(id, |_, running| {
            running.node.tick();
            running.ticks += 1;
            if running.ticks.is_multiple_of(LOAD_TICKS) {
                running.gateway.heard(&loads);
            }
            if running.controller.leads() {
                publish(running);
            }
            vec![Event::Elapsed]
        });
    }

    /// What the leader says that the schedulers do, if it can be asked.
    fn loads_for(&self, id: u64) -> Vec<tramontane_model::members::SchedulerLoad> {
        let Some(leader) = self.leader() else {
            return Vec::new();
        };
        let (own, other) = (Proc::Coordinator(id), Proc::Coordinator(leader));
        if self.net.is_parted(own, other) || self.frozen.contains_key(&other) {
            return Vec::new();
        }
        let running = self.coordinators[&leader].up.as_ref();
        running.map_or_else(Vec::new, |running| {
            running.controller.loads(&running.node.machine().0)
        })
    }

    pub(super) fn raft_message(&mut self, from: u64, to: u64, is_snapshot: bool, bytes: &[u8]) {
        let lost = self.net.is_cut(Proc::Coordinator(from), Proc::Coordinator(to));
        if is_snapshot && self.rng.chance(70) && !self.frozen.contains_key(&Proc::Coordinator(from)) {
            let sent = !lost && self.rng.chance(80);
            self.with_coordinator(from, |_, running| {
                running.node.report_snapshot(CoordinatorId(to), sent);
                Vec::new()
            });
        }
        if lost {
            return;
        }
        if self.coordinators[&to].up.is_none() {
            if self.frozen.contains_key(&Proc::Coordinator(from)) {
                return;
            }
            return self.with_coordinator(from, |_, running| {
                running.node.report_unreachable(CoordinatorId(to));
                Vec::new()
            });
        }
        self.with_coordinator(to, |world, running| {
            let (what, fatal) = match running.node.step(CoordinatorId(from), bytes) {
                Ok(()) => return Vec::new(),
                Err(StepError::Refused(error)) => (error.to_string(), false),
                Err(StepError::Fatal(error)) => (error.to_string(), true),
            };
            let checked = ensure("RF-1", false, || {
                format!("coordinator {to} took a message of {from} badly (fatal: {fatal}): {what}")
            });
            world.check(checked);
            Vec::new()
        });
    }

    pub(super) fn coordinator_message(&mut self, id: u64, conn: ConnId, message: Message) {
        match message {
            Message::Join(info) => self.with_coordinator(id, |world, running| {
                let session = SessionId(running.next_session);
                running.next_session += 1;
                let heard = lease::Heard {
                    since: world.now,
                    ..lease::Heard::default()
                };
                let worker = info.worker.clone();
                running.sessions.insert(session, Session { conn, worker, heard });
                running.by_conn.insert(conn, session);
                vec![Event::Joined { session, info }]
            }),
            Message::Report(report) => self.with_coordinator(id, |world, running| {
                let Some(&session) = running.by_conn.get(&conn) else {
                    return Vec::new();
                };
                let Some(one) = running.sessions.get_mut(&session) else {
                    return Vec::new();
                };
                one.heard.report = world.now;
                let worker = one.worker.clone();
                running.heard.insert(worker.clone(), one.heard);
                vec![Event::Reported {
                    session,
                    worker,
                    report,
                }]
            }),
            Message::Accepted | Message::Broken(_) | Message::Update(_) => {
                self.stream_message(conn, message);
            }
            Message::Directive(_)
            | Message::SessionOver(_)
            | Message::Submit(_)
            | Message::Step(_)
            | Message::Result { .. }
            | Message::Down { .. } => unreachable!("not for coordinators: {message:?}"),
        }
    }

    pub(super) fn coordinator_closed(&mut self, id: u64, conn: ConnId) {
        self.stream_closed(conn);
        self.with_coordinator(id, |world, running| {
            let Some(session) = running.by_conn.remove(&conn) else {
                return Vec::new();
            };
            let Some(one) = running.sessions.remove(&session) else {
                return Vec::new();
            };
            let worker = one.worker.clone();
            let newest = running.sessions.values().all(|other| other.worker != worker);
            if let Some(heard) = running.heard.get_mut(&worker).filter(|_| newest) {
                heard.ended = Some(world.now);
            }
            vec![Event::Ended { session, worker }]
        });
    }
}

fn publish(running: &Running) {
    let state = &running.node.machine().0;
    let routes = routes(state, &running.controller.progress(state));
    running.routes.send_if_modified(|published| {
        let changed = *published != routes;
        *published = routes;
        changed
    });
}

fn short(command: &Command) -> String {
    let mut text = format!("{command:?}");
    text.truncate(text.floor_char_boundary(160));
    text
}
