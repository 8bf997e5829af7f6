//! Stages that compute nothing but a hash of what their caches hold.
//!
//! Each stage has a cache of its own, written and read through the block tables, and runs its steps in order but at
//! its own pace. A sampled token is a hash of every cell the sequence's rows see on every stage, so a lost, repeated
//! or misplaced row, a wrong role, or a block given to two sequences gives another token than [`alone`].

use std::collections::{BTreeMap, VecDeque};

use tramontane_model::footprint::StepCapacity;
use tramontane_model::ids::SequenceId;
use tramontane_model::sampling::{SampledToken, SamplingParams};
use tramontane_model::step::{RowRole, SequenceChunk, StepBatch, StepResult};

use crate::scheduler::SchedulerConfig;

/// What a cache holds of one row.
type Cell = (u32, RowRole);

fn mix(state: u64, value: u64) -> u64 {
    let mixed = (state ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

fn read(state: u64, stage: usize, cells: impl Iterator<Item = Cell>) -> u64 {
    cells.fold(mix(state, stage as u64), |state, (token, role)| {
        mix(
            state,
            u64::from(token) * 2 + u64::from(role == RowRole::Generated),
        )
    })
}

fn choose(state: u64, sampling: &SamplingParams, vocab_size: u32) -> u32 {
    ((mix(state, sampling.seed) >> 32) % u64::from(vocab_size)) as u32
}

/// The log-probability of a token of the prompt, from what the last stage's cache holds before it.
fn score(state: u64, token: u32) -> f32 {
    -((mix(state, u64::from(token)) >> 48) as f32)
}

/// The log-probabilities of a prompt's tokens from the second on: the oracle.
pub(super) fn scores_alone(stages: usize, prompt: &[u32]) -> Vec<SampledToken> {
    let scored = (1..prompt.len()).map(|at| {
        let before = prompt[..at].iter().map(|&token| (token, RowRole::Given));
        SampledToken {
            token: prompt[at],
            logprob: score(read(0, stages - 1, before), prompt[at]),
            top: vec![],
        }
    });
    scored.collect()
}

/// The tokens of a sequence that has the stages to itself: the oracle. Ends with `stop`, if there is one.
pub(super) fn alone(
    stages: usize,
    vocab_size: u32,
    prompt: &[u32],
    sampling: &SamplingParams,
    max_tokens: usize,
    stop: Option<u32>,
) -> Vec<u32> {
    let mut history: Vec<Cell> = prompt.iter().map(|&token| (token, RowRole::Given)).collect();
    let mut emitted = Vec::new();
    while emitted.len() < max_tokens && (emitted.is_empty() || emitted.last() != stop.as_ref()) {
        let state = (0..stages).fold(0, |state, stage| read(state, stage, history.iter().copied()));
        let token = choose(state, sampling, vocab_size);
        history.push((token, RowRole::Generated));
        emitted.push(token);
    }
    emitted
}

#[derive(Default)]
struct Stage {
    /// Steps to run, each with the state of every chunk.
    inbox: VecDeque<(StepBatch, Vec<u64>)>,
    cache: BTreeMap<(u32, u32), Cell>,
}

/// What the last stage keeps of a sequence.
struct Open {
    sampling: SamplingParams,
    next_position: u32,
    role: RowRole,
}

/// Scores what follows a chunk's rows, after all that the last stage has of the sequence.
fn scores(config: &SchedulerConfig, stages: &[Stage], chunk: &SequenceChunk) -> Vec<SampledToken> {
    let block_tokens = config.kv.block_tokens;
    let last = stages.len() - 1;
    let cell = |position: u32| {
        let block = chunk.block_table[(position / block_tokens) as usize];
        stages[last].cache[&(block, position % block_tokens)]
    };
    let each = (chunk.first_position..).zip(&chunk.scored);
    let scored = each.map(|(row, &token)| SampledToken {
        token,
        logprob: score(read(0, last, (0..=row).map(cell)), token),
        top: vec![],
    });
    scored.collect()
}

pub(super) struct Pipeline {
    config: SchedulerConfig,
    stages: Vec<Stage>,
    open: BTreeMap<SequenceId, Open>,
    pub(super) results: VecDeque<StepResult>,
}

impl Pipeline {
    pub(super) fn new(config: &SchedulerConfig, stages: usize) -> Self {
        Self {
            config: config.clone(),
            stages: (0..stages).map(|_| Stage::default()).collect(),
            open: BTreeMap::new(),
            results: VecDeque::new(),
        }
    }

    /// Sequences that the last stage still holds.
    pub(super) fn open(&self) -> usize {
        self.open.len()
    }

    /// Takes a step in at the first stage.
    pub(super) fn start(&mut self, batch: StepBatch) {
        batch
            .validate(&self.config.step_limits())
            .expect("a step within its limits");
        let StepCapacity { rows, sequences } = self.config.capacity;
        assert!(batch.rows() <= rows as usize, "{} rows", batch.rows());
        let chunks = batch.chunks.len();
        assert!(chunks <= sequences as usize, "{chunks} sequences");
        let states = vec![0; batch.chunks.len()];
        self.stages[0].inbox.push_back((batch, states));
    }

    /// What a block of a stage's cache holds; nothing where the stage has not written.
    pub(super) fn block(&self, stage: usize, block: u32) -> Vec<Option<(u32, RowRole)>> {
        let cells = 0..self.config.kv.block_tokens;
        let cache = &self.stages[stage].cache;
        cells.map(|cell| cache.get(&(block, cell)).copied()).collect()
    }

    /// Runs one stage's next step, if it has one.
    pub(super) fn run(&mut self, stage: usize) -> bool {
        let block_tokens = self.config.kv.block_tokens;
        let Some((batch, mut states)) = self.stages[stage].inbox.pop_front() else {
            return false;
        };
        let cache = &mut self.stages[stage].cache;
        let place = |chunk: &SequenceChunk, position: u32| {
            (
                chunk.block_table[(position / block_tokens) as usize],
                position % block_tokens,
            )
        };
        for chunk in &batch.chunks {
            for (position, &token) in (chunk.first_position..).zip(&chunk.tokens) {
                cache.insert(place(chunk, position), (token, chunk.role));
            }
        }
        for (chunk, state) in batch.chunks.iter().zip(&mut states) {
            let end = chunk.first_position + chunk.tokens.len() as u32;
            let cells = (0..end).map(|position| cache[&place(chunk, position)]);
            *state = read(*state, stage, cells);
        }
        if stage + 1 < self.stages.len() {
            self.stages[stage + 1].inbox.push_back((batch, states));
        } else {
            self.sample(batch, &states);
        }
        true
    }

    fn sample(&mut self, batch: StepBatch, states: &[u64]) {
        for closed in &batch.closed {
            assert!(self.open.remove(closed).is_some(), "{closed} was not open");
        }
        let mut tokens = Vec::new();
        let mut scored = Vec::new();
        for (chunk, &state) in batch.chunks.iter().zip(states) {
            if let Some(opening) = &chunk.open {
                let opened = Open {
                    sampling: opening.sampling.clone(),
                    next_position: chunk.first_position,
                    role: RowRole::Given,
                };
                assert!(self.open.insert(chunk.sequence, opened).is_none(), "opened twice");
            }
            let open = self.open.get_mut(&chunk.sequence).expect("an open sequence");
            assert_eq!(chunk.first_position, open.next_position, "rows out of order");
            assert!(chunk.role >= open.role, "a prompt row after a generated one");
            open.next_position += chunk.tokens.len() as u32;
            open.role = chunk.role;
            if !chunk.scored.is_empty() {
                assert!(
                    open.sampling.prompt_logprobs.is_some(),
                    "scores that nobody asked for"
                );
                scored.push((chunk.sequence, scores(&self.config, &self.stages, chunk)));
            }
            if chunk.sample {
                let token = choose(state, &open.sampling, self.config.vocab_size);
                let sampled = SampledToken {
                    token,
                    logprob: 0.0,
                    top: vec![],
                };
                tokens.push((chunk.sequence, sampled));
            }
        }
        self.results.push_back(StepResult {
            fence: batch.fence,
            step: batch.step,
            tokens,
            scored,
            unsampled: vec![],
        });
    }

    /// Runs everything that was started, first stage first.
    pub(super) fn run_all(&mut self) {
        for stage in 0..self.stages.len() {
            while self.run(stage) {}
        }
    }
}
