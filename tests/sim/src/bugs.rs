//! Faults planted on purpose: what a simulation that is worth its time must find.
//!
//! Each is off unless a test plants it, in the thread that does so alone. The code around it asks [`on`] behind the
//! feature `deliberate-bugs`.

use std::cell::Cell;

/// A fault that somebody could have made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A raft node confirms entries, and applies them, before it has written them.
    ApplyBeforeDurable,
    /// Work of another generation is done by whoever holds the replica now.
    MissingGenerationCheck,
    /// A block that several sequences share is freed by the first that leaves.
    DoubleFree,
    /// A journal forgets its last token when it begins another attempt.
    JournalOffByOne,
    /// Rows of emitted tokens that are computed again are computed as if they were prompt.
    PrefillKernelsForEmittedRows,
    /// What an older attempt says counts as if the latest had said it.
    LostAttemptFencing,
    /// The planner, and whoever checks it, do not count what a step needs beside weights and cache.
    OverfilledDevice,
    /// A member that finds a change of members in its log goes on as if there were none.
    ConfChangeDropped,
    /// A new leader takes every lease for expired.
    StaleLease,
    /// The sampler counts anew whenever a sequence is opened.
    SamplerCounterReset,
}

impl Bug {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::ApplyBeforeDurable,
        Self::MissingGenerationCheck,
        Self::DoubleFree,
        Self::JournalOffByOne,
        Self::PrefillKernelsForEmittedRows,
        Self::LostAttemptFencing,
        Self::OverfilledDevice,
        Self::ConfChangeDropped,
        Self::StaleLease,
        Self::SamplerCounterReset,
    ];
}

thread_local! {
    static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
}

/// Whether this thread's test planted the fault.
pub fn on(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// Plants a fault in this thread, in the place of one that is there, until the answer is dropped.
#[must_use = "the fault is gone when this is dropped"]
pub fn plant(bug: Bug) -> Planted {
    PLANTED.set(Some(bug));
    Planted(())
}

/// A planted fault.
#[derive(Debug)]
pub struct Planted(());

impl Drop for Planted {
    fn drop(&mut self) {
        PLANTED.set(None);
    }
}
