//! A worker counts as lost only after a lease without a word of it, or a broken session, and never within the first lease
//! of a leader, who cannot know how long it has been silent.

use super::{Checked, ensure};

/// What a leader knows of a worker, in milliseconds of the world.
#[derive(Clone, Copy, Debug, Default)]
pub(in super::super) struct Heard {
    /// When the leader began to lead, or let the worker in.
    pub(in super::super) since: u64,
    /// When the last report came.
    pub(in super::super) report: u64,
    /// When the session ended, if it has.
    pub(in super::super) ended: Option<u64>,
}

/// A leader that began to lead at `leads` says at `now` that a worker is lost.
pub(in super::super) fn check(worker: &str, now: u64, leads: u64, heard: Heard, lease_ms: u64) -> Checked {
    ensure("lease", now >= leads + lease_ms, || {
        format!("{worker} was given up {} ms after the leader came", now - leads)
    })?;
    let silent = now >= heard.report.max(heard.since) + lease_ms;
    ensure("lease", silent || heard.ended.is_some(), || {
        format!(
            "{worker} was given up {} ms after its last report",
            now - heard.report
        )
    })
}
