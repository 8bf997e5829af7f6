//! A peer's message on its way into raft-rs: what only the log can tell of it.

use raft::StateRole;
use raft::eraftpb::{Message, MessageType};
use tramontane_model::ids::CoordinatorId;

use super::error::{NodeError, Refusal, StepError};
use super::{Node, inbound};
use crate::raft::state_machine::StateMachine;

/// Most peers whose last message is remembered.
const MAX_HEARD: usize = 64;

impl<S: StateMachine> Node<S> {
    /// Takes a message that `from`, known by its certificate or its address, delivered.
    pub fn step(&mut self, from: CoordinatorId, bytes: &[u8]) -> Result<(), StepError> {
        let mut message = inbound::parse(from, self.id, bytes)?;
        // Others than the members that are known here may well be members: this one may be behind. One that is to be
        // removed votes until it is.
        if self.machine.is_removed(from) && self.raw.raft.prs().get(from.0).is_none() {
            return Err(Refusal::Removed { from }.into());
        }
        if self.heard.len() < MAX_HEARD || self.heard.contains_key(&from.0) {
            self.heard.insert(from.0, self.now);
        }
        if message.get_msg_type() == MessageType::MsgReadIndex && !self.is_leader() {
            // raft-rs would pass it on in its sender's name, which peers rightly refuse; the sender asks again.
            return Ok(());
        }
        self.check_against_log(from, &mut message)?;
        // What is left to refuse is stale: an answer to a node that no longer leads, for one.
        if let Err(e) = self.raw.step(message) {
            tracing::trace!(%from, "raft ignored a message: {e}");
        }
        Ok(())
    }

    /// Checks what only the log can tell, on messages that raft-rs would believe.
    fn check_against_log(&self, from: CoordinatorId, message: &mut Message) -> Result<(), StepError> {
        let raft = &self.raw.raft;
        let last = raft.raft_log.last_index();
        if message.get_msg_type() == MessageType::MsgHeartbeat
            && message.term >= raft.term
            && message.commit > last
        {
            // A leader only tells a follower of commits up to what that follower confirmed.
            return Err(NodeError::LogLost {
                leader: from,
                confirmed: message.commit,
                last,
            }
            .into());
        }
        if message.get_msg_type() != MessageType::MsgAppendResponse
            || raft.state != StateRole::Leader
            || message.term != raft.term
        {
            return Ok(());
        }
        if message.index > last || message.reject_hint > last {
            let detail = format!("it confirms or names an entry after the last one, {last}");
            return Err(Refusal::Forbidden { from, detail }.into());
        }
        if message.reject {
            self.forget_stale_rejection(message);
        }
        Ok(())
    }

    /// Keeps a late rejection from moving a peer's next entry to or before one that it has confirmed since.
    ///
    /// raft-rs 0.7 allows that while it probes (its issue 555, fixed after 0.7): the peer is then sent what it
    /// has, one message a heartbeat, or a whole checkpoint if the log was truncated meanwhile. A peer never
    /// loses what it confirmed, so such a rejection says no more than that it has everything up to there.
    fn forget_stale_rejection(&self, message: &mut Message) {
        let matched = self
            .raw
            .raft
            .prs()
            .get(message.from)
            .map_or(0, |progress| progress.matched);
        let Ok(term) = self.raw.raft.raft_log.term(matched) else {
            return;
        };
        if message.index <= matched {
            // Answers an append that was overtaken: no rejection at all.
            message.reject = false;
            message.index = matched;
        } else if message.reject_hint < matched || message.log_term < term {
            message.reject_hint = matched;
            message.log_term = term;
        }
    }
}
