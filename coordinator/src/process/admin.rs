//! Operators' requests over HTTP, answered by the leader.

use axum::body::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tramontane_model::ids::Fence;

use crate::http::{ClusterAdmin, ClusterAdminError};
use crate::rpc::admin::Leader;
use crate::rpc::desk::AskError;

/// Asks whoever leads.
pub(super) struct LeaderAdmin(pub(super) Leader);

impl ClusterAdmin for LeaderAdmin {
    fn status(&self) -> BoxFuture<'_, Result<Bytes, ClusterAdminError>> {
        async { self.0.status().await.map_err(error) }.boxed()
    }

    fn replan(&self) -> BoxFuture<'_, Result<Fence, ClusterAdminError>> {
        async { self.0.replan().await.map_err(error) }.boxed()
    }
}

fn error(error: AskError) -> ClusterAdminError {
    match error {
        AskError::NotLeader { .. } | AskError::Unavailable(_) => {
            ClusterAdminError::NoLeader(error.to_string())
        }
        AskError::Refused(why) => ClusterAdminError::Refused(why),
    }
}
