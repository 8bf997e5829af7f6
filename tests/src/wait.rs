//! Waiting for a condition, never for a time.

use std::time::Duration;

use tokio::time::Instant;

/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(40);

/// Looks until there is a value; panics after `within` with the last reason for there being none.
pub async fn until<T>(what: &str, within: Duration, mut look: impl AsyncFnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + within;
    loop {
        match look().await {
            Ok(found) => return found,
            Err(why) if Instant::now() > deadline => panic!("{what}: not within {within:?}: {why}"),
            Err(_) => tokio::time::sleep(INTERVAL).await,
        }
    }
}

/// The value, or the reason of [`until`].
pub fn need(holds: bool, why: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(why()) }
}
