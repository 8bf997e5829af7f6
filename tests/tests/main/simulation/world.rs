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

use super::clients::{self, Client, Desk, Report, Request};
use super::coordinator::Coordinator;
use super::coverage::Coverage;
use super::heads::Outgoing;
use super::history;
use super::invariants::{Checked, Violation, bq1, det1, st1, st2};
use super::network::{ConnId, Message, Network, Proc, Weather};
use super::scenario::{self, Scenario, TICK_MS};
use super::streams::Streams;
use super::trace::Trace;
use super::worker::{Timer, Worker};

/// Longest time from the end of all faults to rest.
const HEALED_WITHIN_MS: u64 = 150_000;
/// Most events: more are a loop.
const MAX_EVENTS: u64 = 2_000_000;
/// Numbers below it are for what goes before others.
const FIRST_EVENT: u64 = 1 << 32;

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
    Message {
        conn: ConnId,
        end: usize,
        message: Box<Message>,
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
    /// Counts down, for what goes before others.
    last_first: u64,
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
            next_event: FIRST_EVENT,
            last_first: FIRST_EVENT,
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

    fn new_client(&mut self, at: u64) {
        let client = self.clients.len();
        self.clients.push(Client {
            request: Arc::new(Request::random(&mut self.rng)),
            tries: 0,
            at: None,
            task: None,
            asked: 0,
            accepted: false,
            tokens: Vec::new(),
            over: false,
        });
        self.at(at, Happening::Ask { client });
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
        let Some(happening) = self.unless_frozen(happening) else {
            return;
        };
        match happening {
            Happening::Raft {
                from,
                to,
                is_snapshot,
                bytes,
            } => self.raft_message(from, to, is_snapshot, &bytes),
            Happening::Message { conn, end, message } => self.arrive(conn, end, message),
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
        let process = match &happening {
            Happening::Raft { to, .. } => Some(Proc::Coordinator(*to)),
            Happening::Message { conn, end, .. } | Happening::Closed { conn, end } => {
                self.net.end(*conn, *end)
            }
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
        // Before everything else that happens now: it comes in the order in which it would have come.
        for happening in self.frozen.remove(&process).unwrap_or_default().into_iter().rev() {
            self.last_first -= 1;
            self.queue.insert((self.now, self.last_first), happening);
        }
        let now = self.now;
        self.trace.add(now, || format!("{process:?} goes on"));
    }

    /// Sends over a connection; what cannot be sent is lost with it.
    pub(super) fn send(&mut self, conn: ConnId, from: Proc, message: Message) {
        if let Some((end, at)) = self.net.send(conn, from, self.now, &mut self.rng) {
            let message = Box::new(message);
            self.at(at, Happening::Message { conn, end, message });
        }
    }

    pub(super) fn connect(&mut self, from: Proc, to: Proc) -> ConnId {
        let conn = self.net.connect(from, to);
        if self.net.is_parted(from, to) {
            let patience = 1000 + self.rng.below(4000);
            self.after(patience, Happening::Keepalive { conn });
        }
        conn
    }

    /// Closes a process's end; the other end hears of it, unless nothing gets through.
    pub(super) fn hang_up(&mut self, conn: ConnId, from: Proc) {
        let Some(own) = self.net.own_end(conn, from) else {
            return;
        };
        if let Some((end, other)) = self.net.close(conn, own) {
            let delay = if self.net.is_parted(from, other) {
                1000 + self.rng.below(7000)
            } else if self.healed {
                1 + self.rng.below(4)
            } else {
                1 + self.rng.below(300)
            };
            self.after(delay, Happening::Closed { conn, end });
        }
    }

    /// Breaks a connection: each end learns of it in its own time.
    pub(super) fn reset(&mut self, conn: ConnId, within: u64) {
        for end in 0..2 {
            if self.net.is_open(conn, end) {
                let delay = self.rng.below(within);
                self.after(delay, Happening::Closed { conn, end });
            }
        }
    }

    fn arrive(&mut self, conn: ConnId, end: usize, message: Box<Message>) {
        let Some(process) = self.net.end(conn, end) else {
            return;
        };
        if let Some(until) = self.net.hold(conn, end, self.now) {
            return self.at(until, Happening::Message { conn, end, message });
        }
        if !self.net.is_open(conn, end) {
            return self.late_update(conn, *message);
        }
        let is_up = match process {
            Proc::Coordinator(id) => self.coordinators[&id].up.is_some(),
            Proc::Worker(number) => self.workers[number].up.is_some(),
        };
        if !is_up {
            return self.hang_up(conn, process);
        }
        match process {
            Proc::Coordinator(id) => self.coordinator_message(id, conn, *message),
            Proc::Worker(number) => self.worker_message(number, conn, *message),
        }
    }

    fn closed(&mut self, conn: ConnId, end: usize) {
        let Some(process) = self.net.end(conn, end) else {
            return;
        };
        if !self.net.is_open(conn, end) {
            return;
        }
        self.net.close(conn, end);
        match process {
            Proc::Coordinator(id) => self.coordinator_closed(id, conn),
            Proc::Worker(number) => self.worker_closed(number, conn),
        }
    }

    /// A client asks a coordinator that runs, or waits for one.
    fn ask(&mut self, client: usize) {
        let up: Vec<u64> = self.running_coordinators();
        let at = up.get(self.rng.below(up.len() as u64) as usize).copied();
        let gateway = at.and_then(|id| Some(self.coordinators[&id].up.as_ref()?.gateway.clone()));
        let (Some(id), Some(gateway)) = (at, gateway) else {
            return self.after(200, Happening::Ask { client });
        };
        let now = self.now;
        let one = &mut self.clients[client];
        one.tries += 1;
        one.at = Some(id);
        one.asked = now;
        one.accepted = false;
        one.tokens.clear();
        let request = Arc::clone(&one.request);
        let (desk, tries) = (self.desk.clone(), one.tries);
        let task = tokio::spawn(clients::ask(desk, client, tries, gateway, request));
        one.task = Some(task.abort_handle());
        self.trace
            .add(now, || format!("client {client} asks coordinator {id}"));
    }

    fn see_to_desk(&mut self) {
        // What tasks told in this order.
        for (client, tries, report) in self.desk.reports() {
            if self.clients[client].tries == tries && !self.clients[client].over {
                self.told(client, report);
            }
        }
        for outgoing in self.desk.outgoing() {
            self.after(0, Happening::Outgoing(outgoing));
        }
    }

    fn told(&mut self, client: usize, report: Report) {
        let now = self.now;
        self.trace.add(now, || format!("client {client}: {report:?}"));
        let one = &mut self.clients[client];
        let request = Arc::clone(&one.request);
        match report {
            Report::Accepted => {
                one.accepted = true;
                let at = one.at;
                let live = self
                    .clients
                    .iter()
                    .filter(|one| one.at == at && one.accepted && !one.over);
                let live = live.count();
                self.check(bq1::check(live, scenario::gateway().max_live_requests));
            }
            Report::Token(token, mark) => {
                let tokens = one.tokens.len();
                one.tokens.push(token);
                self.coverage.tokens += 1;
                self.check(st1::check(client, tokens, mark));
                self.check(det1::check(client, tokens, token, request.expected()));
            }
            Report::Ended(end) => {
                let late = now + 2 >= one.asked + request.timeout_ms;
                let tokens = std::mem::take(&mut one.tokens);
                (one.over, one.at) = (true, None);
                match &end {
                    Ok(_) => self.coverage.completed += 1,
                    Err(_) => self.coverage.deadlines += 1,
                }
                self.check(st2::check(client, &request, &tokens, &end, late));
            }
            Report::Left => (one.over, one.at) = (true, None),
            Report::Refused => {
                one.at = None;
                let pause = 200 + self.rng.below(800);
                self.after(pause, Happening::Ask { client });
            }
        }
    }

    pub(super) fn next_run(&mut self) -> u64 {
        self.next_run += 1;
        self.next_run
    }

    /// Two more requests that must be answered once all is well.
    pub(super) fn ask_for_proof(&mut self) {
        for _ in 0..2 {
            let at = self.now + 100;
            self.new_client(at);
        }
    }
}
