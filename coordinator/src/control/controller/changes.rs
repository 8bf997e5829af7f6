//! What operators change of who takes part: each change is proposed until the state says so.

use tramontane_model::ids::WorkerId;
use tramontane_model::time::Tick;

use super::event::{AskId, AskRefusal, Change, Effect, ProposalResult};
use super::placing::{Around, Placing};
use super::proposals::Purpose;
use super::turn::Turn;
use crate::control::command::{Command, Outcome};
use crate::control::state::{Standing, WorkerEntry};

/// Most changes that wait.
const MAX_CHANGES: usize = 16;
/// Longest wait for one, in milliseconds; less than whoever asks waits.
const CHANGE_DEADLINE_MS: u64 = 4500;

/// Somebody who wants a change.
#[derive(Debug)]
struct Waiting {
    ask: AskId,
    change: Change,
    since: Tick,
    /// The log refused it.
    refused: Option<AskRefusal>,
}

/// What there is to do for a change.
enum Need {
    /// The state says so.
    Nothing,
    /// It cannot be.
    Refuse(String),
    Propose(Command),
}

/// Changes under way.
#[derive(Debug, Default)]
pub(super) struct Changes(Vec<Waiting>);

impl Changes {
    pub(super) fn ask(&mut self, turn: &mut Turn<'_>, ask: AskId, change: Change) {
        if self.0.len() >= MAX_CHANGES {
            let error = AskRefusal::Unavailable("too many changes wait already; try again");
            answer(turn.effects, ask, Err(error));
            return;
        }
        self.0.push(Waiting {
            ask,
            change,
            since: turn.now,
            refused: None,
        });
    }

    /// What became of a change that was proposed: one that got lost is proposed again.
    pub(super) fn answered(&mut self, ask: AskId, result: &ProposalResult) {
        let ProposalResult::Committed(Outcome::Refused(refusal)) = result else {
            return;
        };
        if let Some(waiting) = self.0.iter_mut().find(|waiting| waiting.ask == ask) {
            waiting.refused = Some(AskRefusal::Refused(refusal.to_string()));
        }
    }

    /// Proposes what the state does not say yet, and answers.
    pub(super) fn act(&mut self, turn: &mut Turn<'_>, placing: &mut Placing, around: &mut Around<'_>) {
        self.0.retain_mut(|waiting| {
            let ask = waiting.ask;
            let result = match (
                waiting.refused.take(),
                need(turn, placing, around, &waiting.change),
            ) {
                (_, Need::Nothing) => Ok(()),
                (Some(refused), _) => Err(refused),
                (None, Need::Refuse(why)) => Err(AskRefusal::Refused(why)),
                (None, Need::Propose(command)) => {
                    if turn.now.ms_since(waiting.since) < CHANGE_DEADLINE_MS {
                        around.proposals.propose(turn, Purpose::Change(ask), command);
                        return true;
                    }
                    Err(AskRefusal::Unavailable(
                        "the change was not committed in time; try again",
                    ))
                }
            };
            answer(turn.effects, ask, result);
            false
        });
    }

    /// Answers everybody who waits: this coordinator does not lead any more.
    pub(super) fn dismiss(self, effects: &mut Vec<Effect>, why: &AskRefusal) {
        for waiting in self.0 {
            answer(effects, waiting.ask, Err(why.clone()));
        }
    }
}

fn need(turn: &Turn<'_>, placing: &mut Placing, around: &Around<'_>, change: &Change) -> Need {
    match change {
        Change::Drain { worker, force } => drain(turn, placing, around, worker, *force),
        Change::Undrain { worker } => match member(turn, worker) {
            Err(why) => Need::Refuse(why),
            Ok(entry) => needed(!entry.standing.drains(), || Command::WorkerUndrained {
                worker: worker.clone(),
                incarnation: entry.info.incarnation,
            }),
        },
        Change::AddCoordinator { id, address } => {
            let added = turn.state.added().any(|known| known == (*id, address.as_str()));
            needed(added, || Command::CoordinatorAdded {
                coordinator: *id,
                address: address.clone(),
            })
        }
        &Change::RemoveCoordinator { id: coordinator } => needed(turn.state.is_removed(coordinator), || {
            Command::CoordinatorRemoved { coordinator }
        }),
    }
}

fn drain(
    turn: &Turn<'_>,
    placing: &mut Placing,
    around: &Around<'_>,
    worker: &WorkerId,
    force: bool,
) -> Need {
    let entry = match member(turn, worker) {
        Ok(entry) => entry,
        Err(why) => return Need::Refuse(why),
    };
    let done = match entry.standing {
        Standing::Joined => false,
        Standing::Draining { force: forced } => forced || !force,
    };
    if !done
        && !force
        && let Err(why) = placing.without(turn, around, worker)
    {
        return Need::Refuse(format!(
            "worker {worker} cannot be done without: {why}; with --force it is drained and nothing serves"
        ));
    }
    needed(done, || Command::WorkerDraining {
        worker: worker.clone(),
        incarnation: entry.info.incarnation,
        force,
    })
}

fn needed(done: bool, command: impl FnOnce() -> Command) -> Need {
    match done {
        true => Need::Nothing,
        false => Need::Propose(command()),
    }
}

fn member<'a>(turn: &Turn<'a>, worker: &WorkerId) -> Result<&'a WorkerEntry, String> {
    turn.state.workers.get(worker).ok_or_else(|| {
        let known: Vec<&str> = turn.state.workers.keys().map(WorkerId::as_str).collect();
        format!(
            "there is no worker {worker}; the members are: {}",
            known.join(", ")
        )
    })
}

fn answer(effects: &mut Vec<Effect>, ask: AskId, result: Result<(), AskRefusal>) {
    effects.push(Effect::Changed { ask, result });
}
