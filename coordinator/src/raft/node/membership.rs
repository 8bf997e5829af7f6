//! Who votes: how a leader brings raft's members in line with what the state machine wants.
//!
//! Pure. Nothing here remembers what was proposed: each look compares what raft has with what is wanted, so that a change
//! that got lost (raft-rs turns one that is proposed while another is pending into an empty entry), or whose leader died,
//! is made again, and a joint state is left by whoever leads.
//!
//! A coordinator that is added learns first and votes once it has caught up. Votes change by joint consensus only, and
//! only where a majority of the votes, before and after, was heard from.

use std::collections::BTreeSet;

use raft::eraftpb::{ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState};
use tramontane_model::ids::CoordinatorId;

use super::Node;
use super::status::RaftStatus;
use crate::raft::identity::{ELECTION_TICKS, HEARTBEAT_TICKS, MAX_TAKING_PART};
use crate::raft::state_machine::StateMachine;

/// A learner that has everything but so many entries has caught up.
const CAUGHT_UP_ENTRIES: u64 = 16;
/// Votes change only where those that are counted on were heard from within so many ticks: a few heartbeats.
const FRESH_TICKS: u64 = 3 * HEARTBEAT_TICKS as u64;

/// What a leader is to do about the members.
#[derive(Clone, Debug, PartialEq)]
enum Step {
    Nothing,
    /// Another must lead before this one can go.
    HandOver,
    Propose(ConfChangeV2),
}

/// What a leader knows of one coordinator.
trait Known {
    /// It was heard from just now; the leader itself always is.
    fn active(&self, id: u64) -> bool;
    /// It has as good as all entries.
    fn caught_up(&self, id: u64) -> bool;
}

/// Whether more than half of these were heard from.
fn majority(voters: &BTreeSet<u64>, active: impl Fn(u64) -> bool) -> bool {
    let heard = voters.iter().filter(|&&voter| active(voter)).count();
    2 * heard > voters.len()
}

/// The next step from what raft has to what is wanted.
fn next_step(
    has: &ConfState,
    added: &[CoordinatorId],
    removed: impl Fn(u64) -> bool,
    leader: u64,
    known: &impl Known,
) -> Step {
    if !has.voters_outgoing.is_empty() {
        // The empty change leaves a joint state.
        return Step::Propose(ConfChangeV2::default());
    }
    let voters: BTreeSet<u64> = has.voters.iter().copied().collect();
    let single = |id, kind: ConfChangeType| ConfChangeSingle {
        node_id: id,
        change_type: kind.into(),
    };
    let mut after = voters.clone();
    let mut changes = Vec::new();
    for &learner in has.learners.iter().filter(|&&id| !removed(id)) {
        if known.active(learner) && known.caught_up(learner) {
            after.insert(learner);
            changes.push(single(learner, ConfChangeType::AddNode));
        }
    }
    for &gone in voters.iter().filter(|&&id| id != leader && removed(id)) {
        let mut without = after.clone();
        without.remove(&gone);
        // Where it would cost the quorum it waits; others may go first.
        if majority(&without, |id| known.active(id)) {
            after = without;
            changes.push(single(gone, ConfChangeType::RemoveNode));
        }
    }
    if !changes.is_empty() {
        // Learners may go in the same step: they have no vote.
        let learners = has.learners.iter().filter(|&&id| removed(id));
        changes.extend(learners.map(|&id| single(id, ConfChangeType::RemoveNode)));
        return match [&voters, &after]
            .into_iter()
            .all(|set| majority(set, |id| known.active(id)))
        {
            true => Step::Propose(change(changes, ConfChangeTransition::Explicit)),
            false => Step::Nothing,
        };
    }
    if let Some(&learner) = has.learners.iter().find(|&&id| removed(id)) {
        let change = change(
            vec![single(learner, ConfChangeType::RemoveNode)],
            ConfChangeTransition::Auto,
        );
        return Step::Propose(change);
    }
    let listed = |id: u64| voters.contains(&id) || has.learners.contains(&id);
    if let Some(id) = added.iter().find(|id| !listed(id.0) && !removed(id.0)) {
        let change = change(
            vec![single(id.0, ConfChangeType::AddLearnerNode)],
            ConfChangeTransition::Auto,
        );
        return Step::Propose(change);
    }
    match removed(leader) && voters.len() > 1 {
        true => Step::HandOver,
        false => Step::Nothing,
    }
}

