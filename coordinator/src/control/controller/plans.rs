//! What the planner says of a replica, asked only when something has changed.

use std::collections::{BTreeMap, BTreeSet};

use tramontane_model::ids::{DeviceRef, Generation, ReplicaId, WorkerId};

use super::failures::Failures;
use super::placing::Around;
use super::turn::Turn;
use crate::control::planner::{Candidate, Missing, Plan, Request, plan};
use crate::control::state::{ClusterState, Phase, ReplicaEntry, Standing};

/// What a plan was made of, in short: as long as it is the same, so is the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Basis {
    version: u64,
    epoch: u64,
    leaving: BTreeSet<WorkerId>,
    out: BTreeSet<DeviceRef>,
    paused: BTreeSet<DeviceRef>,
}

/// What the planner said.
#[derive(Clone, Debug)]
pub(super) enum Verdict {
    Fits(Plan),
    /// It may fit with devices that are not to be tried yet.
    NotYet,
    Missing(Missing),
}

/// The last plan of every replica.
#[derive(Debug, Default)]
pub(super) struct Plans {
    plans: BTreeMap<ReplicaId, (Basis, Verdict)>,
    /// The last ones without one worker more; few at a time.
    without: BTreeMap<(ReplicaId, WorkerId), (Basis, Verdict)>,
}

/// Most plans without a worker that are remembered.
const MAX_WITHOUT: usize = 64;

impl Plans {
    /// What the planner says of a replica now; the last answer if nothing has changed.
    pub(super) fn verdict(
        &mut self,
        turn: &Turn<'_>,
        around: &Around<'_>,
        failures: &Failures,
        id: ReplicaId,
    ) -> Verdict {
        let basis = Basis::now(turn, around, failures);
        if let Some((made_of, verdict)) = self.plans.get(&id)
            && *made_of == basis
        {
            return verdict.clone();
        }
        let verdict = judge(turn, id, &basis);
        let state = turn.state;
        self.plans
            .retain(|known, _| state.replicas.contains_key(known) || *known == state.next_replica());
        self.plans.insert(id, (basis, verdict.clone()));
        verdict
    }

    /// What it would say if this worker were not there.
    pub(super) fn without(
        &mut self,
        turn: &Turn<'_>,
        around: &Around<'_>,
        failures: &Failures,
        id: ReplicaId,
        worker: &WorkerId,
    ) -> Verdict {
        let mut basis = Basis::now(turn, around, failures);
        basis.leaving.insert(worker.clone());
        let key = (id, worker.clone());
        if let Some((made_of, verdict)) = self.without.get(&key)
            && *made_of == basis
        {
            return verdict.clone();
        }
        let verdict = judge(turn, id, &basis);
        if self.without.len() >= MAX_WITHOUT {
            self.without.clear();
        }
        self.without.insert(key, (basis, verdict.clone()));
        verdict
    }
}

impl Basis {
    pub(super) fn now(turn: &Turn<'_>, around: &Around<'_>, failures: &Failures) -> Self {
        Self {
            version: turn.state.version,
            epoch: around.members.epoch,
            leaving: around.members.leaving(turn.now, around.proposals),
            out: failures.left_out(turn.now, turn.state),
            paused: failures.paused(turn.now),
        }
    }

    /// Workers on which nothing is planned.
    pub(super) fn leaving(&self) -> &BTreeSet<WorkerId> {
        &self.leaving
    }

    /// Devices to do without, if that can be done.
    pub(super) fn out(&self) -> &BTreeSet<DeviceRef> {
        &self.out
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
            standbys: &turn.state.standbys,
        })
    };
    // At best without devices that failed, and without what other replicas that broke are to be built of.
    let mut best = broken_elsewhere(turn.state, id);
    best.extend(basis.out.iter().cloned());
    let mut tries: Vec<&BTreeSet<DeviceRef>> = vec![&best, &basis.out, &basis.paused];
    tries.dedup();
    let mut missing = None;
    for without in tries {
        match over(without) {
            Ok(plan) => return Verdict::Fits(plan),
            Err(why) => missing = Some(why),
        }
    }
    match missing {
        Some(missing) if basis.paused.is_empty() => Verdict::Missing(missing),
        Some(missing) => match over(&BTreeSet::new()) {
            Ok(_) => Verdict::NotYet,
            Err(_) => Verdict::Missing(missing),
        },
        None => Verdict::NotYet,
    }
}

/// Devices of other replicas that broke.
fn broken_elsewhere(state: &ClusterState, id: ReplicaId) -> BTreeSet<DeviceRef> {
    let others = state.replicas.iter().filter(|&(&other, _)| other != id);
    let broken = others.filter_map(|(_, entry)| match &entry.phase {
        Phase::Broken { placement, .. } => Some(placement.devices()),
        Phase::Loading { .. } | Phase::Serving { .. } | Phase::Unplaceable { .. } => None,
    });
    broken.flatten().cloned().collect()
}

/// Devices that no other replica has.
fn candidates(state: &ClusterState, id: ReplicaId, leaving: &BTreeSet<WorkerId>) -> Vec<Candidate> {
    let taken = state.taken_from(id);
    let mut candidates = candidates_of(state, leaving);
    candidates.retain(|candidate| !taken.contains_key(&candidate.device));
    candidates
}

/// Devices that may be given something, whoever has them.
pub(super) fn candidates_of(state: &ClusterState, leaving: &BTreeSet<WorkerId>) -> Vec<Candidate> {
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
            memory_bytes: info.memory_bytes,
            max_binding_bytes: info.max_binding_bytes,
            kind: info.kind.clone(),
            is_cpu: info.is_cpu,
            device,
        })
        .collect()
}
