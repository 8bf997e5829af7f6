//! ST-1: token indexes grow by one, an emitted prefix never changes, and what an older attempt says is dropped.

use super::super::clients::Mark;
use super::{Checked, ensure};

/// A client with so many tokens gets one more.
pub(in super::super) fn check(client: usize, tokens: usize, mark: Mark) -> Checked {
    ensure("ST-1", mark.index as usize == tokens, || {
        format!(
            "client {client} has {tokens} tokens and got the one with index {}",
            mark.index
        )
    })?;
    ensure("ST-1", !mark.is_stale, || {
        format!(
            "client {client} got token {} from an attempt that was over",
            mark.index
        )
    })
}
