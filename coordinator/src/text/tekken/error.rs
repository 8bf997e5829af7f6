//! What can be wrong with a `tekken.json`, with a text to encode and with an id to decode.

use std::path::{Path, PathBuf};

use tramontane_model::tekken::{TekkenError, TekkenFault};

use super::MAX_TEXT_BYTES;

/// A `tekken.json` that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {fault}", file.display())]
pub struct TokenizerError {
    /// The file.
    pub file: PathBuf,
    /// What is wrong in it.
    pub fault: TokenizerFault,
}

impl TokenizerError {
    pub(super) fn new(file: &Path, fault: TokenizerFault) -> Self {
        Self {
            file: file.to_owned(),
            fault,
        }
    }
}

impl From<TekkenError> for TokenizerError {
    fn from(error: TekkenError) -> Self {
        Self {
            file: error.file,
            fault: TokenizerFault::Vocabulary(error.fault),
        }
    }
}

/// What is wrong in a `tekken.json`, and in which field.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerFault {
    /// The vocabulary.
    #[error(transparent)]
    Vocabulary(TekkenFault),
    /// The splitting pattern is longer than any real one.
    #[error("config.pattern has {bytes} bytes, at most {limit} are read")]
    PatternTooLong {
        /// Its length.
        bytes: usize,
        /// The most allowed.
        limit: usize,
    },
    /// The splitting pattern is not a regular expression.
    #[error("config.pattern is not a valid regular expression: {0}")]
    Pattern(Box<fancy_regex::Error>),
    /// A special token that the chat format needs is absent.
    #[error("special_tokens has no {name:?}, which the v13 chat format needs")]
    MissingSpecial {
        /// Its name.
        name: &'static str,
    },
}

/// A text that cannot be encoded.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// Longer than any context.
    #[error("text has {bytes} bytes, at most {MAX_TEXT_BYTES} are encoded at once")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// The tokenizer's pattern gave up on this text.
    #[error("text cannot be split into words near byte {at}: {source}")]
    Split {
        /// Where the word starts.
        at: usize,
        /// What the matcher says.
        source: Box<fancy_regex::Error>,
    },
}

/// An id that stands for nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("token id {id} is outside the vocabulary of {vocab_size}")]
pub struct UnknownToken {
    /// The id.
    pub id: u32,
    /// The first id that does not exist.
    pub vocab_size: usize,
}
