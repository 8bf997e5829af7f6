//! What raft-rs has made ready, done in the one order that keeps its promises.
//!
//! 1 a leader's messages, which may overtake its own disk · 2 checkpoint, entries and hard state in one fsynced
//! transaction · 3 the messages that promise what was just written · 4 the committed entries, applied · 5 advance
//! · 6 what the advance made ready: commit index, messages, entries · 7 advance the applied index.

use prost_raft::Message as _;
use raft::eraftpb::{ConfChangeV2, Entry, EntryType, Message, Snapshot, SnapshotMetadata};
use raft::{Ready, Storage};
use tramontane_model::ids::CoordinatorId;

use super::error::{NodeError, ProposeError, ReadError};
use super::proposals::Fate;
use super::{Effects, Node, Outbound, restore};
use crate::raft::state_machine::StateMachine;
use crate::raft::storage::{Batch, Position};

impl<S: StateMachine> Node<S> {
    /// Does what the calls since the last time made ready. After an error the node must not be used again.
    pub fn ready(&mut self, effects: &mut impl Effects<S>) -> Result<(), NodeError> {
        if let Some(context) = self.reads.request(self.now) {
            self.raw.read_index(context);
        }
        while self.raw.has_ready() {
            self.process(effects)?;
        }
        self.answer_failed(effects);
        for ticket in self.reads.settle(self.applied.index) {
            effects.read(ticket, Ok(self.applied.index));
        }
        for ticket in self.reads.expire(self.now) {
            effects.read(ticket, Err(ReadError::TimedOut));
        }
        self.checkpoint_if_due()
    }

    fn process(&mut self, effects: &mut impl Effects<S>) -> Result<(), NodeError> {
        let mut ready = self.raw.ready();
        self.send(ready.take_messages(), effects);
        #[cfg(feature = "deliberate-bugs")]
        if tramontane_sim::bugs::on(tramontane_sim::bugs::Bug::ApplyBeforeDurable) {
            self.send(ready.take_persisted_messages(), effects);
            self.apply(ready.take_committed_entries(), effects)?;
        }
        let restored = self.persist(&ready)?;
        self.send(ready.take_persisted_messages(), effects);
        if let Some((machine, at)) = restored {
            self.install(machine, at, effects);
        }
        for state in ready.take_read_states() {
            self.reads.answered(&state.request_ctx, state.index);
        }
        self.apply(ready.take_committed_entries(), effects)?;
        let mut light = self.raw.advance(ready);
        if let Some(commit) = light.commit_index() {
            self.raw.mut_store().save_commit(commit)?;
        }
        self.send(light.take_messages(), effects);
        self.apply(light.take_committed_entries(), effects)?;
        self.raw.advance_apply();
        Ok(())
    }

    /// Makes a ready durable. Returns the state of its checkpoint, if it has one; a checkpoint that cannot be
    /// restored is not kept.
    fn persist(&mut self, ready: &Ready) -> Result<Option<(S, Position)>, NodeError> {
        let snapshot = Some(ready.snapshot()).filter(|snapshot| !snapshot.is_empty());
        let restored = match snapshot {
            Some(snapshot) => {
                let metadata = snapshot.get_metadata();
                let at = Position {
                    index: metadata.index,
                    term: metadata.term,
                };
                Some((restore(snapshot)?, at))
            }
            None => None,
        };
        if snapshot.is_some() || !ready.entries().is_empty() || ready.hs().is_some() {
            let batch = Batch {
                snapshot,
                entries: ready.entries(),
                hard_state: ready.hs(),
            };
            self.raw.mut_store().persist(&batch)?;
        }
        Ok(restored)
    }

    fn send(&mut self, messages: Vec<Message>, effects: &mut impl Effects<S>) {
        for message in messages {
            let is_snapshot = message.snapshot.is_some();
            if is_snapshot {
                self.snapshots.insert(message.to, self.now);
            }
            let bytes = message.encode_to_vec();
            effects.send(Outbound {
                to: CoordinatorId(message.to),
                is_snapshot,
                bytes,
            });
        }
    }

    /// Puts a leader's checkpoint in the place of the state.
    fn install(&mut self, machine: S, at: Position, effects: &mut impl Effects<S>) {
        self.machine = machine;
        self.applied = at;
        effects.applied(&self.machine, at);
        self.failed.extend(self.proposals.leaped(at.index));
        self.answer_failed(effects);
    }

