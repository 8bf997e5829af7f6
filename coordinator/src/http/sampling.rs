//! The fields that say how tokens are chosen, beyond temperature, `top_p` and seed; and the tokens that end an answer.
//!
//! Ranges and meanings are OpenAI's and vLLM's; what is done in which order is said at [`SamplingParams`]. No two fields
//! are weighed against each other here.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use tramontane_model::sampling::{MAX_HELD_BACK, MAX_LOGIT_BIASES, SamplingParams};

use super::error::ApiError;
use super::fields::{Fields, shown};

/// Most `stop_token_ids`: with the end token as many as a replica takes.
pub(super) const MAX_STOP_TOKEN_IDS: usize = MAX_HELD_BACK - 1;

/// How tokens are chosen.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Choosing {
    top_k: u32,
    min_p: f32,
    presence_penalty: f32,
    frequency_penalty: f32,
    repetition_penalty: f32,
    /// Ids ascend.
    logit_bias: Vec<(u32, f32)>,
    /// Generated tokens before which nothing ends the answer but a stop string.
    pub(super) min_tokens: u32,
    /// Tokens that end the answer beside the end token; ids ascend.
    pub(super) stop_token_ids: Vec<u32>,
}

impl Choosing {
    /// Reads the fields; token ids are below `vocab_size`.
    pub(super) fn read(
        fields: &mut Fields<'_>,
        vocab_size: usize,
        max_context: u32,
    ) -> Result<Self, ApiError> {
        let vocab_size = u32::try_from(vocab_size).unwrap_or(u32::MAX);
        let top_k = fields.integer("top_k", -1, i64::from(i32::MAX))?;
        let min_p = fields.number("min_p", |value| (0.0..=1.0).contains(&value), "from 0 to 1")?;
        let mut penalty = |field| fields.number(field, |value| (-2.0..=2.0).contains(&value), "from -2 to 2");
        let presence = penalty("presence_penalty")?;
        let frequency = penalty("frequency_penalty")?;
        let repetition = fields.number(
            "repetition_penalty",
            |value| (0.01..=100.0).contains(&value),
            "from 0.01 to 100",
        )?;
        let min_tokens = fields.integer("min_tokens", 0, i64::from(max_context))?;
        let whole = |found: Option<i64>| found.and_then(|number| u32::try_from(number).ok());
        Ok(Self {
            // -1 is no u32 and says the same as 0.
            top_k: whole(top_k).unwrap_or(0),
            min_p: min_p.unwrap_or(0.0) as f32,
            presence_penalty: presence.unwrap_or(0.0) as f32,
            frequency_penalty: frequency.unwrap_or(0.0) as f32,
            repetition_penalty: repetition.unwrap_or(1.0) as f32,
            logit_bias: logit_bias(fields, vocab_size)?,
            min_tokens: whole(min_tokens).unwrap_or(0),
            stop_token_ids: stop_token_ids(fields, vocab_size)?,
        })
    }

    /// As parameters; what the other fields say is as in [`SamplingParams::GREEDY`].
    pub(super) fn params(&self) -> SamplingParams {
        SamplingParams {
            top_k: self.top_k,
            min_p: self.min_p,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            repetition_penalty: self.repetition_penalty,
            logit_bias: self.logit_bias.clone(),
            min_tokens: self.min_tokens,
            ..SamplingParams::GREEDY
        }
    }
}

/// The tokens that end an answer. Until `min_tokens` are there they are held back, the end token also where it would not
/// end the answer, as vLLM does.
pub(super) fn end_tokens(
    sampling: &mut SamplingParams,
    eos: u32,
    ignore_eos: bool,
    stop_token_ids: Vec<u32>,
) -> Vec<u32> {
    let mut ends = stop_token_ids;
    if sampling.min_tokens > 0 {
        sampling.held_back = with(ends.clone(), eos);
    }
    if !ignore_eos {
        ends = with(ends, eos);
    }
    ends
}

fn with(mut ids: Vec<u32>, id: u32) -> Vec<u32> {
    ids.push(id);
    ids.sort_unstable();
    ids.dedup();
    ids
}

fn stop_token_ids(fields: &mut Fields<'_>, vocab_size: u32) -> Result<Vec<u32>, ApiError> {
    const FIELD: &str = "stop_token_ids";
    let found = fields.take::<Vec<i64>>(FIELD)?.unwrap_or_default();
    if found.len() > MAX_STOP_TOKEN_IDS {
        let problem = format!(
            "has {} token ids, at most {MAX_STOP_TOKEN_IDS} are allowed",
            found.len()
        );
        return Err(ApiError::invalid(FIELD, problem));
    }
    let ids = found.iter().enumerate().map(|(index, &id)| {
        let known = u32::try_from(id).ok().filter(|&id| id < vocab_size);
        known.ok_or_else(|| {
            let problem = format!(
                "is {id}, token ids are from 0 to {}",
                vocab_size.saturating_sub(1)
            );
            ApiError::invalid(format!("{FIELD}[{index}]"), problem)
        })
    });
    let mut ids = ids.collect::<Result<Vec<_>, _>>()?;
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

fn logit_bias(fields: &mut Fields<'_>, vocab_size: u32) -> Result<Vec<(u32, f32)>, ApiError> {
    const FIELD: &str = "logit_bias";
    let Biases(mut biases) = fields.take(FIELD)?.unwrap_or_default();
    for &(token, bias) in &biases {
        if token >= vocab_size {
            let last = vocab_size.saturating_sub(1);
            let problem = format!("has token id {token}, token ids are from 0 to {last}");
            return Err(ApiError::invalid(FIELD, problem));
        }
        if !(-100.0..=100.0).contains(&bias) {
            let problem = format!("is {bias}, it must be a number from -100 to 100");
            return Err(ApiError::invalid(format!("{FIELD}.{token}"), problem));
        }
    }
    biases.sort_unstable_by_key(|&(token, _)| token);
    if let Some(twice) = biases.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(ApiError::invalid(
            FIELD,
            format!("has token id {} twice", twice[0].0),
        ));
    }
    // Adding nothing is no bias.
    let biases = biases.into_iter().map(|(token, bias)| (token, bias as f32));
    Ok(biases.filter(|&(_, bias)| bias != 0.0).collect())
}

