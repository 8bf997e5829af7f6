//! What can be wrong with a `tekken.json`.

use std::io;
use std::path::{Path, PathBuf};

use super::MAX_FILE_BYTES;

/// A `tekken.json` that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {fault}", file.display())]
pub struct TekkenError {
    /// The file.
    pub file: PathBuf,
    /// What is wrong in it.
    pub fault: TekkenFault,
}

impl TekkenError {
    pub(super) fn new(file: &Path, fault: TekkenFault) -> Self {
        Self {
            file: file.to_owned(),
            fault,
        }
    }
}

/// What is wrong in a `tekken.json`, and in which field.
#[derive(Debug, thiserror::Error)]
pub enum TekkenFault {
    /// The file could not be read.
    #[error("cannot be read: {0}")]
    Read(io::Error),
    /// The file is longer than any tokenizer.
    #[error("is longer than {MAX_FILE_BYTES} bytes, the most a tokenizer file may have")]
    TooLarge,
    /// Not JSON, a field is absent or of another type, or an array is too long.
    #[error("is not a tekken file: {0}")]
    Json(serde_json::Error),
    /// The chat format of another version would be wrong for this one.
    #[error("config.version is {found:?}, supported is \"v13\"")]
    Version {
        /// The version in the file.
        found: String,
    },
    /// Fewer ids than special tokens and single bytes.
    #[error(
        "config.default_vocab_size is {vocab_size}, it must be at least default_num_special_tokens ({special}) + 256"
    )]
    VocabTooSmall {
        /// default_vocab_size.
        vocab_size: usize,
        /// default_num_special_tokens.
        special: usize,
    },
    /// The file has fewer text tokens than its configuration says.
    #[error(
        "config.default_vocab_size needs {needed} text tokens beside the special ones, vocab has {found} entries"
    )]
    VocabShort {
        /// default_vocab_size - default_num_special_tokens.
        needed: usize,
        /// Entries in `vocab`.
        found: usize,
    },
    /// The tokenizer belongs to another model.
    #[error("config.default_vocab_size is {found}, the model has vocab_size {expected}")]
    VocabMismatch {
        /// default_vocab_size.
        found: usize,
        /// The model's.
        expected: usize,
    },
    /// Ranks must count up from 0.
    #[error("{field}[{index}].rank is {found}, expected {index}")]
    RankGap {
        /// `vocab` or `special_tokens`.
        field: &'static str,
        /// Position in the array.
        index: usize,
        /// The rank there.
        found: u64,
    },
    /// Not base64.
    #[error("vocab[{index}].token_bytes is not base64: {source}")]
    Base64 {
        /// Position in `vocab`.
        index: usize,
        /// What the decoder says.
        source: base64::DecodeError,
    },
    /// A token of no bytes, or of more than any real one has.
    #[error("vocab[{index}].token_bytes has {bytes} bytes, it must have 1 to {limit}")]
    TokenLength {
        /// Position in `vocab`.
        index: usize,
        /// Its length.
        bytes: usize,
        /// The most allowed.
        limit: usize,
    },
    /// The first 256 tokens must be the bytes in order, so that every text has tokens.
    #[error("vocab[{index}].token_bytes must be the single byte {index:#04x}")]
    ByteToken {
        /// Position in `vocab`.
        index: usize,
    },
    /// Two tokens of the same bytes.
    #[error("vocab[{second}].token_bytes repeats vocab[{first}].token_bytes")]
    DuplicateToken {
        /// Position of the first.
        first: usize,
        /// Position of the second.
        second: usize,
    },
    /// More special tokens than ids for them.
    #[error("special_tokens has {found} entries, config.default_num_special_tokens leaves room for {limit}")]
    TooManySpecial {
        /// Entries in `special_tokens`.
        found: usize,
        /// default_num_special_tokens.
        limit: usize,
    },
    /// Two special tokens of the same name.
    #[error("special_tokens[{second}].token_str repeats special_tokens[{first}].token_str {name:?}")]
    DuplicateSpecial {
        /// Position of the first.
        first: usize,
        /// Position of the second; of a filler, its id.
        second: usize,
        /// The name.
        name: String,
    },
}
