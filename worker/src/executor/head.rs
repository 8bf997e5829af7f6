//! The end of the last stage: final norm and head on the rows to be sampled, and the sampler.
//!
//! Logits stay on the device. Sampling parameters are kept from the chunk that opens a sequence until it is closed. A row
//! that is to be adjusted or masked is sampled from a copy of its logits; a step without such rows makes no copy. Masks
//! are waited for once the device computes the logits.

use tramontane_model::footprint::LOGIT_ROWS;
use tramontane_model::grammar::GrammarError;
use tramontane_model::ids::SequenceId;
use tramontane_model::sampling::SampledToken;
use tramontane_model::step::{RowRole, SequenceChunk, StepBatch, StepResult, Unsampled};
use tramontane_proto::MAX_REASON_BYTES;

use super::DeviceError;
use super::masks::Constraint;
use super::open::{self, Changes, OpenSequence};
use super::plan::SampledRow;
use super::run::{MAX_OPEN_SEQUENCES, OwnedStage, StageRun};
use tramontane_kernels::ops::{
    Adjust, Backend, DeviceBuffer, Linear, OpError, ReadRange, RmsNorm, Rows, Sample, SampleParams,
    SampleResult,
};

impl<B: DeviceBuffer> OwnedStage<B> {
    /// Drops sequences that have closed, keeps those that open, and counts the tokens of those whose penalties look at them.
    /// Refuses a step, without opening any, that would sample a sequence that was never opened.
    pub(super) fn open_and_close(&mut self, batch: &StepBatch, vocab_size: u32) -> Result<(), DeviceError> {
        for sequence in &batch.closed {
            self.sampling.remove(sequence);
        }
        let step = batch.step;
        let opened = || {
            batch
                .chunks
                .iter()
                .filter_map(|chunk| Some((chunk, chunk.open.as_ref()?)))
        };
        for (chunk, opening) in opened() {
            let (sequence, valid) = (chunk.sequence, opening.sampling.validate_for(vocab_size));
            valid.map_err(|problem| DeviceError::Sampling {
                step,
                sequence,
                problem,
            })?;
        }
        let looked_at = |chunk: &&SequenceChunk| chunk.sample || !chunk.scored.is_empty();
        for chunk in batch.chunks.iter().filter(looked_at) {
            let sequence = chunk.sequence;
            if !self.sampling.contains_key(&sequence)
                && !opened().any(|(chunk, _)| chunk.sequence == sequence)
            {
                return Err(DeviceError::NotOpened { step, sequence });
            }
        }
        let found = self.sampling.len() + opened().count();
        if found > MAX_OPEN_SEQUENCES {
            return Err(DeviceError::Capacity {
                step,
                what: "open sequences",
                found,
                limit: MAX_OPEN_SEQUENCES,
            });
        }
        for (chunk, opening) in opened() {
            let grammar = opening.sampling.grammar.as_ref();
            let constraint = grammar
                .zip(self.masks.as_ref())
                .map(|(grammar, maker)| Constraint::new(maker, chunk.sequence, grammar, opening));
            let sequence = OpenSequence::new(opening, chunk.first_position, constraint);
            self.sampling.insert(chunk.sequence, sequence);
        }
        for chunk in &batch.chunks {
            if let Some(sequence) = self.sampling.get_mut(&chunk.sequence) {
                sequence.take_in(chunk);
            }
        }
        Ok(())
    }
}

