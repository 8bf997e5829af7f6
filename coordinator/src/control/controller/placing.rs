//! When replicas are planned, and what is proposed for them.
//!
//! One replica for now: more would need a planner that divides the devices among them. Nothing else here counts them.

use std::collections::{BTreeMap, BTreeSet};

use tramontane_model::ids::{DeviceRef, Fence, Generation, ReplicaId, WorkerId};
use tramontane_model::members::MAX_REASON_BYTES;
use tramontane_model::placement::Replica;
use tramontane_model::time::Tick;

use super::event::{AskId, AskRefusal, Effect};
use super::failures::Failures;
use super::members::Members;
use super::proposals::{Proposals, Purpose};
use super::turn::Turn;
use super::watching::watch;
use crate::control::command::Command;
use crate::control::planner::{Candidate, Missing, Plan, Request, plan};
use crate::control::state::{ClusterState, Phase, ReplicaEntry, Standing};

/// Replicas that are wanted.
const WANTED_REPLICAS: u64 = 1;
/// Most asks to plan anew that wait.
const MAX_ASKS: usize = 16;
/// Longest wait for one, in milliseconds; less than whoever asks waits.
const ASK_DEADLINE_MS: u64 = 4500;

/// Somebody who wants everything planned anew.
#[derive(Debug)]
struct Ask {
    id: AskId,
    since: Tick,
    /// What was proposed for it.
    proposed: Option<Replica>,
}

/// What a plan was made of, in short: as long as it is the same, so is the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Basis {
    version: u64,
    epoch: u64,
    leaving: BTreeSet<WorkerId>,
    out: BTreeSet<DeviceRef>,
    paused: BTreeSet<DeviceRef>,
}

/// What the planner said.
#[derive(Clone, Debug)]
enum Verdict {
    Fits(Plan),
    /// It may fit with devices that are not to be tried yet.
    NotYet,
    Missing(Missing),
}

/// Plans and asks.
#[derive(Debug, Default)]
pub(super) struct Placing {
    asks: Vec<Ask>,
    failures: Failures,
    made: BTreeMap<ReplicaId, (Basis, Verdict)>,
}

/// What planning needs beside itself.
pub(super) struct Around<'a> {
    pub(super) members: &'a Members,
    pub(super) proposals: &'a mut Proposals,
}

impl Placing {
    pub(super) fn ask(&mut self, turn: &mut Turn<'_>, id: AskId) {
        if self.asks.len() >= MAX_ASKS {
            let error = AskRefusal::Unavailable("too many asks to plan anew wait already; try again");
            answer(turn, id, Err(error));
            return;
        }
        let (since, proposed) = (turn.now, None);
        self.asks.push(Ask { id, since, proposed });
    }

    /// Answers everybody who waits: this coordinator does not lead any more.
    pub(super) fn dismiss(self, effects: &mut Vec<Effect>, why: &AskRefusal) {
        for Ask { id: ask, .. } in self.asks {
            let result = Err(why.clone());
            effects.push(Effect::Answer { ask, result });
        }
    }

    /// Proposes what there is to propose for each replica, and answers asks.
    pub(super) fn act(&mut self, turn: &mut Turn<'_>, around: &mut Around<'_>) {
        self.failures.follow_state(turn.now, turn.state);
        self.settle_asks(turn, around);
        if turn.state.model.as_ref() != Some(&turn.options.model) {
            return;
        }
        let mut wanted: Vec<ReplicaId> = turn.state.replicas.keys().copied().collect();
        if (wanted.len() as u64) < WANTED_REPLICAS {
            wanted.push(turn.state.next_replica());
        }
        for (index, &id) in wanted.iter().enumerate() {
            if !around.proposals.is_open(&Purpose::Replica(id)) {
                continue;
            }
            if index == 0 && !self.asks.is_empty() {
                self.plan_anew(turn, around, id);
                continue;
            }
            let entry = turn.state.replicas.get(&id);
            match entry.map(|entry| &entry.phase) {
                Some(Phase::Loading { placement } | Phase::Serving { placement }) => {
                    watch(turn, around, placement);
                }
                Some(Phase::Broken { .. }) => self.place(turn, around, id, true),
                Some(Phase::Unplaceable { .. }) | None => self.place(turn, around, id, false),
            }
        }
    }

