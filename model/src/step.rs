//! One step of a replica: which rows every stage computes, and where their keys and values lie.
//!
//! Decided by the scheduler on the head, run unchanged by every stage. No hidden states here: they travel beside it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::config::Faults;
use crate::footprint::StepCapacity;
use crate::ids::{Fence, Origin, SequenceId, StepId};
use crate::sampling::{SampledToken, SamplingParams};

/// Most rows in one step.
pub const MAX_STEP_ROWS: usize = 8192;
/// Most sequences in one step.
pub const MAX_STEP_SEQUENCES: usize = 1024;

/// Priorities of requests are from its negative to it; lower is served first.
pub const MAX_PRIORITY: i32 = 100;

/// Most sequences that a replica's scheduler may be told to hold.
pub const MAX_RUNNING_SEQUENCES: u32 = 1 << 16;
/// Most sequences that a replica's scheduler may be told to let wait.
pub const MAX_WAITING_SEQUENCES: u32 = 1 << 20;

/// Most tokens that a replica's scheduler may be told to let wait.
pub const MAX_WAITING_TOKENS: u64 = 1 << 40;

/// Longest time that a step may be meant to take, in milliseconds: beyond it nothing is held back.
const MAX_TARGET_MS: u32 = 600_000;

/// Bounds of a replica's steps: part of its placement, because every device's buffers follow from them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StepBounds {
    /// Most rows in a step.
    pub max_rows: u32,
    /// Most prompt rows in a step: how far one long prompt may hold up running sequences. Below `max_rows`: the other
    /// rows are for decoding.
    pub max_prefill_rows: u32,
    /// Most sequences that hold cache blocks at once.
    pub max_sequences: u32,
    /// Most sequences that wait.
    pub max_waiting: u32,
    /// Most tokens, prompts and longest outputs together, that sequences may wait with; one alone may have more.
    pub max_waiting_tokens: u64,
    /// Whether full blocks of the cache are kept and shared between sequences that begin alike. Never changes a token.
    pub prefix_cache: bool,
    /// Milliseconds that a step with prompt rows may take while sequences decode; where a step without takes more than half
    /// of it, twice what that takes. Prompts are cut accordingly, which never changes a token.
    pub target_ms: u32,
    /// Prompt rows in whole groups of so many, counted from position 0, attend to expanded keys and values
    /// ([`RowRole::Expanded`]), and a step has all rows of such a group or none. 0: none do. No more than
    /// `max_prefill_rows`.
    pub expanded_group: u32,
}

impl Default for StepBounds {
    fn default() -> Self {
        Self {
            max_rows: 256,
            max_prefill_rows: 128,
            max_sequences: 256,
            max_waiting: 1024,
            max_waiting_tokens: 1 << 22,
            prefix_cache: true,
            target_ms: 40,
            expanded_group: 0,
        }
    }
}

impl StepBounds {
    /// Checks every bound; `key` is what the bounds are called where they were read.
    pub fn check(&self, key: &str, faults: &mut Faults) {
        let mut within = |name: &str, value: u32, low: u32, high: u32| {
            faults.within(&format!("{key}.{name}"), value.into(), low.into(), high.into());
        };
        let most_rows = u32::try_from(MAX_STEP_ROWS).unwrap_or(u32::MAX);
        within("max_rows", self.max_rows, 2, most_rows);
        let most_prefill = self.max_rows.saturating_sub(1).max(1);
        within("max_prefill_rows", self.max_prefill_rows, 1, most_prefill);
        within("max_sequences", self.max_sequences, 1, MAX_RUNNING_SEQUENCES);
        within("max_waiting", self.max_waiting, 1, MAX_WAITING_SEQUENCES);
        within("target_ms", self.target_ms, 1, MAX_TARGET_MS);
        within("expanded_group", self.expanded_group, 0, self.max_prefill_rows);
        let key = format!("{key}.max_waiting_tokens");
        faults.within(&key, self.max_waiting_tokens, 1, MAX_WAITING_TOKENS);
    }

    /// The largest step that a device's buffers hold.
    pub fn capacity(&self) -> StepCapacity {
        let most = u32::try_from(MAX_STEP_SEQUENCES).unwrap_or(u32::MAX);
        StepCapacity {
            rows: self.max_rows,
            sequences: self.max_sequences.min(most),
            expanded_group: self.expanded_group,
        }
    }
}

