//! Proposals in flight: one for each purpose, few at once, each with a deadline.
//!
//! What a proposal did is never remembered: whoever needs to know looks at the state.

use std::collections::BTreeMap;

use tramontane_model::ids::{CoordinatorId, ReplicaId, WorkerId};
use tramontane_model::time::Tick;

use super::event::{AskId, Effect, SessionId};
use super::turn::Turn;
use crate::control::command::Command;

/// Most proposals in flight.
const MAX_IN_FLIGHT: usize = 16;
/// Most of them for workers that join, so that many who do cannot hold up the rest.
const MAX_JOINS_IN_FLIGHT: usize = 8;
const _: () = assert!(MAX_JOINS_IN_FLIGHT < MAX_IN_FLIGHT);
/// After so long a proposal without an answer counts as one whose outcome is not known, in milliseconds.
const DEADLINE_MS: u64 = 5000;

/// What a proposal is for. Never two in flight for the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Purpose {
    /// The model is described.
    Model,
    /// A coordinator is listed.
    Coordinator(CoordinatorId),
    /// A session's worker joins.
    Join(SessionId),
    /// A worker counts as lost.
    Lost(WorkerId),
    /// A worker that leaves drains.
    Drain(WorkerId),
    /// What an operator changes.
    Change(AskId),
    /// A replica is placed, or said to be placed nowhere, or standbys are chosen: one at a time, as each plan counts on what
    /// the last one left.
    Placement,
    /// A placement serves, or a device of it failed.
    Replica(ReplicaId),
}

#[derive(Clone, Copy, Debug)]
enum Attempt {
    InFlight { sequence: u64, deadline: Tick },
    Paused { until: Tick },
}

/// All attempts.
#[derive(Debug, Default)]
pub(super) struct Proposals {
    attempts: BTreeMap<Purpose, Attempt>,
}

impl Proposals {
    /// Whether something may be proposed for this purpose now.
    pub(super) fn is_open(&self, purpose: &Purpose) -> bool {
        !self.attempts.contains_key(purpose)
    }

    fn has_room(&self, purpose: &Purpose) -> bool {
        let in_flight = |attempt: &Attempt| match attempt {
            Attempt::InFlight { .. } => true,
            Attempt::Paused { .. } => false,
        };
        let flying = || self.attempts.iter().filter(|(_, attempt)| in_flight(attempt));
        let is_join = |purpose: &Purpose| match purpose {
            Purpose::Join(_) => true,
            Purpose::Model
            | Purpose::Coordinator(_)
            | Purpose::Lost(_)
            | Purpose::Drain(_)
            | Purpose::Change(_)
            | Purpose::Placement
            | Purpose::Replica(_) => false,
        };
        let joins = flying().filter(|(purpose, _)| is_join(purpose)).count();
        flying().count() < MAX_IN_FLIGHT && (!is_join(purpose) || joins < MAX_JOINS_IN_FLIGHT)
    }

    /// Proposes, if there is room and nothing is under way for the purpose. Says whether it did.
    pub(super) fn propose(&mut self, turn: &mut Turn<'_>, purpose: Purpose, command: Command) -> bool {
        if !self.is_open(&purpose) || !self.has_room(&purpose) {
            return false;
        }
        let sequence = turn.next_sequence();
        let deadline = turn.now.after_ms(DEADLINE_MS);
        self.attempts
            .insert(purpose, Attempt::InFlight { sequence, deadline });
        turn.effects.push(Effect::Propose { sequence, command });
        true
    }

    /// The purpose of a proposal that was answered; `None` if it was given up before.
    pub(super) fn answered(&mut self, answered: u64) -> Option<Purpose> {
        let is_it = |attempt: &Attempt| match attempt {
            Attempt::InFlight { sequence, .. } => *sequence == answered,
            Attempt::Paused { .. } => false,
        };
        let found = self.attempts.iter().find(|(_, attempt)| is_it(attempt));
        let purpose = found.map(|(purpose, _)| purpose.clone())?;
        self.attempts.remove(&purpose);
        Some(purpose)
    }

    /// Proposes nothing for this purpose for a while.
    pub(super) fn pause(&mut self, purpose: Purpose, until: Tick) {
        self.attempts.insert(purpose, Attempt::Paused { until });
    }

    /// Ends pauses that are over, and proposals whose deadline has passed; gives those.
    pub(super) fn expire(&mut self, now: Tick) -> Vec<Purpose> {
        let mut given_up = Vec::new();
        self.attempts.retain(|purpose, attempt| match attempt {
            Attempt::InFlight { deadline, .. } if now >= *deadline => {
                given_up.push(purpose.clone());
                false
            }
            Attempt::Paused { until } => now < *until,
            Attempt::InFlight { .. } => true,
        });
        given_up
    }
}
