//! What a head's scheduler shows in the metrics. Names and labels only; the recorder is the process's.

use std::time::Duration;

use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use tramontane_model::ids::ReplicaId;

use tramontane_model::step::{RowRole, StepBatch};

use crate::scheduler::SchedulerStats;

pub(super) const STEP_SECONDS: &str = "tramontane_step_seconds";
pub(super) const BUBBLE_SECONDS: &str = "tramontane_stage_bubble_seconds";
pub(super) const EXCHANGE_SECONDS: &str = "tramontane_expert_exchange_seconds";
const STEP_ROWS: &str = "tramontane_step_rows";
const EXPANDED_ROWS: &str = "tramontane_expanded_rows_total";
const STEP_SEQUENCES: &str = "tramontane_step_sequences";
const QUEUE_SECONDS: &str = "tramontane_queue_seconds";
const PREEMPTIONS: &str = "tramontane_preemptions_total";
const LOOKUP_TOKENS: &str = "tramontane_prefix_cache_lookup_tokens_total";
const HIT_TOKENS: &str = "tramontane_prefix_cache_hit_tokens_total";
const EVICTIONS: &str = "tramontane_prefix_cache_evictions_total";

/// Describes a worker's metrics to the recorder.
pub(crate) fn describe() {
    super::loading::describe();
    describe_histogram!(
        STEP_SECONDS,
        "Seconds that a stage takes for a step that has rows, by replica and stage"
    );
    describe_histogram!(
        BUBBLE_SECONDS,
        "Seconds from the end of a step on a stage to the beginning of its next one, where a sequence was open on the \
         stage all the while: opened by a step that came to it, and not closed by one yet. By replica and stage"
    );
    describe_histogram!(
        STEP_ROWS,
        "Rows of a step, prompt and decode rows together; at the head"
    );
    describe_counter!(
        EXPANDED_ROWS,
        "Prompt rows in whole groups of steps.expanded_group; at the head"
    );
    describe_histogram!(STEP_SEQUENCES, "Sequences that have rows in a step; at the head");
    describe_histogram!(
        QUEUE_SECONDS,
        "Seconds from a request's submission to its first rows in a step; at the head"
    );
    describe_counter!(PREEMPTIONS, "Sequences that gave their cache blocks up to others");
    describe_counter!(LOOKUP_TOKENS, "Tokens looked up in the prefix cache");
    describe_counter!(HIT_TOKENS, "Tokens of these that were found");
    describe_counter!(EVICTIONS, "Cached blocks given out for something else");
    describe_gauge!(
        "tramontane_kv_blocks_cached",
        "Blocks that no sequence uses, kept for what they hold, by replica"
    );
    describe_counter!(
        "tramontane_tokens_generated_total",
        "Tokens sampled for requests; at the head"
    );
    describe_counter!(
        "tramontane_weights_read_bytes_total",
        "Bytes of weights brought from the checkpoint to a device, for a placement or for a standby's copies"
    );
    describe_gauge!(
        "tramontane_standby_bytes",
        "Bytes of copies of weights that a device keeps for others"
    );
    describe_counter!(
        "tramontane_standby_failures_total",
        "Copies of weights that could not be loaded"
    );
    describe_counter!(
        "tramontane_fenced_messages_total",
        "Messages of another generation, and submissions of an older attempt, that were dropped"
    );
    describe_counter!(
        "tramontane_pipelines_lost_total",
        "Pipelines that broke; at the head"
    );
    describe_counter!(
        "tramontane_link_sent_bytes_total",
        "Bytes sent to a peer's stages"
    );
    describe_histogram!(
        EXCHANGE_SECONDS,
        "Seconds from handing an expert group's work over to having its results, by the device that computes them"
    );
    describe_histogram!(
        "tramontane_expert_read_seconds",
        "Seconds that reading a layer's routing and rows takes, before they go to other devices"
    );
    describe_histogram!(
        "tramontane_expert_wait_seconds",
        "Seconds that a layer waits for other devices' experts once it has begun its own"
    );
    describe_histogram!(
        "tramontane_device_step_seconds",
        "Seconds that a device takes for a step, without what it waits for"
    );
    describe_counter!(
        "tramontane_fetched_bytes_total",
        "Bytes of weight files that came from other nodes"
    );
    describe_counter!("tramontane_device_rows_total", "Rows that devices computed");
}

/// A step was sent into the pipeline.
pub(super) fn step_sent(batch: &StepBatch) {
    // One that only closes sequences computes nothing.
    if batch.rows() > 0 {
        histogram!(STEP_ROWS).record(batch.rows() as f64);
        histogram!(STEP_SEQUENCES).record(batch.chunks.len() as f64);
        let expanded = batch
            .chunks
            .iter()
            .filter(|chunk| chunk.role == RowRole::Expanded);
        let rows = expanded.map(|chunk| chunk.tokens.len() as u64);
        counter!(EXPANDED_ROWS).increment(rows.sum());
    }
}

/// A request has its first rows in a step.
pub(super) fn queued(waited: Duration) {
    histogram!(QUEUE_SECONDS).record(waited.as_secs_f64());
}

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
        count(PREEMPTIONS, |stats| stats.preemptions);
        count(LOOKUP_TOKENS, |stats| stats.prefix_lookup_tokens);
        count(HIT_TOKENS, |stats| stats.prefix_hit_tokens);
        count(EVICTIONS, |stats| stats.prefix_evictions);
        self.counted = stats;
    }

    /// The next numbers are those of a new scheduler.
    pub(super) fn start_anew(&mut self) {
        self.counted = SchedulerStats::default();
    }
}

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;
    use tramontane_model::ids::{Fence, Generation, SequenceId, StepId};
    use tramontane_model::step::SequenceChunk;

    use super::*;

    #[test]
    fn rows_of_a_step_are_counted_and_those_that_are_expanded() {
        let chunk = |role, rows| SequenceChunk {
            sequence: SequenceId(1),
            open: None,
            first_position: 0,
            tokens: vec![1; rows],
            role,
            sample: false,
            scored: vec![],
            block_table: vec![0],
        };
        let batch = StepBatch {
            fence: Fence {
                replica: ReplicaId(3),
                generation: Generation(2),
            },
            step: StepId(0),
            chunks: vec![
                chunk(RowRole::Generated, 1),
                chunk(RowRole::Expanded, 8),
                chunk(RowRole::Given, 3),
            ],
            closed: vec![],
        };
        let recorder = PrometheusBuilder::new()
            .set_buckets(&[100.0])
            .expect("bounds")
            .build_recorder();
        let shown = recorder.handle();
        metrics::with_local_recorder(&recorder, || {
            step_sent(&batch);
            step_sent(&batch);
        });
        let text = shown.render();
        for line in [
            "tramontane_expanded_rows_total 16",
            "tramontane_step_rows_sum 24",
            "tramontane_step_sequences_sum 6",
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "{line} is not in:\n{text}"
            );
        }
    }
}
