//! The `prompt` of a plain completion: a text, token ids, or an array of either.
//!
//! A text gets `<s>` in front, as Mistral's own tokenizer gives it; token ids are taken as they are, so that a client
//! can send any sequence.

use serde::Deserialize;
use serde::de::{Deserializer, Error, Visitor};

use super::error::{ApiError, ErrorKind};
use super::fields::{Fields, parse};
use crate::text::Tokenizer;

/// Most prompts in one request; each is a choice of its own.
pub(super) const MAX_PROMPTS: usize = 64;

/// One prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Prompt {
    Text(String),
    Ids(Vec<u32>),
}

/// A token id, with errors that say what one is.
struct TokenId(u32);

impl<'de> Deserialize<'de> for TokenId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct IdVisitor;

        impl Visitor<'_> for IdVisitor {
            type Value = TokenId;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a token id, a whole number from 0")
            }

            fn visit_i64<E: Error>(self, id: i64) -> Result<TokenId, E> {
                Err(E::custom(format_args!("token id {id} is below 0")))
            }

            fn visit_u64<E: Error>(self, id: u64) -> Result<TokenId, E> {
                u32::try_from(id)
                    .map(TokenId)
                    .map_err(|_| E::custom(format_args!("token id {id} is outside every vocabulary")))
            }
        }

        deserializer.deserialize_u64(IdVisitor)
    }
}

/// Takes the prompts of a request; at least one, and each of them checked against the vocabulary.
pub(super) fn take(fields: &mut Fields<'_>, vocab_size: usize) -> Result<Vec<Prompt>, ApiError> {
    const RIGHT: &str = "it must be a string, an array of token ids, or an array of either";
    const FIELD: &str = "prompt";
    let Some(raw) = fields.raw(FIELD) else {
        return Err(ApiError::invalid(FIELD, format_args!("is missing, {RIGHT}")));
    };
    let mut starts = raw.get().bytes().filter(|byte| !byte.is_ascii_whitespace());
    let ids = |ids: Vec<TokenId>, field: &str| checked(ids, field, vocab_size);
    match (starts.next(), starts.next()) {
        (Some(b'"'), _) => Ok(vec![Prompt::Text(parse(FIELD, raw)?)]),
        (Some(b'['), Some(b']')) => Err(ApiError::invalid(FIELD, format_args!("is empty, {RIGHT}"))),
        (Some(b'['), Some(b'"')) => {
            let texts: Vec<String> = parse(FIELD, raw)?;
            check_count(texts.len())?;
            Ok(texts.into_iter().map(Prompt::Text).collect())
        }
        (Some(b'['), Some(b'[')) => {
            let lists: Vec<Vec<TokenId>> = parse(FIELD, raw)?;
            check_count(lists.len())?;
            let each = lists.into_iter().enumerate();
            each.map(|(index, list)| ids(list, &format!("{FIELD}[{index}]")))
                .collect()
        }
        (Some(b'['), Some(b'-' | b'0'..=b'9')) => Ok(vec![ids(parse(FIELD, raw)?, FIELD)?]),
        _ => Err(ApiError::invalid(
            FIELD,
            format_args!("is of another type, {RIGHT}"),
        )),
    }
}

/// Takes a list of token ids; at least one.
pub(super) fn take_ids(
    fields: &mut Fields<'_>,
    field: &str,
    vocab_size: usize,
) -> Result<Vec<u32>, ApiError> {
    let Some(raw) = fields.raw(field) else {
        return Err(ApiError::invalid(
            field,
            "is missing, it must be an array of token ids",
        ));
    };
    match checked(parse(field, raw)?, field, vocab_size)? {
        Prompt::Ids(ids) => Ok(ids),
        // Only lists of ids were read.
        Prompt::Text(_) => Ok(Vec::new()),
    }
}

fn check_count(prompts: usize) -> Result<(), ApiError> {
    if prompts <= MAX_PROMPTS {
        return Ok(());
    }
    let problem = format_args!("has {prompts} prompts, at most {MAX_PROMPTS} are taken");
    Err(ApiError::invalid("prompt", problem))
}

