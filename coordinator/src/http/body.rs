//! Request bodies, bounded in size and time.

use std::error::Error;
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::Request;
use axum::http::header::CONTENT_LENGTH;
use http_body_util::{BodyExt, LengthLimitError};

use super::error::{ApiError, ErrorKind};

/// Largest body that is read only to be thrown away, in bytes, and how long that may take.
const MAX_DRAINED_BYTES: u64 = 64 << 20;
const DRAIN_DEADLINE: Duration = Duration::from_secs(2);

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
        drain(request.into_body(), claimed).await;
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

/// Throws a refused body away, within bounds: a client that is still sending would see a broken connection in place of
/// the answer.
async fn drain(mut body: Body, claimed: Option<u64>) {
    if claimed.is_some_and(|bytes| bytes > MAX_DRAINED_BYTES) {
        return;
    }
    let drained = async { while let Some(Ok(_)) = body.frame().await {} };
    // A client that does not go on gets its answer all the same.
    let _ = tokio::time::timeout(DRAIN_DEADLINE, drained).await;
}
