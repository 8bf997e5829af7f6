//! `GET /v1/models` and `GET /v1/models/{id}`: the one model of the cluster, listed whether or not it serves.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::{Json, Router, routing};
use serde::Serialize;

use super::Api;
use super::error::{ApiError, ErrorKind};
use super::fields::shown;

pub(super) fn routes() -> Router<Arc<Api>> {
    Router::new()
        .route("/v1/models", routing::get(list))
        .route("/v1/models/{*id}", routing::get(one))
}

#[derive(Serialize)]
struct Model {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    /// Most tokens of prompt and answer together.
    max_model_len: u32,
}

#[derive(Serialize)]
struct List {
    object: &'static str,
    data: Vec<Model>,
}

fn model(api: &Api) -> Model {
    Model {
        id: api.model.name.clone(),
        object: "model",
        created: api.model.created,
        owned_by: "tramontane",
        max_model_len: api.model.max_context,
    }
}

async fn list(State(api): State<Arc<Api>>) -> Json<List> {
    Json(List {
        object: "list",
        data: vec![model(&api)],
    })
}

async fn one(State(api): State<Arc<Api>>, Path(id): Path<String>) -> Result<Json<Model>, ApiError> {
    if id == api.model.name {
        return Ok(Json(model(&api)));
    }
    let problem = format!(
        "{:?} does not exist, this cluster serves {:?}",
        shown(&id),
        api.model.name
    );
    Err(ApiError::field(ErrorKind::UnknownModel, "model", problem))
}
