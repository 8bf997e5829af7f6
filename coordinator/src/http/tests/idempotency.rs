//! Requests that come again with their key.

use axum::body::BodyDataStream;
use futures_util::StreamExt;
use tramontane_proto::Ended;

use super::chat::two_calls;
use super::*;
use crate::http::idempotency::ROUTES;
use crate::http::openapi::OPERATIONS;

const KEY: &str = "8e03978e-40d5-43dd-bc93-6894a57f9324";

fn keyed(path: &str, key: &str, fields: Value) -> Request<Body> {
    let request = Request::post(path).header("Idempotency-Key", key);
    request.body(with_model(fields).to_string().into()).unwrap()
}

impl World {
    async fn again(&self, key: &str, fields: Value) -> Reply {
        self.ask(keyed("/v1/completions", key, fields)).await
    }

    /// The body of a stream, to be read or dropped.
    async fn begin(&self, key: &str, fields: Value) -> BodyDataStream {
        let request = keyed("/v1/completions", key, fields);
        let response = self.app.router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        response.into_body().into_data_stream()
    }

    fn asked(&self) -> usize {
        self.heads.seen().len()
    }
}

fn is_replayed(reply: &Reply) -> bool {
    reply.headers.contains_key("idempotent-replayed")
}

#[tokio::test]
async fn the_same_request_gets_the_same_answer_and_asks_no_head_again() {
    let world = world();
    for fields in [
        json!({"prompt": [7], "n": 2}),
        json!({"prompt": [7], "stream": true, "n": 2}),
    ] {
        let (key, before) = (fields.to_string().replace(' ', ""), world.asked());
        let first = world.again(&key, fields.clone()).await;
        assert_eq!(first.status, StatusCode::OK, "{first:?}");
        assert!(!is_replayed(&first));
        let again = world.again(&key, fields).await;
        assert!(is_replayed(&again));
        assert_eq!(again.body, first.body);
        assert_eq!(again.headers["content-type"], first.headers["content-type"]);
        assert_ne!(again.request_id(), first.request_id());
        assert_eq!(world.asked(), before + 2);
    }
}

#[tokio::test]
async fn another_request_of_the_same_key_is_refused() {
    let world = world();
    assert_eq!(
        world.again(KEY, json!({"prompt": [7]})).await.status,
        StatusCode::OK
    );
    for request in [
        keyed("/v1/completions", KEY, json!({"prompt": [8]})),
        keyed("/v1/chat/completions", KEY, json!({"prompt": [7]})),
    ] {
        let reply = world.ask(request).await;
        assert_eq!(reply.status, StatusCode::UNPROCESSABLE_ENTITY);
        let error = &reply.json()["error"];
        assert_eq!(error["code"], "idempotency_key_reused");
        assert_eq!(error["param"], "Idempotency-Key");
    }
    let other = world.again("another", json!({"prompt": [8]})).await;
    assert_eq!(other.status, StatusCode::OK);
}

#[tokio::test]
async fn keys_are_checked_on_every_route_that_takes_them() {
    let world = world();
    for path in ROUTES {
        let reply = world.ask(keyed(path, "a key", json!({}))).await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{path}");
        let message = reply.json()["error"]["message"].to_string();
        assert!(
            message.contains("Idempotency-Key: must be visible ASCII"),
            "{message}"
        );
    }
    // Elsewhere the header says nothing.
    let reply = world
        .ask(keyed("/tokenize", "a key", json!({"prompt": "a"})))
        .await;
    assert_eq!(reply.status, StatusCode::OK);
}

#[test]
fn the_routes_that_take_keys_are_those_that_stream() {
    let streaming = OPERATIONS.iter().filter(|operation| operation.streams());
    let mut streaming: Vec<_> = streaming.map(|operation| operation.path).collect();
    let mut routes = ROUTES.to_vec();
    streaming.sort_unstable();
    routes.sort_unstable();
    assert_eq!(routes, streaming);
}

