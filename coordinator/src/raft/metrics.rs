//! What raft tells Prometheus; every name starts with `tramontane_raft_`.

use std::time::Duration;

use metrics::{counter, gauge, histogram};
use tramontane_model::ids::CoordinatorId;

use super::node::{ProposeError, RaftStatus};

/// Seconds that one fsync of the log took.
pub(crate) fn fsync(took: Duration) {
    histogram!("tramontane_raft_fsync_seconds").record(took.as_secs_f64());
}

/// The node's state. Without a leader `tramontane_raft_leader` is 0.
pub(crate) fn status(status: &RaftStatus) {
    let set = |name: &'static str, value: u64| {
        // Indexes and terms stay far below 2^53, where a float still counts one by one.
        #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
        gauge!(name).set(value as f64);
    };
    set("tramontane_raft_term", status.term);
    set(
        "tramontane_raft_leader",
        status.leader.map_or(0, |leader| leader.0),
    );
    set("tramontane_raft_commit_index", status.commit);
    set("tramontane_raft_applied_index", status.applied);
    set("tramontane_raft_last_index", status.last_index);
    set("tramontane_raft_checkpoint_index", status.checkpoint_index);
    set("tramontane_raft_voters", status.voters.len() as u64);
    let learners = status.members.iter().filter(|id| !status.voters.contains(id));
    set("tramontane_raft_learners", learners.count() as u64);
}

/// Whether the log failed, from the start.
pub(crate) fn log_works() {
    gauge!("tramontane_raft_log_failed").set(0.0);
}

/// The log cannot be written.
pub(crate) fn log_failed() {
    gauge!("tramontane_raft_log_failed").set(1.0);
}

/// A proposal of this coordinator was answered.
pub(crate) fn proposal<T>(result: &Result<T, ProposeError>) {
    let outcome = match result {
        Ok(_) => "committed",
        Err(ProposeError::NotLeader { .. }) => "not_leader",
        Err(ProposeError::Empty | ProposeError::TooLarge { .. }) => "refused",
        Err(ProposeError::Busy) => "busy",
        Err(ProposeError::Dropped) => "dropped",
        Err(ProposeError::TimedOut) => "timed_out",
        Err(ProposeError::Unknown) => "unknown",
        Err(ProposeError::ShuttingDown) => "shutting_down",
    };
    counter!("tramontane_raft_proposals_total", "outcome" => outcome).increment(1);
}

/// A message to a peer was not sent.
pub(crate) fn dropped(peer: CoordinatorId, why: &'static str) {
    counter!("tramontane_raft_messages_dropped_total", "peer" => peer.to_string(), "why" => why).increment(1);
}

/// A message from a peer was not taken.
pub(crate) fn refused(why: &'static str) {
    counter!("tramontane_raft_messages_refused_total", "why" => why).increment(1);
}