/// Which kernels compute a row (DET-1): prompt rows the prefill kernels, generated rows the decode kernels, also
/// when they are computed again after a failure or a preemption. Roles of a sequence are in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RowRole {
    /// The row is a token of the prompt, in a whole group of [`StepBounds::expanded_group`]: latent attention expands keys
    /// and values of its context, which for many rows is less work than the absorbed form. Elsewhere as [`Self::Given`].
    Expanded,
    /// The row is another token of the prompt.
    Given,
    /// The row is a token that the model emitted.
    Generated,
}

impl RowRole {
    /// Whether the row is of the prompt.
    pub fn is_prompt(self) -> bool {
        match self {
            Self::Expanded | Self::Given => true,
            Self::Generated => false,
        }
    }
}

/// Tokens at the front of a prompt that are in whole groups of `group`; 0 if nothing is grouped.
pub const fn expanded_tokens(prompt: usize, group: u32) -> usize {
    match prompt.checked_rem(group as usize) {
        Some(rest) => prompt - rest,
        None => 0,
    }
}

/// What the last stage needs to sample a sequence, beside the rows that follow.
///
/// Sampling looks at what the sequence holds, so a sequence whose first rows are not its own first ones brings what came
/// before them, as far as its parameters look at it: the same tokens are then chosen wherever a stay in the cache begins.
#[derive(Clone, Debug, PartialEq)]
pub struct Opening {
    /// Whom it is for.
    pub origin: Origin,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Tokens of the whole prompt: what comes after them is generated.
    pub prompt_tokens: u32,
    /// Ids of the prompt before the chunk's first row, each once, ascending. Empty unless the repetition penalty looks at
    /// them.
    pub prompt_before: Vec<u32>,
    /// Generated tokens before the chunk's first row, in order. Empty unless a penalty or the grammar looks at them.
    pub generated_before: Vec<u32>,
}

impl Opening {
    /// For a sequence of `tokens`, the first `prompt_tokens` of them its prompt, whose first chunk begins at `start`.
    pub fn new(
        origin: Origin,
        sampling: &SamplingParams,
        tokens: &[u32],
        prompt_tokens: usize,
        start: usize,
    ) -> Self {
        let before = &tokens[..start.min(tokens.len())];
        let (prompt, generated) = before.split_at(prompt_tokens.min(before.len()));
        let distinct = || {
            prompt
                .iter()
                .copied()
                .collect::<BTreeSet<u32>>()
                .into_iter()
                .collect()
        };
        Self {
            origin,
            sampling: sampling.clone(),
            prompt_tokens: u32::try_from(prompt_tokens).unwrap_or(u32::MAX),
            prompt_before: if sampling.looks_at_prompt() {
                distinct()
            } else {
                Vec::new()
            },
            generated_before: if sampling.looks_at_generated() {
                generated.to_vec()
            } else {
                Vec::new()
            },
        }
    }

    /// Checks what came before a chunk at `first_position`: ids, and that there is as much of it as there must be.
    fn validate(&self, chunk: &SequenceChunk, step: StepId, limits: &StepLimits) -> Result<(), StepError> {
        let sequence = chunk.sequence;
        let ids = || self.prompt_before.iter().chain(&self.generated_before);
        if let Some(&token) = ids().find(|&&token| token >= limits.vocab_size) {
            return Err(StepError::Token {
                step,
                sequence,
                token,
                vocab_size: limits.vocab_size,
            });
        }
        let before = |problem: String| {
            Err(StepError::Before {
                step,
                sequence,
                problem,
            })
        };
        let (prompt, generated) = (
            chunk.first_position.min(self.prompt_tokens) as usize,
            chunk.first_position.saturating_sub(self.prompt_tokens) as usize,
        );
        let distinct = self.prompt_before.len();
        let is_expected = self.sampling.looks_at_prompt() && prompt > 0;
        if distinct > prompt || is_expected == self.prompt_before.is_empty() {
            return before(format!("{distinct} distinct tokens of {prompt} of its prompt"));
        }
        if !self.prompt_before.is_sorted_by(|one, next| one < next) {
            return before("tokens of its prompt that do not ascend".to_owned());
        }
        let found = self.generated_before.len();
        let expected = if self.sampling.looks_at_generated() {
            generated
        } else {
            0
        };
        if found != expected {
            return before(format!("{found} generated tokens, {expected} are needed"));
        }
        Ok(())
    }
}

