//! `GET /v1/models` and `GET /v1/models/{id}`, and the same for Mistral's clients: the one model of the cluster, listed
//! whether or not it serves.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use serde::Serialize;

use super::Api;
use super::error::{ApiError, ErrorKind};
use super::fields::shown;
use super::table::Routes;

pub(super) fn routes() -> Routes {
    Routes::new()
        .get("/v1/models", list)
        .get("/v1/models/{*id}", one)
        .get("/mistral/v1/models", list_mistral)
        .get("/mistral/v1/models/{*id}", one_mistral)
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

/// As Mistral's clients read it.
#[derive(Serialize)]
struct MistralModel {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    name: String,
    max_context_length: u32,
    r#type: &'static str,
    capabilities: Capabilities,
}

#[derive(Serialize)]
struct Capabilities {
    completion_chat: bool,
    function_calling: bool,
    reasoning: bool,
    completion_fim: bool,
    fine_tuning: bool,
    vision: bool,
}

#[derive(Serialize)]
struct List<M> {
    object: &'static str,
    data: [M; 1],
}

fn list_of<M>(model: M) -> Json<List<M>> {
    Json(List {
        object: "list",
        data: [model],
    })
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

fn mistral_model(api: &Api) -> MistralModel {
    MistralModel {
        id: api.model.name.clone(),
        object: "model",
        created: api.model.created,
        owned_by: "tramontane",
        name: api.model.name.clone(),
        max_context_length: api.model.max_context,
        r#type: "base",
        capabilities: Capabilities {
            completion_chat: true,
            function_calling: true,
            reasoning: api.tokenizer.has_reasoning(),
            completion_fim: false,
            fine_tuning: false,
            vision: false,
        },
    }
}

async fn list(State(api): State<Arc<Api>>) -> Json<List<Model>> {
    list_of(model(&api))
}

async fn list_mistral(State(api): State<Arc<Api>>) -> Json<List<MistralModel>> {
    list_of(mistral_model(&api))
}

async fn one(State(api): State<Arc<Api>>, Path(id): Path<String>) -> Result<Json<Model>, ApiError> {
    known(&api, &id)?;
    Ok(Json(model(&api)))
}

async fn one_mistral(
    State(api): State<Arc<Api>>,
    Path(id): Path<String>,
) -> Result<Json<MistralModel>, ApiError> {
    known(&api, &id)?;
    Ok(Json(mistral_model(&api)))
}

fn known(api: &Api, id: &str) -> Result<(), ApiError> {
    if id == api.model.name {
        return Ok(());
    }
    let problem = format!(
        "{:?} does not exist, this cluster serves {:?}",
        shown(id),
        api.model.name
    );
    Err(ApiError::field(ErrorKind::UnknownModel, "model", problem))
}
