//! What goes wrong, and that all is well afterwards.

use tramontane_coordinator::control::state::Phase;

use super::history;
use super::invariants::kv1;
use super::network::{Proc, Weather};
use super::world::{Happening, World};

impl World {
    /// Something goes wrong, and the next thing is arranged for.
    pub(super) fn fault(&mut self) {
        if self.healed {
            return;
        }
        let coordinators = self.scenario.coordinators;
        let coordinator = 1 + self.rng.below(coordinators);
        let worker = self.rng.below(self.workers.len() as u64) as usize;
        match self.rng.below(100) {
            0..14 => self.crash_worker(worker),
            14..20 => self.crash_coordinator(coordinator),
            20..26 => {
                let writes = self.rng.below(15);
                self.coordinators[&coordinator].disk.break_after(writes);
            }
            26..46 => self.restart_some(),
            46..58 => self.pause(coordinator, worker),
            58..66 => self.part(),
            66..69 => {
                let (one, other) = (self.any_process(), self.any_process());
                self.net.cut(one, other);
                self.notice_cuts();
            }
            69..78 => self.net.heal(),
            78..84 => self.fail_device(worker),
            84..96 => self.reset_some(),
            96..98 if self.scenario.replans => self.replan(),
            _ => self.hand_over(),
        }
        let next = 30 + self.rng.below(700);
        self.after(next, Happening::Fault);
    }

    fn any_process(&mut self) -> Proc {
        let coordinators = self.scenario.coordinators;
        let workers = self.workers.len() as u64;
        match self.rng.below(coordinators + workers) {
            at if at < coordinators => Proc::Coordinator(1 + at),
            at => Proc::Worker((at - coordinators) as usize),
        }
    }

    fn processes(&self) -> Vec<Proc> {
        let coordinators = (1..=self.scenario.coordinators).map(Proc::Coordinator);
        coordinators
            .chain((0..self.workers.len()).map(Proc::Worker))
            .collect()
    }

    fn restart_some(&mut self) {
        for process in self.processes() {
            if !self.rng.chance(60) {
                continue;
            }
            match process {
                Proc::Coordinator(id) if self.coordinators[&id].up.is_none() => self.start_coordinator(id),
                Proc::Worker(number) if self.workers[number].up.is_none() => self.start_worker(number),
                Proc::Coordinator(_) | Proc::Worker(_) => {}
            }
        }
    }

    /// Stops a process for a while, the leader more often than others.
    fn pause(&mut self, coordinator: u64, worker: usize) {
        let process = match self.rng.below(4) {
            0 => self.leader().map_or(Proc::Worker(worker), Proc::Coordinator),
            1 => Proc::Coordinator(coordinator),
            _ => Proc::Worker(worker),
        };
        if self.frozen.contains_key(&process) {
            return;
        }
        self.coverage.pauses += 1;
        let now = self.now;
        self.trace.add(now, || format!("{process:?} is stopped"));
        self.frozen.insert(process, Default::default());
        let long = 100 + self.rng.below(5000);
        self.after(long, Happening::Resume(process));
    }

    /// Parts a random group from the others.
    fn part(&mut self) {
        let processes = self.processes();
        let percent = 20 + self.rng.below(40);
        let inside: Vec<Proc> = processes
            .iter()
            .copied()
            .filter(|_| self.rng.chance(percent))
            .collect();
        for &one in &inside {
            for &other in processes.iter().filter(|other| !inside.contains(other)) {
                self.net.cut(one, other);
                self.net.cut(other, one);
            }
        }
        let now = self.now;
        self.trace
            .add(now, || format!("{inside:?} are parted from the rest"));
        self.notice_cuts();
    }

    /// Connections that stay cut for long are given up.
    fn notice_cuts(&mut self) {
        for conn in self.net.parted() {
            let patience = 1000 + self.rng.below(7000);
            self.after(patience, Happening::Keepalive { conn });
        }
    }

    /// Breaks some connections, for no reason.
    fn reset_some(&mut self) {
        for process in self.processes() {
            for (conn, _) in self.net.of(process) {
                if self.rng.chance(15) {
                    self.reset(conn, 1200);
                }
            }
        }
    }

    /// Ends all faults.
    pub(super) fn heal(&mut self) {
        self.healed = true;
        let now = self.now;
        self.trace.add(now, || "all is well".to_owned());
        self.net.heal();
        self.net.weather = Weather::FAIR;
        for process in self.processes() {
            self.resume(process);
            match process {
                Proc::Coordinator(id) => {
                    self.coordinators[&id].disk.repair();
                    if self.coordinators[&id].up.is_none() {
                        self.start_coordinator(id);
                    }
                }
                Proc::Worker(number) if self.workers[number].up.is_none() => self.start_worker(number),
                Proc::Worker(_) => {}
            }
        }
        self.ask_for_proof();
    }

    /// Whether everything has come to rest: one leader, everybody agrees, something serves or cannot, nobody waits.
    pub(super) fn is_at_rest(&self) -> bool {
        self.unsettled().is_none()
    }

    /// What is still to come to rest.
    fn unsettled(&self) -> Option<String> {
        let Some(leader) = self.leader() else {
            return Some("nobody leads".to_owned());
        };
        let changes = |id: u64| Some(self.coordinators[&id].up.as_ref()?.node.machine().0.commands);
        for &id in self.coordinators.keys() {
            if changes(id) != changes(leader) {
                return Some(format!("coordinator {id} has not caught up"));
            }
        }
        let running = self.coordinators[&leader].up.as_ref()?;
        let state = &running.node.machine().0;
        if state.workers.len() != self.workers.len() {
            return Some(format!("{} workers are members", state.workers.len()));
        }
        let serves = |phase: &Phase| match phase {
            Phase::Serving { .. } => true,
            Phase::Loading { .. } | Phase::Broken { .. } | Phase::Unplaceable { .. } => false,
        };
        if !state.replicas.values().any(|entry| serves(&entry.phase)) {
            return Some(format!("nothing serves: {:?}", state.replicas));
        }
        let client = self.clients.iter().position(|client| !client.over);
        if let Some(client) = client {
            let one = &self.clients[client];
            let (at, tokens, stream) = (one.at, one.tokens.len(), self.stream_of(client, one.tries));
            return Some(format!(
                "client {client} waits at coordinator {at:?} with {tokens} tokens: {stream}"
            ));
        }
        for (number, worker) in self.workers.iter().enumerate() {
            let heads = worker.up.as_ref().map(|running| &running.heads);
            for head in heads.into_iter().flat_map(|heads| heads.values()) {
                if kv1::check_idle(&head.scheduler).is_err() {
                    return Some(format!("worker {number}: {:?}", head.scheduler.stats()));
                }
            }
        }
        None
    }

    pub(super) fn unrest(&self) -> String {
        self.unsettled().unwrap_or_default()
    }

    /// What must hold once everything is at rest.
    pub(super) fn check_end(&mut self) {
        let members: Vec<(u64, u64)> = self
            .coordinators
            .iter()
            .filter_map(|(&id, one)| Some((id, one.up.as_ref()?.node.machine().0.commands)))
            .collect();
        for (id, changes) in members {
            let checked = history::with(|history| history.log.check_end(id, changes));
            self.check(checked);
        }
        self.coverage.terms = history::with(|history| history.log.terms() as u64);
    }
}
