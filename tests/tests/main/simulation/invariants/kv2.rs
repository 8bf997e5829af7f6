//! KV-2: a block is freed once and not read after, and shared only once every stage has written it.
//!
//! That a block was read which somebody else wrote shows in the tokens, see DET-1.

use tramontane_sim::cache::Unwritten;
use tramontane_worker::scheduler::Scheduler;

use super::{Checked, Violation, ensure};

/// The scheduler's own tables.
pub(in super::super) fn check(scheduler: &Scheduler) -> Checked {
    scheduler.check().map_err(|violation| {
        let what = violation.to_string();
        let rules = ["KV-1", "ST-2", "BQ-1"];
        let rule = rules
            .into_iter()
            .find(|rule| what.starts_with(rule))
            .unwrap_or("KV-2");
        Violation { rule, what }
    })
}

/// A stage read a row.
pub(in super::super) fn check_read(read: Result<u64, Unwritten>) -> Result<u64, Violation> {
    read.map_err(|unwritten| Violation {
        rule: "KV-2",
        what: format!("{unwritten:?} was read"),
    })
}

/// The last stage opens and samples sequences.
pub(in super::super) fn check_open(is_open: bool, sequence: u64) -> Checked {
    ensure("KV-2", is_open, || {
        format!("sequence {sequence} is sampled and not open")
    })
}
