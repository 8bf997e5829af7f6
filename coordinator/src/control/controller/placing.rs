//! When replicas are planned, and what is proposed for them.
//!
//! One placement at a time is proposed for the whole cluster, on devices that no other replica has: first replicas that
//! broke, then those that are placed nowhere, then further ones, then those that lie on a worker that drains. Another that
//! loads or serves is planned anew only because somebody asked; of those that load or serve no two move at once, so that
//! the others serve meanwhile. When nothing of this is to be done, spare memory is filled with copies.

use std::collections::BTreeSet;

use tramontane_model::ids::{Fence, ReplicaId};
use tramontane_model::members::MAX_REASON_BYTES;
use tramontane_model::placement::Replica;
use tramontane_model::time::Tick;

use super::event::{AskId, AskRefusal, Effect};
use super::failures::Failures;
use super::members::Members;
use super::plans::{Plans, Verdict};
use super::proposals::{Proposals, Purpose};
use super::standbys::Chosen;
use super::turn::Turn;
use super::watching::watch;
use crate::control::command::Command;
use crate::control::limits::MAX_REPLICAS;
use crate::control::planner::{Missing, Plan};
use crate::control::state::{Phase, ReplicaEntry};

/// Most asks to plan anew that wait.
const MAX_ASKS: usize = 16;
/// Longest wait for one, in milliseconds; less than whoever asks waits.
const ASK_DEADLINE_MS: u64 = 4500;
/// Why a replica is not placed yet although it would fit.
const MORE_WAITED_FOR: &str = "more workers are waited for";
/// Why a replica beyond the first is not placed although it would fit.
const TOO_FEW: &str = "the devices that are left make fewer stages or expert groups than are wished";

/// Why a replica cannot be placed now although it may be later.
pub(super) const NOT_YET: &str = "the devices that are needed failed just now; try again later";

/// Somebody who wants everything planned anew.
#[derive(Debug)]
struct Ask {
    id: AskId,
    since: Tick,
    /// What was proposed for it.
    proposed: Option<Replica>,
}

/// Plans and asks.
#[derive(Debug, Default)]
pub(super) struct Placing {
    asks: Vec<Ask>,
    /// Replicas that are still to be planned anew because somebody asked.
    anew: BTreeSet<ReplicaId>,
    pub(super) failures: Failures,
    pub(super) plans: Plans,
    /// Why there are not as many replicas as are wanted, if there are not.
    short: Option<String>,
    pub(super) chosen: Chosen,
}

/// What planning needs beside itself.
pub(super) struct Around<'a> {
    pub(super) members: &'a Members,
    pub(super) proposals: &'a mut Proposals,
}

