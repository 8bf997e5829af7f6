//! How the next token of a sequence is chosen.
//!
//! No randomness here: the generator is counter-based, keyed by (seed, choice, position), and lives in the sampler.

use serde::{Deserialize, Serialize};

/// Most alternatives reported per token.
pub const MAX_TOP_LOGPROBS: u32 = 20;
/// Highest temperature taken.
pub const MAX_TEMPERATURE: f32 = 2.0;

/// Sampling parameters of one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SamplingParams {
    /// Divides the logits; 0 means greedy. In `0..=2`.
    pub temperature: f32,
    /// Keeps the smallest set of most likely tokens whose probabilities sum to at least this. In `(0, 1]`.
    pub top_p: f32,
    /// Key of the counter-based generator.
    pub seed: u64,
    /// Which of a request's choices this is: a part of the generator's key.
    pub choice: u32,
    /// Whether to report the chosen token's log-probability, and of how many alternatives (`0..=20`).
    pub logprobs: Option<u32>,
}

/// A parameter out of its range.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SamplingError {
    /// Temperature is negative, too high or not a number.
    #[error("temperature is {0}, it must be between 0 and 2")]
    Temperature(f32),
    /// `top_p` is out of range or not a number.
    #[error("top_p is {0}, it must be above 0 and at most 1")]
    TopP(f32),
    /// Too many alternatives.
    #[error("top_logprobs is {0}, it must be at most 20")]
    TopLogprobs(u32),
}

impl SamplingParams {
    /// Greedy decoding without log-probabilities.
    pub const GREEDY: Self = Self {
        temperature: 0.0,
        top_p: 1.0,
        seed: 0,
        choice: 0,
        logprobs: None,
    };

    /// Checks every range.
    pub fn validate(&self) -> Result<(), SamplingError> {
        if !(0.0..=MAX_TEMPERATURE).contains(&self.temperature) {
            return Err(SamplingError::Temperature(self.temperature));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(SamplingError::TopP(self.top_p));
        }
        match self.logprobs {
            Some(n) if n > MAX_TOP_LOGPROBS => Err(SamplingError::TopLogprobs(n)),
            Some(_) | None => Ok(()),
        }
    }
}

/// A chosen token, with log-probabilities of the unmodified distribution where they were asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct SampledToken {
    /// The token's id.
    pub token: u32,
    /// Its log-probability, natural logarithm.
    pub logprob: f32,
    /// The most likely tokens and their log-probabilities, best first, ties by lower id.
    pub top: Vec<(u32, f32)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_checked() {
        assert_eq!(SamplingParams::GREEDY.validate(), Ok(()));
        for temperature in [-0.1, 2.1, f32::NAN, f32::INFINITY] {
            assert!(
                SamplingParams {
                    temperature,
                    ..SamplingParams::GREEDY
                }
                .validate()
                .is_err()
            );
        }
        for top_p in [0.0, -1.0, 1.1, f32::NAN] {
            assert!(
                SamplingParams {
                    top_p,
                    ..SamplingParams::GREEDY
                }
                .validate()
                .is_err()
            );
        }
        assert!(
            SamplingParams {
                logprobs: Some(20),
                ..SamplingParams::GREEDY
            }
            .validate()
            .is_ok()
        );
        assert!(
            SamplingParams {
                logprobs: Some(21),
                ..SamplingParams::GREEDY
            }
            .validate()
            .is_err()
        );
    }
}
