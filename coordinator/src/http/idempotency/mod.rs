//! `Idempotency-Key`: a request that comes again gets the answer that it had, or is having.
//!
//! On one coordinator the answer itself is kept, while it is made and for a while after. On another it is made anew: the
//! seed of a request that names none follows from the key, and so do the ids that the answer shows, so that it has the
//! same tokens from its start (DET-1). The same happens here once the answer is not kept any more. An answer that failed
//! is not kept.

mod answers;
mod key;
mod recording;

use std::hash::Hasher;
use std::sync::{Arc, LazyLock};

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use metrics::{counter, describe_counter, describe_gauge, gauge};
use siphasher::sip128::{Hasher128, SipHasher13};
use tokio::time::Instant;

pub(super) use answers::Answers;
pub(super) use key::{HEADER, IdempotencyKey, MAX_KEY_BYTES};

use super::call::Call;
use super::error::{ApiError, ErrorKind};
use super::{Api, body};
use answers::Found;
use recording::{Reader, Recording};

/// The routes that take keys.
pub(super) const ROUTES: [&str; 4] = [
    "/v1/chat/completions",
    "/mistral/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
];
/// Says that an answer was not made for this request.
const REPLAYED: &str = "idempotent-replayed";

const REQUESTS: &str = "tramontane_idempotent_requests_total";
const KEYS: &str = "tramontane_idempotency_keys";
const BYTES: &str = "tramontane_idempotent_answers_bytes";

/// Describes the metrics to the recorder.
pub(super) fn describe() {
    describe_counter!(
        REQUESTS,
        "Requests with an Idempotency-Key, by what became of them: new, attached to an answer that was being made, replayed, refused as the key was another request's, or unkept as there was no room to keep the answer"
    );
    describe_gauge!(KEYS, "Idempotency keys that are remembered");
    describe_gauge!(
        BYTES,
        "Bytes of answers that are kept for requests that come again"
    );
}

/// Random for each start of the process.
static FINGERPRINT_KEY: LazyLock<[u8; 16]> = LazyLock::new(|| {
    use std::hash::{BuildHasher, RandomState};
    let random = || RandomState::new().build_hasher().finish().to_le_bytes();
    let mut key = [0; 16];
    key[..8].copy_from_slice(&random());
    key[8..].copy_from_slice(&random());
    key
});

/// Answers requests that have a key; passes others on.
pub(super) async fn keyed(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    let takes_keys = |path: &MatchedPath| ROUTES.contains(&path.as_str());
    let matched = request.extensions().get::<MatchedPath>();
    if request.method() != Method::POST || !matched.is_some_and(takes_keys) {
        return next.run(request).await;
    }
    match IdempotencyKey::of(request.headers()) {
        Ok(None) => next.run(request).await,
        Ok(Some(key)) => answer(api, key, request, next)
            .await
            .unwrap_or_else(IntoResponse::into_response),
        Err(error) => {
            body::discard(request).await;
            error.into_response()
        }
    }
}

async fn answer(
    api: Arc<Api>,
    key: IdempotencyKey,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let (parts, unread) = request.into_parts();
    let request = Request::from_parts(parts.clone(), unread);
    let (limit, within) = (api.limits.max_body_bytes, api.limits.body_timeout);
    let body = body::read(request, limit, within).await?;
    let Some(call) = parts.extensions.get::<Call>().cloned() else {
        return Err(ApiError::new(ErrorKind::Failed, "the request has no id"));
    };
    call.keyed(key.clone());
    let fingerprint = fingerprint(&parts, &body);
    let found = api.answers.find(&key, fingerprint, Instant::now());
    show(&api.answers);
    let request = Request::from_parts(parts, Body::from(body));
    let (reader, replayed) = match found {
        Found::Other => {
            count("refused");
            let problem = "was another request's on this coordinator a short while ago: a request that differs needs a key of its own";
            return Err(ApiError::field(ErrorKind::KeyReused, HEADER, problem));
        }
        Found::NoRoom => {
            count("unkept");
            return Ok(next.run(request).await);
        }
        Found::Answer { reader, ended } => {
            count(if ended { "replayed" } else { "attached" });
            (reader, true)
        }
        Found::New { recording, reader } => {
            count("new");
            tokio::spawn(make(api, key, call, recording, next.run(request)));
            (reader, false)
        }
    };
    respond(reader, replayed).await
}

async fn respond(reader: Reader, replayed: bool) -> Result<Response, ApiError> {
    let response = reader.response().await;
    let given_up = || ApiError::new(ErrorKind::Failed, "the answer was given up");
    let mut response = response.ok_or_else(given_up)?;
    if replayed {
        let headers = response.headers_mut();
        headers.insert(REPLAYED, HeaderValue::from_static("true"));
    }
    Ok(response)
}

/// Makes an answer, for as long as somebody reads it or may come back for it.
async fn make(
    api: Arc<Api>,
    key: IdempotencyKey,
    call: Call,
    recording: Arc<Recording>,
    response: impl Future<Output = Response>,
) {
    let good = tokio::select! {
        good = record(&api.answers, &call, &recording, response) => good,
        () = recording.unread() => false,
    };
    api.answers.ended(&key, &recording, good, Instant::now());
    recording.end();
    show(&api.answers);
}

/// Records an answer to its end; whether it is one to be kept.
async fn record(
    answers: &Answers,
    call: &Call,
    recording: &Recording,
    response: impl Future<Output = Response>,
) -> bool {
    let (head, mut body) = response.await.into_parts();
    let status = head.status;
    recording.begin(head);
    while let Some(Ok(frame)) = body.frame().await {
        if let Ok(bytes) = frame.into_data() {
            answers.make_room(bytes.len());
            recording.push(bytes).await;
        }
    }
    status == StatusCode::OK && call.ended_well()
}

fn fingerprint(parts: &Parts, body: &[u8]) -> u128 {
    let mut hasher = SipHasher13::new_with_key(&FINGERPRINT_KEY);
    let path = parts.uri.path();
    hasher.write_u64(path.len() as u64);
    hasher.write(path.as_bytes());
    hasher.write(body);
    hasher.finish128().as_u128()
}

fn count(outcome: &'static str) {
    counter!(REQUESTS, "outcome" => outcome).increment(1);
}

fn show(answers: &Answers) {
    let (keys, bytes) = answers.size();
    gauge!(KEYS).set(keys as f64);
    gauge!(BYTES).set(bytes as f64);
}
