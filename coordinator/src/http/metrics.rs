//! `GET /metrics`: everything the process counts, in Prometheus' text format.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::{Router, routing};

use super::Api;

/// Version 0.0.4 of the text exposition format.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

pub(super) fn routes() -> Router<Arc<Api>> {
    Router::new().route("/metrics", routing::get(show))
}

async fn show(State(api): State<Arc<Api>>) -> impl IntoResponse {
    ([(CONTENT_TYPE, TEXT_FORMAT)], api.metrics.render())
}
