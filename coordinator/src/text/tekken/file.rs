//! Reads `tekken.json` and checks all of it before a [`Tokenizer`] exists.
//!
//! Ignored: `token_str` (a rendering of `token_bytes`), `num_vocab_tokens`, the `image` and `audio`
//! settings, and the vocabulary past `default_vocab_size`.

use std::borrow::Cow;
use std::collections::HashMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::bpe::Ranks;
use super::error::TokenizerFault;
use super::split::Splitter;
use super::{MAX_FILE_BYTES, MAX_TEXT_BYTES, Markers, Think, Tokenizer};
use crate::text::bounded;

const VERSION: &str = "v13";
const MAX_VOCAB_ENTRIES: usize = 1 << 20;
const MAX_SPECIAL_TOKENS: usize = 1 << 16;
/// Longest token, in bytes; Tekken's longest are runs of spaces below 200.
const MAX_TOKEN_BYTES: usize = 1024;
/// Every text has tokens because each byte is one.
const BYTE_TOKENS: usize = 256;

// Ranks, ids and places in a text are kept in 32 bits.
const _: () = assert!(MAX_TEXT_BYTES < u32::MAX as usize);
const _: () = assert!(MAX_VOCAB_ENTRIES + MAX_SPECIAL_TOKENS < u32::MAX as usize);

#[derive(Deserialize)]
struct TekkenFile<'a> {
    config: Config,
    #[serde(borrow, deserialize_with = "bounded::sequence::<_, _, MAX_VOCAB_ENTRIES>")]
    vocab: Vec<VocabEntry<'a>>,
    #[serde(deserialize_with = "bounded::sequence::<_, _, MAX_SPECIAL_TOKENS>")]
    special_tokens: Vec<SpecialEntry>,
}

#[derive(Deserialize)]
struct Config {
    pattern: String,
    default_vocab_size: usize,
    default_num_special_tokens: usize,
    version: String,
}

#[derive(Deserialize)]
struct VocabEntry<'a> {
    rank: u64,
    #[serde(borrow)]
    token_bytes: Cow<'a, str>,
}

#[derive(Deserialize)]
struct SpecialEntry {
    rank: u64,
    token_str: String,
}

/// Builds the tokenizer of a model with `vocab_size` ids from the bytes of its file.
pub(super) fn parse(bytes: &[u8], vocab_size: usize) -> Result<Tokenizer, TokenizerFault> {
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(TokenizerFault::TooLarge);
    }
    let file: TekkenFile<'_> = serde_json::from_slice(bytes).map_err(TokenizerFault::Json)?;
    let config = &file.config;
    if config.version != VERSION {
        return Err(TokenizerFault::Version {
            found: config.version.chars().take(32).collect(),
        });
    }
    let special_count = config.default_num_special_tokens;
    if file.special_tokens.len() > special_count {
        return Err(TokenizerFault::TooManySpecial {
            found: file.special_tokens.len(),
            limit: special_count,
        });
    }
    let text_count = count_text_tokens(config, file.vocab.len())?;
    if config.default_vocab_size != vocab_size {
        return Err(TokenizerFault::VocabMismatch {
            found: config.default_vocab_size,
            expected: vocab_size,
        });
    }
    let ranks = read_ranks(&file.vocab[..text_count])?;
    let (special, ids) = read_special(file.special_tokens, special_count)?;
    Ok(Tokenizer {
        splitter: Splitter::new(&config.pattern)?,
        ranks,
        special,
        markers: find_markers(&ids)?,
    })
}

fn count_text_tokens(config: &Config, entries: usize) -> Result<usize, TokenizerFault> {
    let (vocab_size, special) = (config.default_vocab_size, config.default_num_special_tokens);
    let too_small = TokenizerFault::VocabTooSmall { vocab_size, special };
    let needed = vocab_size
        .checked_sub(special)
        .filter(|&n| n >= BYTE_TOKENS)
        .ok_or(too_small)?;
    if entries < needed {
        return Err(TokenizerFault::VocabShort {
            needed,
            found: entries,
        });
    }
    Ok(needed)
}