    /// Places a replica that is not, or says that it cannot be. Without haste, wishes are waited for.
    fn place(&mut self, turn: &mut Turn<'_>, around: &mut Around<'_>, id: ReplicaId, haste: bool) {
        let settled = turn.now.ms_since(around.members.changed) >= turn.options.settle_ms;
        match self.verdict(turn, around, id) {
            Verdict::Fits(plan) => {
                if haste || settled || plan.wishes_met {
                    propose_place(turn, around, plan.replica);
                }
            }
            Verdict::NotYet => {}
            Verdict::Missing(missing) => {
                if settled {
                    propose_unplaced(turn, around, id, missing);
                }
            }
        }
    }

    /// Plans over everything there is, because somebody asked.
    fn plan_anew(&mut self, turn: &mut Turn<'_>, around: &mut Around<'_>, id: ReplicaId) {
        let live = turn.state.replicas.get(&id).and_then(ReplicaEntry::live);
        match self.verdict(turn, around, id) {
            Verdict::Fits(Plan { replica, .. }) => {
                if let Some(live) = live
                    && live.stages == replica.stages
                    && live.kv == replica.kv
                {
                    let fence = live.fence();
                    self.answer_all(turn, &Ok(fence));
                } else if propose_place(turn, around, replica.clone()) {
                    for ask in &mut self.asks {
                        ask.proposed = Some(replica.clone());
                    }
                }
            }
            Verdict::NotYet => {
                let why = "the devices that are needed failed just now; try again later";
                self.answer_all(turn, &Err(AskRefusal::Refused(why.to_owned())));
            }
            Verdict::Missing(missing) => {
                self.answer_all(turn, &Err(AskRefusal::Refused(missing.reason)));
            }
        }
    }

    fn answer_all(&mut self, turn: &mut Turn<'_>, result: &Result<Fence, AskRefusal>) {
        for ask in self.asks.drain(..) {
            answer(turn, ask.id, result.clone());
        }
    }

    /// Answers asks whose plan the state has, and those that waited too long; forgets plans that did not come to be.
    fn settle_asks(&mut self, turn: &mut Turn<'_>, around: &Around<'_>) {
        self.asks.retain_mut(|ask| {
            if let Some(proposed) = &ask.proposed {
                let entry = turn.state.replicas.get(&proposed.id);
                let placed = entry.and_then(ReplicaEntry::placement);
                if placed == Some(proposed) {
                    answer(turn, ask.id, Ok(proposed.fence()));
                    return false;
                }
                if around.proposals.is_open(&Purpose::Replica(proposed.id)) {
                    ask.proposed = None;
                }
            }
            let waits = turn.now.ms_since(ask.since) < ASK_DEADLINE_MS;
            if !waits {
                let error = AskRefusal::Unavailable("the new placement was not committed in time; try again");
                answer(turn, ask.id, Err(error));
            }
            waits
        });
    }

    /// What the planner says of a replica now; the last answer if nothing has changed.
    fn verdict(&mut self, turn: &Turn<'_>, around: &Around<'_>, id: ReplicaId) -> Verdict {
        let basis = Basis {
            version: turn.state.version,
            epoch: around.members.epoch,
            leaving: around.members.leaving(turn.now, around.proposals),
            out: self.failures.left_out(turn.now),
            paused: self.failures.paused(turn.now),
        };
        if let Some((made_of, verdict)) = self.made.get(&id)
            && *made_of == basis
        {
            return verdict.clone();
        }
        let verdict = judge(turn, id, &basis);
        self.made
            .retain(|known, _| turn.state.replicas.contains_key(known));
        self.made.insert(id, (basis, verdict.clone()));
        verdict
    }
}

