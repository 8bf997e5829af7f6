//! Generated tokens to content, reasoning and tool calls, as they come.
//!
//! The model writes a call as `[TOOL_CALLS]` name `[ARGS]` JSON, any number of them, after or instead
//! of content. The markers are tokens, never text, so content cannot be taken for a call. The
//! arguments are passed on exactly as the model wrote them, valid JSON or not.
//!
//! Reasoning stands between `[THINK]` and `[/THINK]`; a call or the end of the answer ends it too.
//!
//! What is no well-formed call: a name without `[ARGS]` after it is a call with empty arguments, and a
//! name that no function can have is content, together with what stands after its `[ARGS]`. Other
//! special tokens show nowhere.

use std::sync::Arc;

use tramontane_model::ids::RequestId;

use super::chat::is_function_name;
use super::tekken::{SpecialText, StreamDecoder, Tokenizer, UnknownToken};

/// Longest text after `[TOOL_CALLS]` that is still taken for a name on its way, in bytes.
const MAX_PENDING_NAME_BYTES: usize = 128;

/// A piece of the model's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutputEvent {
    /// More of the content; never empty.
    Content(String),
    /// More of the reasoning; never empty.
    Reasoning(String),
    /// A call begins.
    ToolCall {
        /// Its place among the answer's calls, from 0.
        index: u32,
        /// Its id: 9 letters and digits, the same for the same request, choice and index.
        id: String,
        /// The function's name.
        name: String,
    },
    /// More of a call's arguments; never empty.
    Arguments {
        /// The call's place.
        index: u32,
        /// The model's own text.
        text: String,
    },
}

/// Parses the tokens of one choice of an answer.
#[derive(Debug)]
pub struct OutputParser {
    tokenizer: Arc<Tokenizer>,
    decoder: StreamDecoder,
    request: RequestId,
    choice: u32,
    calls: u32,
    /// Whether markers of calls mean anything.
    may_call: bool,
    state: State,
}

/// Where in the answer the parser is.
#[derive(Debug)]
enum State {
    Content,
    /// After `[THINK]`.
    Reasoning,
    /// After `[TOOL_CALLS]`, with the text since.
    Name(String),
    /// After `[ARGS]`.
    Arguments {
        index: u32,
    },
}

impl OutputParser {
    /// A parser at the start of the answer's choice number `choice`.
    pub fn new(tokenizer: Arc<Tokenizer>, request: RequestId, choice: u32) -> Self {
        Self {
            decoder: StreamDecoder::new(Arc::clone(&tokenizer), SpecialText::Skip),
            tokenizer,
            request,
            choice,
            calls: 0,
            may_call: true,
            state: State::Content,
        }
    }

    /// For an answer without tools: markers of calls stand for nothing, as other special tokens do.
    pub fn without_calls(mut self) -> Self {
        self.may_call = false;
        self
    }

    /// For an answer to a prompt that ends within reasoning.
    pub fn within_reasoning(mut self) -> Self {
        self.state = State::Reasoning;
        self
    }

    /// Takes the next token and appends what it completes to `events`.
    pub fn push(&mut self, id: u32, events: &mut Vec<OutputEvent>) -> Result<(), UnknownToken> {
        let mut text = String::new();
        // Before a special token this also gives out what was partial, still in the old state.
        self.decoder.push(id, &mut text)?;
        self.take_text(text, events);
        let markers = self.tokenizer.markers();
        if markers.think.is_some_and(|think| id == think.begin) {
            self.end_part(events);
            self.state = State::Reasoning;
        } else if markers.think.is_some_and(|think| id == think.end) {
            if matches!(self.state, State::Reasoning) {
                self.state = State::Content;
            }
        } else if id == markers.tool_calls && self.may_call {
            self.end_part(events);
            self.state = State::Name(String::new());
        } else if id == markers.args {
            self.begin_arguments(events);
        } else if id == markers.eos {
            self.end_part(events);
        }
        Ok(())
    }

    /// Ends the answer: gives out what is still partial or pending.
    pub fn finish(&mut self, events: &mut Vec<OutputEvent>) {
        let mut text = String::new();
        self.decoder.finish(&mut text);
        self.take_text(text, events);
        self.end_part(events);
    }

    /// How many calls have begun.
    pub fn tool_calls(&self) -> u32 {
        self.calls
    }

    fn take_text(&mut self, text: String, events: &mut Vec<OutputEvent>) {
        if text.is_empty() {
            return;
        }
        match &mut self.state {
            State::Content => events.push(OutputEvent::Content(text)),
            State::Reasoning => events.push(OutputEvent::Reasoning(text)),
            State::Arguments { index } => events.push(OutputEvent::Arguments { index: *index, text }),
            State::Name(name) => {
                name.push_str(&text);
                if name.len() > MAX_PENDING_NAME_BYTES {
                    events.push(OutputEvent::Content(std::mem::take(name)));
                    self.state = State::Content;
                }
            }
        }
    }

    /// `[ARGS]`: the pending name, if it can be one, becomes a call.
    fn begin_arguments(&mut self, events: &mut Vec<OutputEvent>) {
        let State::Name(name) = &mut self.state else {
            return;
        };
        let name = std::mem::take(name);
        self.state = match self.begin_call(name, events) {
            Some(index) => State::Arguments { index },
            None => State::Content,
        };
    }

    /// A call or a name ends here; what comes next is content unless a marker says otherwise.
    fn end_part(&mut self, events: &mut Vec<OutputEvent>) {
        match std::mem::replace(&mut self.state, State::Content) {
            State::Content | State::Reasoning | State::Arguments { .. } => {}
            State::Name(name) => {
                self.begin_call(name, events);
            }
        }
    }

    /// Gives out a call of this name and returns its index; gives out content if it cannot be a name.
    fn begin_call(&mut self, name: String, events: &mut Vec<OutputEvent>) -> Option<u32> {
        if !is_function_name(name.trim()) {
            if !name.is_empty() {
                events.push(OutputEvent::Content(name));
            }
            return None;
        }
        let index = self.calls;
        self.calls += 1;
        events.push(OutputEvent::ToolCall {
            index,
            id: tool_call_id(self.request, self.choice, index),
            name: name.trim().to_owned(),
        });
        Some(index)
    }
}

/// Nine letters and digits that name a call: the same after a retry, different for every call.
///
/// 62^9 values, spread by the finaliser of SplitMix64 (Steele, Lea and Flood, 2014).
fn tool_call_id(request: RequestId, choice: u32, index: u32) -> String {
    const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let words = [
        request.0 as u64,
        (request.0 >> 64) as u64,
        u64::from(choice) << 32 | u64::from(index),
    ];
    let mut value = words.into_iter().fold(0u64, |state, word| {
        let mut mixed = (state ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    });
    let mut id = String::with_capacity(9);
    for _ in 0..9 {
        id.push(char::from(ALPHABET[(value % 62) as usize]));
        value /= 62;
    }
    id
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn call_ids_are_nine_alphanumerics_and_differ() {
        let mut seen = HashSet::new();
        for request in [0, 1, 1 << 64, u128::MAX] {
            for choice in 0..4 {
                for index in 0..64 {
                    let id = tool_call_id(RequestId(request), choice, index);
                    assert!(
                        id.len() == 9 && id.bytes().all(|b| b.is_ascii_alphanumeric()),
                        "{id}"
                    );
                    assert_eq!(id, tool_call_id(RequestId(request), choice, index));
                    assert!(seen.insert(id));
                }
            }
        }
    }
}
