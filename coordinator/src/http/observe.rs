//! Around every request: its id and its trace, its metrics, and its line in the log once its answer has ended.

use axum::body::Body;
use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use metrics::{counter, describe_counter, describe_histogram, histogram};

use super::call::{Call, Outcome};
use super::error::{ApiError, ErrorName};
use super::trace::{TRACERESPONSE, Trace};
use crate::gateway::{self, GatewayError};

const REQUESTS: &str = "tramontane_http_requests_total";
const SECONDS: &str = "tramontane_http_response_seconds";
/// Routes that machines ask again and again.
const PROBES: [&str; 4] = ["/livez", "/readyz", "/metrics", "/cluster/status"];
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Describes the HTTP side's metrics to the recorder.
pub(super) fn describe() {
    describe_counter!(REQUESTS, "HTTP requests, by route and status");
    describe_histogram!(
        SECONDS,
        "Seconds from a request's arrival to its response's first byte, by route"
    );
}

/// Gives the request its id and its trace, which every response carries as `X-Request-Id` and `traceresponse`.
pub(super) async fn observe(mut request: Request, next: Next) -> Response {
    let call = match begin(&request) {
        Ok(call) => call,
        Err(error) => return ApiError::from(error).into_response(),
    };
    request.extensions_mut().insert(call.clone());
    let matched = request.extensions().get::<MatchedPath>().cloned();
    let route = matched
        .as_ref()
        .map_or("unmatched", MatchedPath::as_str)
        .to_owned();
    let method = request.method().clone();
    let mut response = next.run(request).await;
    let status = response.status();
    if let Ok(value) = HeaderValue::from_str(&call.id().to_string()) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    if let Some(value) = call.trace().response(call.id()) {
        response.headers_mut().insert(TRACERESPONSE, value);
    }
    counter!(REQUESTS, "route" => route.clone(), "status" => status.as_u16().to_string()).increment(1);
    histogram!(SECONDS, "route" => route.clone()).record(call.elapsed().as_secs_f64());
    let line = Line {
        call,
        method,
        route,
        status,
        error: response.extensions().get().map(|ErrorName(name)| *name),
    };
    // The body goes once it has been sent, or once nobody wants it any more.
    response.map(|body| {
        Body::new(body.map_err(move |error| {
            let _until_then = &line;
            error
        }))
    })
}

fn begin(request: &Request) -> Result<Call, GatewayError> {
    Ok(Call::new(gateway::random_id()?, Trace::of(request.headers())?))
}

/// A request's line in the log, written when it is dropped.
struct Line {
    call: Call,
    method: Method,
    route: String,
    status: StatusCode,
    error: Option<&'static str>,
}

impl Drop for Line {
    fn drop(&mut self) {
        self.call.tell(&Outcome {
            method: &self.method,
            route: &self.route,
            status: self.status,
            error: self.error,
            probe: PROBES.contains(&self.route.as_str()),
        });
    }
}
