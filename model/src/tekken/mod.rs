//! The vocabulary in `tekken.json`, checked whole before it exists.
//!
//! A text token's id is its rank plus the number of special tokens; a special token's id is its rank. Ignored:
//! `token_str` (a rendering of `token_bytes`), `num_vocab_tokens`, the `image` and `audio` settings, and the vocabulary
//! past `default_vocab_size`. Absent: splitting and merging of text, which only coordinators do.

mod error;

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::bounded;

pub use error::{TekkenError, TekkenFault};

/// Usual name of the file in a checkpoint's folder.
pub const TEKKEN_FILE: &str = "tekken.json";
/// Largest `tekken.json` read, in bytes; Mistral's own is under 20 MB.
pub const MAX_FILE_BYTES: u64 = 64 << 20;

const VERSION: &str = "v13";
const MAX_VOCAB_ENTRIES: usize = 1 << 20;
const MAX_SPECIAL_TOKENS: usize = 1 << 16;
/// Longest token, in bytes; Tekken's longest are runs of spaces below 200.
const MAX_TOKEN_BYTES: usize = 1024;
/// Every text has tokens because each byte is one.
const BYTE_TOKENS: usize = 256;

// Ranks and ids are kept in 32 bits.
const _: () = assert!(MAX_VOCAB_ENTRIES + MAX_SPECIAL_TOKENS < u32::MAX as usize);

/// The vocabulary in a checkpoint's folder: tekken.json, or else the only file whose name begins with `tekken` and ends in
/// `.json`, as versions of it are named. Where there is neither, the path is of a tekken.json that is not there.
pub fn file_in(dir: &Path) -> PathBuf {
    let usual = dir.join(TEKKEN_FILE);
    if usual.try_exists().unwrap_or(false) {
        return usual;
    }
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let is_version = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with("tekken") && name.ends_with(".json"))
    };
    let mut versions = entries.map(|entry| entry.path()).filter(is_version);
    match (versions.next(), versions.next()) {
        (Some(only), None) => only,
        (Some(_), Some(_)) | (None, _) => usual,
    }
}

/// What ids stand for.
///
/// **Invariant:** text tokens 0..256 are the single bytes in order; the bytes of text tokens differ, and so do the names
/// of special tokens.
#[derive(Clone, Debug)]
pub struct Vocabulary {
    /// The regular expression that splits text before it is encoded.
    pub pattern: String,
    /// Names of the special tokens by id, the unnamed ones filled up as `<SPECIAL_n>`.
    pub special: Vec<Box<str>>,
    /// Bytes of the text tokens by rank.
    pub tokens: Vec<Arc<[u8]>>,
}

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

impl Vocabulary {
    /// Loads the file at `path` for a model of `vocab_size` token ids (`vocab_size` of params.json).
    pub fn load(path: &Path, vocab_size: usize) -> Result<Self, TekkenError> {
        let fail = |fault| TekkenError::new(path, fault);
        let mut file = File::open(path).map_err(|e| fail(TekkenFault::Read(e)))?;
        let mut bytes = Vec::new();
        // One byte more than allowed tells a file that is too long from one that just fits.
        let read = (&mut file).take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes);
        read.map_err(|e| fail(TekkenFault::Read(e)))?;
        Self::from_bytes(path, &bytes, vocab_size)
    }

    /// As [`Vocabulary::load`], from the file's contents; `path` only names it in errors.
    pub fn from_bytes(path: &Path, bytes: &[u8], vocab_size: usize) -> Result<Self, TekkenError> {
        parse(bytes, vocab_size).map_err(|fault| TekkenError::new(path, fault))
    }

    /// How many ids there are: special tokens, then text tokens.
    pub fn size(&self) -> usize {
        self.special.len() + self.tokens.len()
    }

    /// The id of the special token of this name.
    pub fn special_id(&self, name: &str) -> Option<u32> {
        let place = self.special.iter().position(|known| **known == *name)?;
        u32::try_from(place).ok()
    }
}

fn parse(bytes: &[u8], vocab_size: usize) -> Result<Vocabulary, TekkenFault> {
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(TekkenFault::TooLarge);
    }
    let file: TekkenFile<'_> = serde_json::from_slice(bytes).map_err(TekkenFault::Json)?;
    let config = file.config;
    if config.version != VERSION {
        return Err(TekkenFault::Version {
            found: config.version.chars().take(32).collect(),
        });
    }
    let special_count = config.default_num_special_tokens;
    if file.special_tokens.len() > special_count {
        return Err(TekkenFault::TooManySpecial {
            found: file.special_tokens.len(),
            limit: special_count,
        });
    }
    let text_count = count_text_tokens(&config, file.vocab.len())?;
    if config.default_vocab_size != vocab_size {
        return Err(TekkenFault::VocabMismatch {
            found: config.default_vocab_size,
            expected: vocab_size,
        });
    }
    Ok(Vocabulary {
        tokens: read_tokens(&file.vocab[..text_count])?,
        special: read_special(file.special_tokens, special_count)?,
        pattern: config.pattern,
    })
}

