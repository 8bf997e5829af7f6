//! How much text one request may have.

use super::error::{ChatError, ChatFault};
use crate::text::tekken::MAX_TEXT_BYTES;

/// Bytes of text the request may still have: spent before the text is copied or read as JSON.
pub(super) struct Budget {
    left: usize,
}

impl Budget {
    pub(super) fn new() -> Self {
        Self { left: MAX_TEXT_BYTES }
    }

    /// Takes `bytes` off; an error that names the field once nothing is left.
    pub(super) fn spend(&mut self, bytes: usize, field: impl Fn() -> String) -> Result<(), ChatError> {
        let fault = || ChatFault::TooMuchText {
            limit: MAX_TEXT_BYTES,
        };
        self.left = self
            .left
            .checked_sub(bytes)
            .ok_or_else(|| ChatError::new(field(), fault()))?;
        Ok(())
    }
}
