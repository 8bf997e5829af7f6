//! Sampler: one token per row of logits, with log-probabilities of the unmodified distribution.
//!
//! Temperature 0 takes the largest logit (ties to the lowest id). Else logits are divided by the temperature and tokens are
//! dropped: those below the `top_k`-th largest; of those left, what is below the nucleus threshold (the largest threshold
//! whose tokens hold at least `top_p` of their mass); and what is less than `min_p` times as likely as the likeliest
//! (Nguyen et al. 2024). Tokens equal to a threshold stay. Of the tokens left the one with the largest
//! `logit / temperature + gumbel` wins (Gumbel-max), where the noise of a token is a function of (seed, choice, position,
//! token id) alone: Philox 4x32-10 (Salmon et al. 2011).
//!
//! The token may be chosen from an adjusted copy of its row ([`super::Adjust`]); log-probabilities and the most likely
//! tokens are those of the row itself. A token may be given instead of chosen, for its log-probability alone.

use super::rows::check_rows;
use super::{DeviceBuffer, NO_ROW, OpError};

/// Most tokens whose log-probabilities are returned per row.
pub const MAX_TOP: usize = 20;

/// Largest vocabulary whose tokens are counted in an f32.
const MAX_VOCAB: u32 = 1 << 24;

/// How a row is sampled; a buffer of these, one per row.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct SampleParams {
    /// Low half of the request's seed.
    pub seed_low: u32,
    /// High half of the request's seed.
    pub seed_high: u32,
    /// Index of the choice within the request.
    pub choice: u32,
    /// Position that the sampled token will have in the sequence.
    pub position: u32,
    /// 0 for greedy, else a positive finite number.
    pub temperature: f32,
    /// In (0, 1]; 1 keeps all tokens.
    pub top_p: f32,
    /// Number of most likely tokens to report, at most [`MAX_TOP`].
    pub top: u32,
    /// Number of most likely tokens that are kept, and those as likely as the last of them; 0 keeps all tokens.
    pub top_k: u32,
    /// In [0, 1]; 0 keeps all tokens.
    pub min_p: f32,
    /// Row of the logits that the token is chosen from, or [`NO_ROW`] for the row itself.
    pub copy: u32,
    /// The token to take whatever the logits say, or [`NO_ROW`] to choose one.
    pub forced: u32,
    /// Keeps rows 48 bytes long; 0.
    pub reserved: u32,
}

/// Words of one row's [`SampleParams`].
pub(crate) const PARAM_WORDS: usize = size_of::<SampleParams>() / 4;

impl SampleParams {
    /// Greedy, reporting the `top` most likely tokens.
    pub const fn greedy(top: u32) -> Self {
        Self {
            seed_low: 0,
            seed_high: 0,
            choice: 0,
            position: 0,
            temperature: 0.0,
            top_p: 1.0,
            top,
            top_k: 0,
            min_p: 0.0,
            copy: NO_ROW,
            forced: NO_ROW,
            reserved: 0,
        }
    }

    /// Takes `token`, reporting its log-probability and the `top` most likely tokens.
    pub const fn forced(token: u32, top: u32) -> Self {
        Self {
            forced: token,
            ..Self::greedy(top)
        }
    }
}

/// Words of one row of the sampler's output: token, its log-probability, then `MAX_TOP` ids and as many
/// log-probabilities.
pub(crate) const RESULT_WORDS: usize = 2 + 2 * MAX_TOP;

/// What the sampler says of a row.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleResult {
    /// The sampled token.
    pub token: u32,
    /// Its log-probability in the unmodified distribution.
    pub logprob: f32,
    /// The most likely tokens of the unmodified distribution with their log-probabilities, best first, ties by id.
    pub top: Vec<(u32, f32)>,
}

impl SampleResult {
    /// Bytes of the results of `rows` rows.
    pub const fn bytes(rows: u32) -> u64 {
        rows as u64 * RESULT_WORDS as u64 * 4
    }

    /// Reads the results of the rows that were sampled with `params`.
    pub fn parse(bytes: &[u8], params: &[SampleParams]) -> Result<Vec<Self>, OpError> {
        let found = bytes.len() as u64;
        let needed = params.len() as u64 * RESULT_WORDS as u64 * 4;
        if found < needed {
            return Err(OpError::TooSmall {
                op: "sample",
                operand: "results",
                found,
                needed,
            });
        }
        let rows = bytes.chunks_exact(RESULT_WORDS * 4).zip(params);
        Ok(rows
            .map(|(row, params)| {
                let words: Vec<u32> = row
                    .chunks_exact(4)
                    .map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
                    .collect();
                let count = (params.top as usize).min(MAX_TOP);
                let ids = words.iter().skip(2);
                let logprobs = words.iter().skip(2 + MAX_TOP);
                Self {
                    token: words[0],
                    logprob: f32::from_bits(words[1]),
                    top: ids
                        .zip(logprobs)
                        .take(count)
                        .map(|(&id, &bits)| (id, f32::from_bits(bits)))
                        .collect(),
                }
            })
            .collect())
    }
}

/// Operands of the sampler.
#[derive(Clone, Debug)]
pub struct Sample<'a, B> {
    /// `[rows, vocab]` f32, and any adjusted copies after them.
    pub logits: &'a B,
    /// [`SampleParams`] per row.
    pub params: &'a B,
    /// [`SampleResult::bytes`] of the rows.
    pub output: &'a B,
    /// Tokens of the vocabulary.
    pub vocab: u32,
    /// Rows to sample.
    pub rows: u32,
}

impl<B: DeviceBuffer> Sample<'_, B> {
    /// Refuses operands that do not fit together.
    pub fn check(&self) -> Result<(), OpError> {
        const OP: &str = "sample";
        super::rows::check_width(OP, "vocab", self.vocab, 4)?;
        if self.vocab > MAX_VOCAB {
            return Err(OpError::shape(
                OP,
                format!("vocab is {}, at most {MAX_VOCAB} can be counted", self.vocab),
            ));
        }
        if (self.vocab as usize) < MAX_TOP {
            return Err(OpError::shape(
                OP,
                format!("vocab is {}, at least {MAX_TOP} is needed", self.vocab),
            ));
        }
        check_rows(OP, "logits", self.logits, self.rows, self.vocab)?;
        check_rows(OP, "params", self.params, self.rows, PARAM_WORDS as u32)?;
        check_rows(OP, "output", self.output, self.rows, RESULT_WORDS as u32)
    }

    /// Whole rows that the logits have room for, copies included.
    pub fn logit_rows(&self) -> u32 {
        super::rows::whole_rows(self.logits, self.vocab)
    }
}
