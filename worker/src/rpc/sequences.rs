//! The sequences that are open on a stage: for whom they are, in the log, and how long the stage waits for their next
//! step.
//!
//! Lines and numbers only: nothing that is computed depends on them. No tokens in any line.

use std::collections::HashMap;
use std::time::Instant;

use metrics::{Histogram, histogram};
use tramontane_model::ids::{Fence, Origin, SequenceId};
use tramontane_model::step::{MAX_RUNNING_SEQUENCES, MAX_STEP_SEQUENCES, StepBatch};

use super::link::LinkLost;
use super::telemetry::{BUBBLE_SECONDS, STEP_SECONDS};

/// Most sequences that are open at once: those that run, and those that closed and were not told of yet.
const MAX_OPEN: usize = MAX_RUNNING_SEQUENCES as usize + 256 * MAX_STEP_SEQUENCES;

/// What is open on one stage since its link was opened.
pub(super) struct OpenSequences {
    fence: Fence,
    stage: u32,
    open: HashMap<SequenceId, Origin>,
    step_seconds: Histogram,
    bubble_seconds: Histogram,
    /// When the last step ended, if a sequence was open then.
    idle_since: Option<Instant>,
}

impl OpenSequences {
    /// None yet.
    pub(super) fn new(fence: Fence, stage: u32) -> Self {
        let labels = [
            ("replica", fence.replica.to_string()),
            ("stage", stage.to_string()),
        ];
        Self {
            fence,
            stage,
            open: HashMap::new(),
            step_seconds: histogram!(STEP_SECONDS, &labels),
            bubble_seconds: histogram!(BUBBLE_SECONDS, &labels),
            idle_since: None,
        }
    }

    /// A step begins: tells whom it opens and closes.
    pub(super) fn begin(&mut self, batch: &StepBatch, now: Instant) -> Result<(), LinkLost> {
        if let Some(since) = self.idle_since.take() {
            self.bubble_seconds
                .record(now.saturating_duration_since(since).as_secs_f64());
        }
        for &sequence in &batch.closed {
            if let Some(origin) = self.open.remove(&sequence) {
                self.tell("sequence closed", sequence, origin);
            }
        }
        for chunk in &batch.chunks {
            if let Some(opening) = &chunk.open {
                self.open.insert(chunk.sequence, opening.origin);
                self.tell("sequence opened", chunk.sequence, opening.origin);
            }
        }
        if self.open.len() > MAX_OPEN {
            return Err(LinkLost(format!(
                "{} sequences are open, at most {MAX_OPEN} may be",
                self.open.len()
            )));
        }
        Ok(())
    }

    /// The step is computed.
    pub(super) fn end(&mut self, batch: &StepBatch, began: Instant, now: Instant) {
        if batch.rows() > 0 {
            self.step_seconds
                .record(now.saturating_duration_since(began).as_secs_f64());
        }
        self.idle_since = (!self.open.is_empty()).then_some(now);
    }

    fn tell(&self, what: &'static str, sequence: SequenceId, Origin { request, trace }: Origin) {
        let (fence, stage) = (self.fence, self.stage);
        tracing::debug!(%trace, %request, %fence, stage, %sequence, "{what}");
    }
}

impl Drop for OpenSequences {
    fn drop(&mut self) {
        for (&sequence, &origin) in &self.open {
            self.tell("sequence closed with its link", sequence, origin);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use metrics_exporter_prometheus::PrometheusBuilder;
    use tramontane_model::ids::{Generation, ReplicaId, StepId};
    use tramontane_model::sampling::SamplingParams;
    use tramontane_model::step::{Opening, RowRole, SequenceChunk};

    use super::*;

    fn batch(open: &[u64], rows: &[u64], closed: &[u64]) -> StepBatch {
        let chunk = |&sequence: &u64| SequenceChunk {
            sequence: SequenceId(sequence),
            open: open
                .contains(&sequence)
                .then(|| Opening::new(Origin::NOBODY, &SamplingParams::GREEDY, &[], 0, 0)),
            first_position: 0,
            tokens: vec![1],
            role: RowRole::Given,
            sample: true,
            scored: vec![],
            block_table: vec![0],
        };
        StepBatch {
            fence: Fence {
                replica: ReplicaId(3),
                generation: Generation(2),
            },
            step: StepId(0),
            chunks: rows.iter().map(chunk).collect(),
            closed: closed.iter().copied().map(SequenceId).collect(),
        }
    }

    /// A stage is idle for a bubble only while a sequence is open on it.
    #[test]
    fn bubbles_are_between_steps_of_open_sequences() {
        let recorder = PrometheusBuilder::new()
            .set_buckets(&[1.0])
            .expect("bounds")
            .build_recorder();
        let shown = recorder.handle();
        metrics::with_local_recorder(&recorder, || {
            let start = Instant::now();
            let at = |seconds| start + Duration::from_secs(seconds);
            let mut sequences = OpenSequences::new(batch(&[], &[], &[]).fence, 1);
            // Steps of one second: from 10, 14, 20 (empty, closes the first) and 50 on.
            for (step, from) in [
                (batch(&[7, 8], &[7, 8], &[]), 10),
                (batch(&[], &[7], &[8]), 14),
                (batch(&[], &[], &[7]), 20),
                (batch(&[9], &[9], &[]), 50),
            ] {
                sequences.begin(&step, at(from)).expect("few are open");
                sequences.end(&step, at(from), at(from + 1));
            }
        });
        let text = shown.render();
        let labels = "{replica=\"3\",stage=\"1\"}";
        for line in [
            format!("tramontane_stage_bubble_seconds_count{labels} 2"),
            // 11 to 14 and 15 to 20; not 21 to 50.
            format!("tramontane_stage_bubble_seconds_sum{labels} 8"),
            format!("tramontane_step_seconds_count{labels} 3"),
            format!("tramontane_step_seconds_sum{labels} 3"),
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "{line} is not in:\n{text}"
            );
        }
    }
}
