//! BQ-1: what can be seen of queues is bounded. Those of the scheduler are among its own tables, see KV-2.

use super::{Checked, ensure};

/// Requests that are live at one gateway.
pub(in super::super) fn check(live: usize, limit: usize) -> Checked {
    ensure("BQ-1", live <= limit, || {
        format!("{live} requests are live, at most {limit} may")
    })
}
