//! Around every request: its id, one log line, its metrics. Never prompts or answers.

use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use metrics::{counter, describe_counter, describe_histogram, histogram};
use tokio::time::Instant;

use super::error::ApiError;
use crate::gateway;

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

/// Gives the request its id, which every response carries as `X-Request-Id`.
pub(super) async fn observe(mut request: Request, next: Next) -> Response {
    let arrived = Instant::now();
    let id = match gateway::random_id() {
        Ok(id) => id,
        Err(error) => return ApiError::from(error).into_response(),
    };
    request.extensions_mut().insert(id);
    let matched = request.extensions().get::<MatchedPath>().cloned();
    let route = matched
        .as_ref()
        .map_or("unmatched", MatchedPath::as_str)
        .to_owned();
    let method = request.method().clone();
    let mut response = next.run(request).await;
    let status = response.status();
    let elapsed = arrived.elapsed();
    if let Ok(value) = HeaderValue::from_str(&id.to_string()) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    counter!(REQUESTS, "route" => route.clone(), "status" => status.as_u16().to_string()).increment(1);
    histogram!(SECONDS, "route" => route.clone()).record(elapsed.as_secs_f64());
    if PROBES.contains(&route.as_str()) {
        tracing::debug!(request = %id, %method, route, status = status.as_u16(), "response");
    } else {
        tracing::info!(
            request = %id,
            %method,
            route,
            status = status.as_u16(),
            milliseconds = elapsed.as_millis(),
            "response"
        );
    }
    response
}
