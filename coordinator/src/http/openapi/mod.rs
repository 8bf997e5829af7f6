//! `GET /openapi.json`: what is served, as an OpenAPI 3.1 document.
//!
//! Tests compare it with the table of routes and with what the parsers ask for, so it cannot drift from either.

mod choosing;
pub(super) mod fields;
mod replies;
mod responses;

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::Method;
use serde_json::{Map, Value, json};

use super::table::Routes;
use super::{Api, ModelCard, idempotency};
use choosing::CHOOSING;
use fields::{CHAT, COMPLETION, DETOKENIZE, Field, LIMITS, SHARED, TOKENIZE};
use responses::RESPONSES;

pub(super) fn routes() -> Routes {
    Routes::new().get("/openapi.json", show)
}

async fn show(State(api): State<Arc<Api>>) -> Json<Value> {
    Json(document(&api.model, api.tokenizer.vocab_size()))
}

/// A route: what it is for, what it takes and gives.
pub(super) struct Operation {
    pub(super) method: Method,
    pub(super) path: &'static str,
    about: &'static str,
    /// Tables of the body's fields; none if there is no body.
    pub(super) body: &'static [&'static [Field]],
    required: &'static [&'static str],
    /// Name of the reply's schema; none for plain text.
    reply: Option<&'static str>,
    /// Name of the schema of a stream's events.
    event: Option<&'static str>,
}

const fn get(path: &'static str, reply: Option<&'static str>, about: &'static str) -> Operation {
    Operation {
        method: Method::GET,
        path,
        about,
        body: &[],
        required: &[],
        reply,
        event: None,
    }
}

const fn post(
    path: &'static str,
    body: &'static [&'static [Field]],
    required: &'static [&'static str],
    (reply, event): (&'static str, Option<&'static str>),
    about: &'static str,
) -> Operation {
    Operation {
        method: Method::POST,
        path,
        about,
        body,
        required,
        reply: Some(reply),
        event,
    }
}

/// Every route.
pub(super) const OPERATIONS: &[Operation] = &[
    get("/v1/models", Some("Models"), "The served model."),
    get("/v1/models/{id}", Some("Model"), "One model."),
    get(
        "/mistral/v1/models",
        Some("MistralModels"),
        "The served model, as Mistral's clients read it.",
    ),
    get(
        "/mistral/v1/models/{id}",
        Some("MistralModel"),
        "One model, as Mistral's clients read it.",
    ),
    post(
        "/v1/chat/completions",
        &[SHARED, LIMITS, CHOOSING, CHAT],
        &["model", "messages"],
        ("ChatCompletion", Some("ChatChunk")),
        "Answers a conversation. Fields of Mistral's own make the response one of /mistral/v1/chat/completions.",
    ),
    post(
        "/mistral/v1/chat/completions",
        &[SHARED, LIMITS, CHOOSING, CHAT],
        &["model", "messages"],
        ("MistralCompletion", Some("MistralChunk")),
        "Answers a conversation, for Mistral's clients.",
    ),
    post(
        "/v1/completions",
        &[SHARED, LIMITS, CHOOSING, COMPLETION],
        &["model", "prompt"],
        ("TextCompletion", Some("TextCompletion")),
        "Continues prompts.",
    ),
    post(
        "/v1/responses",
        &[SHARED, CHOOSING, RESPONSES],
        &["model", "input"],
        ("Response", Some("ResponseEvent")),
        "Answers a conversation of items.",
    ),
    post(
        "/tokenize",
        &[TOKENIZE],
        &[],
        ("Tokens", None),
        "Token ids of a text or a conversation.",
    ),
    post(
        "/detokenize",
        &[DETOKENIZE],
        &["tokens"],
        ("Detokenized", None),
        "The text of token ids.",
    ),
    get("/version", Some("Version"), "The version of this server."),
    get("/openapi.json", Some("Document"), "This document."),
    get("/livez", Some("Live"), "Whether the process answers."),
    get(
        "/readyz",
        Some("Ready"),
        "Whether a replica serves; 503 with a reason otherwise.",
    ),
    get("/metrics", None, "Metrics in Prometheus' text format."),
    get(
        "/cluster/status",
        Some("Status"),
        "The cluster as its leader sees it.",
    ),
    post(
        "/cluster/replan",
        &[],
        &[],
        ("Replanned", None),
        "Plans the model anew over all workers.",
    ),
];

