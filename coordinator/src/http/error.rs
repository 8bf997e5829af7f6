//! Errors as OpenAI clients read them, and the one table that maps kinds of error to HTTP.
//!
//! No error is turned into text anywhere else: a handler returns [`ApiError`] and nothing more.

use axum::Json;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::gateway::{GatewayError, NotServing};

/// What kind of thing went wrong: decides the status, the type and the code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ErrorKind {
    /// A field or the body cannot be used as it is.
    Invalid,
    /// Prompt and answer do not fit the model's context.
    ContextLength,
    /// A field asks for something that is not served.
    Unsupported,
    /// The model does not exist.
    UnknownModel,
    /// The route does not exist.
    UnknownRoute,
    /// The route exists, with other methods.
    Method,
    /// The body did not come in time.
    SlowBody,
    /// What is asked for does not agree with the state of the cluster.
    Conflict,
    /// The idempotency key is another request's.
    KeyReused,
    /// The body is too large.
    TooLarge,
    /// No room for another request.
    Overloaded,
    /// The request could not be completed.
    Failed,
    /// What the answer is held to could not be gone on with.
    Grammar,
    /// Nothing serves at present.
    NotServing,
    /// The coordinator is shutting down.
    ShuttingDown,
    /// The leader cannot be asked.
    NoLeader,
    /// The request's time is over.
    Deadline,
}

/// Seconds after which a client may try again.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

impl ErrorKind {
    /// Status, OpenAI's type, code.
    fn row(self) -> (StatusCode, &'static str, Option<&'static str>) {
        const INVALID: &str = "invalid_request_error";
        const SERVER: &str = "server_error";
        match self {
            Self::Invalid => (StatusCode::BAD_REQUEST, INVALID, None),
            Self::ContextLength => (StatusCode::BAD_REQUEST, INVALID, Some("context_length_exceeded")),
            Self::Unsupported => (StatusCode::BAD_REQUEST, INVALID, Some("unsupported_parameter")),
            Self::UnknownModel => (StatusCode::NOT_FOUND, INVALID, Some("model_not_found")),
            Self::UnknownRoute => (StatusCode::NOT_FOUND, INVALID, Some("unknown_route")),
            Self::Method => (
                StatusCode::METHOD_NOT_ALLOWED,
                INVALID,
                Some("method_not_allowed"),
            ),
            Self::SlowBody => (StatusCode::REQUEST_TIMEOUT, INVALID, Some("body_timeout")),
            Self::Conflict => (StatusCode::CONFLICT, INVALID, Some("conflict")),
            Self::KeyReused => (
                StatusCode::UNPROCESSABLE_ENTITY,
                INVALID,
                Some("idempotency_key_reused"),
            ),
            Self::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, INVALID, Some("body_too_large")),
            Self::Overloaded => (
                StatusCode::TOO_MANY_REQUESTS,
                "rate_limit_error",
                Some("rate_limit_exceeded"),
            ),
            Self::Failed => (StatusCode::INTERNAL_SERVER_ERROR, SERVER, None),
            Self::Grammar => (StatusCode::INTERNAL_SERVER_ERROR, SERVER, Some("grammar_failed")),
            Self::NotServing => (StatusCode::SERVICE_UNAVAILABLE, SERVER, Some("not_serving")),
            Self::ShuttingDown => (StatusCode::SERVICE_UNAVAILABLE, SERVER, Some("shutting_down")),
            Self::NoLeader => (StatusCode::SERVICE_UNAVAILABLE, SERVER, Some("no_leader")),
            Self::Deadline => (StatusCode::GATEWAY_TIMEOUT, SERVER, Some("deadline_exceeded")),
        }
    }

    /// One word for logs.
    pub(super) fn name(self) -> &'static str {
        let (_, r#type, code) = self.row();
        code.unwrap_or(r#type)
    }

    fn may_be_retried(self) -> bool {
        match self {
            Self::Overloaded | Self::NotServing | Self::ShuttingDown | Self::NoLeader => true,
            Self::Invalid
            | Self::ContextLength
            | Self::Unsupported
            | Self::UnknownModel
            | Self::UnknownRoute
            | Self::Method
            | Self::SlowBody
            | Self::Conflict
            | Self::KeyReused
            | Self::TooLarge
            | Self::Failed
            | Self::Grammar
            | Self::Deadline => false,
        }
    }
}

