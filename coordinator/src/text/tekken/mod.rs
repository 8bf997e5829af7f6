//! Tekken, Mistral's tokenizer: byte-level BPE by rank after a split by a regular expression.
//!
//! Follows the layout of `tekken.json` v13. A text token's id is its rank plus the number of special
//! tokens; a special token's id is its rank. There is no parsing of special strings in text: `[INST]`
//! typed by a user is seven ordinary characters (the chat format places special ids itself).
//!
//! **Invariant:** every byte of a text is covered by exactly one token, so decoding gives the text back.

mod bpe;
mod error;
mod split;
mod stream;

use std::path::Path;
use std::sync::Arc;

use tramontane_model::grammar::Words;
use tramontane_model::tekken::Vocabulary;

pub use error::{EncodeError, TokenizerError, TokenizerFault, UnknownToken};
pub use stream::{SpecialText, StreamDecoder};

use bpe::{Merger, Ranks};
use split::Splitter;

/// Longest text encoded at once, in bytes: 14 for each token of the longest context.
pub const MAX_TEXT_BYTES: usize = 4 << 20;

// Places in a text are kept in 32 bits.
const _: () = assert!(MAX_TEXT_BYTES < u32::MAX as usize);

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

impl Markers {
    fn find(vocabulary: &Vocabulary) -> Result<Self, TokenizerFault> {
        let id = |name| {
            vocabulary
                .special_id(name)
                .ok_or(TokenizerFault::MissingSpecial { name })
        };
        let think = vocabulary.special_id("[THINK]");
        Ok(Self {
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
            think: think
                .zip(vocabulary.special_id("[/THINK]"))
                .map(|(begin, end)| Think { begin, end }),
        })
    }
}

impl Tokenizer {
    /// Loads `tekken.json` from `path` for a model of `vocab_size` token ids (`vocab_size` of params.json).
    pub fn load(path: &Path, vocab_size: usize) -> Result<Self, TokenizerError> {
        Self::new(path, Vocabulary::load(path, vocab_size)?)
    }

    /// As [`Tokenizer::load`], from the file's contents; `path` only names it in errors.
    pub fn from_bytes(path: &Path, bytes: &[u8], vocab_size: usize) -> Result<Self, TokenizerError> {
        Self::new(path, Vocabulary::from_bytes(path, bytes, vocab_size)?)
    }

    fn new(path: &Path, vocabulary: Vocabulary) -> Result<Self, TokenizerError> {
        let fail = |fault| TokenizerError::new(path, fault);
        Ok(Self {
            splitter: Splitter::new(&vocabulary.pattern).map_err(fail)?,
            markers: Markers::find(&vocabulary).map_err(fail)?,
            ranks: Ranks::new(vocabulary.tokens),
            special: vocabulary.special,
        })
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

    /// Whether these ids show reasoning: the model may then begin with some of its own.
    pub fn shows_reasoning(&self, ids: &[u32]) -> bool {
        self.markers.think.is_some_and(|think| ids.contains(&think.begin))
    }

    /// What ids stand for, as grammars see it.
    pub fn words(&self) -> Words<'_, Arc<[u8]>> {
        Words {
            special: self.special.len(),
            tokens: self.ranks.tokens(),
            end: self.markers.eos,
        }
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
