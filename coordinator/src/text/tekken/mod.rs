//! Tekken, Mistral's tokenizer: byte-level BPE by rank after a split by a regular expression.
//!
//! Follows the layout of `tekken.json` v13. A text token's id is its rank plus the number of special
//! tokens; a special token's id is its rank. There is no parsing of special strings in text: `[INST]`
//! typed by a user is seven ordinary characters (the chat format places special ids itself).
//!
//! **Invariant:** every byte of a text is covered by exactly one token, so decoding gives the text back.

mod bpe;
mod error;
mod file;
mod split;
mod stream;

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

pub use error::{EncodeError, TokenizerError, TokenizerFault, UnknownToken};
pub use stream::{SpecialText, StreamDecoder};

use bpe::{Merger, Ranks};
use split::Splitter;

/// Longest text encoded at once, in bytes: 14 for each token of the longest context.
pub const MAX_TEXT_BYTES: usize = 4 << 20;

/// Largest `tekken.json` read, in bytes; Mistral's own is under 20 MB.
pub const MAX_FILE_BYTES: u64 = 64 << 20;

/// A loaded `tekken.json`: text to token ids and back.
pub struct Tokenizer {
    splitter: Splitter,
    ranks: Ranks,
    special: Vec<Box<str>>,
    markers: Markers,
}

/// Ids of the special tokens that the chat format and the output parser place or look for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Markers {
    pub(super) bos: u32,
    pub(super) eos: u32,
    pub(super) begin_inst: u32,
    pub(super) end_inst: u32,
    pub(super) begin_tools: u32,
    pub(super) end_tools: u32,
    pub(super) begin_tool_results: u32,
    pub(super) end_tool_results: u32,
    pub(super) tool_calls: u32,
    pub(super) args: u32,
    pub(super) begin_system: u32,
    pub(super) end_system: u32,
    /// `[THINK]` and `[/THINK]`, where the file names both.
    pub(super) think: Option<Think>,
}

/// Ids of the special tokens around reasoning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Think {
    pub(super) begin: u32,
    pub(super) end: u32,
}

impl Tokenizer {
    /// Loads `tekken.json` from `path` for a model of `vocab_size` token ids (`vocab_size` of params.json).
    pub fn load(path: &Path, vocab_size: usize) -> Result<Self, TokenizerError> {
        let fail = |fault| TokenizerError::new(path, fault);
        let mut file = File::open(path).map_err(|e| fail(TokenizerFault::Read(e)))?;
        let mut bytes = Vec::new();
        // One byte more than allowed tells a file that is too long from one that just fits.
        let read = (&mut file).take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes);
        read.map_err(|e| fail(TokenizerFault::Read(e)))?;
        Self::from_bytes(path, &bytes, vocab_size)
    }

    /// As [`Tokenizer::load`], from the file's contents; `path` only names it in errors.
    pub fn from_bytes(path: &Path, bytes: &[u8], vocab_size: usize) -> Result<Self, TokenizerError> {
        file::parse(bytes, vocab_size).map_err(|fault| TokenizerError::new(path, fault))
    }

    /// How many ids there are: special tokens, then text tokens.
    pub fn vocab_size(&self) -> usize {
        self.special.len() + self.ranks.len()
    }

    /// Id of `<s>`, which every prompt starts with.
    pub fn bos(&self) -> u32 {
        self.markers.bos
    }

    /// Id of `</s>`, with which the model ends its answer.
    pub fn eos(&self) -> u32 {
        self.markers.eos
    }

    /// Whether `id` is a special token: one that stands for no text.
    pub fn is_special(&self, id: u32) -> bool {
        (id as usize) < self.special.len()
    }

    /// The bytes of a text token, or the name of a special token (`[INST]`).
    pub fn token_bytes(&self, id: u32) -> Result<&[u8], UnknownToken> {
        let index = id as usize;
        match self.special.get(index) {
            Some(name) => Ok(name.as_bytes()),
            None => self.text_bytes(index - self.special.len()).ok_or(UnknownToken {
                id,
                vocab_size: self.vocab_size(),
            }),
        }
    }

    /// Token ids of `text`, without `<s>` and `</s>`.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, EncodeError> {
        let mut ids = Vec::new();
        self.encode_into(text, &mut ids)?;
        Ok(ids)
    }

    /// Whether the model has marks for its reasoning.
    pub fn has_reasoning(&self) -> bool {
        self.markers.think.is_some()
    }

    /// Whether what follows these ids is reasoning: its last `[THINK]` is still open.
    pub fn leaves_reasoning_open(&self, ids: &[u32]) -> bool {
        self.markers.think.is_some_and(|think| {
            let last = ids.iter().rev().find(|&&id| id == think.begin || id == think.end);
            last == Some(&think.begin)
        })
    }

    /// Appends the token ids of `text` to `ids`.
    pub(super) fn encode_into(&self, text: &str, ids: &mut Vec<u32>) -> Result<(), EncodeError> {
        if text.len() > MAX_TEXT_BYTES {
            return Err(EncodeError::TooLong { bytes: text.len() });
        }
        let mut merger = Merger::new(&self.ranks, self.special.len() as u32);
        self.splitter.split(text, |piece| merger.encode_piece(piece, ids))
    }

    /// The bytes that `ids` stand for; special tokens stand for none.
    ///
    /// A single token may hold part of a character: [`StreamDecoder`] turns tokens into text.
    pub fn decode_bytes(&self, ids: &[u32]) -> Result<Vec<u8>, UnknownToken> {
        let mut bytes = Vec::new();
        for &id in ids {
            let token = self.token_bytes(id)?;
            if !self.is_special(id) {
                bytes.extend_from_slice(token);
            }
        }
        Ok(bytes)
    }

    pub(super) fn markers(&self) -> &Markers {
        &self.markers
    }

    fn text_bytes(&self, rank: usize) -> Option<&[u8]> {
        self.ranks.bytes_of(rank)
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("text_tokens", &self.ranks.len())
            .field("special_tokens", &self.special.len())
            .finish_non_exhaustive()
    }
}

/// Tokenizers are shared by all requests of a process.
const _: fn() = || {
    fn shared<T: Send + Sync>() {}
    shared::<Arc<Tokenizer>>();
};
