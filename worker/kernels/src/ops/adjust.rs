//! Adjusted copies of logits, for rows whose next token is not chosen from the plain ones: bias, penalties, tokens held
//! back one by one, and tokens held back by a mask, which nothing undoes.
//!
//! `z = f(x + bias) - penalty`, where `f(y)` is `y / repetition` for positive `y` and `y * repetition` else (Keskar et al.
//! 2019, section 4.1; frequency and presence penalties as OpenAI defines them). Tokens that are not in the row's list keep
//! their logits. The plain logits stay as they are: log-probabilities are theirs.

use super::rows::{check_rows, check_words};
use super::{DeviceBuffer, OpError};

/// A bias that no other can undo and that stays finite whatever is done to it: the token is not sampled.
pub const HELD_BACK: f32 = -1e30;

/// What is done to the logit of one token.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Adjustment {
    /// The token; below the vocabulary, once in a row's list.
    pub token: u32,
    /// Added first.
    pub bias: f32,
    /// Divides what is positive, multiplies what is not; 1 changes nothing.
    pub repetition: f32,
    /// Taken away last.
    pub penalty: f32,
}

impl Adjustment {
    /// Changes nothing.
    pub const fn none(token: u32) -> Self {
        Self {
            token,
            bias: 0.0,
            repetition: 1.0,
            penalty: 0.0,
        }
    }
}

/// One adjusted copy.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct AdjustedRow {
    /// Row of the logits that is copied.
    pub from: u32,
    /// Row of the logits that becomes the copy; no row's `from`, and no other's `to`.
    pub to: u32,
    /// Its first adjustment.
    pub first: u32,
    /// How many it has.
    pub count: u32,
    /// Row of the masks that says which tokens it may have; [`super::NO_ROW`] for all.
    pub mask: u32,
    /// Zero.
    pub reserved: [u32; 3],
}

/// Words of a row of the masks of `vocab` tokens.
pub const fn mask_words(vocab: u32) -> u32 {
    vocab.div_ceil(32)
}

/// Operands of the adjustment.
#[derive(Clone, Debug)]
pub struct Adjust<'a, B> {
    /// `[.., vocab]` f32: plain rows, and room for the copies.
    pub logits: &'a B,
    /// [`AdjustedRow`] per copy.
    pub rows: &'a B,
    /// [`Adjustment`]s of all copies.
    pub adjustments: &'a B,
    /// `[.., mask_words(vocab)]` u32: bit `i % 32` of word `i / 32` is set if token `i` is allowed.
    pub masks: &'a B,
    /// Tokens of the vocabulary.
    pub vocab: u32,
    /// Copies to make.
    pub count: u32,
}

impl<B: DeviceBuffer> Adjust<'_, B> {
    /// Refuses operands that do not fit together. What the rows name is bounded where it is used.
    pub fn check(&self) -> Result<(), OpError> {
        const OP: &str = "adjust";
        super::rows::check_width(OP, "vocab", self.vocab, 1)?;
        // A copy is a row of its own beside the one it is made of.
        let rows = if self.count == 0 {
            0
        } else {
            u64::from(self.count) + 1
        };
        check_words(OP, "logits", self.logits, rows, self.vocab.into())?;
        check_rows(OP, "rows", self.rows, self.count, 8)
    }

    /// Whole rows of masks.
    pub fn mask_rows(&self) -> u32 {
        super::rows::whole_rows(self.masks, mask_words(self.vocab))
    }

    /// Whole rows that the logits have room for.
    pub fn logit_rows(&self) -> u32 {
        super::rows::whole_rows(self.logits, self.vocab)
    }
}