/// New rows of one sequence, all of one role, at consecutive positions.
#[derive(Clone, Debug, PartialEq)]
pub struct SequenceChunk {
    /// The sequence.
    pub sequence: SequenceId,
    /// Present in the sequence's first chunk only: what the last stage needs to sample it.
    pub open: Option<Opening>,
    /// Position of the first row, counted from 0.
    pub first_position: u32,
    /// Token ids of the rows; never empty.
    pub tokens: Vec<u32>,
    /// Role of all rows.
    pub role: RowRole,
    /// Whether the last row's logits are sampled.
    pub sample: bool,
    /// Tokens of the prompt whose log-probabilities are reported: entry `i` follows row `i`. Empty unless they are asked
    /// for; else one for each row that a prompt token follows.
    pub scored: Vec<u32>,
    /// Blocks of the sequence's cache in order; block `i` holds positions `i * block_tokens ..`. Covers every row.
    pub block_table: Vec<u32>,
}

/// The work of one step, the same for every stage.
#[derive(Clone, Debug, PartialEq)]
pub struct StepBatch {
    /// Whose step it is.
    pub fence: Fence,
    /// Which step.
    pub step: StepId,
    /// The rows, in the order in which hidden states are laid out.
    pub chunks: Vec<SequenceChunk>,
    /// Sequences that ended since the last step: their sampling state may go.
    pub closed: Vec<SequenceId>,
}

impl StepBatch {
    /// Rows in the step.
    pub fn rows(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.tokens.len()).sum()
    }

    /// Rows whose logits are sampled or score a token.
    pub fn looked_at(&self) -> usize {
        let of = |chunk: &SequenceChunk| usize::from(chunk.sample) + chunk.scored.len();
        self.chunks.iter().map(of).sum()
    }
}

/// Why the last stage can choose no token for a sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsampled {
    /// The sequence.
    pub sequence: SequenceId,
    /// What happened.
    pub reason: String,
    /// Whether it may go well another time, as what came too late may.
    pub passing: bool,
}

/// What the last stage returns for a step, in the order of the chunks.
#[derive(Clone, Debug, PartialEq)]
pub struct StepResult {
    /// Whose step it was.
    pub fence: Fence,
    /// Which step.
    pub step: StepId,
    /// The sampled tokens: one for each chunk with `sample`.
    pub tokens: Vec<(SequenceId, SampledToken)>,
    /// The tokens of the prompt that were to be scored: an entry for each chunk that has any.
    pub scored: Vec<(SequenceId, Vec<SampledToken>)>,
    /// Sequences whose sampled token is none of theirs: they cannot go on.
    pub unsampled: Vec<Unsampled>,
}