/// The document of a server of this model, with so many tokens.
pub(super) fn document(model: &ModelCard, vocab_size: usize) -> Value {
    let mut paths = Map::new();
    for operation in OPERATIONS {
        let path = paths.entry(operation.path).or_insert_with(|| json!({}));
        path[operation.method.as_str().to_ascii_lowercase()] = operation.describe(model);
    }
    let mut schemas = fields::named(vocab_size);
    for more in [replies::schemas(), responses::schemas()] {
        if let (Some(all), Value::Object(more)) = (schemas.as_object_mut(), more) {
            all.extend(more);
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Tramontane",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Other fields of the request bodies are ignored, or refused with the code \
                unsupported_parameter where they would change the answer. Every response carries X-Request-Id.",
        },
        "paths": paths,
        "components": {"schemas": schemas},
    })
}

impl Operation {
    /// Whether the answer may be a stream.
    #[cfg(test)]
    pub(super) fn streams(&self) -> bool {
        self.event.is_some()
    }

    fn describe(&self, model: &ModelCard) -> Value {
        let named = |name: &str| json!({"schema": {"$ref": format!("#/components/schemas/{name}")}});
        let mut content = Map::new();
        match self.reply {
            Some(name) => content.insert("application/json".to_owned(), named(name)),
            None => content.insert("text/plain".to_owned(), json!({"schema": {"type": "string"}})),
        };
        if let Some(name) = self.event {
            let mut data = vec![json!({
                "type": "string",
                "contentMediaType": "application/json",
                "contentSchema": {"$ref": format!("#/components/schemas/{name}")},
            })];
            // Responses end with an event of their own.
            if name != "ResponseEvent" {
                data.push(json!({"const": "[DONE]"}));
            }
            content.insert(
                "text/event-stream".to_owned(),
                json!({"schema": {
                    "description": "Of each event.",
                    "type": "object",
                    "required": ["data"],
                    "properties": {"data": {"anyOf": data}},
                }}),
            );
        }
        let of_mistral = self.path.starts_with("/mistral/");
        let error = named(if of_mistral { "MistralError" } else { "Error" });
        let error = json!({"application/json": error});
        let mut operation = json!({
            "summary": self.about,
            "responses": {
                "200": {"description": "As asked.", "content": content},
                "4XX": {"description": "The request cannot be served as it is.", "content": error},
                "5XX": {"description": "The request could not be completed.", "content": error},
            },
        });
        if self.path.contains("{id}") {
            operation["parameters"] = json!([{"name": "id", "in": "path", "required": true, "schema": {
                "type": "string"}}]);
        }
        if idempotency::ROUTES.contains(&self.path) {
            operation["parameters"] = json!([{
                "name": idempotency::HEADER,
                "in": "header",
                "required": false,
                "description": "Tells a request that comes again: it gets the same answer, on any coordinator.",
                "schema": {"type": "string", "pattern": format!("^[!-~]{{1,{}}}$", idempotency::MAX_KEY_BYTES)},
            }]);
        }
        if !self.body.is_empty() {
            let fields = self.body.iter().copied().flatten();
            let properties: Map<_, _> = fields
                .map(|field| (field.name.to_owned(), field.schema(model)))
                .collect();
            let mut schema = json!({"type": "object", "properties": properties, "required": self.required});
            for &name in self.required {
                fields::without_null(&mut schema["properties"][name]);
            }
            operation["requestBody"] = json!({
                "required": true,
                "content": {"application/json": {"schema": schema}},
            });
        }
        operation
    }
}
