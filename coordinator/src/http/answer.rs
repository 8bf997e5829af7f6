//! From a live generation to the pieces of an answer: text, tool calls, tokens with their log-probabilities, the end.
//!
//! One value per choice, the same for streams and whole answers, so that both show the same text. No JSON here.

use std::sync::Arc;

use tramontane_model::sampling::SampledToken;

use super::error::{ApiError, ErrorKind};
use crate::gateway::{Event, Finish, Generation};
use crate::text::{
    OutputEvent, OutputParser, SpecialText, StopMatcher, StreamDecoder, Tokenizer, UnknownToken,
};

/// How tokens become text.
#[derive(Debug)]
enum Decoder {
    /// All text is content.
    Plain(StreamDecoder),
    /// Tool calls are told from content.
    Calls(OutputParser),
}

impl Decoder {
    fn push(&mut self, id: u32, events: &mut Vec<OutputEvent>) -> Result<(), UnknownToken> {
        match self {
            Self::Calls(parser) => parser.push(id, events),
            Self::Plain(decoder) => {
                let mut text = String::new();
                decoder.push(id, &mut text)?;
                events.push(OutputEvent::Content(text));
                Ok(())
            }
        }
    }

    fn finish(&mut self, events: &mut Vec<OutputEvent>) {
        match self {
            Self::Calls(parser) => parser.finish(events),
            Self::Plain(decoder) => {
                let mut text = String::new();
                decoder.finish(&mut text);
                events.push(OutputEvent::Content(text));
            }
        }
    }

    fn calls(&self) -> u32 {
        match self {
            Self::Calls(parser) => parser.tool_calls(),
            Self::Plain(_) => 0,
        }
    }
}

/// A generated token, where its text starts.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Reported {
    /// The token.
    pub(super) sampled: SampledToken,
    /// Characters of the answer before it.
    pub(super) offset: usize,
}

/// What one event of the generation adds to the answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Delta {
    /// Text and tool calls, in order; no content is empty.
    pub(super) pieces: Vec<OutputEvent>,
    /// The token, if one was generated.
    pub(super) token: Option<Reported>,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FinishReason {
    /// At its natural end or before a stop string.
    Stop,
    /// At the limit.
    Length,
    /// With tool calls, for the client to answer.
    ToolCalls,
}

impl FinishReason {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ToolCalls => "tool_calls",
        }
    }
}

/// A step of an answer.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    /// More of it.
    Delta(Delta),
    /// Its end; nothing follows.
    End(FinishReason),
}

/// One choice of an answer.
#[derive(Debug)]
pub(super) struct Answer {
    /// Gone once it has ended.
    generation: Option<Generation>,
    decoder: Decoder,
    /// At the start of a run of content.
    fresh_stop: StopMatcher,
    stop: StopMatcher,
    characters: usize,
    prompt_tokens: u32,
    cached_prompt_tokens: u32,
    generated_tokens: u32,
    end: Option<FinishReason>,
}

impl Answer {
    /// An answer of which all text is content.
    pub(super) fn plain(
        generation: Generation,
        tokenizer: &Arc<Tokenizer>,
        stop: StopMatcher,
        prompt_tokens: u32,
    ) -> Self {
        let decoder = StreamDecoder::new(Arc::clone(tokenizer), SpecialText::Skip);
        Self::new(generation, Decoder::Plain(decoder), stop, prompt_tokens)
    }

    /// An answer that may hold tool calls.
    pub(super) fn with_calls(
        generation: Generation,
        tokenizer: &Arc<Tokenizer>,
        stop: StopMatcher,
        prompt_tokens: u32,
    ) -> Self {
        let parser = OutputParser::new(Arc::clone(tokenizer), generation.id(), 0);
        Self::new(generation, Decoder::Calls(parser), stop, prompt_tokens)
    }

    fn new(generation: Generation, decoder: Decoder, stop: StopMatcher, prompt_tokens: u32) -> Self {
        Self {
            generation: Some(generation),
            decoder,
            fresh_stop: stop.clone(),
            stop,
            characters: 0,
            prompt_tokens,
            cached_prompt_tokens: 0,
            generated_tokens: 0,
            end: None,
        }
    }

