//! Tells the leader of this coordinator until the cluster's state has it, so that status lists everybody.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tramontane_model::ids::CoordinatorId;

use crate::control::state::{ClusterState, CoordinatorEntry};
use crate::raft::RaftHandle;
use crate::rpc::admin::Leader;

/// Pause between two attempts.
const PAUSE: Duration = Duration::from_millis(250);

/// Announces `entry` whenever the state says something else, until `stop`.
pub(super) async fn run(
    id: CoordinatorId,
    entry: CoordinatorEntry,
    leader: Leader,
    raft: RaftHandle<ClusterState>,
    stop: CancellationToken,
) {
    let announced = async {
        let mut states = raft.watch_state();
        loop {
            let listed = |state: &ClusterState| state.coordinators.get(&id) == Some(&entry);
            if states.wait_for(|applied| !listed(&applied.view)).await.is_err() {
                return;
            }
            // Asking for the status tells the leader who asks.
            if let Err(error) = leader.status().await {
                tracing::debug!(%error, "the leader was not told of this coordinator");
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = announced => {}
    }
}
