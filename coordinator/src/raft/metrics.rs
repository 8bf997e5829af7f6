//! What raft tells Prometheus; every name starts with `tramontane_raft_`.

use std::time::Duration;

/// Seconds that one fsync of the log took.
pub(crate) fn fsync(took: Duration) {
    metrics::histogram!("tramontane_raft_fsync_seconds").record(took.as_secs_f64());
}
