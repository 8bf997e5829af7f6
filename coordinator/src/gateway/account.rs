//! What becomes known of one request while it runs, for whoever submitted it to look at, also once it is over.
//!
//! Numbers only: no tokens, and nothing that decides anything.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tramontane_model::ids::Fence;

/// What is known so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The replica and its generation that it was last submitted to.
    pub fence: Option<Fence>,
    /// Attempts that were made.
    pub attempts: u32,
    /// When its first token came from a head.
    pub first_token: Option<Instant>,
    /// Tokens of its prompt that the replica had in its prefix cache; known with the first token.
    pub cached_prompt_tokens: u32,
    /// How long it waited at the head for a place in the cache; known with the first token.
    pub queued: Option<Duration>,
}

/// The facts of one request.
#[derive(Debug, Default)]
pub struct Account(Mutex<Facts>);

impl Account {
    /// What is known by now.
    pub fn facts(&self) -> Facts {
        *self.lock()
    }

    pub(super) fn attempt(&self, fence: Fence, attempt: u32) {
        let mut facts = self.lock();
        facts.fence = Some(fence);
        facts.attempts = attempt;
    }

    pub(super) fn first_token(&self, at: Instant, cached_prompt_tokens: u32, queued: Option<Duration>) {
        let mut facts = self.lock();
        facts.first_token = Some(at);
        facts.cached_prompt_tokens = cached_prompt_tokens;
        facts.queued = queued;
    }

    fn lock(&self) -> MutexGuard<'_, Facts> {
        // Nothing panics while the lock is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
