//! Request bodies, bounded in size and time.

use std::error::Error;
use std::time::Duration;

use axum::body::{Bytes, to_bytes};
use axum::extract::Request;
use axum::http::header::CONTENT_LENGTH;
use http_body_util::LengthLimitError;

use super::error::{ApiError, ErrorKind};

/// Reads a whole body of at most `limit` bytes within `timeout`.
pub(super) async fn read(request: Request, limit: usize, timeout: Duration) -> Result<Bytes, ApiError> {
    let too_large = || {
        let message = format!("the body is too large, at most {limit} bytes are read");
        ApiError::new(ErrorKind::TooLarge, message)
    };
    let claimed = request
        .headers()
        .get(CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok());
    let claimed: Option<u64> = claimed.and_then(|value| value.parse().ok());
    if claimed.is_some_and(|bytes| bytes > limit as u64) {
        return Err(too_large());
    }
    match tokio::time::timeout(timeout, to_bytes(request.into_body(), limit)).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(error))
            if error
                .source()
                .is_some_and(|source| source.is::<LengthLimitError>()) =>
        {
            Err(too_large())
        }
        Ok(Err(error)) => {
            let message = format!("the body could not be read: {error}");
            Err(ApiError::new(ErrorKind::Invalid, message))
        }
        Err(_) => {
            let message = format!("the body did not come within {} s", timeout.as_secs_f64());
            Err(ApiError::new(ErrorKind::SlowBody, message))
        }
    }
}
