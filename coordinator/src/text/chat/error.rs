//! What can be wrong with a conversation.

use super::request::MAX_MESSAGES;
use crate::text::json::MAX_DEPTH;
use crate::text::tekken::EncodeError;

/// A request that is no conversation the model can continue.
#[derive(Debug, thiserror::Error)]
#[error("{field}: {fault}")]
pub struct ChatError {
    /// The field at fault, as `messages[2].tool_call_id`: an OpenAI error's `param`.
    pub field: String,
    /// What is wrong with it.
    pub fault: ChatFault,
}

impl ChatError {
    pub(super) fn new(field: impl Into<String>, fault: ChatFault) -> Self {
        Self {
            field: field.into(),
            fault,
        }
    }
}

/// What is wrong with a field of a conversation.
#[derive(Debug, thiserror::Error)]
pub enum ChatFault {
    /// There is nothing to continue.
    #[error("must have at least one message")]
    NoMessages,
    /// Longer than any conversation.
    #[error("has {found} messages, at most {MAX_MESSAGES} are read")]
    TooManyMessages {
        /// How many.
        found: usize,
    },
    /// More text than any context holds.
    #[error("the request's text is longer than {limit} bytes in all")]
    TooMuchText {
        /// The most allowed.
        limit: usize,
    },
    /// A role that does not exist.
    #[error("{found:?} is not a role; use \"system\", \"developer\", \"user\", \"assistant\" or \"tool\"")]
    UnknownRole {
        /// What was sent.
        found: String,
    },
    /// A role that cannot stand at this place.
    #[error("{found:?} cannot follow {previous:?}; allowed here: {allowed}")]
    RoleOrder {
        /// The role.
        found: &'static str,
        /// The role before it.
        previous: &'static str,
        /// What could follow.
        allowed: &'static str,
    },
    /// The conversation ends with the assistant's word.
    #[error("the last message must be from \"user\" or \"tool\", or from \"assistant\" with prefix true")]
    LastMessage,
    /// One message of the assistant is not a conversation.
    #[error("a conversation of one message must be from \"user\" or \"system\"")]
    OnlyMessage,
    /// A message that must have content has none.
    #[error("must be a string or an array of text parts, not null")]
    NoContent,
    /// An assistant message without text and calls.
    #[error("an assistant message must have content or tool_calls")]
    EmptyAssistant,
    /// A part that is not text.
    #[error("{found:?} parts are not supported; use \"text\" or \"thinking\"")]
    UnknownPart {
        /// Its type.
        found: String,
    },
    /// A text part without text.
    #[error("a part of type \"text\" must have a text")]
    NoPartText,
    /// A thinking part without its text.
    #[error("a part of type \"thinking\" must have a thinking, a string or text parts")]
    NoThinking,
    /// Reasoning where the format has none.
    #[error("only messages from \"assistant\" and \"system\" can have reasoning")]
    ReasoningElsewhere,
    /// Reasoning that the model would not go on with.
    #[error("can be false only on the last part of a last message with prefix true")]
    ReasoningOpen,
    /// The tokenizer has no marks for reasoning.
    #[error("this model has no reasoning")]
    NoReasoning,
    /// Only the last message can be continued.
    #[error("only the last message, from \"assistant\", can have prefix true")]
    PrefixNotLast,
    /// Calls are the assistant's.
    #[error("only messages from \"assistant\" can have tool_calls")]
    CallsNotAssistant,
    /// A tool or call that is no function.
    #[error("{found:?} is not supported; use \"function\"")]
    UnknownKind {
        /// What was sent.
        found: String,
    },
    /// A name that functions cannot have.
    #[error("{found:?} is not a function name: use 1 to 64 of a-z, A-Z, 0-9, '_' and '-'")]
    FunctionName {
        /// What was sent, cut to a printable length.
        found: String,
    },
    /// A call or a tool's answer without the id that joins them.
    #[error("must be a non-empty string other than \"null\" that names a tool call")]
    NoCallId,
    /// Two calls of one id.
    #[error("{id:?} is also the id of an earlier call of this message")]
    DuplicateCallId {
        /// The id.
        id: String,
    },
    /// A tool's answer to a call that was not made.
    #[error("{id:?} is not the id of a call of the assistant message before")]
    UnknownCall {
        /// The id.
        id: String,
    },
    /// Two answers to one call.
    #[error("the call {id:?} has a result already")]
    DuplicateResult {
        /// The id.
        id: String,
    },
    /// A call that no tool answered.
    #[error("the call {id:?} must be followed by its result, a message from \"tool\"")]
    NoResult {
        /// The id.
        id: String,
    },
    /// Arguments that are neither text nor an object.
    #[error("must be a string of JSON or an object")]
    Arguments,
    /// Parameters that are not a schema.
    #[error("must be a JSON schema, which is an object")]
    Parameters,
    /// JSON that is nested too deep to be rendered again.
    #[error("is nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    /// Tools stand before the first user message.
    #[error("cannot be offered to the model without a message from \"user\"")]
    ToolsWithoutUser,
    /// The text could not be encoded.
    #[error(transparent)]
    Encode(EncodeError),
}

/// The start of what a client sent, short enough for an error.
pub(super) fn printable(text: &str) -> String {
    text.chars().take(65).collect()
}
