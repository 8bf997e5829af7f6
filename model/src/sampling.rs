//! How the next token of a sequence is chosen.
//!
//! No randomness here: the generator is counter-based, keyed by (seed, choice, position), and lives in the sampler.

use serde::{Deserialize, Serialize};

use crate::grammar::Grammar;

/// Most alternatives reported per token.
pub const MAX_TOP_LOGPROBS: u32 = 20;
/// Highest temperature taken.
pub const MAX_TEMPERATURE: f32 = 2.0;
/// Largest presence or frequency penalty, and with a minus sign the smallest (OpenAI).
pub const MAX_PENALTY: f32 = 2.0;
/// Smallest repetition penalty. vLLM takes all above 0: a tenth of this would already be no language.
pub const MIN_REPETITION_PENALTY: f32 = 0.01;
/// Largest repetition penalty.
pub const MAX_REPETITION_PENALTY: f32 = 100.0;
/// Most tokens whose logits a request may shift (OpenAI).
pub const MAX_LOGIT_BIASES: usize = 300;
/// Largest shift of a logit, and with a minus sign the smallest (OpenAI).
pub const MAX_LOGIT_BIAS: f32 = 100.0;
/// Most tokens that may be held back until `min_tokens` are there.
pub const MAX_HELD_BACK: usize = 64;

/// Sampling parameters of one sequence.
///
/// What is done to the logits of a token, in this order: held back before `min_tokens`, `logit_bias`, repetition,
/// frequency and presence penalty, held back by the grammar, temperature, `top_k`, `top_p` (over what `top_k` has left),
/// `min_p`. Temperature 0 takes the best of the adjusted logits. Log-probabilities are of the logits before all that.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SamplingParams {
    /// Divides the logits; 0 means greedy. In `0..=2`.
    pub temperature: f32,
    /// Keeps the smallest set of most likely tokens whose probabilities sum to at least this. In `(0, 1]`.
    pub top_p: f32,
    /// Keeps so many of the most likely tokens, and those as likely as the last of them; 0 keeps all.
    pub top_k: u32,
    /// Keeps tokens at least this many times as likely as the likeliest. In `0..=1`.
    pub min_p: f32,
    /// Taken from the logits of tokens that were generated before. In `-2..=2`.
    pub presence_penalty: f32,
    /// Taken from the logits of tokens as often as they were generated before. In `-2..=2`.
    pub frequency_penalty: f32,
    /// Divides positive logits of tokens of the prompt or generated before, and multiplies negative ones. In
    /// `0.01..=100`; 1 changes nothing.
    pub repetition_penalty: f32,
    /// Added to the logits of tokens, each in `-100..=100`; ids ascend.
    pub logit_bias: Vec<(u32, f32)>,
    /// Generated tokens before which none of `held_back` is generated.
    pub min_tokens: u32,
    /// Tokens that would end the sequence; ids ascend. Empty unless `min_tokens` is above 0.
    pub held_back: Vec<u32>,
    /// What the generated tokens are held to. Where it allows nothing but tokens of `held_back`, it prevails.
    pub grammar: Option<Grammar>,
    /// Key of the counter-based generator.
    pub seed: u64,
    /// Which of a request's choices this is: a part of the generator's key.
    pub choice: u32,
    /// Whether to report the chosen token's log-probability, and of how many alternatives (`0..=20`).
    pub logprobs: Option<u32>,
    /// The same of every token of the prompt but its first.
    pub prompt_logprobs: Option<u32>,
}

/// A parameter out of its range.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SamplingError {
    /// A number out of its range, or not a number.
    #[error("{field} is {found}, it must be {right}")]
    Range {
        /// Which parameter.
        field: &'static str,
        /// What it is.
        found: f32,
        /// What it may be.
        right: &'static str,
    },
    /// Too many alternatives.
    #[error("{field} is {found}, it must be at most 20")]
    Alternatives {
        /// Which parameter.
        field: &'static str,
        /// How many it asks for.
        found: u32,
    },
    /// Too many tokens in a list.
    #[error("{field} has {found} tokens, at most {limit} are allowed")]
    Count {
        /// Which parameter.
        field: &'static str,
        /// How many tokens it has.
        found: usize,
        /// How many it may have.
        limit: usize,
    },
    /// A list of tokens that is not in order, or names one twice.
    #[error("{field}: token ids must ascend")]
    Order {
        /// Which parameter.
        field: &'static str,
    },
    /// A token id outside the vocabulary.
    #[error("{field} has token id {token}, the vocabulary has {vocab_size}")]
    Token {
        /// Which parameter.
        field: &'static str,
        /// The id.
        token: u32,
        /// Ids are below this.
        vocab_size: u32,
    },
}

