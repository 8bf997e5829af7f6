//! The v13 chat format: a conversation and its tools to the token ids the model was trained on.
//!
//! `<s>`, then for each message, joined and checked by [`conversation`]:
//!
//! - system `[SYSTEM_PROMPT]` text `[/SYSTEM_PROMPT]`
//! - the tools, before the first user message, `[AVAILABLE_TOOLS]` JSON array `[/AVAILABLE_TOOLS]`
//! - user `[INST]` text `[/INST]`
//! - assistant text, then for each call `[TOOL_CALLS]` name `[ARGS]` JSON, then `</s>`
//! - tool `[TOOL_RESULTS]` text `[/TOOL_RESULTS]`
//!
//! Source of the format: `mistral-common`, `InstructTokenizerV13` in serving mode; recorded token ids
//! of it are the test. Reasoning, in assistant and system messages, stands as `[THINK]` text `[/THINK]`.
//! Absent: images and audio, which are refused as content parts.

mod budget;
mod conversation;
mod error;
mod functions;
mod pieces;
mod request;

pub use error::{ChatError, ChatFault};
pub(in crate::text) use functions::is_function_name;
pub use request::{
    ChatRequest, Content, ContentPart, FunctionCall, FunctionDefinition, MAX_MESSAGES, MAX_TOOLS, Message,
    Thinking, ThinkingPart, Tool, ToolCall,
};

use super::tekken::Tokenizer;
use conversation::{Conversation, Turn};
use functions::Call;
use pieces::Piece;

/// Token ids of the prompt that asks the model to go on with this conversation.
///
/// The last message is the user's, a tool's, or an assistant's marked `prefix`, which is left open for
/// the model to continue. Errors name the field at fault, as `messages[2].tool_call_id`.
pub fn encode_chat(tokenizer: &Tokenizer, request: &ChatRequest) -> Result<Vec<u32>, ChatError> {
    let conversation = Conversation::read(request)?;
    let mut prompt = Prompt {
        tokenizer,
        ids: vec![tokenizer.markers().bos],
    };
    let mut tools = conversation.tools.as_deref();
    for turn in &conversation.turns {
        if matches!(turn, Turn::User { .. })
            && let Some(json) = tools.take()
        {
            prompt.tools(json)?;
        }
        prompt.turn(turn)?;
    }
    Ok(prompt.ids)
}

struct Prompt<'a> {
    tokenizer: &'a Tokenizer,
    ids: Vec<u32>,
}

impl Prompt<'_> {
    fn turn(&mut self, turn: &Turn) -> Result<(), ChatError> {
        let markers = *self.tokenizer.markers();
        match turn {
            Turn::System { message, pieces } => {
                self.ids.push(markers.begin_system);
                self.pieces(*message, pieces)?;
                self.ids.push(markers.end_system);
                Ok(())
            }
            Turn::User { message, text } => {
                let field = || format!("messages[{message}].content");
                self.between(markers.begin_inst, text, markers.end_inst, field)
            }
            Turn::ToolResult { message, text } => {
                let field = || format!("messages[{message}].content");
                self.between(markers.begin_tool_results, text, markers.end_tool_results, field)
            }
            Turn::Assistant {
                message,
                pieces,
                calls,
                open,
            } => {
                match pieces.as_slice() {
                    // Trained-on answers of text alone end without spaces.
                    [Piece::Text(text)] => self.text(text.trim_end_matches(' '), || {
                        format!("messages[{message}].content")
                    })?,
                    pieces => self.pieces(*message, pieces)?,
                }
                for call in calls {
                    self.call(call)?;
                }
                if !open {
                    self.ids.push(markers.eos);
                }
                Ok(())
            }
        }
    }

    fn pieces(&mut self, message: usize, pieces: &[Piece]) -> Result<(), ChatError> {
        let field = || format!("messages[{message}].content");
        for piece in pieces {
            match piece {
                Piece::Text(text) => self.text(text, field)?,
                Piece::Think { text, closed } => {
                    let think = self.tokenizer.markers().think;
                    let think = think.ok_or_else(|| ChatError::new(field(), ChatFault::NoReasoning))?;
                    self.ids.push(think.begin);
                    self.text(text, field)?;
                    if *closed {
                        self.ids.push(think.end);
                    }
                }
            }
        }
        Ok(())
    }

    fn call(&mut self, call: &Call) -> Result<(), ChatError> {
        let markers = *self.tokenizer.markers();
        self.ids.push(markers.tool_calls);
        self.text(&call.name, || format!("{}.function.name", call.field()))?;
        self.ids.push(markers.args);
        self.text(&call.arguments, || format!("{}.function.arguments", call.field()))
    }

    fn tools(&mut self, json: &str) -> Result<(), ChatError> {
        let markers = *self.tokenizer.markers();
        self.between(markers.begin_tools, json, markers.end_tools, || {
            "tools".to_owned()
        })
    }

    fn between(
        &mut self,
        begin: u32,
        text: &str,
        end: u32,
        field: impl Fn() -> String,
    ) -> Result<(), ChatError> {
        self.ids.push(begin);
        self.text(text, field)?;
        self.ids.push(end);
        Ok(())
    }

    fn text(&mut self, text: &str, field: impl Fn() -> String) -> Result<(), ChatError> {
        let encoded = self.tokenizer.encode_into(text, &mut self.ids);
        encoded.map_err(|e| ChatError::new(field(), ChatFault::Encode(e)))
    }
}
