//! The fields that chat and plain completions share, read and bounded.
//!
//! Nothing is allocated by a number that a client sends: limits come first.

use serde::Deserialize;
use tramontane_model::grammar::Grammar;
use tramontane_model::sampling::{MAX_TEMPERATURE, MAX_TOP_LOGPROBS, SamplingParams};

use tramontane_model::step::MAX_PRIORITY;
use tramontane_proto::MAX_CACHE_SALT_BYTES;

use super::error::{ApiError, ErrorKind};
use super::fields::{Fields, shown};
use super::idempotency::IdempotencyKey;
use super::sampling::Choosing;
use super::structured::{self, Structured};
use super::unsupported;
use crate::text::StopMatcher;

/// How an answer is to be made and shown, whatever the route.
#[derive(Debug)]
pub(super) struct Params {
    /// Most tokens to generate, if the client says.
    pub(super) max_tokens: Option<MaxTokens>,
    /// In `0..=2`.
    pub(super) temperature: f32,
    /// In `(0, 1]`.
    pub(super) top_p: f32,
    /// How tokens are chosen beside that.
    pub(super) choosing: Choosing,
    /// Key of the sampler's generator, if the client says.
    pub(super) seed: Option<u64>,
    /// Looks for the stop strings.
    pub(super) stop: StopMatcher,
    /// Whether to go on past the end token.
    pub(super) ignore_eos: bool,
    /// Whether log-probabilities name tokens as `token_id:N`.
    pub(super) token_ids: bool,
    /// Whether to send the answer as it is made.
    pub(super) stream: bool,
    /// Whether a stream ends with the usage.
    pub(super) include_usage: bool,
    /// What the text is held to.
    pub(super) structured: Option<Structured>,
    /// Lower is served first.
    pub(super) priority: i32,
    /// Only requests of one salt share what is cached of their prompts.
    pub(super) cache_salt: Vec<u8>,
}

/// A limit and the field that it came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MaxTokens {
    pub(super) field: &'static str,
    pub(super) tokens: u32,
}

#[derive(Debug, Default, Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "must be a string or an array of strings")]
enum Stop {
    One(String),
    Many(Vec<String>),
}

/// Checks that the request names the model that is served.
pub(super) fn model(fields: &mut Fields<'_>, served: &str) -> Result<(), ApiError> {
    match fields.take::<String>("model")? {
        Some(name) if name == served => Ok(()),
        Some(name) => {
            let problem = format!(
                "{:?} does not exist, this cluster serves {served:?}",
                shown(&name)
            );
            Err(ApiError::field(ErrorKind::UnknownModel, "model", problem))
        }
        None => {
            let problem = format!("is missing, it must be {served:?}");
            Err(ApiError::invalid("model", problem))
        }
    }
}