fn checked(ids: Vec<TokenId>, field: &str, vocab_size: usize) -> Result<Prompt, ApiError> {
    if ids.is_empty() {
        return Err(ApiError::invalid(
            field,
            "has no tokens, it must have at least one",
        ));
    }
    let outside = ids.iter().position(|id| id.0 as usize >= vocab_size);
    if let Some(index) = outside {
        let problem = format_args!(
            "token id {} is outside the vocabulary, ids are below {vocab_size}",
            ids[index].0
        );
        return Err(ApiError::invalid(format!("{field}[{index}]"), problem));
    }
    Ok(Prompt::Ids(ids.into_iter().map(|id| id.0).collect()))
}

impl Prompt {
    /// The ids to continue; `field` names the prompt in errors.
    pub(super) fn encode(self, tokenizer: &Tokenizer, field: &str) -> Result<Vec<u32>, ApiError> {
        match self {
            Self::Ids(ids) => Ok(ids),
            Self::Text(text) => {
                let encoded = tokenizer.encode(&text);
                let mut ids =
                    encoded.map_err(|error| ApiError::field(ErrorKind::ContextLength, field, error))?;
                ids.insert(0, tokenizer.bos());
                Ok(ids)
            }
        }
    }
}

/// The field of one of so many prompts.
pub(super) fn field_of(index: usize, prompts: usize) -> String {
    if prompts == 1 {
        "prompt".to_owned()
    } else {
        format!("prompt[{index}]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take_from(prompt: &str) -> Result<Vec<Prompt>, String> {
        let body = format!("{{\"prompt\": {prompt}}}");
        let mut fields = Fields::read(body.as_bytes()).unwrap();
        take(&mut fields, 100).map_err(|error| error.message)
    }

    #[test]
    fn every_shape_is_read() {
        let text = |text: &str| Prompt::Text(text.to_owned());
        assert_eq!(take_from("\"a b\""), Ok(vec![text("a b")]));
        assert_eq!(take_from("\"\""), Ok(vec![text("")]));
        assert_eq!(take_from("[ \"a\", \"b\"]"), Ok(vec![text("a"), text("b")]));
        assert_eq!(take_from("[0, 99]"), Ok(vec![Prompt::Ids(vec![0, 99])]));
        assert_eq!(
            take_from("[[1], [2, 3]]"),
            Ok(vec![Prompt::Ids(vec![1]), Prompt::Ids(vec![2, 3])])
        );
    }

    #[test]
    fn every_fault_names_its_place() {
        let right = "it must be a string, an array of token ids, or an array of either";
        let cases = [
            ("null", format!("prompt: is missing, {right}")),
            ("[]", format!("prompt: is empty, {right}")),
            ("{}", format!("prompt: is of another type, {right}")),
            ("7", format!("prompt: is of another type, {right}")),
            ("[null]", format!("prompt: is of another type, {right}")),
            (
                "[[]]",
                "prompt[0]: has no tokens, it must have at least one".to_owned(),
            ),
            (
                "[1, 100]",
                "prompt[1]: token id 100 is outside the vocabulary, ids are below 100".to_owned(),
            ),
            (
                "[[1], [7, 100]]",
                "prompt[1][1]: token id 100 is outside the vocabulary, ids are below 100".to_owned(),
            ),
            ("[-1]", "prompt[0]: token id -1 is below 0".to_owned()),
            (
                "[1, \"a\"]",
                "prompt[1]: invalid type: string \"a\", expected a token id, a whole number from 0"
                    .to_owned(),
            ),
            (
                "[1.5]",
                "prompt[0]: invalid type: floating point `1.5`, expected a token id, a whole number from 0"
                    .to_owned(),
            ),
            (
                "[4294967296]",
                "prompt[0]: token id 4294967296 is outside every vocabulary".to_owned(),
            ),
            (
                "[\"a\", 1]",
                "prompt[1]: invalid type: integer `1`, expected a string".to_owned(),
            ),
        ];
        for (prompt, message) in cases {
            assert_eq!(take_from(prompt), Err(message), "{prompt}");
        }
        let many = format!("[{}]", vec!["\"a\""; MAX_PROMPTS + 1].join(","));
        assert_eq!(
            take_from(&many),
            Err("prompt: has 65 prompts, at most 64 are taken".to_owned())
        );
    }
}