impl SamplingParams {
    /// Greedy decoding without log-probabilities.
    pub const GREEDY: Self = Self {
        temperature: 0.0,
        top_p: 1.0,
        top_k: 0,
        min_p: 0.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        repetition_penalty: 1.0,
        logit_bias: Vec::new(),
        min_tokens: 0,
        held_back: Vec::new(),
        grammar: None,
        seed: 0,
        choice: 0,
        logprobs: None,
        prompt_logprobs: None,
    };

    /// Checks every range.
    pub fn validate(&self) -> Result<(), SamplingError> {
        let penalty = -MAX_PENALTY..=MAX_PENALTY;
        let repetition = MIN_REPETITION_PENALTY..=MAX_REPETITION_PENALTY;
        for (field, found, is_right, right) in [
            (
                "temperature",
                self.temperature,
                (0.0..=MAX_TEMPERATURE).contains(&self.temperature),
                "between 0 and 2",
            ),
            (
                "top_p",
                self.top_p,
                self.top_p > 0.0 && self.top_p <= 1.0,
                "above 0 and at most 1",
            ),
            (
                "min_p",
                self.min_p,
                (0.0..=1.0).contains(&self.min_p),
                "between 0 and 1",
            ),
            (
                "presence_penalty",
                self.presence_penalty,
                penalty.contains(&self.presence_penalty),
                "between -2 and 2",
            ),
            (
                "frequency_penalty",
                self.frequency_penalty,
                penalty.contains(&self.frequency_penalty),
                "between -2 and 2",
            ),
            (
                "repetition_penalty",
                self.repetition_penalty,
                repetition.contains(&self.repetition_penalty),
                "between 0.01 and 100",
            ),
        ] {
            if !is_right {
                return Err(SamplingError::Range { field, found, right });
            }
        }
        self.validate_lists()?;
        for (field, asked) in [
            ("top_logprobs", self.logprobs),
            ("prompt_logprobs", self.prompt_logprobs),
        ] {
            if let Some(found) = asked.filter(|&asked| asked > MAX_TOP_LOGPROBS) {
                return Err(SamplingError::Alternatives { field, found });
            }
        }
        Ok(())
    }

    fn validate_lists(&self) -> Result<(), SamplingError> {
        let bias = -MAX_LOGIT_BIAS..=MAX_LOGIT_BIAS;
        if let Some(&(_, found)) = self.logit_bias.iter().find(|(_, shift)| !bias.contains(shift)) {
            return Err(SamplingError::Range {
                field: "logit_bias",
                found,
                right: "between -100 and 100",
            });
        }
        for (field, found, limit) in [
            ("logit_bias", self.logit_bias.len(), MAX_LOGIT_BIASES),
            ("held_back", self.held_back.len(), MAX_HELD_BACK),
        ] {
            if found > limit {
                return Err(SamplingError::Count { field, found, limit });
            }
        }
        if !self.logit_bias.is_sorted_by(|before, after| before.0 < after.0) {
            return Err(SamplingError::Order { field: "logit_bias" });
        }
        if !self.held_back.is_sorted_by(|before, after| before < after) {
            return Err(SamplingError::Order { field: "held_back" });
        }
        Ok(())
    }

    /// Checks every range, and every token id against the vocabulary.
    pub fn validate_for(&self, vocab_size: u32) -> Result<(), SamplingError> {
        self.validate()?;
        // The last id is the largest.
        let lists = [
            ("logit_bias", self.logit_bias.last().map(|&(token, _)| token)),
            ("held_back", self.held_back.last().copied()),
        ];
        for (field, largest) in lists {
            if let Some(token) = largest.filter(|&token| token >= vocab_size) {
                return Err(SamplingError::Token {
                    field,
                    token,
                    vocab_size,
                });
            }
        }
        Ok(())
    }