impl<D: Backend> StageRun<'_, D> {
    /// Samples every chunk that asks for it and scores its tokens; waits until the step has run in any case.
    pub(super) fn sample(&mut self) -> Result<StepResult, DeviceError> {
        let mut tokens: Vec<Option<(SequenceId, SampledToken)>> = vec![None; self.batch.chunks.len()];
        let mut unsampled = Vec::new();
        let mut scored: Vec<Vec<SampledToken>> = vec![Vec::new(); self.batch.chunks.len()];
        for samples in self.plan.samples.chunks(LOGIT_ROWS as usize) {
            let results = self.sample_rows(samples, &mut unsampled)?;
            for (sample, result) in samples.iter().zip(results) {
                let sequence = self.batch.chunks[sample.chunk].sequence;
                let token = SampledToken {
                    token: result.token,
                    logprob: result.logprob,
                    top: result.top,
                };
                if sample.scores.is_some() {
                    scored[sample.chunk].push(token);
                    continue;
                }
                // Of one that can have no token nothing more is asked.
                if unsampled
                    .iter()
                    .all(|failed: &Unsampled| failed.sequence != sequence)
                    && let Some(open) = self.stage.sampling.get(&sequence)
                {
                    open.sampled(result.token);
                }
                tokens[sample.chunk] = Some((sequence, token));
            }
        }
        if self.plan.samples.is_empty() && !self.plan.order.is_empty() {
            self.device.read(&[], self.deadline)?;
        }
        Ok(StepResult {
            fence: self.batch.fence,
            step: self.batch.step,
            tokens: tokens.into_iter().flatten().collect(),
            scored: self
                .batch
                .chunks
                .iter()
                .zip(scored)
                .filter(|(_, scored)| !scored.is_empty())
                .map(|(chunk, scored)| (chunk.sequence, scored))
                .collect(),
            unsampled,
        })
    }

    /// How each row is sampled, and what is done to its logits before.
    fn params(&self, samples: &[SampledRow]) -> Result<(Vec<SampleParams>, Vec<Changes>), DeviceError> {
        let vocab_size = self.device.model.spec.vocab_size;
        let each = samples.iter().zip(LOGIT_ROWS..).map(|(sample, copy)| {
            let chunk = &self.batch.chunks[sample.chunk];
            let open = self.open(sample)?;
            if let Some(token) = sample.scores {
                return Ok((open.scoring(token), Changes::default()));
            }
            let position = chunk.first_position + chunk.tokens.len() as u32;
            let mut params = open.params(position, vocab_size);
            let changes = open.changes(position, self.deadline);
            if !changes.is_empty() {
                params.copy = copy;
            }
            Ok((params, changes))
        });
        each.collect()
    }

    fn open(&self, sample: &SampledRow) -> Result<&OpenSequence, DeviceError> {
        let sequence = self.batch.chunks[sample.chunk].sequence;
        let step = self.batch.step;
        let open = self.stage.sampling.get(&sequence);
        open.ok_or(DeviceError::NotOpened { step, sequence })
    }

    /// Samples at most [`LOGIT_ROWS`] rows, generated ones first; says which of them can have no token.
    fn sample_rows(
        &mut self,
        samples: &[SampledRow],
        unsampled: &mut Vec<Unsampled>,
    ) -> Result<Vec<SampleResult>, DeviceError> {
        let weights = self.device.weights;
        let (Some(buffers), Some(norm), Some(output)) =
            (&self.stage.head, weights.final_norm(), weights.output())
        else {
            return Err(OpError::shape("head", "it is not loaded").into());
        };
        let picks: Vec<u32> = samples.iter().map(|sample| sample.row).collect();
        let generated = samples.iter().filter(|sample| sample.role == RowRole::Generated);
        let generated = generated.count() as u32;
        let count = samples.len() as u32;
        let rows = Rows::new(generated, count - generated);
        let (backend, spec) = (&mut *self.device.backend, &self.device.model.spec);
        backend.write(&buffers.picks, 0, bytemuck::cast_slice(&picks))?;
        backend.rms_norm(&RmsNorm {
            input: &self.stage.buffers.hidden,
            pick: Some(&buffers.picks),
            weight: norm,
            output: &buffers.normed,
            eps: spec.norm_eps,
            rows,
        })?;
        backend.linear(&Linear {
            input: &buffers.normed,
            weight: output,
            output: &buffers.logits,
            add: false,
            rows,
        })?;
        let mut is_constrained = false;
        for sample in samples.iter().filter(|sample| sample.scores.is_none()) {
            is_constrained |= self.open(sample)?.is_constrained();
        }
        if is_constrained {
            // The device computes while masks are waited for.
            self.device.backend.submit()?;
        }
        let (params, changes) = self.params(samples)?;
        for (sample, changes) in samples.iter().zip(&changes) {
            let sequence = self.batch.chunks[sample.chunk].sequence;
            unsampled.extend(changes.failure.as_ref().map(|why| refused(sequence, why)));
        }
        let (backend, spec) = (&mut *self.device.backend, &self.device.model.spec);
        backend.write(&buffers.params, 0, bytemuck::cast_slice(&params))?;
        let masks: Vec<u32> = changes
            .iter()
            .flat_map(|one| &one.mask)
            .flatten()
            .copied()
            .collect();
        if !masks.is_empty() {
            backend.write(&buffers.masks, 0, bytemuck::cast_slice(&masks))?;
        }
        for copies in open::copies(&changes, LOGIT_ROWS, spec.vocab_size as usize) {
            backend.write(&buffers.adjusted, 0, bytemuck::cast_slice(&copies.rows))?;
            if !copies.adjustments.is_empty() {
                let list = bytemuck::cast_slice(&copies.adjustments);
                backend.write(&buffers.adjustments, 0, list)?;
            }
            backend.adjust(&Adjust {
                logits: &buffers.logits,
                rows: &buffers.adjusted,
                adjustments: &buffers.adjustments,
                masks: &buffers.masks,
                vocab: spec.vocab_size,
                count: copies.rows.len() as u32,
            })?;
        }
        backend.sample(&Sample {
            logits: &buffers.logits,
            params: &buffers.params,
            output: &buffers.sampled,
            vocab: spec.vocab_size,
            rows: count,
        })?;
        let range = ReadRange {
            buffer: buffers.sampled.clone(),
            offset: 0,
            bytes: SampleResult::bytes(count),
        };
        let read = self.device.read(&[range], self.deadline)?;
        Ok(SampleResult::parse(&read.concat(), &params)?)
    }
}

/// Why a sequence has no next token. A mask that came too late may come in time for another attempt.
fn refused(sequence: SequenceId, why: &GrammarError) -> Unsampled {
    let mut reason = why.to_string();
    let cut = (0..=MAX_REASON_BYTES.min(reason.len())).rfind(|&at| reason.is_char_boundary(at));
    reason.truncate(cut.unwrap_or(0));
    Unsampled {
        sequence,
        reason,
        passing: *why == GrammarError::Cancelled,
    }
}
