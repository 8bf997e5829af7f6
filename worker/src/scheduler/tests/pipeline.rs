//! Stages that compute nothing but a hash of what their caches hold.
//!
//! Each stage has a cache of its own, written and read through the block tables, and runs its steps in order but at
//! its own pace. A sampled token is a hash of every cell the sequence's rows see on every stage, so a lost, repeated
//! or misplaced row, a wrong role, or a block given to two sequences gives another token than [`alone`].

use std::collections::{BTreeMap, VecDeque};

use tramontane_model::footprint::StepCapacity;
use tramontane_model::ids::SequenceId;
use tramontane_model::sampling::{SampledToken, SamplingParams};
use tramontane_model::step::{RowRole, SequenceChunk, StepBatch, StepResult, expanded_tokens};
use tramontane_sim::cache::{Cache, Cell, mix, read};

use crate::scheduler::SchedulerConfig;

fn choose(state: u64, sampling: &SamplingParams, vocab_size: u32) -> u32 {
    ((mix(state, sampling.seed) >> 32) % u64::from(vocab_size)) as u32
}

/// The log-probability of a token of the prompt, from what the last stage's cache holds before it.
fn score(state: u64, token: u32) -> f32 {
    -((mix(state, u64::from(token)) >> 48) as f32)
}

/// The role of a token in a sequence or block of so many expanded and prompt tokens.
pub(super) fn role(at: usize, expanded: usize, prompt: usize) -> RowRole {
    if at < expanded {
        RowRole::Expanded
    } else if at < prompt {
        RowRole::Given
    } else {
        RowRole::Generated
    }
}

/// What a cache holds of a prompt.
pub(super) fn prompt_cells(prompt: &[u32], group: u32) -> Vec<Cell> {
    let expanded = expanded_tokens(prompt.len(), group);
    let roles = (0..).map(|at| role(at, expanded, prompt.len()));
    prompt.iter().copied().zip(roles).collect()
}

/// The log-probabilities of a prompt's tokens from the second on: the oracle.
pub(super) fn scores_alone(stages: usize, prompt: &[Cell]) -> Vec<SampledToken> {
    let scored = (1..prompt.len()).map(|at| {
        let (token, _) = prompt[at];
        SampledToken {
            token,
            logprob: score(read(0, stages - 1, prompt[..at].iter().copied()), token),
            top: vec![],
        }
    });
    scored.collect()
}

/// The tokens of a sequence that has the stages to itself: the oracle. Ends with `stop`, if there is one.
pub(super) fn alone(
    stages: usize,
    vocab_size: u32,
    prompt: &[Cell],
    sampling: &SamplingParams,
    max_tokens: usize,
    stop: Option<u32>,
) -> Vec<u32> {
    let mut history = prompt.to_vec();
    let mut emitted = Vec::new();
    while emitted.len() < max_tokens && (emitted.is_empty() || emitted.last() != stop.as_ref()) {
        let state = (0..stages).fold(0, |state, stage| read(state, stage, history.iter().copied()));
        let token = choose(state, sampling, vocab_size);
        history.push((token, RowRole::Generated));
        emitted.push(token);
    }
    emitted
}

struct Stage {
    /// Steps to run, each with the state of every chunk.
    inbox: VecDeque<(StepBatch, Vec<u64>)>,
    cache: Cache,
}

/// What the last stage keeps of a sequence.
struct Open {
    sampling: SamplingParams,
    next_position: u32,
    role: RowRole,
}

/// Scores what follows a chunk's rows, after all that the last stage has of the sequence.
fn scores(stages: &[Stage], chunk: &SequenceChunk) -> Vec<SampledToken> {
    let last = stages.len() - 1;
    let scored = chunk.scored.iter().zip(1..).map(|(&token, rows)| {
        let before = SequenceChunk {
            tokens: chunk.tokens[..rows].to_vec(),
            ..chunk.clone()
        };
        let state = stages[last].cache.read(&before, last, 0).expect("written");
        SampledToken {
            token,
            logprob: score(state, token),
            top: vec![],
        }
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
            stages: (0..stages)
                .map(|_| Stage {
                    inbox: VecDeque::new(),
                    cache: Cache::new(config.kv.block_tokens),
                })
                .collect(),
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
        let StepCapacity {
            rows,
            sequences,
            expanded_group,
        } = self.config.capacity;
        assert!(batch.rows() <= rows as usize, "{} rows", batch.rows());
        let chunks = batch.chunks.len();
        assert!(chunks <= sequences as usize, "{chunks} sequences");
        for chunk in batch
            .chunks
            .iter()
            .filter(|chunk| chunk.role == RowRole::Expanded)
        {
            let end = chunk.first_position + chunk.tokens.len() as u32;
            assert_eq!(end % expanded_group, 0, "a group is cut: {chunk:?}");
        }
        let prompt_rows = batch.chunks.iter().filter(|chunk| chunk.role.is_prompt());
        let prompt_rows: usize = prompt_rows.map(|chunk| chunk.tokens.len()).sum();
        assert!(
            prompt_rows <= self.config.max_prefill_rows,
            "{prompt_rows} prompt rows"
        );
        let states = vec![0; batch.chunks.len()];
        self.stages[0].inbox.push_back((batch, states));
    }

    /// What a block of a stage's cache holds; nothing where the stage has not written.
    pub(super) fn block(&self, stage: usize, block: u32) -> Vec<Option<Cell>> {
        self.stages[stage].cache.block(block)
    }

    /// Runs one stage's next step, if it has one.
    pub(super) fn run(&mut self, stage: usize) -> bool {
        let Some((batch, mut states)) = self.stages[stage].inbox.pop_front() else {
            return false;
        };
        let cache = &mut self.stages[stage].cache;
        for chunk in &batch.chunks {
            cache.write(chunk);
        }
        for (chunk, state) in batch.chunks.iter().zip(&mut states) {
            *state = cache.read(chunk, stage, *state).expect("written rows");
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
                    role: RowRole::Expanded,
                };
                assert!(self.open.insert(chunk.sequence, opened).is_none(), "opened twice");
            }
            let open = self.open.get_mut(&chunk.sequence).expect("an open sequence");
            assert_eq!(chunk.first_position, open.next_position, "rows out of order");
            assert!(chunk.role >= open.role, "a row after one of a later role");
            open.next_position += chunk.tokens.len() as u32;
            open.role = chunk.role;
            if !chunk.scored.is_empty() {
                assert!(
                    open.sampling.prompt_logprobs.is_some(),
                    "scores that nobody asked for"
                );
                scored.push((chunk.sequence, scores(&self.stages, chunk)));
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