impl Params {
    /// Reads the shared fields; `max_tokens_names` are the names of the limit on this route and the least that each may be,
    /// the first preferred.
    pub(super) fn read(
        fields: &mut Fields<'_>,
        max_tokens_names: &[(&'static str, i64)],
        max_context: u32,
        vocab_size: usize,
    ) -> Result<Self, ApiError> {
        unsupported::refuse(fields)?;
        let mut max_tokens = None;
        for &(field, least) in max_tokens_names {
            let found = fields.integer(field, least, i64::from(max_context))?;
            let found = found.and_then(|tokens| u32::try_from(tokens).ok());
            max_tokens = max_tokens.or(found.map(|tokens| MaxTokens { field, tokens }));
        }
        let temperature = fields.number(
            "temperature",
            |value| (0.0..=f64::from(MAX_TEMPERATURE)).contains(&value),
            "from 0 to 2",
        )?;
        let top_p = fields.number(
            "top_p",
            |value| value > 0.0 && value <= 1.0,
            "above 0 and at most 1",
        )?;
        let stream = fields.flag("stream")?;
        let options = fields.take::<StreamOptions>("stream_options")?;
        if options.is_some() && !stream {
            return Err(ApiError::invalid(
                "stream_options",
                "is allowed only where stream is true",
            ));
        }
        Ok(Self {
            max_tokens,
            temperature: temperature.unwrap_or(1.0) as f32,
            // A value above 0 stays above 0.
            top_p: (top_p.unwrap_or(1.0) as f32).max(f32::MIN_POSITIVE),
            choosing: Choosing::read(fields, vocab_size, max_context)?,
            seed: seed(fields, "seed")?,
            stop: stop(fields)?,
            ignore_eos: fields.flag("ignore_eos")?,
            token_ids: fields.flag("return_tokens_as_token_ids")?,
            stream,
            include_usage: options.and_then(|options| options.include_usage).unwrap_or(false),
            structured: structured::take(fields)?,
            priority: priority(fields)?,
            cache_salt: cache_salt(fields)?,
        })
    }

    /// How tokens are chosen; the seed follows from the key if the client gave none, and is drawn if there is no key.
    pub(super) fn sampling(
        &self,
        key: Option<&IdempotencyKey>,
        (logprobs, prompt_logprobs): (Option<u32>, Option<u32>),
        grammar: Option<Grammar>,
    ) -> Result<SamplingParams, ApiError> {
        let seed = match self.seed.or(key.map(IdempotencyKey::seed)) {
            Some(seed) => seed,
            None => getrandom::u64()
                .map_err(|error| ApiError::new(ErrorKind::Failed, format!("no random seed: {error}")))?,
        };
        Ok(SamplingParams {
            temperature: self.temperature,
            top_p: self.top_p,
            seed,
            choice: 0,
            logprobs,
            prompt_logprobs,
            grammar,
            ..self.choosing.params()
        })
    }

    /// Most tokens to generate after a prompt of so many, `default` where the client says nothing; no fewer than the least.
    pub(super) fn budget(
        &self,
        prompt_field: &str,
        prompt_tokens: usize,
        max_context: u32,
        default: u32,
    ) -> Result<u32, ApiError> {
        let left = u32::try_from(prompt_tokens)
            .ok()
            .and_then(|prompt| max_context.checked_sub(prompt))
            .filter(|&left| left > 0);
        let Some(left) = left else {
            let problem = format!(
                "has {prompt_tokens} tokens, at most {} leave room for an answer in the context of {max_context}",
                max_context.saturating_sub(1)
            );
            return Err(ApiError::field(ErrorKind::ContextLength, prompt_field, problem));
        };
        let budget = match self.max_tokens {
            None => default.min(left),
            Some(MaxTokens { tokens, .. }) if tokens <= left => tokens,
            Some(MaxTokens { field, tokens }) => {
                let problem = format!(
                    "is {tokens}, after a prompt of {prompt_tokens} tokens at most {left} fit the context of \
                     {max_context}"
                );
                return Err(ApiError::field(ErrorKind::ContextLength, field, problem));
            }
        };
        let min_tokens = self.choosing.min_tokens;
        if min_tokens > budget {
            let problem = format!("is {min_tokens}, at most {budget} tokens will be generated");
            return Err(ApiError::invalid("min_tokens", problem));
        }
        Ok(budget)
    }
}

/// How many alternatives, from a field that counts them.
pub(super) fn top_logprobs(fields: &mut Fields<'_>, field: &str) -> Result<Option<u32>, ApiError> {
    let found = fields.integer(field, 0, i64::from(MAX_TOP_LOGPROBS))?;
    Ok(found.and_then(|count| u32::try_from(count).ok()))
}

/// Logs the names of fields that were ignored: clients send many that change nothing here.
pub(super) fn log_ignored(fields: &Fields<'_>) {
    for name in fields.rest() {
        tracing::debug!(field = shown(name), "field ignored");
    }
}

/// A seed is any 64-bit whole number, signed or not.
pub(super) fn seed(fields: &mut Fields<'_>, field: &str) -> Result<Option<u64>, ApiError> {
    let Some(value) = fields.raw(field) else {
        return Ok(None);
    };
    let text = value.get();
    let unsigned = serde_json::from_str::<u64>(text).ok();
    let signed = || serde_json::from_str::<i64>(text).ok().map(i64::cast_unsigned);
    unsigned.or_else(signed).map(Some).ok_or_else(|| {
        let problem = format!("is {}, it must be a whole number of at most 64 bits", shown(text));
        ApiError::invalid(field, problem)
    })
}

/// As vLLM has it: the lower, the earlier.
fn priority(fields: &mut Fields<'_>) -> Result<i32, ApiError> {
    let most = i64::from(MAX_PRIORITY);
    let found = fields.integer("priority", -most, most)?;
    Ok(found
        .and_then(|priority| i32::try_from(priority).ok())
        .unwrap_or(0))
}

/// As vLLM has it: a secret of the client's that keeps others from finding out what it has asked.
fn cache_salt(fields: &mut Fields<'_>) -> Result<Vec<u8>, ApiError> {
    let salt = fields.take::<String>("cache_salt")?.unwrap_or_default();
    if salt.len() > MAX_CACHE_SALT_BYTES {
        let problem = format!(
            "has {} bytes, at most {MAX_CACHE_SALT_BYTES} are allowed",
            salt.len()
        );
        return Err(ApiError::invalid("cache_salt", problem));
    }
    Ok(salt.into_bytes())
}

fn stop(fields: &mut Fields<'_>) -> Result<StopMatcher, ApiError> {
    let stops = match fields.take::<Stop>("stop")? {
        None => Vec::new(),
        Some(Stop::One(stop)) => vec![stop],
        Some(Stop::Many(stops)) => stops,
    };
    // The matcher's errors name the field themselves.
    StopMatcher::new(&stops).map_err(|error| ApiError {
        kind: ErrorKind::Invalid,
        message: error.to_string(),
        param: Some("stop".to_owned()),
    })
}
