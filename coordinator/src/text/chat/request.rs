//! Messages and tools as an OpenAI client sends them.
//!
//! Reading them checks types and bounds the arrays; what the values mean together is checked when the
//! request is encoded, so that those errors can name the message. Unknown fields are ignored: clients
//! send answers back with fields of their own (`refusal`, `annotations`).
//!
//! Free-form JSON (a tool's parameters, a call's arguments) is kept as raw text, so these types read
//! from `serde_json` only and may not stand under `#[serde(flatten)]`: a route with fields of its own reads the
//! body twice, once as [`ChatRequest`].

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{Deserializer, Error, SeqAccess, Visitor};
use serde_json::value::RawValue;

use tramontane_model::bounded;

/// Most messages in a request.
pub const MAX_MESSAGES: usize = 16_384;
/// Most tools in a request.
pub const MAX_TOOLS: usize = 512;
/// Most parts in one message's content.
const MAX_PARTS: usize = 1024;
/// Most calls in one assistant message.
const MAX_TOOL_CALLS: usize = 256;

/// A conversation for the model to continue, and the tools it may call.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct ChatRequest {
    /// The conversation, oldest first.
    #[serde(deserialize_with = "bounded::sequence::<_, _, MAX_MESSAGES>")]
    pub messages: Vec<Message>,
    /// The tools; none if absent or null.
    #[serde(default, deserialize_with = "bounded::optional_sequence::<_, _, MAX_TOOLS>")]
    pub tools: Vec<Tool>,
    /// System text that the server puts before the messages.
    #[serde(skip)]
    pub preamble: Vec<Content>,
}

/// One message, of any role.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Message {
    /// `system` (or `developer`), `user`, `assistant` or `tool`.
    pub role: String,
    /// The text; an assistant message with calls may have none.
    #[serde(default)]
    pub content: Option<Content>,
    /// On an assistant's message: the reasoning before its content. Left out if the content has thinking parts.
    #[serde(default)]
    pub reasoning_content: Option<String>,
    /// Calls the assistant made.
    #[serde(
        default,
        deserialize_with = "bounded::optional_sequence::<_, _, MAX_TOOL_CALLS>"
    )]
    pub tool_calls: Vec<ToolCall>,
    /// On a tool's message: the id of the call it answers.
    #[serde(default)]
    pub tool_call_id: Option<String>,
    /// On a tool's message: the function's name. Checked and otherwise unused.
    #[serde(default)]
    pub name: Option<String>,
    /// On a last message of the assistant: the model continues it instead of answering it.
    #[serde(default)]
    pub prefix: Option<bool>,
}

/// A message's content.
#[derive(Debug, Clone)]
pub enum Content {
    /// Plain text.
    Text(String),
    /// Parts: text, and thinking where reasoning may stand.
    Parts(Vec<ContentPart>),
}

/// A part of a message's content.
#[derive(Debug, Clone, Deserialize)]
pub struct ContentPart {
    /// What it is; `text` and `thinking` are supported.
    #[serde(rename = "type")]
    pub kind: String,
    /// The text of a `text` part.
    #[serde(default)]
    pub text: Option<String>,
    /// The reasoning of a `thinking` part.
    #[serde(default)]
    pub thinking: Option<Thinking>,
    /// Whether a `thinking` part has ended, as when absent; an open one is for the model to go on with.
    #[serde(default)]
    pub closed: Option<bool>,
}

/// The reasoning of a thinking part: a text, or text parts as Mistral's clients send them.
#[derive(Debug, Clone)]
pub enum Thinking {
    /// One text.
    Text(String),
    /// Parts, which must all be text.
    Parts(Vec<ThinkingPart>),
}

/// A part of a thinking part.
#[derive(Debug, Clone, Deserialize)]
pub struct ThinkingPart {
    /// What it is; `text` is supported.
    #[serde(rename = "type")]
    pub kind: String,
    /// The text of a `text` part.
    #[serde(default)]
    pub text: Option<String>,
}

/// A call the assistant made.
#[derive(Debug, Clone, Deserialize)]
pub struct ToolCall {
    /// Names the call for the tool's answer.
    #[serde(default)]
    pub id: Option<String>,
    /// `function`, also when absent.
    #[serde(default, rename = "type")]
    pub kind: Option<String>,
    /// What was called.
    pub function: FunctionCall,
}

/// A function's name and the arguments it was called with.
#[derive(Debug, Clone, Deserialize)]
pub struct FunctionCall {
    /// The function's name.
    pub name: String,
    /// A string of JSON; an object, as Mistral's API also allows; `{}` if absent or null.
    #[serde(default)]
    pub arguments: Option<Box<RawValue>>,
}

/// A tool the model may call.
#[derive(Debug, Clone, Deserialize)]
pub struct Tool {
    /// `function`, also when absent.
    #[serde(default, rename = "type")]
    pub kind: Option<String>,
    /// The function it is.
    pub function: FunctionDefinition,
}

/// A function the model may call.
#[derive(Debug, Clone, Deserialize)]
pub struct FunctionDefinition {
    /// Its name: 1 to 64 of a-z, A-Z, 0-9, `_` and `-`.
    pub name: String,
    /// What it does; empty if absent.
    #[serde(default)]
    pub description: Option<String>,
    /// JSON schema of its arguments, an object; `{}` if absent or null.
    #[serde(default)]
    pub parameters: Option<Box<RawValue>>,
    /// Whether calls are held to the schema whenever the model makes some; false if absent.
    #[serde(default)]
    pub strict: Option<bool>,
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let right = "a string, null or an array of text parts";
        deserializer
            .deserialize_any(TextOrParts(right, PhantomData))
            .map(|read| match read {
                Either::Text(text) => Self::Text(text),
                Either::Parts(parts) => Self::Parts(parts),
            })
    }
}

impl<'de> Deserialize<'de> for Thinking {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let right = "a string or an array of text parts";
        deserializer
            .deserialize_any(TextOrParts(right, PhantomData))
            .map(|read| match read {
                Either::Text(text) => Self::Text(text),
                Either::Parts(parts) => Self::Parts(parts),
            })
    }
}

enum Either<P> {
    Text(String),
    Parts(Vec<P>),
}

/// Reads a text or parts; holds what would be right.
struct TextOrParts<P>(&'static str, PhantomData<P>);

impl<'de, P: Deserialize<'de>> Visitor<'de> for TextOrParts<P> {
    type Value = Either<P>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.0)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Either::Text(text.to_owned()))
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Self::Value, E> {
        Ok(Either::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, access: A) -> Result<Self::Value, A::Error> {
        bounded::read_elements(access, MAX_PARTS).map(Either::Parts)
    }
}
