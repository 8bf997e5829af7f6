//! `/livez`: the process answers. `/readyz`: a replica is placed, loaded and serving, and no shutdown has begun, or else
//! what is missing.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::Api;
use super::table::Routes;
use crate::gateway::GatewayError;

pub(super) fn routes() -> Routes {
    Routes::new().get("/livez", live).get("/readyz", ready)
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
    let readiness = match api.gateway.is_closing() {
        true => Err(GatewayError::ShuttingDown.to_string()),
        false => api.gateway.readiness().map_err(|missing| missing.to_string()),
    };
    match readiness {
        Ok(fence) => Json(Ready {
            ready: true,
            replica: fence.replica.0,
            generation: fence.generation.0,
        })
        .into_response(),
        Err(reason) => {
            let body = NotReady { ready: false, reason };
            (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
        }
    }
}