    /// Whether the prompt's tokens change how later ones are chosen.
    pub fn looks_at_prompt(&self) -> bool {
        self.repetition_penalty != 1.0
    }

    /// Whether penalties look at generated tokens.
    pub fn penalises_generated(&self) -> bool {
        self.looks_at_prompt() || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }

    /// Whether generated tokens change how later ones are chosen.
    pub fn looks_at_generated(&self) -> bool {
        self.penalises_generated() || self.grammar.is_some()
    }
}

/// A chosen token, or one of the prompt, with log-probabilities of the unmodified distribution where they were asked for.
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

    fn error(change: impl FnOnce(&mut SamplingParams)) -> String {
        let mut params = SamplingParams::GREEDY;
        change(&mut params);
        params.validate_for(100).expect_err("out of range").to_string()
    }

    #[test]
    fn numbers_are_bounded() {
        assert_eq!(SamplingParams::GREEDY.validate_for(1), Ok(()));
        let nan = f32::NAN;
        for bad in [-0.1, 2.1, nan, f32::INFINITY] {
            assert!(error(|params| params.temperature = bad).starts_with("temperature"));
        }
        for bad in [0.0, -1.0, 1.1, nan] {
            assert!(error(|params| params.top_p = bad).starts_with("top_p"));
        }
        for bad in [-0.1, 1.1, nan] {
            assert!(error(|params| params.min_p = bad).starts_with("min_p"));
        }
        for bad in [-2.1, 2.1, nan] {
            assert!(error(|params| params.presence_penalty = bad).starts_with("presence_penalty"));
            assert!(error(|params| params.frequency_penalty = bad).starts_with("frequency_penalty"));
        }
        for bad in [0.0, -1.0, 0.009, 100.1, nan] {
            assert!(error(|params| params.repetition_penalty = bad).starts_with("repetition_penalty"));
        }
        assert_eq!(
            error(|params| params.logprobs = Some(21)),
            "top_logprobs is 21, it must be at most 20"
        );
        assert_eq!(
            error(|params| params.prompt_logprobs = Some(21)),
            "prompt_logprobs is 21, it must be at most 20"
        );
        let edges = SamplingParams {
            temperature: 2.0,
            min_p: 1.0,
            presence_penalty: -2.0,
            frequency_penalty: 2.0,
            repetition_penalty: 0.01,
            top_k: u32::MAX,
            min_tokens: u32::MAX,
            logprobs: Some(20),
            prompt_logprobs: Some(20),
            ..SamplingParams::GREEDY
        };
        assert_eq!(edges.validate_for(1), Ok(()));
    }

    #[test]
    fn lists_are_bounded_and_in_order() {
        for bad in [-100.5, 100.5, f32::NAN] {
            assert!(error(|params| params.logit_bias = vec![(5, bad)]).starts_with("logit_bias is"));
        }
        let biases = |count: u32| (0..count).map(|token| (token, 1.0)).collect();
        assert_eq!(
            error(|params| params.logit_bias = biases(301)),
            "logit_bias has 301 tokens, at most 300 are allowed"
        );
        assert_eq!(
            error(|params| params.logit_bias = vec![(5, 1.0), (5, 2.0)]),
            "logit_bias: token ids must ascend"
        );
        assert_eq!(
            error(|params| params.logit_bias = vec![(5, 1.0), (100, 2.0)]),
            "logit_bias has token id 100, the vocabulary has 100"
        );
        assert_eq!(
            error(|params| params.held_back = (0..65).collect()),
            "held_back has 65 tokens, at most 64 are allowed"
        );
        assert_eq!(
            error(|params| params.held_back = vec![3, 2]),
            "held_back: token ids must ascend"
        );
        assert_eq!(
            error(|params| params.held_back = vec![2, 100]),
            "held_back has token id 100, the vocabulary has 100"
        );
    }
}