    /// Tokens of the prompt.
    pub(super) fn prompt_tokens(&self) -> u32 {
        self.prompt_tokens
    }

    /// Tokens of the prompt that the replica had in its prefix cache, as far as is known.
    pub(super) fn cached_prompt_tokens(&self) -> u32 {
        self.cached_prompt_tokens
    }

    /// Tokens generated so far.
    pub(super) fn generated_tokens(&self) -> u32 {
        self.generated_tokens
    }

    /// The next step; `None` after the end or an error.
    pub(super) async fn next(&mut self) -> Option<Result<Step, ApiError>> {
        let Some(generation) = self.generation.as_mut() else {
            return self.end.take().map(|reason| Ok(Step::End(reason)));
        };
        let event = generation.next().await;
        self.cached_prompt_tokens = generation.cached_prompt_tokens();
        let step = match event {
            Some(Event::Token(sampled)) => self.take(sampled),
            Some(Event::Ended(Ok(finish))) => Ok(Step::Delta(self.finish(finish))),
            Some(Event::Ended(Err(error))) => Err(error.into()),
            None => Err(ApiError::new(
                ErrorKind::Failed,
                "the request ended without a reason",
            )),
        };
        if step.is_err() {
            self.generation = None;
            self.end = None;
        }
        Some(step)
    }

    fn take(&mut self, sampled: SampledToken) -> Result<Step, ApiError> {
        self.generated_tokens = self.generated_tokens.saturating_add(1);
        let offset = self.characters;
        let mut events = Vec::new();
        self.decoder.push(sampled.token, &mut events).map_err(|error| {
            ApiError::new(ErrorKind::Failed, format!("the replica emitted a token: {error}"))
        })?;
        let (pieces, stopped) = self.before_stop(events);
        if stopped && let Some(generation) = self.generation.take() {
            generation.satisfied();
            self.end = Some(FinishReason::Stop);
        }
        let token = Some(Reported { sampled, offset });
        Ok(Step::Delta(Delta { pieces, token }))
    }

    fn finish(&mut self, finish: Finish) -> Delta {
        self.generation = None;
        let mut events = Vec::new();
        self.decoder.finish(&mut events);
        let (mut pieces, stopped) = self.before_stop(events);
        if !stopped {
            self.release(&mut pieces);
        }
        self.end = Some(match finish {
            Finish::Length if !stopped => FinishReason::Length,
            Finish::Stop if !stopped && self.decoder.calls() > 0 => FinishReason::ToolCalls,
            Finish::Length | Finish::Stop => FinishReason::Stop,
        });
        Delta { pieces, token: None }
    }

    /// What may be shown of new events, and whether a stop string ended the answer. Stop strings end content only:
    /// a tool call is not text.
    fn before_stop(&mut self, events: Vec<OutputEvent>) -> (Vec<OutputEvent>, bool) {
        let mut pieces = Vec::new();
        for event in events {
            match event {
                OutputEvent::Content(text) => {
                    self.characters += text.chars().count();
                    let mut shown = String::new();
                    let stopped = self.stop.push(&text, &mut shown).is_some();
                    push_content(&mut pieces, shown);
                    if stopped {
                        return (pieces, true);
                    }
                }
                OutputEvent::ToolCall { .. } | OutputEvent::Arguments { .. } => {
                    self.release(&mut pieces);
                    pieces.push(event);
                }
            }
        }
        (pieces, false)
    }

    /// Gives out what was held back as the possible start of a stop string.
    fn release(&mut self, pieces: &mut Vec<OutputEvent>) {
        let mut held = String::new();
        self.stop.finish(&mut held);
        self.stop = self.fresh_stop.clone();
        push_content(pieces, held);
    }
}

fn push_content(pieces: &mut Vec<OutputEvent>, text: String) {
    if !text.is_empty() {
        pieces.push(OutputEvent::Content(text));
    }
}
