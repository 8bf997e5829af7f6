//! Request bodies, bounded in size and time.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::header::CONTENT_LENGTH;
use http_body_util::{BodyExt, LengthLimitError, Limited};

use super::error::{ApiError, ErrorKind};

/// Most bytes of a refused body that are read only to be thrown away, and how long that may take.
const MAX_DRAINED_BYTES: u64 = 64 << 20;
const DRAIN_DEADLINE: Duration = Duration::from_secs(2);

/// Reads a whole body of at most `limit` bytes within `timeout`.
pub(super) async fn read(request: Request, limit: usize, timeout: Duration) -> Result<Bytes, ApiError> {
    let too_large = || {
        let message = format!("the body is too large, at most {limit} bytes are read");
        ApiError::new(ErrorKind::TooLarge, message)
    };
    if claimed(&request).is_some_and(|bytes| bytes > limit as u64) {
        discard(request).await;
        return Err(too_large());
    }
    let mut body = request.into_body();
    match tokio::time::timeout(timeout, Limited::new(&mut body, limit).collect()).await {
        Ok(Ok(whole)) => Ok(whole.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            drain(body).await;
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

/// Throws the body of a refused request away, within bounds: a client that is still sending would see a broken
/// connection in place of the answer.
pub(super) async fn discard(request: Request) {
    if claimed(&request).is_none_or(|bytes| bytes <= MAX_DRAINED_BYTES) {
        drain(request.into_body()).await;
    }
}

/// How long the body says that it is.
fn claimed(request: &Request) -> Option<u64> {
    let length = request.headers().get(CONTENT_LENGTH)?;
    length.to_str().ok()?.parse().ok()
}

async fn drain(mut body: Body) {
    let drained = async {
        let mut left = MAX_DRAINED_BYTES;
        while let Some(Ok(frame)) = body.frame().await {
            let bytes = frame.data_ref().map_or(0, Bytes::len) as u64;
            match left.checked_sub(bytes) {
                Some(rest) => left = rest,
                None => return,
            }
        }
    };
    // A client that does not go on gets its answer all the same.
    let _ = tokio::time::timeout(DRAIN_DEADLINE, drained).await;
}