/// Why a step cannot be run as it stands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// More rows or sequences than a step may hold.
    #[error("step {step}: {found} {what}, at most {limit} are allowed")]
    TooLarge {
        /// The step.
        step: StepId,
        /// What there is too much of.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many there may be.
        limit: usize,
    },
    /// A chunk without rows.
    #[error("step {step}: sequence {sequence} has a chunk without rows")]
    Empty {
        /// The step.
        step: StepId,
        /// The sequence.
        sequence: SequenceId,
    },
    /// A token id outside the vocabulary.
    #[error("step {step}: sequence {sequence} has token id {token}, the vocabulary has {vocab_size}")]
    Token {
        /// The step.
        step: StepId,
        /// The sequence.
        sequence: SequenceId,
        /// The id.
        token: u32,
        /// Ids are below this.
        vocab_size: u32,
    },
    /// More tokens to be scored than rows, or any beside generated rows.
    #[error("step {step}: sequence {sequence} has {found} tokens to be scored after {rows} rows")]
    Scored {
        /// The step.
        step: StepId,
        /// The sequence.
        sequence: SequenceId,
        /// Tokens to be scored.
        found: usize,
        /// Rows of the chunk.
        rows: usize,
    },
    /// An opening that does not say what the sampler needs of the rows before it.
    #[error("step {step}: sequence {sequence} opens with {problem}")]
    Before {
        /// The step.
        step: StepId,
        /// The sequence.
        sequence: SequenceId,
        /// What it opens with, and what would be right.
        problem: String,
    },
    /// A row past the longest sequence the model takes.
    #[error("step {step}: sequence {sequence} ends at position {end}, the longest sequence has {limit}")]
    Position {
        /// The step.
        step: StepId,
        /// The sequence.
        sequence: SequenceId,
        /// One past the last row's position.
        end: u64,
        /// Most positions.
        limit: u32,
    },
    /// A block table that does not cover the rows or names a block that does not exist.
    #[error(
        "step {step}: sequence {sequence} has a block table of {found} blocks, {needed} of {blocks} are needed"
    )]
    BlockTable {
        /// The step.
        step: StepId,
        /// The sequence.
        sequence: SequenceId,
        /// Entries in the table.
        found: usize,
        /// Entries that the rows need.
        needed: usize,
        /// Blocks that exist; every entry is below this.
        blocks: u32,
    },
}

/// What a step is checked against before it is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepLimits {
    /// Token ids are below this.
    pub vocab_size: u32,
    /// Positions are below this.
    pub max_positions: u32,
    /// Tokens per cache block.
    pub block_tokens: u32,
    /// Cache blocks; ids are below this.
    pub blocks: u32,
}

impl StepBatch {
    /// Checks every bound, so that a device never reads or writes past its buffers.
    pub fn validate(&self, limits: &StepLimits) -> Result<(), StepError> {
        let step = self.step;
        let too_large = |what, found, limit| {
            Err(StepError::TooLarge {
                step,
                what,
                found,
                limit,
            })
        };
        if self.chunks.len() > MAX_STEP_SEQUENCES {
            return too_large("sequences", self.chunks.len(), MAX_STEP_SEQUENCES);
        }
        if self.rows() > MAX_STEP_ROWS {
            return too_large("rows", self.rows(), MAX_STEP_ROWS);
        }
        self.chunks
            .iter()
            .try_for_each(|chunk| chunk.validate(step, limits))
    }
}