/// What came of looking at the replicas that are placed nowhere.
enum Looked {
    /// Something was proposed for one.
    Proposed,
    /// None of them can be placed now.
    Not(String),
    /// There are as many as are wanted.
    Whole,
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
        self.anew.extend(live(turn).map(|placement| placement.id));
    }

    /// Answers everybody who waits: this coordinator does not lead any more.
    pub(super) fn dismiss(self, effects: &mut Vec<Effect>, why: &AskRefusal) {
        for Ask { id: ask, .. } in self.asks {
            let result = Err(why.clone());
            effects.push(Effect::Answer { ask, result });
        }
    }

    /// Why there are not as many replicas as are wanted, if there are not.
    pub(super) fn short(&self) -> Option<&str> {
        self.short.as_deref()
    }

    /// Proposes what there is to propose for each replica, and answers asks.
    pub(super) fn act(&mut self, turn: &mut Turn<'_>, around: &mut Around<'_>) {
        self.settle_asks(turn, around);
        if turn.state.model.as_ref() != Some(&turn.options.model) {
            return;
        }
        let placed: Vec<Replica> = live(turn).cloned().collect();
        for placement in &placed {
            if around.proposals.is_open(&Purpose::Replica(placement.id)) {
                watch(turn, around, placement);
            }
        }
        if !around.proposals.is_open(&Purpose::Placement) {
            return;
        }
        let (why, proposed) = match self.place_missing(turn, around, placed.len()) {
            Looked::Proposed => (None, true),
            Looked::Not(why) => (Some(why), false),
            Looked::Whole => (None, false),
        };
        self.short.clone_from(&why);
        let waits = why.as_deref() == Some(MORE_WAITED_FOR);
        if !proposed && !self.move_drained(turn, around) {
            self.plan_anew(turn, around, why);
            if !waits {
                self.stand_by(turn, around);
            }
        }
    }

    /// Counts failures that the state tells of.
    pub(super) fn follow_state(&mut self, turn: &Turn<'_>) {
        self.failures.follow_state(turn.now, turn.state);
    }

    /// Places the first of the replicas that are not, and takes back those that are too many.
    fn place_missing(&mut self, turn: &mut Turn<'_>, around: &mut Around<'_>, placed: usize) -> Looked {
        let wanted = wanted(turn);
        let unplaced = |broken: bool| {
            let entries = turn.state.replicas.iter();
            entries.filter(move |(_, entry)| entry.live().is_none() && is_broken(entry) == broken)
        };
        let mut missing: Vec<ReplicaId> = unplaced(true).chain(unplaced(false)).map(|(&id, _)| id).collect();
        if let Some(&surplus) = missing.get(wanted.saturating_sub(placed)..).and_then(<[_]>::last) {
            propose_retired(turn, around, surplus);
            return Looked::Proposed;
        }
        if turn.state.replicas.len() < wanted {
            missing.push(turn.state.next_replica());
        }
        // The others would fare no better.
        match missing.first() {
            Some(&id) => self.place(turn, around, id, placed == 0),
            None => Looked::Whole,
        }
    }

    /// Places a replica that is not, or says that it cannot be. Wishes are waited for, but not by one that broke; the
    /// only one does with fewer stages and expert groups where there are no more devices, further ones leave them as
    /// standbys.
    fn place(&mut self, turn: &mut Turn<'_>, around: &mut Around<'_>, id: ReplicaId, only: bool) -> Looked {
        let settled = turn.now.ms_since(around.members.changed) >= turn.options.settle_ms;
        let broken = turn.state.replicas.get(&id).is_some_and(is_broken);
        match self.plans.verdict(turn, around, &self.failures, id) {
            Verdict::Fits(plan) => {
                let waited = settled || !self.asks.is_empty();
                if plan.wishes_met || broken || (waited && (only || !plan.falls_short)) {
                    self.propose_place(turn, around, plan.replica);
                    Looked::Proposed
                } else if plan.falls_short && !only {
                    Looked::Not(TOO_FEW.to_owned())
                } else {
                    Looked::Not(MORE_WAITED_FOR.to_owned())
                }
            }
            Verdict::NotYet => Looked::Not(NOT_YET.to_owned()),
            Verdict::Missing(missing) => {
                let why = missing.reason.clone();
                if settled {
                    match (turn.state.replicas.contains_key(&id), turn.options.replicas) {
                        // As many as fit are wanted, and it does not.
                        (true, None) if !only => propose_retired(turn, around, id),
                        (false, _) if !only => {}
                        _ => propose_unplaced(turn, around, id, missing),
                    }
                }
                Looked::Not(why)
            }
        }
    }

    /// Plans what is placed over its own devices and those that are free, because somebody asked. `why` says why a
    /// replica is not placed.
    fn plan_anew(&mut self, turn: &mut Turn<'_>, around: &mut Around<'_>, why: Option<String>) {
        if self.asks.is_empty() && self.anew.is_empty() {
            return;
        }
        let placed: Vec<Replica> = live(turn).cloned().collect();
        let Some(first) = placed.first() else {
            let why = why.unwrap_or_default();
            self.anew.clear();
            self.answer_all(turn, &Err(AskRefusal::Refused(why)));
            return;
        };
        if let Some(surplus) = placed.get(wanted(turn)..).and_then(<[_]>::last) {
            propose_retired(turn, around, surplus.id);
            return;
        }
        while let Some(&id) = self.anew.first() {
            let Some(replica) = placed.iter().find(|placement| placement.id == id) else {
                self.anew.pop_first();
                continue;
            };
            let loads = |entry: &ReplicaEntry| entry.serving().is_none();
            let others = placed.iter().filter(|placement| placement.id != id);
            let mut loading = others.filter(|other| turn.state.current(other.fence()).is_some_and(loads));
            if let Some(loading) = loading.next() {
                // Its turn comes when that one serves.
                self.answer_all(turn, &Ok(loading.fence()));
                return;
            }
            match self.plans.verdict(turn, around, &self.failures, id) {
                Verdict::Fits(Plan { replica: better, .. })
                    if (&better.stages, better.kv) != (&replica.stages, replica.kv) =>
                {
                    self.anew.pop_first();
                    self.propose_place(turn, around, better);
                    return;
                }
                Verdict::NotYet if placed.len() == 1 => {
                    self.anew.clear();
                    self.answer_all(turn, &Err(AskRefusal::Refused(NOT_YET.to_owned())));
                    return;
                }
                Verdict::Missing(missing) if placed.len() == 1 => {
                    self.anew.clear();
                    self.answer_all(turn, &Err(AskRefusal::Refused(missing.reason)));
                    return;
                }
                Verdict::Fits(_) | Verdict::NotYet | Verdict::Missing(_) => {
                    self.anew.pop_first();
                }
            }
        }
        let fence = first.fence();
        self.answer_all(turn, &Ok(fence));
    }

    fn answer_all(&mut self, turn: &mut Turn<'_>, result: &Result<Fence, AskRefusal>) {
        for ask in self.asks.drain(..) {
            answer(turn, ask.id, result.clone());
        }
    }

    /// Answers asks whose plan the state has, and those that waited too long; forgets plans that did not come to be.
    fn settle_asks(&mut self, turn: &mut Turn<'_>, around: &Around<'_>) {
        let anew = &mut self.anew;
        self.asks.retain_mut(|ask| {
            if let Some(proposed) = &ask.proposed {
                let entry = turn.state.replicas.get(&proposed.id);
                let placed = entry.and_then(ReplicaEntry::placement);
                if placed == Some(proposed) {
                    answer(turn, ask.id, Ok(proposed.fence()));
                    return false;
                }
                if around.proposals.is_open(&Purpose::Placement) {
                    anew.insert(proposed.id);
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

    pub(super) fn propose_place(&mut self, turn: &mut Turn<'_>, around: &mut Around<'_>, replica: Replica) {
        let command = Command::Place {
            replica: replica.clone(),
            expected_version: turn.state.version,
        };
        if around.proposals.propose(turn, Purpose::Placement, command) {
            for ask in &mut self.asks {
                ask.proposed = Some(replica.clone());
            }
        }
    }
}

/// Placements that load or serve.
fn live<'a>(turn: &Turn<'a>) -> impl Iterator<Item = &'a Replica> + use<'a> {
    turn.state.replicas.values().filter_map(ReplicaEntry::live)
}

/// Replicas that there may be.
fn wanted(turn: &Turn<'_>) -> usize {
    let wanted = turn
        .options
        .replicas
        .and_then(|wanted| usize::try_from(wanted).ok());
    wanted.map_or(MAX_REPLICAS, |wanted| wanted.min(MAX_REPLICAS))
}

fn is_broken(entry: &ReplicaEntry) -> bool {
    match entry.phase {
        Phase::Broken { .. } => true,
        Phase::Loading { .. } | Phase::Serving { .. } | Phase::Unplaceable { .. } => false,
    }
}

pub(super) fn propose_retired(turn: &mut Turn<'_>, around: &mut Around<'_>, replica: ReplicaId) {
    let command = Command::Retired {
        replica,
        expected_version: turn.state.version,
    };
    around.proposals.propose(turn, Purpose::Placement, command);
}

pub(super) fn propose_unplaced(
    turn: &mut Turn<'_>,
    around: &mut Around<'_>,
    replica: ReplicaId,
    missing: Missing,
) {
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
    around.proposals.propose(turn, Purpose::Placement, command);
}

/// A reason no longer than the state takes.
pub(super) fn cut(reason: &str) -> String {
    reason[..reason.floor_char_boundary(MAX_REASON_BYTES)].to_owned()
}

fn answer(turn: &mut Turn<'_>, ask: AskId, result: Result<Fence, AskRefusal>) {
    turn.effects.push(Effect::Answer { ask, result });
}
