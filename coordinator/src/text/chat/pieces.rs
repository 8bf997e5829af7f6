//! A message's content as pieces: text, and reasoning between its marks.
//!
//! Adjacent texts join with a blank line, empty ones left out; reasoning joins with nothing.

use super::budget::Budget;
use super::conversation::Role;
use super::error::{ChatError, ChatFault, printable};
use super::request::{Content, ContentPart, Message, Thinking};

const JOIN: &str = "\n\n";

/// A run of text or of reasoning.
pub(super) enum Piece {
    /// Never empty.
    Text(String),
    /// Between `[THINK]` and `[/THINK]`.
    Think {
        text: String,
        /// Whether it has ended; otherwise the model goes on with it.
        closed: bool,
    },
}

/// Reads the content of the message at `index`.
pub(super) fn read(
    index: usize,
    message: &Message,
    role: Role,
    budget: &mut Budget,
) -> Result<Vec<Piece>, ChatError> {
    let mut pieces = Vec::new();
    let has_thinking = match &message.content {
        Some(Content::Parts(parts)) => parts.iter().any(|part| part.kind == "thinking"),
        Some(Content::Text(_)) | None => false,
    };
    if let Some(reasoning) = &message.reasoning_content
        && !reasoning.is_empty()
        && role == Role::Assistant
        && !has_thinking
    {
        budget.spend(reasoning.len(), || format!("messages[{index}].reasoning_content"))?;
        pieces.push(Piece::Think {
            text: reasoning.clone(),
            closed: true,
        });
    }
    match &message.content {
        Some(Content::Text(text)) => {
            budget.spend(text.len(), || format!("messages[{index}].content"))?;
            push_text(&mut pieces, text);
        }
        Some(Content::Parts(parts)) => {
            for (place, part) in parts.iter().enumerate() {
                let field = |name: &str| format!("messages[{index}].content[{place}].{name}");
                let piece = read_part(part, field, budget)?;
                match &piece {
                    Piece::Think { .. } if role != Role::Assistant && role != Role::System => {
                        return Err(ChatError::new(field("type"), ChatFault::ReasoningElsewhere));
                    }
                    Piece::Think { closed: false, .. }
                        if place + 1 < parts.len() || message.prefix != Some(true) =>
                    {
                        return Err(ChatError::new(field("closed"), ChatFault::ReasoningOpen));
                    }
                    Piece::Think { .. } | Piece::Text(_) => {}
                }
                push(&mut pieces, piece);
            }
        }
        None if role == Role::Assistant => {}
        None => {
            let field = format!("messages[{index}].content");
            return Err(ChatError::new(field, ChatFault::NoContent));
        }
    }
    Ok(pieces)
}

/// Reads system content of the server's own.
pub(super) fn of_preamble(content: &Content) -> Result<Vec<Piece>, ChatError> {
    let mut pieces = Vec::new();
    match content {
        Content::Text(text) => push_text(&mut pieces, text),
        Content::Parts(parts) => {
            for part in parts {
                let field = |name: &str| format!("messages.{name}");
                push(&mut pieces, read_part(part, field, &mut Budget::new())?);
            }
        }
    }
    Ok(pieces)
}

fn read_part(
    part: &ContentPart,
    field: impl Fn(&str) -> String,
    budget: &mut Budget,
) -> Result<Piece, ChatError> {
    match part.kind.as_str() {
        "text" => {
            let no_text = || ChatError::new(field("text"), ChatFault::NoPartText);
            let text = part.text.as_deref().ok_or_else(no_text)?;
            budget.spend(text.len() + JOIN.len(), || field("text"))?;
            // It changes nothing here, but what is wrong with it is told.
            if let Some(thinking) = &part.thinking {
                read_thinking(thinking, &field, budget)?;
            }
            Ok(Piece::Text(text.to_owned()))
        }
        "thinking" => {
            let no_thinking = || ChatError::new(field("thinking"), ChatFault::NoThinking);
            let thinking = part.thinking.as_ref().ok_or_else(no_thinking)?;
            let text = read_thinking(thinking, &field, budget)?;
            let closed = part.closed.unwrap_or(true);
            Ok(Piece::Think { text, closed })
        }
        other => {
            let found = printable(other);
            Err(ChatError::new(field("type"), ChatFault::UnknownPart { found }))
        }
    }
}

fn read_thinking(
    thinking: &Thinking,
    field: impl Fn(&str) -> String,
    budget: &mut Budget,
) -> Result<String, ChatError> {
    let parts = match thinking {
        Thinking::Text(text) => {
            budget.spend(text.len(), || field("thinking"))?;
            return Ok(text.clone());
        }
        Thinking::Parts(parts) => parts,
    };
    let mut joined = String::new();
    for (place, part) in parts.iter().enumerate() {
        let within = |name: &str| field(&format!("thinking[{place}].{name}"));
        if part.kind != "text" {
            let found = printable(&part.kind);
            return Err(ChatError::new(within("type"), ChatFault::UnknownPart { found }));
        }
        let text = part.text.as_deref();
        let text = text.ok_or_else(|| ChatError::new(within("text"), ChatFault::NoPartText))?;
        budget.spend(text.len(), || within("text"))?;
        joined.push_str(text);
    }
    Ok(joined)
}

fn push(pieces: &mut Vec<Piece>, piece: Piece) {
    match piece {
        Piece::Text(text) => push_text(pieces, &text),
        Piece::Think { .. } => pieces.push(piece),
    }
}

fn push_text(pieces: &mut Vec<Piece>, text: &str) {
    match pieces.last_mut() {
        Some(Piece::Text(before)) => join(before, text),
        Some(Piece::Think { .. }) | None if !text.is_empty() => pieces.push(Piece::Text(text.to_owned())),
        Some(Piece::Think { .. }) | None => {}
    }
}

/// Appends the pieces of the next message of the same role.
pub(super) fn join_pieces(joined: &mut Vec<Piece>, pieces: Vec<Piece>) {
    for piece in pieces {
        push(joined, piece);
    }
}

/// The text of pieces that have no reasoning.
pub(super) fn only_text(pieces: Vec<Piece>) -> String {
    let mut joined = String::new();
    for piece in pieces {
        match piece {
            Piece::Text(text) | Piece::Think { text, .. } => join(&mut joined, &text),
        }
    }
    joined
}

/// Appends `text` to `joined` with a blank line between, leaving out what is empty.
pub(super) fn join(joined: &mut String, text: &str) {
    if !joined.is_empty() && !text.is_empty() {
        joined.push_str(JOIN);
    }
    joined.push_str(text);
}
