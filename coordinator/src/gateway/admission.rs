//! How many requests may be live at this coordinator.
//!
//! No waiting here: a request that finds no room is refused at once, and its client told to come back.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::GatewayError;

/// Counts live requests against a limit.
#[derive(Debug)]
pub(super) struct Admission {
    room: Arc<Semaphore>,
    limit: usize,
}

/// Room for one live request; given back when dropped.
#[derive(Debug)]
pub struct Permit {
    _room: OwnedSemaphorePermit,
}

impl Admission {
    /// Room for `limit` live requests.
    pub(super) fn new(limit: usize) -> Self {
        let limit = limit.min(Semaphore::MAX_PERMITS);
        Self {
            room: Arc::new(Semaphore::new(limit)),
            limit,
        }
    }

    /// Room for `count` requests, or for none of them.
    pub(super) fn admit(&self, count: usize) -> Result<Vec<Permit>, GatewayError> {
        let overloaded = GatewayError::Overloaded {
            asked: count,
            limit: self.limit,
        };
        let Ok(permits) = u32::try_from(count) else {
            return Err(overloaded);
        };
        let Ok(mut room) = Arc::clone(&self.room).try_acquire_many_owned(permits) else {
            return Err(overloaded);
        };
        let split = (0..count).map_while(|_| room.split(1));
        Ok(split.map(|one| Permit { _room: one }).collect())
    }

    /// Room for one request.
    pub(super) fn admit_one(&self) -> Result<Permit, GatewayError> {
        let room = Arc::clone(&self.room).try_acquire_owned();
        room.map(|room| Permit { _room: room })
            .map_err(|_| GatewayError::Overloaded {
                asked: 1,
                limit: self.limit,
            })
    }

    /// Resolves once no request is live. None finds room while this waits.
    pub(super) async fn empty(&self) {
        let all = u32::try_from(self.limit).unwrap_or(u32::MAX);
        // The semaphore is never closed.
        let _ = self.room.acquire_many(all).await;
    }

    /// Requests that are live.
    pub(super) fn live(&self) -> usize {
        self.limit - self.room.available_permits().min(self.limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_given_to_all_or_none_and_comes_back() {
        let admission = Admission::new(3);
        let two = admission.admit(2).unwrap();
        assert_eq!((two.len(), admission.live()), (2, 2));
        assert_eq!(
            admission.admit(2).unwrap_err(),
            GatewayError::Overloaded { asked: 2, limit: 3 }
        );
        assert_eq!(admission.live(), 2);
        let one = admission.admit_one().unwrap();
        assert!(admission.admit_one().is_err());
        drop(two);
        assert_eq!(admission.live(), 1);
        drop(one);
        assert_eq!(admission.live(), 0);
        assert_eq!(admission.admit(3).unwrap().len(), 3);
    }
}