/// What kind of error a response is, for its line in the log.
#[derive(Clone, Copy, Debug)]
pub(super) struct ErrorName(pub(super) &'static str);

/// An error on its way to a client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(super) struct ApiError {
    pub(super) kind: ErrorKind,
    pub(super) message: String,
    /// The field at fault, as `messages[2].content`.
    pub(super) param: Option<String>,
}

impl ApiError {
    /// An error that no field is to blame for.
    pub(super) fn new(kind: ErrorKind, message: impl ToString) -> Self {
        Self {
            kind,
            message: message.to_string(),
            param: None,
        }
    }

    /// An error about a field: `problem` says what is wrong and what would be right.
    pub(super) fn field(kind: ErrorKind, field: impl Into<String>, problem: impl ToString) -> Self {
        let field = field.into();
        Self {
            kind,
            message: format!("{field}: {}", problem.to_string()),
            param: Some(field),
        }
    }

    /// A field that cannot be used as it is.
    pub(super) fn invalid(field: impl Into<String>, problem: impl ToString) -> Self {
        Self::field(ErrorKind::Invalid, field, problem)
    }

    /// The body of the response.
    pub(super) fn body(&self) -> ErrorBody<'_> {
        let (_, r#type, code) = self.kind.row();
        ErrorBody {
            error: ErrorObject {
                message: &self.message,
                r#type,
                param: self.param.as_deref(),
                code,
            },
        }
    }
}

/// `{"error": {...}}`.
#[derive(Debug, Serialize)]
pub(super) struct ErrorBody<'a> {
    error: ErrorObject<'a>,
}

#[derive(Clone, Debug, Serialize)]
struct ErrorObject<'a> {
    message: &'a str,
    r#type: &'static str,
    param: Option<&'a str>,
    code: Option<&'static str>,
}

/// `{"object": "error", "message": ...}`, with what OpenAI's clients read beside it.
#[derive(Debug, Serialize)]
struct MistralErrorBody<'a> {
    object: &'static str,
    #[serde(flatten)]
    own: ErrorObject<'a>,
    error: ErrorObject<'a>,
}

impl ApiError {
    fn respond(&self, body: impl Serialize) -> Response {
        let (status, ..) = self.kind.row();
        let mut response = (status, Json(body)).into_response();
        response.extensions_mut().insert(ErrorName(self.kind.name()));
        if self.kind.may_be_retried() {
            response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        response
    }

    /// The response for Mistral's clients.
    fn mistral_response(&self) -> Response {
        let ErrorBody { error } = self.body();
        self.respond(MistralErrorBody {
            object: "error",
            own: error.clone(),
            error,
        })
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.respond(self.body());
        response.extensions_mut().insert(self);
        response
    }
}

/// Shows the errors of Mistral's routes as its clients read them.
pub(super) async fn in_dialect(request: Request, next: Next) -> Response {
    let of_mistral = request.uri().path().starts_with("/mistral/");
    let mut response = next.run(request).await;
    let Some(error) = response
        .extensions_mut()
        .remove::<ApiError>()
        .filter(|_| of_mistral)
    else {
        return response;
    };
    let mut own = error.mistral_response();
    if let Some(allowed) = response.headers_mut().remove(header::ALLOW) {
        own.headers_mut().insert(header::ALLOW, allowed);
    }
    own
}

impl From<GatewayError> for ApiError {
    fn from(error: GatewayError) -> Self {
        let kind = match &error {
            GatewayError::Overloaded { .. } | GatewayError::QueueFull { .. } => ErrorKind::Overloaded,
            GatewayError::NotServing(_) => ErrorKind::NotServing,
            GatewayError::ShuttingDown => ErrorKind::ShuttingDown,
            GatewayError::Rejected { .. } => ErrorKind::Invalid,
            GatewayError::Deadline { .. } => ErrorKind::Deadline,
            GatewayError::Grammar { .. } => ErrorKind::Grammar,
            GatewayError::Failed { .. } | GatewayError::Random { .. } => ErrorKind::Failed,
        };
        Self::new(kind, error)
    }
}

impl From<NotServing> for ApiError {
    fn from(missing: NotServing) -> Self {
        Self::new(ErrorKind::NotServing, missing)
    }
}
