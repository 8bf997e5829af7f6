//! The other routes, and what every route has in common.

use futures_util::StreamExt;

use super::*;
use crate::gateway::scripted::{loading, unplaceable};

fn error(message: &str, kind: &str, param: Value, code: &str) -> Value {
    json!({"error": {"message": message, "type": kind, "param": param, "code": code}})
}

#[tokio::test]
async fn the_model_is_listed_whether_or_not_it_serves() {
    let world = world();
    world.routes.send_replace(Arc::new(unplaceable()));
    let model = json!({
        "id": MODEL,
        "object": "model",
        "created": 1_700_000_000,
        "owned_by": "tramontane",
        "max_model_len": 4096,
    });
    assert_eq!(
        world.get("/v1/models").await.json(),
        json!({"object": "list", "data": [model]})
    );
    assert_eq!(world.get("/v1/models/mini-large-3").await.json(), model);
    let other = world.get("/v1/models/org/other").await;
    assert_eq!(other.status, StatusCode::NOT_FOUND);
    let message = "model: \"org/other\" does not exist, this cluster serves \"mini-large-3\"";
    assert_eq!(
        other.json(),
        error(
            message,
            "invalid_request_error",
            json!("model"),
            "model_not_found"
        )
    );
}

#[tokio::test]
async fn readiness_says_what_is_missing() {
    let world = world();
    assert_eq!(world.get("/livez").await.json(), json!({"live": true}));
    let ready = world.get("/readyz").await;
    assert_eq!(
        (ready.status, ready.json()),
        (
            StatusCode::OK,
            json!({"ready": true, "replica": 1, "generation": 1})
        )
    );
    for (routes, reason) in [
        (
            loading(2),
            "no replica serves: replica 1 generation 2 is loading, 25 of 100 bytes so far",
        ),
        (
            unplaceable(),
            "no replica serves: the model needs 1000 bytes more than all devices have",
        ),
    ] {
        world.routes.send_replace(Arc::new(routes));
        let reply = world.get("/readyz").await;
        assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(reply.json(), json!({"ready": false, "reason": reason}));
        assert_eq!(world.get("/livez").await.status, StatusCode::OK);

        for stream in [false, true] {
            let refused = world.complete(json!({"prompt": "a", "stream": stream})).await;
            assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
            assert_eq!(
                refused.json(),
                error(reason, "server_error", json!(null), "not_serving")
            );
            assert_eq!(refused.headers["retry-after"], "1");
        }
    }
}

#[tokio::test]
async fn the_cluster_is_asked_of_the_leader() {
    let world = world();
    let status = world.get("/cluster/status").await;
    assert_eq!(status.headers["content-type"], "application/json");
    assert_eq!(status.json(), cluster_status());
    let replanned = world.send(Method::POST, "/cluster/replan", "").await;
    assert_eq!(replanned.json(), json!({"replica": 1, "generation": 8}));

    let headless = Setup {
        leader: false,
        ..Setup::default()
    }
    .build();
    let status = headless.get("/cluster/status").await;
    assert_eq!(status.status, StatusCode::SERVICE_UNAVAILABLE);
    let message = "the leader cannot be asked: an election is on";
    assert_eq!(
        status.json(),
        error(message, "server_error", json!(null), "no_leader")
    );
    let replanned = headless.send(Method::POST, "/cluster/replan", "").await;
    assert_eq!(replanned.status, StatusCode::CONFLICT);
    let message = "the leader refused: no worker has joined";
    assert_eq!(
        replanned.json(),
        error(message, "invalid_request_error", json!(null), "conflict")
    );
}

