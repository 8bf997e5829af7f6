//! `/livez`: the process answers. `/readyz`: a replica is placed, loaded and serving, or else what is missing.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Json, Router, routing};
use serde::Serialize;

use super::Api;

pub(super) fn routes() -> Router<Arc<Api>> {
    Router::new()
        .route("/livez", routing::get(live))
        .route("/readyz", routing::get(ready))
}

#[derive(Serialize)]
struct Live {
    live: bool,
}

#[derive(Serialize)]
struct Ready {
    ready: bool,
    replica: u64,
    generation: u64,
}

#[derive(Serialize)]
struct NotReady {
    ready: bool,
    reason: String,
}

async fn live() -> Json<Live> {
    Json(Live { live: true })
}

async fn ready(State(api): State<Arc<Api>>) -> Response {
    match api.gateway.readiness() {
        Ok(fence) => Json(Ready {
            ready: true,
            replica: fence.replica.0,
            generation: fence.generation.0,
        })
        .into_response(),
        Err(missing) => {
            let body = NotReady {
                ready: false,
                reason: missing.to_string(),
            };
            (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
        }
    }
}