fn read_ranks(entries: &[VocabEntry<'_>]) -> Result<Ranks, TokenizerFault> {
    // Two characters of base64 beyond 4/3 of the limit suffice to see that it is passed.
    const MAX_BASE64: usize = MAX_TOKEN_BYTES.div_ceil(3) * 4 + 4;
    let mut ranks = Ranks::with_capacity(entries.len());
    let mut token = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        check_rank("vocab", index, entry.rank)?;
        let length_fault = |bytes| TokenizerFault::TokenLength {
            index,
            bytes,
            limit: MAX_TOKEN_BYTES,
        };
        if entry.token_bytes.len() > MAX_BASE64 {
            return Err(length_fault(entry.token_bytes.len() / 4 * 3));
        }
        token.clear();
        let decoded = STANDARD.decode_vec(entry.token_bytes.as_bytes(), &mut token);
        decoded.map_err(|source| TokenizerFault::Base64 { index, source })?;
        if token.is_empty() || token.len() > MAX_TOKEN_BYTES {
            return Err(length_fault(token.len()));
        }
        if index < BYTE_TOKENS && token != [index as u8] {
            return Err(TokenizerFault::ByteToken { index });
        }
        ranks
            .push(&token)
            .map_err(|first| TokenizerFault::DuplicateToken {
                first: first as usize,
                second: index,
            })?;
    }
    Ok(ranks)
}

/// Names of all special ids, the unnamed ones filled up as `<SPECIAL_n>`, and their ids by name.
#[expect(clippy::type_complexity, reason = "two views of one table, used once")]
fn read_special(
    entries: Vec<SpecialEntry>,
    count: usize,
) -> Result<(Vec<Box<str>>, HashMap<Box<str>, u32>), TokenizerFault> {
    let mut names: Vec<Box<str>> = Vec::with_capacity(count);
    let mut ids = HashMap::with_capacity(count);
    for (index, entry) in entries.into_iter().enumerate() {
        check_rank("special_tokens", index, entry.rank)?;
        names.push(entry.token_str.into());
    }
    names.extend((names.len()..count).map(|id| Box::from(format!("<SPECIAL_{id}>"))));
    for (index, name) in names.iter().enumerate() {
        if let Some(first) = ids.insert(name.clone(), index as u32) {
            return Err(TokenizerFault::DuplicateSpecial {
                first: first as usize,
                second: index,
                name: name.chars().take(64).collect(),
            });
        }
    }
    Ok((names, ids))
}

fn check_rank(field: &'static str, index: usize, found: u64) -> Result<(), TokenizerFault> {
    if found == index as u64 {
        Ok(())
    } else {
        Err(TokenizerFault::RankGap { field, index, found })
    }
}

fn find_markers(ids: &HashMap<Box<str>, u32>) -> Result<Markers, TokenizerFault> {
    let id = |name| {
        ids.get(name)
            .copied()
            .ok_or(TokenizerFault::MissingSpecial { name })
    };
    Ok(Markers {
        bos: id("<s>")?,
        eos: id("</s>")?,
        begin_inst: id("[INST]")?,
        end_inst: id("[/INST]")?,
        begin_tools: id("[AVAILABLE_TOOLS]")?,
        end_tools: id("[/AVAILABLE_TOOLS]")?,
        begin_tool_results: id("[TOOL_RESULTS]")?,
        end_tool_results: id("[/TOOL_RESULTS]")?,
        tool_calls: id("[TOOL_CALLS]")?,
        args: id("[ARGS]")?,
        begin_system: id("[SYSTEM_PROMPT]")?,
        end_system: id("[/SYSTEM_PROMPT]")?,
        think: ids
            .get("[THINK]")
            .zip(ids.get("[/THINK]"))
            .map(|(&begin, &end)| Think { begin, end }),
    })
}
