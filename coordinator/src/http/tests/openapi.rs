//! The OpenAPI document against the routes and the parsers.

use std::collections::BTreeSet;

use super::*;
use crate::http::openapi::fields::Kind;
use crate::http::openapi::{OPERATIONS, Operation, document};
use crate::http::{fields, routes, unsupported};

fn paths() -> BTreeSet<(String, String)> {
    let each = OPERATIONS.iter();
    each.map(|operation| (operation.method.to_string(), operation.path.to_owned()))
        .collect()
}

/// A body that every parser reads to its end.
fn body_of(operation: &Operation) -> Value {
    match operation.path {
        "/v1/completions" => json!({"model": MODEL, "prompt": "a"}),
        "/v1/responses" => json!({"model": MODEL, "input": "a"}),
        "/tokenize" => json!({"model": MODEL, "messages": [{"role": "user", "content": "a"}]}),
        "/detokenize" => json!({"model": MODEL, "tokens": [7]}),
        _ => json!({"model": MODEL, "messages": [{"role": "user", "content": "a"}], "logprobs": true}),
    }
}

fn with_bodies() -> impl Iterator<Item = &'static Operation> {
    OPERATIONS.iter().filter(|operation| !operation.body.is_empty())
}

#[test]
fn every_route_is_described_and_no_other() {
    let served = routes();
    let served = served.listed().iter();
    let served: BTreeSet<_> = served
        .map(|(method, path)| (method.to_string(), path.replace("{*id}", "{id}")))
        .collect();
    assert_eq!(paths(), served);
}

#[tokio::test]
async fn the_document_is_whole() {
    let reply = world().get("/openapi.json").await.json();
    let model = ModelCard {
        name: MODEL.to_owned(),
        max_context: MAX_CONTEXT,
        created: 0,
    };
    assert_eq!(reply, document(&model, 8192));
    assert_eq!(reply["openapi"], "3.1.0");
    // Every reference leads somewhere.
    let text = reply.to_string();
    let references: BTreeSet<_> = text
        .split("\"$ref\":\"#/components/schemas/")
        .skip(1)
        .filter_map(|rest| rest.split('"').next())
        .collect();
    let schemas = reply["components"]["schemas"].as_object().unwrap();
    for name in &references {
        assert!(schemas.contains_key(*name), "{name}");
    }
    for name in schemas.keys() {
        assert!(
            references.contains(name.as_str()),
            "{name} is described and not used"
        );
    }
}

#[tokio::test]
async fn every_field_that_is_read_is_described() {
    let refused: BTreeSet<_> = unsupported::names().map(str::to_owned).collect();
    let world = world();
    for operation in with_bodies() {
        fields::asked::take();
        let reply = world.post(operation.path, body_of(operation)).await;
        assert_eq!(
            reply.status,
            StatusCode::OK,
            "{}: {:?}",
            operation.path,
            reply.body
        );
        let asked = fields::asked::take();
        let described = operation.body.iter().copied().flatten();
        let described: BTreeSet<_> = described.map(|field| field.name.to_owned()).collect();
        let unread: Vec<_> = described.difference(&asked).collect();
        assert!(unread.is_empty(), "{}: {unread:?} are not read", operation.path);
        let allowed = &described | &refused;
        let hidden: Vec<_> = asked.difference(&allowed).collect();
        assert!(
            hidden.is_empty(),
            "{}: {hidden:?} are not described",
            operation.path
        );
    }
}

/// Values just outside what a field takes.
fn outside(kind: Kind) -> Vec<Value> {
    let deep = (0..100).fold(json!([]), |inner, _| json!([inner]));
    let mut values = match kind {
        Kind::Integer(low, high) => {
            let high = high.unwrap_or(MAX_CONTEXT.into());
            vec![
                json!(low - 1),
                json!(high + 1),
                json!(1.5),
                json!("1"),
                json!(u64::MAX),
            ]
        }
        Kind::Number(low, high, open) => {
            let below = if open { low } else { low - 0.01 };
            vec![json!(below), json!(high + 0.01), json!("1")]
        }
        Kind::Seed => vec![json!(0.5), json!(1e30), json!("1")],
        Kind::Boolean => vec![json!(1), json!("true")],
        Kind::Text | Kind::Model => vec![json!(1), json!(true)],
        Kind::Words(_) => vec![json!("other"), json!(1)],
        Kind::Named(_) => vec![json!(1.5), json!(true)],
    };
    values.extend([json!({"a": {"b": []}}), deep, json!([[]])]);
    if !matches!(kind, Kind::Text) {
        values.push(json!("x".repeat(1 << 20)));
    }
    values
}

/// Values at the borders of what a field takes.
fn inside(kind: Kind) -> Vec<Value> {
    match kind {
        Kind::Integer(low, high) => vec![json!(low), json!(high.unwrap_or(16))],
        Kind::Number(low, high, open) => {
            let low = if open { low + 1e-9 } else { low };
            vec![json!(low), json!(high)]
        }
        Kind::Seed => vec![json!(i64::MIN), json!(u64::MAX)],
        Kind::Boolean => vec![json!(true), json!(false)],
        Kind::Words(words) => words.iter().map(|word| json!(word)).collect(),
        Kind::Text | Kind::Model | Kind::Named(_) => Vec::new(),
    }
}

#[tokio::test]
async fn types_and_ranges_are_what_the_parsers_hold_to() {
    let world = world();
    for operation in with_bodies() {
        for field in operation.body.iter().copied().flatten() {
            let with = |value: &Value| {
                let mut body = body_of(operation);
                if (operation.path, field.name) == ("/tokenize", "prompt") {
                    body = json!({});
                }
                body[field.name] = value.clone();
                body
            };
            for value in outside(field.kind) {
                // Any names will do there.
                if matches!(field.name, "metadata" | "guided_json") && value.is_object() {
                    continue;
                }
                let reply = world.post(operation.path, with(&value)).await;
                let status = reply.status;
                let expected = match (field.kind, &value) {
                    (Kind::Model, Value::String(_)) => StatusCode::NOT_FOUND,
                    _ => StatusCode::BAD_REQUEST,
                };
                let shown: String = value.to_string().chars().take(100).collect();
                assert_eq!(status, expected, "{} {} {shown}", operation.path, field.name);
                let param = reply.json()["error"]["param"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned();
                assert!(
                    param.starts_with(field.name),
                    "{param}, not {} {shown}",
                    field.name
                );
            }
            for value in inside(field.kind) {
                let mut body = with(&value);
                match field.name {
                    "top_logprobs" => body["logprobs"] = json!(true),
                    "max_tokens" if value == json!(0) => body["echo"] = json!(true),
                    _ => {}
                }
                let reply = world.post(operation.path, body).await;
                assert_eq!(
                    reply.status,
                    StatusCode::OK,
                    "{} {value}: {:?}",
                    field.name,
                    reply.body
                );
            }
            let mut body = body_of(operation);
            if body.get(field.name).is_none() {
                body[field.name] = Value::Null;
                let reply = world.post(operation.path, body).await;
                assert_eq!(reply.status, StatusCode::OK, "{}: {:?}", field.name, reply.body);
            }
        }
    }
}
