//! Bodies that are no JSON object.

use super::*;

#[tokio::test]
async fn bodies_that_are_no_object_are_refused() {
    let world = world();
    let deep = format!(
        "{{\"messages\": {}1{}}}",
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    let deep_unknown = format!(
        "{{\"unknown\": {}{}}}",
        "{\"a\":".repeat(200),
        "1".to_owned() + &"}".repeat(200)
    );
    for (body, param, message) in [
        (
            "",
            json!(null),
            "the body is not JSON: EOF while parsing a value at line 1 column 0",
        ),
        (
            "hello",
            json!(null),
            "the body is not JSON: expected value at line 1 column 1",
        ),
        (
            "{\"model\": ",
            json!(null),
            "the body is not JSON: EOF while parsing a value at line 1 column 10",
        ),
        (
            "[1]",
            json!(null),
            "the body: invalid type: sequence, expected a JSON object",
        ),
        (
            "{} {}",
            json!(null),
            "the body is not JSON: trailing characters at line 1 column 4",
        ),
        (
            &deep,
            json!("messages"),
            "messages: is nested too deep, at most 127 levels are read",
        ),
        (
            &deep_unknown,
            json!("unknown"),
            "unknown: is nested too deep, at most 127 levels are read",
        ),
    ] {
        for path in ["/v1/completions", "/v1/chat/completions"] {
            let reply = world.send(Method::POST, path, body.to_owned()).await;
            assert_eq!(reply.status, StatusCode::BAD_REQUEST);
            let expected = json!({"error": {
                "message": message,
                "type": "invalid_request_error",
                "param": param,
                "code": null,
            }});
            assert_eq!(reply.json(), expected);
        }
    }
    let latin = world
        .send(Method::POST, "/v1/completions", &b"{\"prompt\": \"\xe9\"}"[..])
        .await;
    assert_eq!(latin.status, StatusCode::BAD_REQUEST);
    assert!(world.heads.seen().is_empty());
}
