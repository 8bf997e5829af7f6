//! The first steps of a placement, before it is told to be ready: drivers compile and allocate at first use, and a
//! device that cannot compute should say so before anybody waits for it.
//!
//! What is computed is thrown away. The cache rows that it writes are written again before any sequence reads them.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;
use tramontane_model::ids::{DeviceRef, Origin, SequenceId, StepId};
use tramontane_model::sampling::SamplingParams;
use tramontane_model::step::{Opening, RowRole, SequenceChunk, StepBatch};
use tramontane_proto::{ExpertResults, ExpertWork};

use super::run::Executor;
use super::{DeviceError, ExchangeError, ExchangeEvent, ExpertExchange, StageInput};
use tramontane_kernels::ops::Backend;

/// Prompt rows of the first step: kernels that take several rows at once are met too.
const GIVEN_ROWS: u32 = 5;

impl<D: Backend> Executor<D> {
    /// Runs what the device is placed for once: a step of rows of each role, and experts for others.
    /// Other devices are not asked for theirs.
    pub fn warm_up(&mut self) -> Result<(), DeviceError> {
        let deadline = Instant::now() + self.timeout();
        let Some(duties) = self.duties() else {
            return Ok(());
        };
        if let Some(batches) = &duties.batches {
            let row_bytes = self.row_bytes();
            for batch in batches {
                let input = match duties.first {
                    true => StageInput::Embed,
                    false => StageInput::Hidden(vec![0; batch.rows() * row_bytes].into()),
                };
                self.run(batch, input, &mut Zeros::new(row_bytes), deadline)?;
            }
        }
        if let Some(work) = &duties.work {
            self.run_experts(work, deadline)?;
        }
        Ok(())
    }

    fn row_bytes(&self) -> usize {
        self.model().spec.dim as usize * 4
    }

    /// What a placement asks of the device, in its smallest form.
    fn duties(&self) -> Option<Duties> {
        let placed = self.placed()?;
        let slice = placed.stage.as_ref().map(|stage| &stage.slice);
        let batches = slice.map(|slice| {
            let given = GIVEN_ROWS.min(slice.kv.block_tokens).min(placed.capacity.rows);
            let roles = match placed.capacity.expanded_group {
                0 => [RowRole::Given, RowRole::Generated].as_slice(),
                _ => &[RowRole::Expanded, RowRole::Given, RowRole::Generated],
            };
            let sequence = |at: usize| SequenceId(u64::MAX - at as u64);
            let batch = |at: usize, chunks| StepBatch {
                fence: placed.fence,
                step: StepId(u64::MAX - (roles.len() - at) as u64),
                chunks,
                closed: at.checked_sub(1).map(sequence).into_iter().collect(),
            };
            let steps = roles.iter().enumerate().map(|(at, &role)| {
                let rows = if role.is_prompt() { given } else { 1 };
                batch(at, vec![chunk(sequence(at), role, rows)])
            });
            steps.chain([batch(roles.len(), vec![])]).collect()
        });
        let foreign = placed.experts.iter().flat_map(|held| &held.slices);
        let foreign = foreign.filter(|slice| !slice.own_stage).min();
        let work = foreign.map(|slice| ExpertWork {
            fence: placed.fence,
            stage: slice.stage,
            group: slice.group,
            step: StepId(u64::MAX),
            layer: slice.layers.start(),
            given_rows: 1,
            rows: vec![0; 2 * self.row_bytes()].into(),
            assigned: vec![(0, slice.experts.start()), (1, slice.experts.start())],
        });
        Some(Duties {
            first: slice.is_some_and(|slice| slice.first),
            batches,
            work,
        })
    }
}

struct Duties {
    first: bool,
    batches: Option<Vec<StepBatch>>,
    work: Option<ExpertWork>,
}

fn chunk(sequence: SequenceId, role: RowRole, rows: u32) -> SequenceChunk {
    let tokens = vec![0; rows as usize];
    let prompt_tokens = if role.is_prompt() { tokens.len() } else { 0 };
    let sampling = SamplingParams {
        logit_bias: vec![(0, 1.0)],
        ..SamplingParams::GREEDY
    };
    SequenceChunk {
        sequence,
        open: Some(Opening::new(Origin::NOBODY, &sampling, &tokens, prompt_tokens, 0)),
        first_position: 0,
        tokens,
        role,
        sample: true,
        scored: vec![],
        block_table: vec![0],
    }
}

/// Answers for the holders of remote groups, with zeros.
struct Zeros {
    row_bytes: usize,
    answers: VecDeque<(u32, ExpertResults)>,
}

impl Zeros {
    fn new(row_bytes: usize) -> Self {
        Self {
            row_bytes,
            answers: VecDeque::new(),
        }
    }
}

impl ExpertExchange for Zeros {
    fn send(&mut self, group: u32, _: &DeviceRef, work: ExpertWork) -> Result<(), ExchangeError> {
        let results = ExpertResults {
            fence: work.fence,
            step: work.step,
            layer: work.layer,
            results: Bytes::from(vec![0; work.assigned.len() * self.row_bytes]),
        };
        self.answers.push_back((group, results));
        Ok(())
    }

    fn next(&mut self, _: Instant) -> Result<ExchangeEvent, ExchangeError> {
        match self.answers.pop_front() {
            Some((group, results)) => Ok(ExchangeEvent::Results { group, results }),
            None => Err(ExchangeError::Deadline),
        }
    }
}
