//! The world: a clock that is counted, what is to happen when, and every process in one thread.
//!
//! The gateways run on tokio with its clock paused, which goes from one event to the next; everything else is pure and is
//! called from here. Equal seeds give equal runs.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tramontane_coordinator::control::state::ModelEntry;
use tramontane_sim::Rng;

use super::clients::{Client, Desk};
use super::coordinator::Coordinator;
use super::coverage::Coverage;
use super::heads::Outgoing;
use super::history;
use super::invariants::{Checked, Violation};
use super::network::{ConnId, Network, Proc, Weather};
use super::scenario::{self, Scenario, TICK_MS};
use super::streams::Streams;
use super::trace::Trace;
use super::worker::{Timer, Worker};

/// Longest time from the end of all faults to rest.
const HEALED_WITHIN_MS: u64 = 150_000;
/// Most events: more are a loop.
const MAX_EVENTS: u64 = 2_000_000;

/// What is to happen.
#[derive(Debug)]
pub(super) enum Happening {
    /// A raft message arrives.
    Raft {
        from: u64,
        to: u64,
        is_snapshot: bool,
        bytes: Vec<u8>,
    },
    /// Something arrives at an end of a connection.
    Arrival {
        conn: ConnId,
        end: usize,
    },
    /// An end learns that the connection is gone.
    Closed {
        conn: ConnId,
        end: usize,
    },
    /// A connection that has been cut for long is given up.
    Keepalive {
        conn: ConnId,
    },
    /// A coordinator's tick.
    Tick {
        id: u64,
        epoch: u64,
    },
    /// A worker's.
    Worker {
        number: usize,
        epoch: u64,
        timer: Timer,
    },
    /// A client asks, for the first time or again.
    Ask {
        client: usize,
    },
    /// A gateway wants something of the network.
    Outgoing(Outgoing),
    Fault,
    Resume(Proc),
}

pub(super) struct World {
    pub(super) now: u64,
    started: Instant,
    queue: BTreeMap<(u64, u64), Happening>,
    next_event: u64,
    pub(super) rng: Rng,
    pub(super) net: Network,
    pub(super) trace: Trace,
    pub(super) desk: Desk,
    pub(super) scenario: Scenario,
    pub(super) model: ModelEntry,
    pub(super) coordinators: BTreeMap<u64, Coordinator>,
    pub(super) workers: Vec<Worker>,
    pub(super) clients: Vec<Client>,
    pub(super) streams: Streams,
    /// What waits for processes that are stopped.
    pub(super) frozen: BTreeMap<Proc, VecDeque<Happening>>,
    pub(super) healed: bool,
    pub(super) next_run: u64,
    pub(super) coverage: Coverage,
    violation: Option<Violation>,
}

impl World {
    pub(super) fn new(seed: u64, traced: bool) -> Self {
        let mut rng = Rng::new(seed);
        let scenario = Scenario::new(&mut rng);
        let model = scenario::model();
        history::begin(model.footprint.clone());
        let mut world = Self {
            now: 0,
            started: Instant::now(),
            queue: BTreeMap::new(),
            next_event: 0,
            net: Network::new(Weather::FOUL),
            trace: Trace::new(traced),
            desk: Desk::default(),
            model,
            coordinators: BTreeMap::new(),
            workers: Vec::new(),
            clients: Vec::new(),
            streams: Streams::default(),
            frozen: BTreeMap::new(),
            healed: false,
            next_run: 0,
            coverage: Coverage::default(),
            violation: None,
            scenario,
            rng,
        };
        world.populate();
        world
    }

    fn populate(&mut self) {
        let coordinators = self.scenario.coordinators;
        for id in 1..=coordinators {
            self.coordinators.insert(id, Coordinator::new(id, coordinators));
            self.start_coordinator(id);
        }
        for (number, &memory) in self.scenario.memory.clone().iter().enumerate() {
            self.workers.push(Worker::new(number, memory));
            // The last one joins when a fault says so, or when all is well again.
            if number + 1 < self.scenario.memory.len() {
                self.start_worker(number);
            }
        }
        let mut at = 0;
        for _ in 0..self.scenario.requests {
            // Half of them right after another, so that they run together.
            if at == 0 || self.rng.chance(50) {
                at = 1000 + self.rng.below(self.scenario.fault_ms);
            }
            self.new_client(at);
            at += 1 + self.rng.below(30);
        }
        let at = 1500 + self.rng.below(1000);
        self.at(at, Happening::Fault);
    }

    pub(super) fn at(&mut self, at: u64, happening: Happening) {
        self.next_event += 1;
        self.queue.insert((at.max(self.now), self.next_event), happening);
    }

    pub(super) fn after(&mut self, milliseconds: u64, happening: Happening) {
        self.at(self.now + milliseconds, happening);
    }