impl SequenceChunk {
    fn validate(&self, step: StepId, limits: &StepLimits) -> Result<(), StepError> {
        let sequence = self.sequence;
        if self.tokens.is_empty() {
            return Err(StepError::Empty { step, sequence });
        }
        let mut ids = self.tokens.iter().chain(&self.scored);
        if let Some(&token) = ids.find(|&&token| token >= limits.vocab_size) {
            return Err(StepError::Token {
                step,
                sequence,
                token,
                vocab_size: limits.vocab_size,
            });
        }
        if self.scored.len() > self.tokens.len()
            || (self.role == RowRole::Generated && !self.scored.is_empty())
        {
            let (found, rows) = (self.scored.len(), self.tokens.len());
            return Err(StepError::Scored {
                step,
                sequence,
                found,
                rows,
            });
        }
        if let Some(opening) = &self.open {
            opening.validate(self, step, limits)?;
        }
        let end = u64::from(self.first_position) + self.tokens.len() as u64;
        if end > u64::from(limits.max_positions) {
            return Err(StepError::Position {
                step,
                sequence,
                end,
                limit: limits.max_positions,
            });
        }
        let needed = end.div_ceil(u64::from(limits.block_tokens.max(1))) as usize;
        if self.block_table.len() < needed || self.block_table.iter().any(|&block| block >= limits.blocks) {
            let (found, blocks) = (self.block_table.len(), limits.blocks);
            return Err(StepError::BlockTable {
                step,
                sequence,
                found,
                needed,
                blocks,
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grammar::Grammar;
    use crate::ids::{Generation, ReplicaId};

    const LIMITS: StepLimits = StepLimits {
        vocab_size: 100,
        max_positions: 64,
        block_tokens: 16,
        blocks: 8,
    };

    fn batch(chunk: SequenceChunk) -> StepBatch {
        let fence = Fence {
            replica: ReplicaId(1),
            generation: Generation(1),
        };
        StepBatch {
            fence,
            step: StepId(3),
            chunks: vec![chunk],
            closed: vec![],
        }
    }

    fn chunk() -> SequenceChunk {
        SequenceChunk {
            sequence: SequenceId(7),
            open: None,
            first_position: 15,
            tokens: vec![1, 2],
            role: RowRole::Given,
            sample: false,
            scored: vec![],
            block_table: vec![5, 0],
        }
    }

    #[test]
    fn a_step_within_its_limits_is_taken() {
        assert_eq!(batch(chunk()).validate(&LIMITS), Ok(()));
    }

    #[test]
    fn each_bound_is_checked() {
        let changes: [fn(&mut SequenceChunk); 9] = [
            |c| c.tokens.clear(),
            |c| c.tokens[1] = 100,
            |c| c.first_position = 63,
            |c| c.first_position = u32::MAX,
            |c| c.block_table.truncate(1),
            |c| c.block_table[0] = 8,
            |c| c.scored = vec![1, 2, 3],
            |c| c.scored = vec![100],
            |c| (c.scored, c.role) = (vec![1], RowRole::Generated),
        ];
        for (index, change) in changes.iter().enumerate() {
            let mut changed = chunk();
            change(&mut changed);
            assert!(
                batch(changed).validate(&LIMITS).is_err(),
                "change {index} was taken"
            );
        }
        let mut rows = batch(chunk());
        rows.chunks[0].tokens = vec![0; MAX_STEP_ROWS + 1];
        assert!(matches!(
            rows.validate(&LIMITS),
            Err(StepError::TooLarge { what: "rows", .. })
        ));
    }

    #[test]
    fn an_opening_brings_what_its_parameters_look_at() {
        let tokens = [9, 4, 9, 7, 50, 51, 50];
        let open =
            |sampling: &SamplingParams, start| Opening::new(Origin::NOBODY, sampling, &tokens, 4, start);
        let before = |opening: &Opening| (opening.prompt_before.clone(), opening.generated_before.clone());
        let greedy = SamplingParams::GREEDY;
        assert_eq!(before(&open(&greedy, 6)), (vec![], vec![]));
        let frequency = SamplingParams {
            frequency_penalty: 1.0,
            ..greedy.clone()
        };
        assert_eq!(before(&open(&frequency, 6)), (vec![], vec![50, 51]));
        let repetition = SamplingParams {
            repetition_penalty: 1.5,
            ..greedy.clone()
        };
        assert_eq!(before(&open(&repetition, 0)), (vec![], vec![]));
        assert_eq!(before(&open(&repetition, 3)), (vec![4, 9], vec![]));
        assert_eq!(before(&open(&repetition, 7)), (vec![4, 7, 9], vec![50, 51, 50]));
        let constrained = SamplingParams {
            grammar: Grammar::new("start: \"a\"").ok(),
            ..greedy.clone()
        };
        assert_eq!(before(&open(&constrained, 6)), (vec![], vec![50, 51]));
        for sampling in [greedy, frequency, repetition, constrained] {
            for (start, &token) in tokens.iter().enumerate().take(7) {
                let chunk = |change: fn(&mut Opening)| {
                    let mut opening = open(&sampling, start);
                    change(&mut opening);
                    let chunk = SequenceChunk {
                        open: Some(opening),
                        first_position: start as u32,
                        tokens: vec![token],
                        block_table: vec![0],
                        ..chunk()
                    };
                    batch(chunk).validate(&LIMITS)
                };
                assert_eq!(chunk(|_| {}), Ok(()));
                let token = chunk(|opening| opening.generated_before.push(100));
                assert!(matches!(token, Err(StepError::Token { token: 100, .. })));
                let many = chunk(|opening| opening.generated_before.push(1));
                assert!(matches!(many, Err(StepError::Before { .. })));
                let distinct = chunk(|opening| opening.prompt_before = (10..15).collect());
                assert!(matches!(distinct, Err(StepError::Before { .. })));
                let falling = chunk(|opening| opening.prompt_before.reverse());
                if before(&open(&sampling, start)).0.len() > 1 {
                    assert!(matches!(falling, Err(StepError::Before { .. })));
                }
            }
        }
    }
}