fn change(changes: Vec<ConfChangeSingle>, transition: ConfChangeTransition) -> ConfChangeV2 {
    ConfChangeV2 {
        transition: transition.into(),
        changes,
        ..ConfChangeV2::default()
    }
}

/// What raft says of a peer.
struct Heard<'a, S: StateMachine>(&'a Node<S>);

impl<S: StateMachine> Known for Heard<'_, S> {
    fn active(&self, id: u64) -> bool {
        self.0.heard_within(id, FRESH_TICKS)
    }

    fn caught_up(&self, id: u64) -> bool {
        let raft = &self.0.raw.raft;
        let matched = raft.prs().get(id).map_or(0, |progress| progress.matched);
        matched + CAUGHT_UP_ENTRIES >= raft.raft_log.committed
    }
}

impl<S: StateMachine> Node<S> {
    /// Does what there is to do about the members, if this member leads.
    pub(super) fn follow_membership(&mut self) {
        let raft = &self.raw.raft;
        if !self.is_leader() || raft.has_pending_conf() || raft.lead_transferee.is_some() {
            return;
        }
        let has = self.conf_state();
        let removed = |id| self.machine.is_removed(CoordinatorId(id));
        match next_step(&has, &self.machine.added(), removed, self.id.0, &Heard(self)) {
            Step::Nothing => {}
            Step::HandOver => {
                tracing::info!("this coordinator is to be removed and hands the lead over first");
                self.hand_over();
            }
            Step::Propose(change) => {
                tracing::info!(?has, ?change, "the members change");
                // Dropped where too much is uncommitted: the next look proposes it again.
                if let Err(error) = self.raw.propose_conf_change(Vec::new(), change) {
                    tracing::debug!(%error, "the change was not proposed");
                }
            }
        }
    }

    /// Whether a coordinator was heard from within the last election timeout; this one always is.
    pub(super) fn is_active(&self, id: u64) -> bool {
        self.heard_within(id, ELECTION_TICKS as u64)
    }

    fn heard_within(&self, id: u64, ticks: u64) -> bool {
        let heard = self.heard.get(&id);
        id == self.id.0 || heard.is_some_and(|at| self.now - at <= ticks)
    }

    /// The members as of the last applied entry, in ascending order.
    pub(super) fn conf_state(&self) -> ConfState {
        let mut conf = self.raw.raft.prs().conf().to_conf_state();
        for ids in [
            &mut conf.voters,
            &mut conf.learners,
            &mut conf.voters_outgoing,
            &mut conf.learners_next,
        ] {
            ids.sort_unstable();
        }
        conf
    }
}

/// Why a coordinator cannot be added now, as the leader sees its members.
pub fn check_add(status: &RaftStatus, id: CoordinatorId) -> Result<(), String> {
    if id.0 == 0 {
        return Err("0 is no id: ids start at 1".to_owned());
    }
    if status.members.len() >= MAX_TAKING_PART && !status.members.contains(&id) {
        return Err(format!(
            "{} coordinators take part, which is the most there may be; remove one first",
            status.members.len()
        ));
    }
    Ok(())
}

