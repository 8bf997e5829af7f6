//! Every bad body gets an error that names the field and says what would be right, and reaches no head.

mod bodies;
mod chats;
mod choosing;
mod completions;
mod shared;

use super::*;
use choosing::sampling_cases;
use shared::shared_cases;

struct Case {
    body: Value,
    status: u16,
    param: Value,
    code: Value,
    message: String,
}

fn case(body: Value, param: &str, message: &str) -> Case {
    Case {
        body,
        status: 400,
        param: json!(param),
        code: json!(null),
        message: message.to_owned(),
    }
}

fn unsupported(body: Value, param: &str, problem: &str) -> Case {
    let message = format!("{param}: {problem}");
    Case {
        code: json!("unsupported_parameter"),
        ..case(body, param, &message)
    }
}

fn too_long(body: Value, param: &str, message: &str) -> Case {
    Case {
        code: json!("context_length_exceeded"),
        ..case(body, param, message)
    }
}

async fn check(path: &str, base: Value, cases: Vec<Case>) {
    let world = world();
    for case in cases {
        let mut body = base.clone();
        for (name, value) in case.body.as_object().unwrap() {
            body[name] = value.clone();
        }
        let body = with_model(body);
        let reply = world.post(path, body.clone()).await;
        let expected = json!({"error": {
            "message": case.message,
            "type": "invalid_request_error",
            "param": case.param,
            "code": case.code,
        }});
        assert_eq!(reply.json(), expected, "{body}");
        assert_eq!(reply.status.as_u16(), case.status, "{body}");
    }
    assert!(world.heads.seen().is_empty());
    // Nothing else is disturbed.
    assert_eq!(world.post(path, with_model(base)).await.status, StatusCode::OK);
}