#[tokio::test]
async fn unknown_routes_and_methods_get_an_error_of_the_same_shape() {
    let world = world();
    let unknown = world.get("/v2/models").await;
    assert_eq!(unknown.status, StatusCode::NOT_FOUND);
    let kind = "invalid_request_error";
    assert_eq!(
        unknown.json(),
        error("there is no route /v2/models", kind, json!(null), "unknown_route")
    );
    let method = world.get("/v1/completions").await;
    assert_eq!(method.status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(method.headers["allow"], "POST");
    assert_eq!(
        method.json(),
        error(
            "/v1/completions does not take GET",
            kind,
            json!(null),
            "method_not_allowed"
        )
    );
}

#[tokio::test(start_paused = true)]
async fn bodies_are_bounded_in_size_and_time() {
    let limits = ApiLimits {
        max_body_bytes: 1000,
        ..ApiLimits::default()
    };
    let world = Setup {
        limits,
        ..Setup::default()
    }
    .build();
    let message = "the body is too large, at most 1000 bytes are read";
    let expected = error(message, "invalid_request_error", json!(null), "body_too_large");
    let told = world
        .send(Method::POST, "/v1/completions", "a".repeat(1001))
        .await;
    assert_eq!(
        (told.status, told.json()),
        (StatusCode::PAYLOAD_TOO_LARGE, expected.clone())
    );
    let pieces = futures_util::stream::iter(["a"; 3]).map(|piece| Ok::<_, std::io::Error>(piece.repeat(400)));
    let untold = world
        .send(Method::POST, "/v1/completions", Body::from_stream(pieces))
        .await;
    assert_eq!(
        (untold.status, untold.json()),
        (StatusCode::PAYLOAD_TOO_LARGE, expected)
    );

    let first = futures_util::stream::iter([Ok::<_, std::io::Error>("{")]);
    let stalled = Body::from_stream(first.chain(futures_util::stream::pending()));
    let reply = world.send(Method::POST, "/v1/completions", stalled).await;
    assert_eq!(reply.status, StatusCode::REQUEST_TIMEOUT);
    let message = "the body did not come within 30 s";
    assert_eq!(
        reply.json(),
        error(message, "invalid_request_error", json!(null), "body_timeout")
    );
}

#[tokio::test]
async fn every_response_carries_an_id_of_its_own() {
    let world = world();
    let mut seen = std::collections::BTreeSet::new();
    for path in ["/livez", "/v1/models", "/nowhere", "/v1/completions", "/metrics"] {
        let reply = world.get(path).await;
        let id = reply.request_id();
        assert!(
            id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()),
            "{id}"
        );
        assert!(seen.insert(id.to_owned()));
    }
}

#[tokio::test]
async fn requests_and_tokens_are_counted() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    let _recording = metrics::set_default_local_recorder(&recorder);
    crate::http::describe_metrics();
    let world = world();
    world.complete(json!({"prompt": QUESTION})).await;
    world
        .complete(json!({"prompt": QUESTION, "stop": "capital"}))
        .await;
    world.complete(json!({"prompt": 5})).await;
    world.get("/nowhere").await;
    world.all_closed().await;
    // Tasks of requests count their end when they have closed their streams.
    tokio::task::yield_now().await;
    let text = handle.render();
    for line in [
        "tramontane_http_requests_total{route=\"/v1/completions\",status=\"200\"} 2",
        "tramontane_http_requests_total{route=\"/v1/completions\",status=\"400\"} 1",
        "tramontane_http_requests_total{route=\"unmatched\",status=\"404\"} 1",
        "tramontane_prompt_tokens_total 24",
        "tramontane_requests_ended_total{end=\"stop\"} 2",
        "tramontane_requests_live 0",
        "tramontane_time_to_first_token_seconds_count 2",
    ] {
        assert!(
            text.lines().any(|found| found == line),
            "{line} is not in\n{text}"
        );
    }
    assert!(!text.contains("capital"));
    let shown = world.get("/metrics").await;
    assert_eq!(
        shown.headers["content-type"],
        "text/plain; version=0.0.4; charset=utf-8"
    );
    let text = handle.render();
    for line in [
        "tramontane_workers 1",
        "tramontane_device_held_bytes{worker=\"w1\",device=\"0\"} 4096",
        "tramontane_device_loaded_bytes{worker=\"w1\",device=\"0\"} 3",
        "tramontane_device_load_bytes{worker=\"w1\",device=\"0\"} 9",
        "tramontane_device_load_bytes_per_second{worker=\"w1\",device=\"0\"} 2",
        "tramontane_device_load_seconds_left{worker=\"w1\",device=\"0\"} 3",
        "tramontane_replica_generation{replica=\"1\"} 7",
        "tramontane_sequences_running{replica=\"1\"} 2",
        "tramontane_kv_blocks_used{replica=\"1\"} 3",
        "tramontane_kv_blocks_total{replica=\"1\"} 64",
    ] {
        assert!(
            text.lines().any(|found| found == line),
            "{line} is not in\n{text}"
        );
    }
}
