//! Text in and out of the model: tokens, the chat format, tool calls, stop strings.
//!
//! Pure: no clock, no randomness and no I/O besides reading `tekken.json` once. Nothing here knows of
//! HTTP, gRPC or raft. A [`Tokenizer`] is immutable and shared by all requests behind an `Arc`; the
//! streaming parts ([`StreamDecoder`], [`OutputParser`], [`StopMatcher`]) are one value per choice.
//!
//! Encoding is CPU work, up to seconds for the longest texts that are allowed: async callers
//! move it off the runtime's threads.

pub mod chat;
pub mod constraint;
mod json;
pub mod stop;
pub mod tekken;
pub mod tool_calls;

pub use chat::{ChatError, ChatRequest, encode_chat};
pub use stop::{StopError, StopMatcher, Stopped};
pub use tekken::{EncodeError, SpecialText, StreamDecoder, Tokenizer, TokenizerError, UnknownToken};
pub use tool_calls::{OutputEvent, OutputParser};
