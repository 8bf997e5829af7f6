//! `GET /cluster/status` and `POST /cluster/replan`: what the leader sees, and asking it to plan anew.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use futures_util::future::BoxFuture;
use serde::Serialize;
use tokio::time::timeout;
use tramontane_model::ids::Fence;

use super::error::{ApiError, ErrorKind};
use super::table::Routes;
use super::{ADMIN_DEADLINE, Api};

/// The cluster as operators see it. Implemented by the process, which asks the leader.
pub trait ClusterAdmin: Send + Sync + 'static {
    /// The status as a JSON text.
    fn status(&self) -> BoxFuture<'_, Result<Bytes, ClusterAdminError>>;
    /// Plans the model anew over everything that has joined; the generation that is being placed.
    fn replan(&self) -> BoxFuture<'_, Result<Fence, ClusterAdminError>>;
}

/// Why the leader's answer cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClusterAdminError {
    /// Nobody leads, or the leader is out of reach.
    #[error("the leader cannot be asked: {0}")]
    NoLeader(String),
    /// The leader refused.
    #[error("the leader refused: {0}")]
    Refused(String),
}

impl From<ClusterAdminError> for ApiError {
    fn from(error: ClusterAdminError) -> Self {
        let kind = match &error {
            ClusterAdminError::NoLeader(_) => ErrorKind::NoLeader,
            ClusterAdminError::Refused(_) => ErrorKind::Conflict,
        };
        Self::new(kind, error)
    }
}

#[derive(Serialize)]
struct Replanned {
    replica: u64,
    generation: u64,
}

pub(super) fn routes() -> Routes {
    Routes::new()
        .get("/cluster/status", status)
        .post("/cluster/replan", replan)
}

async fn status(State(api): State<Arc<Api>>) -> Result<impl IntoResponse, ApiError> {
    let status = in_time(api.cluster.status()).await?;
    Ok(([(CONTENT_TYPE, "application/json")], status))
}

async fn replan(State(api): State<Arc<Api>>) -> Result<Json<Replanned>, ApiError> {
    let fence = in_time(api.cluster.replan()).await?;
    Ok(Json(Replanned {
        replica: fence.replica.0,
        generation: fence.generation.0,
    }))
}

async fn in_time<T>(answer: BoxFuture<'_, Result<T, ClusterAdminError>>) -> Result<T, ApiError> {
    match timeout(ADMIN_DEADLINE, answer).await {
        Ok(answer) => Ok(answer?),
        Err(_) => {
            let late = format!("it did not answer within {} s", ADMIN_DEADLINE.as_secs());
            Err(ClusterAdminError::NoLeader(late).into())
        }
    }
}