/// Why a coordinator cannot be removed now, as the leader sees its members.
pub fn check_remove(status: &RaftStatus, id: CoordinatorId) -> Result<(), String> {
    if !status.voters.contains(&id) {
        return Ok(());
    }
    let left: Vec<CoordinatorId> = status
        .voters
        .iter()
        .copied()
        .filter(|&voter| voter != id)
        .collect();
    if left.is_empty() {
        return Err(format!(
            "coordinator {id} is the only one with a vote; add another first"
        ));
    }
    let active = |voter: &CoordinatorId| {
        *voter == status.id
            || status
                .peers
                .iter()
                .any(|peer| peer.id == *voter && peer.recently_active)
    };
    let silent: Vec<String> = left
        .iter()
        .filter(|voter| !active(voter))
        .map(ToString::to_string)
        .collect();
    let heard = left.len() - silent.len();
    if 2 * heard > left.len() {
        return Ok(());
    }
    Err(format!(
        "without coordinator {id} the cluster would lose its quorum: {heard} of the {} that are left answer, more than half must; not heard from: {}",
        left.len(),
        silent.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct All;

    impl Known for All {
        fn active(&self, id: u64) -> bool {
            id < 100
        }
        fn caught_up(&self, id: u64) -> bool {
            id != 7
        }
    }

    fn conf(voters: &[u64], learners: &[u64]) -> ConfState {
        ConfState {
            voters: voters.to_vec(),
            learners: learners.to_vec(),
            ..ConfState::default()
        }
    }

    fn step(has: &ConfState, added: &[u64], removed: &[u64]) -> Step {
        let added: Vec<_> = added.iter().map(|&id| CoordinatorId(id)).collect();
        next_step(has, &added, |id| removed.contains(&id), 1, &All)
    }

    fn proposed(step: Step) -> (i32, Vec<(u64, i32)>) {
        let Step::Propose(change) = step else {
            panic!("{step:?}");
        };
        let singles = change.changes.iter();
        (
            change.transition,
            singles.map(|one| (one.node_id, one.change_type)).collect(),
        )
    }

    const AUTO: i32 = ConfChangeTransition::Auto as i32;
    const EXPLICIT: i32 = ConfChangeTransition::Explicit as i32;
    const VOTER: i32 = ConfChangeType::AddNode as i32;
    const LEARNER: i32 = ConfChangeType::AddLearnerNode as i32;
    const REMOVE: i32 = ConfChangeType::RemoveNode as i32;

    #[test]
    fn who_is_added_learns_first_and_votes_once_caught_up() {
        let three = conf(&[1, 2, 3], &[]);
        assert_eq!(step(&three, &[], &[]), Step::Nothing);
        assert_eq!(proposed(step(&three, &[4], &[])), (AUTO, vec![(4, LEARNER)]));
        assert_eq!(
            step(&conf(&[1, 2, 3], &[7]), &[7], &[]),
            Step::Nothing,
            "not caught up"
        );
        let learning = conf(&[1, 2, 3], &[4]);
        assert_eq!(proposed(step(&learning, &[4], &[])), (EXPLICIT, vec![(4, VOTER)]));
        assert_eq!(
            proposed(step(&learning, &[4], &[3])),
            (EXPLICIT, vec![(4, VOTER), (3, REMOVE)]),
            "in one joint step"
        );
        assert_eq!(step(&conf(&[1, 2, 3, 4], &[]), &[4], &[]), Step::Nothing);
    }

    #[test]
    fn a_joint_state_is_left_whoever_made_it() {
        let mut joint = conf(&[1, 2, 4], &[]);
        joint.voters_outgoing = vec![1, 2, 3];
        assert_eq!(step(&joint, &[4], &[3]), Step::Propose(ConfChangeV2::default()));
    }

    #[test]
    fn a_removal_waits_where_it_would_cost_the_quorum() {
        // 101 does not answer.
        assert_eq!(step(&conf(&[1, 2, 101], &[]), &[], &[2]), Step::Nothing);
        assert_eq!(
            proposed(step(&conf(&[1, 2, 101], &[]), &[], &[2, 101])),
            (EXPLICIT, vec![(101, REMOVE)]),
        );
        assert_eq!(
            proposed(step(&conf(&[1, 2, 101], &[]), &[], &[101])),
            (EXPLICIT, vec![(101, REMOVE)])
        );
        assert_eq!(
            proposed(step(&conf(&[1, 2], &[9]), &[9], &[9])),
            (AUTO, vec![(9, REMOVE)])
        );
    }

    #[test]
    fn a_leader_that_is_removed_hands_over_first() {
        assert_eq!(step(&conf(&[1, 2, 3], &[]), &[], &[1]), Step::HandOver);
        assert_eq!(step(&conf(&[1], &[]), &[], &[1]), Step::Nothing);
    }
}
