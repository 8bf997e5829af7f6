//! What a client sees when heads die, queues fill and clients leave.

use axum::body::BodyDataStream;
use futures_util::StreamExt;
use tokio::time::timeout;
use tramontane_proto::Ended;

use super::*;
use crate::gateway::HeadError;

const LATE: Duration = Duration::from_secs(10_000);

fn dying() -> Vec<Act> {
    vec![
        Act::BreakAfter(4),
        Act::Refuse(HeadError::Unavailable {
            address: "w1:7000".to_owned(),
            detail: "connection refused".to_owned(),
        }),
        Act::EndAfter(3, Ended::Failed("stage 1 is gone".to_owned())),
    ]
}

fn faulty(acts: Vec<Act>) -> World {
    Setup {
        acts,
        ..Setup::default()
    }
    .build()
}

impl World {
    /// The body of a streamed completion, to be read or dropped.
    async fn open_stream(&self, fields: Value) -> BodyDataStream {
        let body = with_model(fields).to_string();
        let request = Request::post("/v1/completions").body(Body::from(body)).unwrap();
        let response = self.app.router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        response.into_body().into_data_stream()
    }
}

#[tokio::test(start_paused = true)]
async fn a_dying_head_changes_nothing_in_the_answer() {
    let fields = json!({"prompt": [7], "logprobs": 2, "return_tokens_as_token_ids": true});
    let clean = world().complete(fields.clone()).await;
    let broken = faulty(dying()).complete(fields.clone()).await;
    assert_eq!(broken.normal("cmpl-"), clean.normal("cmpl-"));

    let mut streaming = fields;
    streaming["stream"] = json!(true);
    let clean = world().complete(streaming.clone()).await;
    let broken = faulty(dying()).complete(streaming).await;
    assert_eq!(broken.chunks("cmpl-"), clean.chunks("cmpl-"));
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_held_to_is_an_error_of_its_own_and_is_tried_once() {
    let stuck = || Act::EndAfter(2, Ended::Grammar("no token can come next".to_owned()));
    let world = faulty(vec![stuck(), stuck()]);
    let fields = json!({"prompt": [7]});
    let reply = world.complete(fields.clone()).await;
    assert_eq!(reply.status, StatusCode::INTERNAL_SERVER_ERROR);
    let error = &reply.json()["error"];
    assert_eq!(error["code"], "grammar_failed");
    assert!(
        error["message"]
            .as_str()
            .unwrap()
            .contains("no token can come next"),
        "{error}"
    );
    let mut streaming = fields;
    streaming["stream"] = json!(true);
    let events = world.complete(streaming).await.events();
    assert!(events.last().unwrap().contains("grammar_failed"), "{events:?}");
    assert_eq!(world.heads.seen().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_error_within_a_stream_is_its_last_event() {
    let world = faulty(vec![Act::EndAfter(2, Ended::Deadline)]);
    let reply = world.complete(json!({"prompt": [7], "stream": true})).await;
    let events = reply.events();
    assert_eq!(events.len(), 3);
    let last: Value = serde_json::from_str(&events[2]).unwrap();
    let error = json!({
        "message": "the request did not complete within 600 s",
        "type": "server_error",
        "param": null,
        "code": "deadline_exceeded",
    });
    assert_eq!(last, json!({"error": error}));

    let whole = faulty(vec![Act::EndAfter(2, Ended::Deadline)])
        .complete(json!({"prompt": [7]}))
        .await;
    assert_eq!(
        (whole.status, whole.json()),
        (StatusCode::GATEWAY_TIMEOUT, json!({"error": error}))
    );
}

#[tokio::test(start_paused = true)]
async fn one_prompt_that_fails_ends_the_others() {
    let world = faulty(vec![
        Act::HangAfter(1),
        Act::EndAfter(0, Ended::Deadline),
        Act::HangAfter(0),
    ]);
    let reply = world.complete(json!({"prompt": ["a", "b", "c"]})).await;
    assert_eq!(reply.status, StatusCode::GATEWAY_TIMEOUT);
    world.all_closed().await;
}

#[tokio::test]
async fn a_token_outside_the_vocabulary_is_an_error() {
    let reply = saying(&[1784, 9000]).complete(json!({"prompt": [7]})).await;
    assert_eq!(reply.status, StatusCode::INTERNAL_SERVER_ERROR);
    let message = "the replica emitted a token: token id 9000 is outside the vocabulary of 8192";
    assert_eq!(reply.json()["error"]["message"], message);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_cancels_at_the_head() {
    let world = faulty(vec![Act::HangAfter(1), Act::HangAfter(1)]);
    let mut stream = world.open_stream(json!({"prompt": [7], "stream": true})).await;
    let first = timeout(LATE, stream.next()).await.unwrap().unwrap().unwrap();
    assert!(first.starts_with(b"data: "), "{first:?}");
    drop(stream);
    world.all_closed().await;

    // The same without a stream: the connection drops the handler.
    let whole = world.complete(json!({"prompt": [7]}));
    assert!(timeout(Duration::from_secs(5), whole).await.is_err());
    assert_eq!(world.heads.seen().len(), 2);
    world.all_closed().await;
}

#[tokio::test(start_paused = true)]
async fn a_silent_stream_is_kept_alive() {
    let world = faulty(vec![Act::HangAfter(0)]);
    let mut stream = world.open_stream(json!({"prompt": [7], "stream": true})).await;
    let comment = timeout(Duration::from_secs(11), stream.next())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert_eq!(&comment[..], b":\n\n");
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_slows_itself_only() {
    let options = GatewayOptions {
        queued_tokens: 1,
        ..GatewayOptions::default()
    };
    let world = Setup {
        options,
        ..Setup::default()
    }
    .build();
    let slow = world.open_stream(json!({"prompt": [7], "stream": true})).await;
    for _ in 0..10 {
        let quick = world.complete(json!({"prompt": [7]})).await.json();
        assert_eq!(quick["choices"][0]["text"], ANSWER_TEXT);
    }
    let pieces: Vec<_> = slow
        .map(|piece| String::from_utf8(piece.unwrap().to_vec()).unwrap())
        .collect()
        .await;
    assert!(pieces.concat().ends_with("data: [DONE]\n\n"));
}

#[tokio::test(start_paused = true)]
async fn more_requests_than_there_is_room_for_are_told_to_come_back() {
    let options = GatewayOptions {
        max_live_requests: 2,
        ..GatewayOptions::default()
    };
    let world = Setup {
        acts: vec![Act::HangAfter(0)],
        options,
        ..Setup::default()
    }
    .build();
    let held = world.open_stream(json!({"prompt": [7], "stream": true})).await;
    let refused = world.complete(json!({"prompt": ["a", "b"]})).await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(refused.headers["retry-after"], "1");
    let error = json!({
        "message": "2 requests may be live at this coordinator, and there is no room for 2 more: try again later",
        "type": "rate_limit_error",
        "param": null,
        "code": "rate_limit_exceeded",
    });
    assert_eq!(refused.json(), json!({"error": error}));
    assert_eq!(
        world.complete(json!({"prompt": "a"})).await.status,
        StatusCode::OK
    );
    drop(held);
    world.all_closed().await;
    tokio::task::yield_now().await;
    assert_eq!(
        world.complete(json!({"prompt": ["a", "b"]})).await.status,
        StatusCode::OK
    );
}