/// Token ids, as JSON writes them in the names of members, and what is added to their logits.
#[derive(Default)]
struct Biases(Vec<(u32, f64)>);

impl<'de> Deserialize<'de> for Biases {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        reader.deserialize_map(BiasesVisitor)
    }
}

struct BiasesVisitor;

impl<'de> Visitor<'de> for BiasesVisitor {
    type Value = Biases;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of token ids and numbers")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Biases, A::Error> {
        let mut biases = Vec::new();
        while let Some(name) = map.next_key::<Cow<'de, str>>()? {
            let Ok(token) = name.parse() else {
                let problem = format_args!("{:?} is not a token id", shown(&name));
                return Err(A::Error::custom(problem));
            };
            if biases.len() == MAX_LOGIT_BIASES {
                let problem =
                    format_args!("has more than {MAX_LOGIT_BIASES} token ids, the most that are allowed");
                return Err(A::Error::custom(problem));
            }
            biases.push((token, map.next_value()?));
        }
        Ok(Biases(biases))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> Result<Choosing, ApiError> {
        let mut fields = Fields::read(body.as_bytes())?;
        Choosing::read(&mut fields, 8192, 4096)
    }

    fn sampling(min_tokens: u32) -> SamplingParams {
        SamplingParams {
            min_tokens,
            ..SamplingParams::GREEDY
        }
    }

    #[test]
    fn what_is_left_out_or_harmless_changes_nothing() {
        for body in [
            "{}",
            r#"{"top_k": -1, "min_p": 0, "presence_penalty": -0.0, "frequency_penalty": 0, "repetition_penalty": 1,
                "logit_bias": {}, "min_tokens": 0, "stop_token_ids": []}"#,
            r#"{"top_k": 0, "min_p": null, "logit_bias": {"7": 0}, "stop_token_ids": null}"#,
        ] {
            let choosing = read(body).unwrap();
            assert_eq!(choosing.params(), SamplingParams::GREEDY, "{body}");
            assert!(choosing.stop_token_ids.is_empty());
        }
    }

    #[test]
    fn fields_arrive_in_order_and_in_range() {
        let body = r#"{"top_k": 2147483647, "min_p": 1, "presence_penalty": -2, "frequency_penalty": 2,
            "repetition_penalty": 0.01, "logit_bias": {"8191": -100, "0": 100, "07": 0.5}, "min_tokens": 4096,
            "stop_token_ids": [9, 8191, 0, 9]}"#;
        let choosing = read(body).unwrap();
        let params = choosing.params();
        assert_eq!(params.logit_bias, [(0, 100.0), (7, 0.5), (8191, -100.0)]);
        assert_eq!(choosing.stop_token_ids, [0, 9, 8191]);
        assert_eq!((params.top_k, params.min_tokens), (i32::MAX as u32, 4096));
        assert_eq!(params.validate_for(8192), Ok(()));
    }

    #[test]
    fn as_many_biases_as_allowed_are_taken() {
        let biases = |count: u32| {
            let each: Vec<String> = (0..count).map(|token| format!("\"{token}\": 1")).collect();
            read(&format!("{{\"logit_bias\": {{{}}}}}", each.join(",")))
        };
        assert_eq!(biases(300).unwrap().logit_bias.len(), 300);
        assert_eq!(
            biases(301).unwrap_err().message,
            "logit_bias: has more than 300 token ids, the most that are allowed"
        );
        let twice = read(r#"{"logit_bias": {"5": 1, "05": 1}}"#).unwrap_err();
        assert_eq!(twice.message, "logit_bias: has token id 5 twice");
    }

    #[test]
    fn what_ends_an_answer_is_held_back_until_min_tokens() {
        let mut plain = sampling(0);
        assert_eq!(end_tokens(&mut plain, 2, false, vec![7]), [2, 7]);
        assert_eq!(plain, sampling(0));
        assert!(end_tokens(&mut plain, 2, true, vec![]).is_empty());
        let mut early = sampling(5);
        assert_eq!(end_tokens(&mut early, 2, true, vec![1, 2, 7]), [1, 2, 7]);
        assert_eq!(early.held_back, [1, 2, 7]);
        let mut ignoring = sampling(5);
        assert!(end_tokens(&mut ignoring, 2, true, vec![]).is_empty());
        assert_eq!(ignoring.held_back, [2]);
    }
}
