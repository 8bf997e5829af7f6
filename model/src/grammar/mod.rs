//! Grammars that an answer is held to: their text, their compilation within limits, and which tokens may come next.
//!
//! The text is llguidance's: a Lark grammar in which `%json {..}` stands for a JSON schema and `<[id]>` for a special
//! token. Coordinators write and check it, the last stage of a replica computes masks from it. Absent: what requests
//! ask for and how that becomes a grammar (the coordinator's `text`), and any notion of logits.
//!
//! **DET-1:** a mask is a function of the grammar, the vocabulary and the ids since the answer began. Nothing here
//! depends on time, but that work can be cancelled from outside.

mod compile;
mod matcher;
mod pool;

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use compile::{Compiler, Words};
pub use matcher::{Cancel, Matcher, only};
pub use pool::{Pool, PoolFull};

/// Longest text of a grammar, in bytes. An opening travels with its grammar, so a step of as many openings as a step may
/// have must fit in one message.
pub const MAX_GRAMMAR_BYTES: usize = 48 << 10;

/// A grammar's text, of bounded length. Whether it means something shows when it is compiled.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Grammar(Arc<str>);

impl Grammar {
    /// A grammar of this text.
    pub fn new(text: impl Into<Arc<str>>) -> Result<Self, GrammarError> {
        let text = text.into();
        match text.len() {
            0..=MAX_GRAMMAR_BYTES => Ok(Self(text)),
            found => Err(GrammarError::TooLong { found }),
        }
    }

    /// The text.
    pub fn text(&self) -> &str {
        &self.0
    }
}

/// Its length: the text is a client's.
impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Grammar({} bytes)", self.0.len())
    }
}

impl TryFrom<String> for Grammar {
    type Error = GrammarError;
    fn try_from(text: String) -> Result<Self, GrammarError> {
        Self::new(text)
    }
}

impl From<Grammar> for String {
    fn from(grammar: Grammar) -> Self {
        grammar.0.as_ref().to_owned()
    }
}

/// A grammar that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// Too much text.
    #[error("the grammar has {found} bytes, at most {MAX_GRAMMAR_BYTES} are allowed")]
    TooLong {
        /// How many bytes it has.
        found: usize,
    },
    /// Not a grammar, one that asks for something unsupported, or one beyond the limits.
    #[error("{0}")]
    Invalid(String),
    /// No token can come next, or the work for the next one is beyond the limits.
    #[error("the grammar cannot go on: {0}")]
    Stuck(String),
    /// It was given up from outside.
    #[error("the grammar took too long")]
    Cancelled,
    /// The vocabulary cannot be used for grammars.
    #[error("the vocabulary cannot be used for grammars: {0}")]
    Vocabulary(String),
}

#[cfg(test)]
mod tests;