    /// Notes the first rule that was broken.
    pub(super) fn check(&mut self, checked: Checked) {
        if let Err(violation) = checked {
            self.violation.get_or_insert(violation);
        }
    }

    /// Runs to rest, or to the first violation.
    pub(super) async fn run(&mut self) -> Result<(), Violation> {
        let heal_at = self.scenario.fault_ms + 1000;
        loop {
            self.see_to_desk();
            if let Some(violation) = self.violation.take() {
                return Err(violation);
            }
            if let Some(violation) = history::with(|history| history.violation.take()) {
                return Err(violation);
            }
            if !self.healed && self.now >= heal_at {
                self.heal();
            }
            if self.healed && self.is_at_rest() {
                break;
            }
            if self.now > heal_at + HEALED_WITHIN_MS {
                let what = self.unrest();
                return Err(Violation {
                    rule: "liveness",
                    what,
                });
            }
            let Some(&(next, _)) = self.queue.keys().next() else {
                break;
            };
            self.wait_until(next).await;
            while let Some(entry) = self.queue.first_entry()
                && entry.key().0 <= self.now
            {
                let happening = entry.remove();
                self.coverage.events += 1;
                self.happen(happening);
            }
            if self.coverage.events > MAX_EVENTS {
                let what = "the world does not come to rest".to_owned();
                return Err(Violation {
                    rule: "liveness",
                    what,
                });
            }
        }
        self.check_end();
        self.violation.take().map_or(Ok(()), Err)
    }

    /// Lets tasks run until the time comes, or until one of them has something for the world.
    async fn wait_until(&mut self, at: u64) {
        let until = self.started + Duration::from_millis(at);
        let news = Arc::clone(&self.desk.news);
        tokio::select! {
            biased;
            () = news.notified() => {}
            () = tokio::time::sleep_until(until) => {}
        }
        self.now = (Instant::now() - self.started).as_millis() as u64;
    }

    fn happen(&mut self, happening: Happening) {
        if let Some(happening) = self.unless_frozen(happening) {
            self.occur(happening);
        }
    }

    fn occur(&mut self, happening: Happening) {
        match happening {
            Happening::Raft {
                from,
                to,
                is_snapshot,
                bytes,
            } => self.raft_message(from, to, is_snapshot, &bytes),
            Happening::Arrival { conn, end } => self.arrive(conn, end),
            Happening::Closed { conn, end } => self.closed(conn, end),
            Happening::Keepalive { conn } => {
                if self.net.parted().contains(&conn) {
                    self.reset(conn, 3000);
                }
            }
            Happening::Tick { id, epoch } => {
                if self.coordinators[&id].epoch == epoch && self.coordinators[&id].up.is_some() {
                    self.tick_coordinator(id);
                    self.after(TICK_MS, Happening::Tick { id, epoch });
                }
            }
            Happening::Worker { number, epoch, timer } => {
                if self.workers[number].epoch == epoch {
                    self.worker_timer(number, timer);
                }
            }
            Happening::Ask { client } => self.ask(client),
            Happening::Outgoing(outgoing) => self.outgoing(outgoing),
            Happening::Fault => self.fault(),
            Happening::Resume(process) => self.resume(process),
        }
    }

    /// Puts aside what happens to a process that is stopped.
    fn unless_frozen(&mut self, happening: Happening) -> Option<Happening> {
        // What waits in the network does so whether or not somebody waits for it: nothing overtakes it.
        if let Happening::Arrival { conn, end } = &happening
            && let Some(until) = self.net.hold(*conn, *end, self.now)
        {
            self.at(until, happening);
            return None;
        }
        let process = match &happening {
            Happening::Raft { to, .. } => Some(Proc::Coordinator(*to)),
            Happening::Arrival { conn, end } | Happening::Closed { conn, end } => self.net.end(*conn, *end),
            Happening::Tick { id, .. } => Some(Proc::Coordinator(*id)),
            Happening::Worker { number, .. } => Some(Proc::Worker(*number)),
            Happening::Outgoing(outgoing) => self.streams.sender(outgoing).map(Proc::Coordinator),
            Happening::Keepalive { .. } | Happening::Ask { .. } | Happening::Fault | Happening::Resume(_) => {
                None
            }
        };
        match process.and_then(|process| self.frozen.get_mut(&process)) {
            Some(waiting) => {
                waiting.push_back(happening);
                None
            }
            None => Some(happening),
        }
    }

    pub(super) fn resume(&mut self, process: Proc) {
        let now = self.now;
        self.trace.add(now, || format!("{process:?} goes on"));
        // In the order in which it came, and before everything else: it has left the network, which holds none of it back.
        for happening in self.frozen.remove(&process).unwrap_or_default() {
            self.occur(happening);
        }
    }

    pub(super) fn next_run(&mut self) -> u64 {
        self.next_run += 1;
        self.next_run
    }
}