fn count_text_tokens(config: &Config, entries: usize) -> Result<usize, TekkenFault> {
    let (vocab_size, special) = (config.default_vocab_size, config.default_num_special_tokens);
    let too_small = TekkenFault::VocabTooSmall { vocab_size, special };
    let needed = vocab_size
        .checked_sub(special)
        .filter(|&n| n >= BYTE_TOKENS)
        .ok_or(too_small)?;
    if entries < needed {
        return Err(TekkenFault::VocabShort {
            needed,
            found: entries,
        });
    }
    Ok(needed)
}

fn read_tokens(entries: &[VocabEntry<'_>]) -> Result<Vec<Arc<[u8]>>, TekkenFault> {
    // Two characters of base64 beyond 4/3 of the limit suffice to see that it is passed.
    const MAX_BASE64: usize = MAX_TOKEN_BYTES.div_ceil(3) * 4 + 4;
    let mut tokens = Vec::with_capacity(entries.len());
    let mut places: HashMap<Arc<[u8]>, usize> = HashMap::with_capacity(entries.len());
    let mut token = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        check_rank("vocab", index, entry.rank)?;
        let length_fault = |bytes| TekkenFault::TokenLength {
            index,
            bytes,
            limit: MAX_TOKEN_BYTES,
        };
        if entry.token_bytes.len() > MAX_BASE64 {
            return Err(length_fault(entry.token_bytes.len() / 4 * 3));
        }
        token.clear();
        let decoded = STANDARD.decode_vec(entry.token_bytes.as_bytes(), &mut token);
        decoded.map_err(|source| TekkenFault::Base64 { index, source })?;
        if token.is_empty() || token.len() > MAX_TOKEN_BYTES {
            return Err(length_fault(token.len()));
        }
        if index < BYTE_TOKENS && token != [index as u8] {
            return Err(TekkenFault::ByteToken { index });
        }
        let bytes: Arc<[u8]> = token.as_slice().into();
        if let Some(first) = places.insert(Arc::clone(&bytes), index) {
            return Err(TekkenFault::DuplicateToken { first, second: index });
        }
        tokens.push(bytes);
    }
    Ok(tokens)
}

fn read_special(entries: Vec<SpecialEntry>, count: usize) -> Result<Vec<Box<str>>, TekkenFault> {
    let mut names: Vec<Box<str>> = Vec::with_capacity(count);
    for (index, entry) in entries.into_iter().enumerate() {
        check_rank("special_tokens", index, entry.rank)?;
        names.push(entry.token_str.into());
    }
    names.extend((names.len()..count).map(|id| Box::from(format!("<SPECIAL_{id}>"))));
    let mut places: HashMap<&str, usize> = HashMap::with_capacity(count);
    for (index, name) in names.iter().enumerate() {
        if let Some(first) = places.insert(name, index) {
            return Err(TekkenFault::DuplicateSpecial {
                first,
                second: index,
                name: name.chars().take(64).collect(),
            });
        }
    }
    Ok(names)
}

fn check_rank(field: &'static str, index: usize, found: u64) -> Result<(), TekkenFault> {
    if found == index as u64 {
        Ok(())
    } else {
        Err(TekkenFault::RankGap { field, index, found })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_another_version_is_taken_if_it_is_the_only_one() {
        let dir = tempfile::tempdir().expect("a folder");
        let add = |file: &str| std::fs::write(dir.path().join(file), "").expect("written");
        let found = || {
            let path = file_in(dir.path());
            path.file_name().and_then(|name| name.to_str()).map(str::to_owned)
        };
        assert_eq!(found().as_deref(), Some("tekken.json"));
        add("tokenizer.json");
        add("tekken_240911.json");
        assert_eq!(found().as_deref(), Some("tekken_240911.json"));
        add("tekken_250101.json");
        assert_eq!(
            found().as_deref(),
            Some("tekken.json"),
            "which of the two is not said"
        );
        add("tekken.json");
        assert_eq!(found().as_deref(), Some("tekken.json"));
    }
}
