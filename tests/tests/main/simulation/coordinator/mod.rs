//! A coordinator in the world: the raft node on its disk, the controller, the gateway, and what joins them in the program
//! (`process/lead.rs`).

mod leading;
mod raft;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use tokio::sync::watch;
use tramontane_coordinator::control::controller::{Controller, ControllerOptions, Event, SessionId};
use tramontane_coordinator::control::state::CoordinatorEntry;
use tramontane_coordinator::gateway::{Gateway, Routes};
use tramontane_coordinator::raft::node::Ticket;
use tramontane_coordinator::raft::{Identity, LogStore, Members, Node, NodeError, NodeOptions};
use tramontane_model::ids::{CoordinatorId, WorkerId};
use tramontane_sim::Disk;

use self::leading::publish;
use super::heads::Heads;
use super::history::Machine;
use super::invariants::{Violation, lease, rf2};
use super::network::{ConnId, Proc};
use super::scenario::{self, TICK_MS};
use super::world::{Happening, World};

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
    /// One channel for each client: tokio wakes those that wait for one channel in no certain order.
    routes: Vec<watch::Sender<Arc<Routes>>>,
    published: Arc<Routes>,
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
            standbys: self.scenario.standbys,
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
            routes: vec![routes],
            published: Arc::new(Routes::unknown()),
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

    /// A coordinator's gateway, as one client finds it.
    pub(super) fn gateway(&mut self, id: u64) -> Option<Gateway> {
        let running = self.coordinators.get_mut(&id)?.up.as_mut()?;
        let (routes, receiver) = watch::channel(Arc::clone(&running.published));
        running.routes.retain(|routes| !routes.is_closed());
        running.routes.push(routes);
        Some(running.gateway.following(receiver))
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
}
