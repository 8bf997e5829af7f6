//! The controller over a state that applies what it proposes.

mod draining;
mod leases;
mod placing;
mod random;
mod replicas;
mod sessions;
mod standbys;
mod status;

use std::collections::BTreeMap;

use tramontane_model::ids::{CoordinatorId, DeviceIndex, Fence, Generation, ReplicaId, WorkerId};
use tramontane_model::members::{
    DeviceInfo, DeviceReport, DeviceState, LoadReport, StandbyReport, WorkerInfo, WorkerReport,
};
use tramontane_model::placement::Replica;
use tramontane_model::step::StepBounds;
use tramontane_model::time::Tick;
use tramontane_proto::Directive;

use super::*;
use crate::config::LeaseConfig;
use crate::control::command::{Command, Outcome, Proposal};
use crate::control::footprint::{LayerFootprint, ModelFootprint, ScratchModel};
use crate::control::planner::Wishes;
use crate::control::state::ModelEntry;

const HEARTBEAT: u64 = 250;
const LEASE: u64 = 2000;
const SETTLE: u64 = 3000;
const ENOUGH: u64 = 100_000;

fn model() -> ModelEntry {
    let layer = |index| LayerFootprint {
        owner_bytes: 1000,
        expert_bytes: if index == 0 { 0 } else { 100 },
        kv_token_bytes: 1,
    };
    ModelEntry {
        name: "mini".to_owned(),
        fingerprint: [7; 32],
        footprint: ModelFootprint {
            layers: (0..6).map(layer).collect(),
            n_experts: 16,
            experts_per_token: 2,
            embedding_bytes: 500,
            head_bytes: 500,
            tied_bytes: 0,
            scratch: ScratchModel {
                head_bytes: 0,
                owner_bytes: 50,
                holder_bytes: 20,
            },
        },
    }
}

fn entry(pid: u32) -> CoordinatorEntry {
    CoordinatorEntry {
        raft_address: "127.0.0.1:7001".to_owned(),
        http_address: "127.0.0.1:8001".to_owned(),
        pid,
        version: "0.1.0".to_owned(),
    }
}

fn options(stages: Option<u32>, expert_groups: Option<u32>) -> ControllerOptions {
    ControllerOptions {
        id: CoordinatorId(1),
        entry: entry(1),
        model: model(),
        replicas: Some(1),
        wishes: Wishes {
            stages,
            expert_groups,
            kv_block_tokens: 16,
            kv_tokens_min: 64,
            kv_tokens_max: 1024,
            kv_format: None,
        },
        standbys: false,
        steps: StepBounds::default(),
        settle_ms: SETTLE,
        leases: LeaseConfig {
            heartbeat_ms: 250,
            lease_ms: 2000,
        },
    }
}

fn name(worker: &str) -> WorkerId {
    WorkerId::new(worker).unwrap()
}

fn info(worker: &str, incarnation: u64, memory_bytes: u64) -> WorkerInfo {
    WorkerInfo {
        worker: name(worker),
        incarnation,
        address: format!("{worker}:1"),
        pid: 42,
        version: "0.1.0".to_owned(),
        model_fingerprint: [7; 32],
        devices: vec![DeviceInfo {
            index: DeviceIndex(0),
            adapter: "lavapipe".to_owned(),
            driver: "mesa".to_owned(),
            kind: "cpu".to_owned(),
            is_cpu: true,
            memory_bytes,
            max_binding_bytes: 1 << 30,
        }],
    }
}

fn report(state: DeviceState) -> WorkerReport {
    WorkerReport {
        devices: vec![DeviceReport {
            index: DeviceIndex(0),
            held_bytes: 5,
            state,
            standby: StandbyReport::default(),
        }],
        loads: Vec::new(),
        leaving: false,
    }
}

fn fence(generation: u64) -> Fence {
    Fence {
        replica: ReplicaId(1),
        generation: Generation(generation),
    }
}

/// A controller, the state, and a log that commits at once.
struct Cluster {
    controller: Controller,
    state: ClusterState,
    now: Tick,
    sessions: BTreeMap<WorkerId, SessionId>,
    next_session: u64,
    term: u64,
    last_sequence: u64,
}

impl Cluster {
    /// One that leads, and whose model is described.
    fn new(options: ControllerOptions) -> Self {
        let mut cluster = Self {
            controller: Controller::new(options),
            state: ClusterState::default(),
            now: Tick(1000),
            sessions: BTreeMap::new(),
            next_session: 1,
            term: 1,
            last_sequence: 0,
        };
        cluster.run(Event::Leads { term: 1 });
        cluster
    }

