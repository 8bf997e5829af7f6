//! A request's messages, checked in order and joined into the turns the format has.
//!
//! Joining: the text parts of a message and the texts of adjacent messages of the user, or of the
//! assistant, join with a blank line, empty ones left out; system messages stay apart; the results of
//! tools take the order of their calls.
//!
//! **Invariant:** every tool result follows the assistant turn that made its call, and every call but
//! those of the last turn is answered.

use super::budget::Budget;
use super::error::{ChatError, ChatFault, printable};
use super::functions::{Call, call_id, check_name, render_tools};
use super::pieces::{Piece, join, join_pieces, only_text};
use super::request::{ChatRequest, MAX_MESSAGES, Message};

/// What the format renders, in order.
pub(super) struct Conversation {
    /// The tools as one JSON array, if there are any.
    pub(super) tools: Option<String>,
    pub(super) turns: Vec<Turn>,
}

/// One or more messages as the format has them; `message` is the index of the first.
pub(super) enum Turn {
    System {
        message: usize,
        pieces: Vec<Piece>,
    },
    User {
        message: usize,
        text: String,
    },
    Assistant {
        message: usize,
        pieces: Vec<Piece>,
        calls: Vec<Call>,
        /// Whether the model continues this turn.
        open: bool,
    },
    ToolResult {
        message: usize,
        text: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    System,
    User,
    Assistant,
    Tool,
}

impl Role {
    fn parse(name: &str) -> Option<Self> {
        match name {
            "system" | "developer" => Some(Role::System),
            "user" => Some(Role::User),
            "assistant" => Some(Role::Assistant),
            "tool" => Some(Role::Tool),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        }
    }

    fn allowed_next(self) -> (&'static [Role], &'static str) {
        match self {
            Role::System => (
                &[Role::System, Role::User, Role::Assistant],
                "system, user, assistant",
            ),
            Role::User => (
                &[Role::System, Role::User, Role::Assistant],
                "system, user, assistant",
            ),
            Role::Assistant => (
                &[Role::User, Role::Assistant, Role::Tool],
                "user, assistant, tool",
            ),
            Role::Tool => (
                &[Role::User, Role::Assistant, Role::Tool],
                "user, assistant, tool",
            ),
        }
    }
}

impl Conversation {
    pub(super) fn read(request: &ChatRequest) -> Result<Self, ChatError> {
        let messages = &request.messages;
        if messages.is_empty() {
            return Err(ChatError::new("messages", ChatFault::NoMessages));
        }
        if messages.len() > MAX_MESSAGES {
            let fault = ChatFault::TooManyMessages {
                found: messages.len(),
            };
            return Err(ChatError::new("messages", fault));
        }
        let mut budget = Budget::new();
        let tools = render_tools(&request.tools, &mut budget)?;
        let mut reader = Reader {
            turns: Vec::new(),
            previous: None,
            results: Vec::new(),
            budget,
        };
        for content in &request.preamble {
            let pieces = super::pieces::of_preamble(content)?;
            reader.turns.push(Turn::System { message: 0, pieces });
        }
        for (index, message) in messages.iter().enumerate() {
            reader.message(index, message, index + 1 == messages.len())?;
        }
        reader.check_end(messages)?;
        let has_user = reader.turns.iter().any(|turn| matches!(turn, Turn::User { .. }));
        if tools.is_some() && !has_user {
            return Err(ChatError::new("tools", ChatFault::ToolsWithoutUser));
        }
        Ok(Self {
            tools,
            turns: reader.turns,
        })
    }
}

struct Reader {
    turns: Vec<Turn>,
    previous: Option<Role>,
    /// For the calls of the last assistant turn, in their order: message and text of the result.
    results: Vec<Option<(usize, String)>>,
    budget: Budget,
}

impl Reader {
    fn message(&mut self, index: usize, message: &Message, is_last: bool) -> Result<(), ChatError> {
        let role = self.role(index, message)?;
        if role != Role::Tool {
            self.end_results()?;
        }
        if role != Role::Assistant {
            if self.previous == Some(Role::Assistant) {
                self.end_assistant()?;
            }
            if !message.tool_calls.is_empty() {
                return Err(ChatError::new(
                    format!("messages[{index}].tool_calls"),
                    ChatFault::CallsNotAssistant,
                ));
            }
        }
        if message.prefix == Some(true) && (role != Role::Assistant || !is_last) {
            return Err(ChatError::new(
                format!("messages[{index}].prefix"),
                ChatFault::PrefixNotLast,
            ));
        }
        let pieces = super::pieces::read(index, message, role, &mut self.budget)?;
        match role {
            Role::System => self.turns.push(Turn::System {
                message: index,
                pieces,
            }),
            Role::User => self.user(index, only_text(pieces)),
            Role::Assistant => self.assistant(index, message, pieces)?,
            Role::Tool => self.tool_result(index, message, only_text(pieces))?,
        }
        self.previous = Some(role);
        Ok(())
    }