fn judge(turn: &Turn<'_>, id: ReplicaId, basis: &Basis) -> Verdict {
    let all = candidates(turn.state, id, &basis.leaving);
    let entry = turn.state.replicas.get(&id);
    let generation = entry.map_or(0, |entry| entry.generation.0).saturating_add(1);
    let over = |without: &BTreeSet<DeviceRef>| {
        let candidates: Vec<Candidate> = all
            .iter()
            .filter(|candidate| !without.contains(&candidate.device))
            .cloned()
            .collect();
        plan(&Request {
            id,
            generation: Generation(generation),
            footprint: &turn.options.model.footprint,
            candidates: &candidates,
            wishes: turn.options.wishes,
            steps: turn.options.steps,
            previous: entry.and_then(ReplicaEntry::placement),
        })
    };
    match over(&basis.out).or_else(|missing| {
        if basis.out.is_empty() {
            Err(missing)
        } else {
            over(&basis.paused)
        }
    }) {
        Ok(plan) => Verdict::Fits(plan),
        Err(missing) if basis.paused.is_empty() => Verdict::Missing(missing),
        Err(missing) => match over(&BTreeSet::new()) {
            Ok(_) => Verdict::NotYet,
            Err(_) => Verdict::Missing(missing),
        },
    }
}

/// Devices that the replica may be planned on, with the memory that other replicas leave.
fn candidates(state: &ClusterState, id: ReplicaId, leaving: &BTreeSet<WorkerId>) -> Vec<Candidate> {
    let taken = state.taken_from(id);
    let fingerprint = state.model.as_ref().map(|model| model.fingerprint);
    let usable = state.workers.iter().filter(|(worker, entry)| {
        entry.standing == Standing::Joined
            && Some(entry.info.model_fingerprint) == fingerprint
            && !leaving.contains(*worker)
    });
    let devices = usable.flat_map(|(worker, entry)| {
        entry.info.devices.iter().map(move |info| {
            let worker = worker.clone();
            let device = info.index;
            (DeviceRef { worker, device }, info)
        })
    });
    devices
        .map(|(device, info)| Candidate {
            memory_bytes: info
                .memory_bytes
                .saturating_sub(taken.get(&device).copied().unwrap_or(0)),
            max_binding_bytes: info.max_binding_bytes,
            kind: info.kind.clone(),
            device,
        })
        .collect()
}

fn propose_place(turn: &mut Turn<'_>, around: &mut Around<'_>, replica: Replica) -> bool {
    let purpose = Purpose::Replica(replica.id);
    let command = Command::Place {
        replica,
        expected_version: turn.state.version,
    };
    around.proposals.propose(turn, purpose, command)
}

fn propose_unplaced(turn: &mut Turn<'_>, around: &mut Around<'_>, replica: ReplicaId, missing: Missing) {
    let reason = cut(&missing.reason);
    let missing_bytes = missing.missing_bytes;
    let entry = turn.state.replicas.get(&replica);
    let said = entry.is_some_and(|entry| match &entry.phase {
        Phase::Unplaceable {
            reason: said,
            missing_bytes: bytes,
        } => *said == reason && *bytes == missing_bytes,
        Phase::Loading { .. } | Phase::Serving { .. } | Phase::Broken { .. } => false,
    });
    if said {
        return;
    }
    let command = Command::Unplaced {
        replica,
        reason,
        missing_bytes,
        expected_version: turn.state.version,
    };
    around.proposals.propose(turn, Purpose::Replica(replica), command);
}

/// A reason no longer than the state takes.
pub(super) fn cut(reason: &str) -> String {
    reason[..reason.floor_char_boundary(MAX_REASON_BYTES)].to_owned()
}

fn answer(turn: &mut Turn<'_>, ask: AskId, result: Result<Fence, AskRefusal>) {
    turn.effects.push(Effect::Answer { ask, result });
}
