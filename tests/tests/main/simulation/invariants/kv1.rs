//! KV-1: blocks in use return to zero.

use tramontane_worker::scheduler::Scheduler;

use super::{Checked, ensure};

/// Nobody has a request left.
pub(in super::super) fn check_idle(scheduler: &Scheduler) -> Checked {
    let stats = scheduler.stats();
    let left = [
        stats.kv_blocks_used,
        stats.steps_in_flight,
        stats.sequences_running,
        stats.requests_waiting,
    ];
    ensure("KV-1", left == [0; 4], || {
        format!("blocks, steps, running and waiting are {left:?} although nobody asks for anything")
    })
}