    /// The message's role, if it may stand after the one before.
    fn role(&self, index: usize, message: &Message) -> Result<Role, ChatError> {
        let fail = |fault| ChatError::new(format!("messages[{index}].role"), fault);
        let role = Role::parse(&message.role).ok_or_else(|| {
            fail(ChatFault::UnknownRole {
                found: printable(&message.role),
            })
        })?;
        let Some(previous) = self.previous else {
            return Ok(role);
        };
        let (allowed, names) = previous.allowed_next();
        if allowed.contains(&role) {
            Ok(role)
        } else {
            Err(fail(ChatFault::RoleOrder {
                found: role.name(),
                previous: previous.name(),
                allowed: names,
            }))
        }
    }

    fn user(&mut self, index: usize, text: String) {
        if let Some(Turn::User { text: before, .. }) = self.turns.last_mut() {
            join(before, &text);
        } else {
            self.turns.push(Turn::User { message: index, text });
        }
    }

    fn assistant(&mut self, index: usize, message: &Message, pieces: Vec<Piece>) -> Result<(), ChatError> {
        let mut calls: Vec<Call> = Vec::with_capacity(message.tool_calls.len());
        for (place, call) in message.tool_calls.iter().enumerate() {
            let call = Call::read(index, place, call, &mut self.budget)?;
            if calls.iter().any(|earlier| earlier.id == call.id) {
                let fault = ChatFault::DuplicateCallId {
                    id: printable(&call.id),
                };
                return Err(ChatError::new(format!("{}.id", call.field()), fault));
            }
            calls.push(call);
        }
        self.results = calls.iter().map(|_| None).collect();
        let prefix = message.prefix == Some(true);
        if let Some(Turn::Assistant {
            pieces: before,
            calls: earlier,
            open,
            ..
        }) = self.turns.last_mut()
        {
            join_pieces(before, pieces);
            earlier.extend(calls);
            *open = prefix;
        } else {
            self.turns.push(Turn::Assistant {
                message: index,
                pieces,
                calls,
                open: prefix,
            });
        }
        Ok(())
    }

    fn tool_result(&mut self, index: usize, message: &Message, text: String) -> Result<(), ChatError> {
        let fail = |fault| ChatError::new(format!("messages[{index}].tool_call_id"), fault);
        if let Some(name) = &message.name {
            check_name(name, || format!("messages[{index}].name"))?;
        }
        let id = call_id(message.tool_call_id.as_deref()).ok_or_else(|| fail(ChatFault::NoCallId))?;
        let calls = self.open_calls();
        let Some(place) = calls.iter().position(|call| call.id == id) else {
            return Err(fail(ChatFault::UnknownCall { id: printable(id) }));
        };
        if self.results[place].replace((index, text)).is_some() {
            return Err(fail(ChatFault::DuplicateResult { id: printable(id) }));
        }
        Ok(())
    }

    /// The calls that `results` belongs to: those of the last message of the last assistant turn.
    fn open_calls(&self) -> &[Call] {
        if let Some(Turn::Assistant { calls, .. }) = self.turns.last() {
            &calls[calls.len() - self.results.len()..]
        } else {
            &[]
        }
    }

    /// Ends a run of tool results: all calls must have one.
    fn end_results(&mut self) -> Result<(), ChatError> {
        if let Some(place) = self.results.iter().position(Option::is_none) {
            let call = &self.open_calls()[place];
            let fault = ChatFault::NoResult {
                id: printable(&call.id),
            };
            return Err(ChatError::new(call.field(), fault));
        }
        let results = self.results.drain(..).flatten();
        self.turns
            .extend(results.map(|(message, text)| Turn::ToolResult { message, text }));
        Ok(())
    }

    fn end_assistant(&self) -> Result<(), ChatError> {
        if let Some(Turn::Assistant {
            message,
            pieces,
            calls,
            ..
        }) = self.turns.last()
            && pieces.is_empty()
            && calls.is_empty()
        {
            let field = format!("messages[{message}].content");
            return Err(ChatError::new(field, ChatFault::EmptyAssistant));
        }
        Ok(())
    }

    fn check_end(&mut self, messages: &[Message]) -> Result<(), ChatError> {
        let last = messages.len() - 1;
        if self.previous == Some(Role::Assistant) {
            let fail = |fault| Err(ChatError::new(format!("messages[{last}].role"), fault));
            if last == 0 {
                return fail(ChatFault::OnlyMessage);
            }
            if messages[last].prefix != Some(true) {
                return fail(ChatFault::LastMessage);
            }
            self.end_assistant()?;
        }
        self.end_results()
    }
}