    /// One event, and what is to be done; nothing is done.
    fn step(&mut self, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.controller.step(self.now, &self.state, event, &mut effects);
        for effect in &effects {
            if let Effect::Propose { sequence, .. } = effect {
                assert!(*sequence > self.last_sequence, "sequences must grow");
                self.last_sequence = *sequence;
            }
        }
        effects
    }

    /// Commits a proposal.
    fn commit(&mut self, sequence: u64, command: Command) -> Outcome {
        let proposal = Proposal {
            proposer: 1,
            sequence,
            command,
        };
        self.state.apply_proposal(&proposal)
    }

    /// One event with everything that follows from it; gives the effects that are no proposals.
    fn run(&mut self, event: Event) -> Vec<Effect> {
        let mut waiting = self.step(event);
        let mut seen = Vec::new();
        for _ in 0..10_000 {
            if waiting.is_empty() {
                return seen;
            }
            let effect = waiting.remove(0);
            if let Effect::Propose { sequence, command } = effect {
                let outcome = self.commit(sequence, command);
                let result = ProposalResult::Committed(outcome);
                let more = self.step(Event::Proposed { sequence, result });
                waiting.extend(more);
            } else {
                seen.push(effect);
            }
        }
        panic!("the controller does not come to rest");
    }

    fn join(&mut self, info: &WorkerInfo) -> (SessionId, Vec<Effect>) {
        let session = SessionId(self.next_session);
        self.next_session += 1;
        self.sessions.insert(info.worker.clone(), session);
        let info = info.clone();
        (session, self.run(Event::Joined { session, info }))
    }

    fn join_all(&mut self, workers: &[&str]) {
        for worker in workers {
            self.join(&info(worker, 1, ENOUGH));
        }
    }

    fn report(&mut self, worker: &str, state: DeviceState) -> Vec<Effect> {
        let worker = name(worker);
        let session = self.sessions[&worker];
        self.run(Event::Reported {
            session,
            worker,
            report: report(state),
        })
    }

    fn all_ready(&mut self, generation: u64) {
        let fence = fence(generation);
        for worker in self.members() {
            self.report(worker.as_str(), DeviceState::Ready { fence });
        }
    }

    fn members(&self) -> Vec<WorkerId> {
        let placement = self.placement().unwrap();
        placement
            .devices()
            .into_iter()
            .map(|device| device.worker.clone())
            .collect()
    }

    fn placement(&self) -> Option<&Replica> {
        self.state.replicas.get(&ReplicaId(1))?.placement()
    }

    fn phase(&self) -> Option<(&'static str, u64)> {
        let entry = self.state.replicas.get(&ReplicaId(1))?;
        Some((entry.phase.name(), entry.generation.0))
    }

    /// Lets time pass while the named workers go on reporting what they last did.
    fn pass(&mut self, milliseconds: u64, alive: &[&str]) -> Vec<Effect> {
        let until = self.now.after_ms(milliseconds);
        let mut effects = Vec::new();
        while self.now < until {
            self.now = self.now.after_ms(HEARTBEAT.min(until.ms_since(self.now)));
            for worker in alive {
                effects.extend(self.report(worker, DeviceState::Idle));
            }
            effects.extend(self.run(Event::Elapsed));
        }
        effects
    }
}

fn directives(effects: &[Effect]) -> impl Iterator<Item = (SessionId, &Directive)> {
    effects.iter().filter_map(|effect| {
        if let Effect::Direct { session, directive } = effect {
            Some((*session, directive))
        } else {
            None
        }
    })
}

fn assigned(effects: &[Effect]) -> Vec<(SessionId, Fence)> {
    directives(effects)
        .filter_map(|(session, directive)| match directive {
            Directive::Assign { replica, .. } => Some((session, replica.fence())),
            Directive::Release(_)
            | Directive::StandBy(_)
            | Directive::Welcome { .. }
            | Directive::Leave { .. } => None,
        })
        .collect()
}

fn released(effects: &[Effect]) -> Vec<(SessionId, Fence)> {
    directives(effects)
        .filter_map(|(session, directive)| match directive {
            Directive::Release(fence) => Some((session, *fence)),
            Directive::Assign { .. }
            | Directive::StandBy(_)
            | Directive::Welcome { .. }
            | Directive::Leave { .. } => None,
        })
        .collect()
}
