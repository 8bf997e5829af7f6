//! Workers that drain: what lies on them moves, and those that are to stop are told when they may.

use std::collections::BTreeMap;

use tramontane_model::ids::WorkerId;

use super::members::Members;
use super::placing::{Around, NOT_YET, Placing, cut, propose_retired, propose_unplaced};
use super::plans::Verdict;
use super::proposals::Purpose;
use super::turn::Turn;
use crate::control::command::Command;
use crate::control::state::{ReplicaEntry, Standing};

/// What workers that leave are to hear: nothing, or why they cannot be done without.
pub(super) type Leavers = BTreeMap<WorkerId, Option<String>>;

/// Drains workers that say that they leave. Those that hold nothing any more may go; so may one that cannot be done
/// without, while nothing runs on it.
pub(super) fn answer_leavers(turn: &mut Turn<'_>, placing: &mut Placing, around: &mut Around<'_>) -> Leavers {
    let leaving = around.members.admitted.iter().filter(|(_, member)| {
        let report = member.report.as_ref();
        report.is_some_and(|report| report.leaving)
    });
    let leaving: Vec<WorkerId> = leaving.map(|(worker, _)| worker.clone()).collect();
    let mut answers = Leavers::new();
    for worker in leaving {
        let Some(entry) = turn.state.workers.get(&worker) else {
            continue;
        };
        if entry.standing.drains() {
            if !turn.state.replicas.values().any(|entry| entry.uses(&worker)) {
                answers.insert(worker, None);
            }
            continue;
        }
        match placing.without(turn, around, &worker) {
            Ok(()) => {
                let command = Command::WorkerDraining {
                    worker: worker.clone(),
                    incarnation: entry.info.incarnation,
                    force: false,
                };
                around.proposals.propose(turn, Purpose::Drain(worker), command);
            }
            Err(_) if is_idle(turn, around.members, &worker) => {
                answers.insert(worker, None);
            }
            Err(why) => {
                answers.insert(worker, Some(cut(&why)));
            }
        }
    }
    answers
}

/// Whether nothing runs on the replicas that a worker takes part in.
fn is_idle(turn: &Turn<'_>, members: &Members, worker: &WorkerId) -> bool {
    let mut used = turn.state.replicas.values().filter(|entry| entry.uses(worker));
    used.all(|entry| {
        let Some(placement) = entry.serving() else {
            return true;
        };
        let report = placement.head().and_then(|head| members.report(&head.worker));
        let mut loads = report.into_iter().flat_map(|report| &report.loads);
        let load = loads.find(|load| load.fence == placement.fence());
        load.is_some_and(|load| load.running == 0 && load.waiting == 0)
    })
}

/// Whether a replica that loads or serves lies on a worker that drains.
fn is_to_move(turn: &Turn<'_>, entry: &ReplicaEntry) -> bool {
    let mut draining = turn.state.workers.iter().filter(|(_, one)| one.standing.drains());
    draining.any(|(worker, _)| entry.uses(worker))
}

impl Placing {
    /// Whether a replica is there, or can be placed, without a worker; else why not. Replicas that are placed nowhere
    /// as it is do not count.
    pub(super) fn without(
        &mut self,
        turn: &Turn<'_>,
        around: &Around<'_>,
        worker: &WorkerId,
    ) -> Result<(), String> {
        let placed = turn.state.replicas.iter();
        let placed = placed.filter(|(_, entry)| entry.placement().is_some());
        let mut why = Ok(());
        for (&id, entry) in placed {
            if entry.live().is_some() && !entry.uses(worker) {
                return Ok(());
            }
            match self.plans.without(turn, around, &self.failures, id, worker) {
                Verdict::Fits(_) => return Ok(()),
                Verdict::NotYet => why = Err(NOT_YET.to_owned()),
                Verdict::Missing(missing) => why = Err(missing.reason),
            }
        }
        why
    }

    /// Moves the first replica that lies on a worker that drains; at once, as its requests go on from their journals.
    /// Says whether it proposed anything.
    pub(super) fn move_drained(&mut self, turn: &mut Turn<'_>, around: &mut Around<'_>) -> bool {
        let entries: Vec<_> = turn
            .state
            .replicas
            .iter()
            .filter(|(_, one)| one.live().is_some())
            .collect();
        let to_move = entries.iter().copied().find(|(_, entry)| is_to_move(turn, entry));
        let Some((&id, entry)) = to_move else {
            return false;
        };
        let others = || entries.iter().filter(|(other, _)| **other != id);
        if others().any(|(_, other)| other.serving().is_none()) {
            // Its turn comes when that one serves.
            return false;
        }
        match self.plans.verdict(turn, around, &self.failures, id) {
            Verdict::Fits(plan) => {
                self.propose_place(turn, around, plan.replica);
                true
            }
            Verdict::NotYet => false,
            Verdict::Missing(_) if others().next().is_some() && turn.options.replicas.is_none() => {
                propose_retired(turn, around, id);
                true
            }
            Verdict::Missing(missing) => {
                let forced = turn.state.workers.iter().any(|(worker, one)| {
                    one.standing == Standing::Draining { force: true } && entry.uses(worker)
                });
                // It stays where it is rather than to serve nowhere.
                if forced || others().next().is_some() {
                    propose_unplaced(turn, around, id, missing);
                }
                forced || others().next().is_some()
            }
        }
    }
}
