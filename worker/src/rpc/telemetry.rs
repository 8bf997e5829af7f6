//! What a head's scheduler shows in the metrics. Names and labels only; the recorder is the process's.

use metrics::{counter, gauge};
use tramontane_model::ids::ReplicaId;

use crate::scheduler::SchedulerStats;

/// Shows the numbers of one scheduler after another: each counts from nothing, the process's counters go on.
pub(super) struct SchedulerTelemetry {
    replica: String,
    counted: SchedulerStats,
}

impl SchedulerTelemetry {
    pub(super) fn new(replica: ReplicaId) -> Self {
        Self {
            replica: replica.to_string(),
            counted: SchedulerStats::default(),
        }
    }

    pub(super) fn show(&mut self, stats: SchedulerStats) {
        let gauge = |name: &'static str, value: usize| {
            gauge!(name, "replica" => self.replica.clone()).set(value as f64);
        };
        gauge("tramontane_sequences_running", stats.sequences_running);
        gauge("tramontane_sequences_waiting", stats.requests_waiting);
        gauge("tramontane_kv_blocks_used", stats.kv_blocks_used);
        gauge("tramontane_kv_blocks_cached", stats.kv_blocks_cached);
        gauge("tramontane_kv_blocks_total", stats.kv_blocks_total);
        let count = |name: &'static str, of: fn(&SchedulerStats) -> u64| {
            counter!(name).increment(of(&stats).saturating_sub(of(&self.counted)));
        };
        count("tramontane_preemptions_total", |stats| stats.preemptions);
        count("tramontane_prefix_cache_lookup_tokens_total", |stats| {
            stats.prefix_lookup_tokens
        });
        count("tramontane_prefix_cache_hit_tokens_total", |stats| {
            stats.prefix_hit_tokens
        });
        count("tramontane_prefix_cache_evictions_total", |stats| {
            stats.prefix_evictions
        });
        self.counted = stats;
    }

    /// The next numbers are those of a new scheduler.
    pub(super) fn start_anew(&mut self) {
        self.counted = SchedulerStats::default();
    }
}