#[tokio::test]
async fn on_another_coordinator_seed_and_ids_are_the_same() {
    let fields = json!({"prompt": [7], "n": 2, "temperature": 1});
    let (one, other) = (world(), world());
    let replies = [
        one.again(KEY, fields.clone()).await,
        other.again(KEY, fields.clone()).await,
    ];
    let seeds = [&one, &other].map(|world| {
        let seen = world.heads.seen();
        let seeds: Vec<_> = seen
            .iter()
            .map(|(_, submission)| submission.sampling.seed)
            .collect();
        assert_eq!(seeds.len(), 2);
        // Names in the cluster are never shared.
        (seeds, seen[0].1.request)
    });
    assert_eq!(seeds[0].0, seeds[1].0);
    assert_ne!(seeds[0].1, seeds[1].1);
    let without_time = |reply: &Reply| {
        let mut body = reply.json();
        body["created"] = json!(0);
        body
    };
    assert_eq!(without_time(&replies[0]), without_time(&replies[1]));
    // A seed that the request names prevails; another key is another seed.
    let seed_of = async |key: &str, fields: Value| {
        let world = world();
        world.again(key, fields).await;
        world.heads.seen()[0].1.sampling.seed
    };
    assert_eq!(seed_of(KEY, json!({"prompt": [7], "seed": 5})).await, 5);
    assert_ne!(seed_of("another", fields).await, seeds[0].0[0]);
}

#[tokio::test]
async fn ids_of_calls_follow_from_the_key() {
    let body = json!({
        "messages": [{"role": "user", "content": "a"}],
        "tools": [{"type": "function", "function": {"name": "get_time", "parameters": {"type": "object"}}}],
        "n": 2,
    });
    let ids = async |key: &str| {
        let reply = saying(&two_calls())
            .ask(keyed("/v1/chat/completions", key, body.clone()))
            .await
            .json();
        let id = |choice: usize| reply["choices"][choice]["message"]["tool_calls"][0]["id"].to_string();
        [id(0), id(1)]
    };
    let first = ids(KEY).await;
    assert!(first[0].len() > 9 && first[0] != first[1], "{first:?}");
    assert_eq!(ids(KEY).await, first);
    assert_ne!(ids("another").await, first);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_comes_back_reads_on_and_one_that_does_not_frees_the_head() {
    let setup = || Setup {
        acts: vec![Act::HangAfter(3)],
        ..Setup::default()
    };
    let world = setup().build();
    let fields = json!({"prompt": [7], "stream": true});
    let mut first = world.begin(KEY, fields.clone()).await;
    let beginning = first.next().await.unwrap().unwrap();
    drop(first);
    let mut second = world.begin(KEY, fields.clone()).await;
    assert_eq!(second.next().await.unwrap().unwrap(), beginning);
    assert_eq!((world.asked(), *world.heads.open().borrow()), (1, 1));
    drop(second);
    world.all_closed().await;
    // The key is free, and the answer is made anew.
    let whole = world.again(KEY, fields).await;
    assert!(!is_replayed(&whole));
    assert_eq!(world.asked(), 2);
    assert!(whole.body.starts_with(&beginning));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_failed_is_not_given_again() {
    for fields in [json!({"prompt": [7]}), json!({"prompt": [7], "stream": true})] {
        let world = Setup {
            acts: vec![Act::EndAfter(2, Ended::Deadline)],
            ..Setup::default()
        }
        .build();
        let failed = world.again(KEY, fields.clone()).await;
        assert!(
            failed.body.windows(17).any(|part| part == b"deadline_exceeded"),
            "{failed:?}"
        );
        let whole = world.again(KEY, fields).await;
        assert!(!is_replayed(&whole) && whole.status == StatusCode::OK);
        assert_eq!(world.asked(), 2);
    }
    let world = world();
    let wrong = world.again(KEY, json!({"prompt": [7], "temperature": 9})).await;
    assert_eq!(wrong.status, StatusCode::BAD_REQUEST);
    assert_eq!(
        world.again(KEY, json!({"prompt": [7]})).await.status,
        StatusCode::OK
    );
}

#[tokio::test]
async fn errors_of_mistrals_routes_are_in_its_form() {
    let world = world();
    let fields = |temperature: f64| json!({"messages": [{"role": "user", "content": "a"}], "temperature": temperature});
    let path = "/mistral/v1/chat/completions";
    let wrong = world.ask(keyed(path, KEY, fields(9.0))).await;
    assert_eq!(
        (wrong.status, &wrong.json()["object"]),
        (StatusCode::BAD_REQUEST, &json!("error"))
    );
    world.ask(keyed(path, KEY, fields(1.0))).await;
    let reused = world.ask(keyed(path, KEY, fields(0.5))).await;
    assert_eq!(reused.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(reused.json()["object"], "error");
}