    fn apply(&mut self, entries: Vec<Entry>, effects: &mut impl Effects<S>) -> Result<(), NodeError> {
        let mut answers = Vec::new();
        let Some(last) = entries.last().map(|entry| Position {
            index: entry.index,
            term: entry.term,
        }) else {
            return Ok(());
        };
        for entry in entries {
            let mut outcome = None;
            if let Some(change) = member_change(&entry)? {
                #[cfg(feature = "deliberate-bugs")]
                if tramontane_sim::bugs::on(tramontane_sim::bugs::Bug::ConfChangeDropped) {
                    continue;
                }
                let now = self.raw.apply_conf_change(&change)?;
                self.members_changed = true;
                tracing::info!(index = entry.index, members = ?now, "the members changed");
            } else if !entry.data.is_empty() {
                // An entry without data is raft's own: a new leader's first.
                let applied = self.machine.apply(&entry.data);
                outcome = Some(applied.map_err(|source| NodeError::Apply {
                    index: entry.index,
                    source: Box::new(source),
                })?);
            }
            for fate in self.proposals.applied(entry.index, entry.term) {
                match fate {
                    Fate::Applied(ticket) => {
                        answers.push((ticket, outcome.take().ok_or(ProposeError::Dropped)));
                    }
                    Fate::Failed(ticket, error) => answers.push((ticket, Err(error))),
                }
            }
        }
        self.applied = last;
        // Whoever learns of an outcome finds it in the state that readers see.
        effects.applied(&self.machine, last);
        for (ticket, result) in answers {
            effects.proposed(ticket, result);
        }
        Ok(())
    }

    pub(super) fn answer_failed(&mut self, effects: &mut impl Effects<S>) {
        for fate in self.failed.drain(..) {
            match fate {
                Fate::Failed(ticket, error) => effects.proposed(ticket, Err(error)),
                // Only an application makes this, and that is answered where it happens.
                Fate::Applied(ticket) => effects.proposed(ticket, Err(ProposeError::Unknown)),
            }
        }
    }

    /// Makes a checkpoint and truncates the log if enough was applied since the last one.
    fn checkpoint_if_due(&mut self) -> Result<(), NodeError> {
        let store = self.raw.store();
        let since = self.applied.index - store.checkpoint_index().max(self.checkpoint_failed);
        let too_long = store.entry_bytes() >= self.options.checkpoint_bytes;
        let due = since >= self.options.checkpoint_entries || too_long || self.members_changed;
        if since == 0 || !due {
            return Ok(());
        }
        let data = match self.machine.snapshot() {
            Ok(data) => data,
            Err(error) => {
                // The log grows, which is better than to end every member at once; tried again later.
                tracing::error!(
                    "no checkpoint can be made at entry {}: {error}",
                    self.applied.index
                );
                self.checkpoint_failed = self.applied.index;
                return Ok(());
            }
        };
        let kept = if too_long { 0 } else { self.options.kept_entries };
        let truncate_to = self.applied.index.saturating_sub(kept).max(store.first() - 1);
        let metadata = SnapshotMetadata {
            conf_state: Some(self.conf_state()),
            index: self.applied.index,
            term: store.term(self.applied.index)?,
        };
        let checkpoint = Snapshot {
            data,
            metadata: Some(metadata),
        };
        self.raw.mut_store().save_checkpoint(checkpoint, truncate_to)?;
        self.members_changed = false;
        Ok(())
    }
}

/// The change of members that an entry is, if it is one.
fn member_change(entry: &Entry) -> Result<Option<ConfChangeV2>, NodeError> {
    let index = entry.index;
    let kind = match EntryType::from_i32(entry.entry_type) {
        Some(EntryType::EntryNormal) => return Ok(None),
        Some(EntryType::EntryConfChangeV2) => {
            let change = ConfChangeV2::decode(&*entry.data);
            let source = |error| NodeError::Apply {
                index,
                source: Box::new(error),
            };
            return change.map(Some).map_err(source);
        }
        Some(EntryType::EntryConfChange) => "a change of members of another version",
        None => "of an unknown kind",
    };
    Err(NodeError::UnknownEntry { index, kind })
}
