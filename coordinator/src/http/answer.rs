//! From a live generation to the pieces of an answer: text, reasoning, tool calls, tokens with their
//! log-probabilities, the end.
//!
//! One value per choice, the same for streams and whole answers, so that both show the same text. No JSON here.

use std::sync::Arc;

use tramontane_model::sampling::SampledToken;

use super::call::Choice;
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
    /// Reasoning and tool calls are told from content.
    Chat(OutputParser),
}

impl Decoder {
    fn push(&mut self, id: u32, events: &mut Vec<OutputEvent>) -> Result<(), UnknownToken> {
        match self {
            Self::Chat(parser) => parser.push(id, events),
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
            Self::Chat(parser) => parser.finish(events),
            Self::Plain(decoder) => {
                let mut text = String::new();
                decoder.finish(&mut text);
                events.push(OutputEvent::Content(text));
            }
        }
    }

    fn calls(&self) -> u32 {
        match self {
            Self::Chat(parser) => parser.tool_calls(),
            Self::Plain(_) => 0,
        }
    }
}

/// How many tools an answer may call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Calls {
    /// None: it was shown no tools.
    None,
    /// One, with which it ends.
    One,
    /// Any number.
    Many,
}

/// A token of the answer, or of the prompt where that is repeated, and where its text starts.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Reported {
    /// The token.
    pub(super) id: u32,
    /// How it was chosen; a token of the prompt was not.
    pub(super) sampled: Option<SampledToken>,
    /// Characters of the answer before it.
    pub(super) offset: usize,
}

/// What one event of the generation adds to the answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Delta {
    /// Text and tool calls, in order; no content is empty.
    pub(super) pieces: Vec<OutputEvent>,
    /// The token that was generated, if one was; the prompt's, where that is repeated.
    pub(super) tokens: Vec<Reported>,
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
    /// For the log.
    choice: Arc<Choice>,
    /// The prompt, to be shown before anything else.
    opening: Option<Delta>,
    /// Alternatives shown with the prompt's tokens; none if they are shown without log-probabilities.
    opening_top: Option<u32>,
    /// Tokens of the prompt whose log-probabilities come first, its first token included; 0 if none are to come.
    to_score: usize,
    /// Those that have come.
    scored: Vec<SampledToken>,
    /// Whether it ends with the prompt.
    prompt_only: bool,
    calls: Calls,
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
        started: (Generation, Arc<Choice>),
        tokenizer: &Arc<Tokenizer>,
        stop: StopMatcher,
        prompt_tokens: u32,
    ) -> Self {
        let decoder = StreamDecoder::new(Arc::clone(tokenizer), SpecialText::Skip);
        Self::new(started, Decoder::Plain(decoder), Calls::None, stop, prompt_tokens)
    }

    /// The next turn of a conversation; `in_reasoning` if the prompt ends within it.
    pub(super) fn chat(
        started: (Generation, Arc<Choice>),
        tokenizer: &Arc<Tokenizer>,
        (calls, in_reasoning): (Calls, bool),
        stop: StopMatcher,
        prompt_tokens: u32,
    ) -> Self {
        let mut parser = OutputParser::new(Arc::clone(tokenizer), started.1.shown_id(), 0);
        if calls == Calls::None {
            parser = parser.without_calls();
        }
        if in_reasoning {
            parser = parser.within_reasoning();
        }
        Self::new(started, Decoder::Chat(parser), calls, stop, prompt_tokens)
    }

    fn new(
        (generation, choice): (Generation, Arc<Choice>),
        decoder: Decoder,
        calls: Calls,
        stop: StopMatcher,
        prompt_tokens: u32,
    ) -> Self {
        Self {
            generation: Some(generation),
            choice,
            opening: None,
            opening_top: None,
            to_score: 0,
            scored: Vec::new(),
            prompt_only: false,
            calls,
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

    /// Takes in the log-probabilities of a prompt of so many tokens, which were asked for, before anything else.
    pub(super) fn scoring(mut self, prompt_tokens: usize) -> Self {
        self.to_score = prompt_tokens;
        self
    }

    /// Ends with the prompt: nothing that is generated is looked at.
    pub(super) fn prompt_only(mut self) -> Self {
        self.prompt_only = true;
        self
    }

    /// Shows the prompt before the answer, with the log-probabilities of `top` alternatives if any. Stop strings do not end
    /// it, and a character that it leaves unfinished may be finished by the answer.
    pub(super) fn after_prompt(mut self, prompt: &[u32], top: Option<u32>) -> Result<Self, ApiError> {
        self.opening_top = top;
        let mut opening = Delta::default();
        let mut shown = String::new();
        for &id in prompt {
            opening.tokens.push(Reported {
                id,
                sampled: None,
                offset: self.characters,
            });
            let mut events = Vec::new();
            self.decoder.push(id, &mut events).map_err(|error| {
                ApiError::new(ErrorKind::Failed, format!("the prompt cannot be shown: {error}"))
            })?;
            for event in events {
                if let OutputEvent::Content(text) = event {
                    self.characters += text.chars().count();
                    shown.push_str(&text);
                }
            }
        }
        push_content(&mut opening.pieces, shown);
        self.opening = Some(opening);
        Ok(self)
    }

    /// Tokens of the prompt; 0 for all but one of the choices that continue it.
    pub(super) fn prompt_tokens(&self) -> u32 {
        self.prompt_tokens
    }

    /// Tokens of the prompt that the replica had in its prefix cache, as far as is known.
    pub(super) fn cached_prompt_tokens(&self) -> u32 {
        self.cached_prompt_tokens
    }

    /// The prompt's tokens from the second on with their log-probabilities, if they were asked for.
    pub(super) fn take_scored(&mut self) -> Vec<SampledToken> {
        std::mem::take(&mut self.scored)
    }

    /// Tokens generated so far.
    pub(super) fn generated_tokens(&self) -> u32 {
        self.generated_tokens
    }

    /// The next step; `None` after the end or an error.
    pub(super) async fn next(&mut self) -> Option<Result<Step, ApiError>> {
        if let Err(error) = self.until_scored().await {
            return Some(Err(self.failed(error)));
        }
        if let Some(opening) = self.open() {
            return Some(Ok(Step::Delta(opening)));
        }
        if self.prompt_only
            && let Some(generation) = self.generation.take()
        {
            generation.satisfied();
            self.end = Some(FinishReason::Length);
        }
        let Some(generation) = self.generation.as_mut() else {
            return self.end.take().map(|reason| {
                self.choice.end(reason.name());
                Ok(Step::End(reason))
            });
        };
        let event = generation.next().await;
        self.cached_prompt_tokens = generation.cached_prompt_tokens();
        let step = match event {
            Some(Event::Token(sampled)) => self.take(sampled),
            Some(Event::Prompt(_)) => Err(ApiError::new(
                ErrorKind::Failed,
                "the replica scored a prompt that was not to be scored",
            )),
            Some(Event::Ended(Ok(finish))) => Ok(Step::Delta(self.finish(finish))),
            Some(Event::Ended(Err(error))) => Err(error.into()),
            None => Err(no_reason()),
        };
        Some(step.map_err(|error| self.failed(error)))
    }

    /// It ends with an error.
    fn failed(&mut self, error: ApiError) -> ApiError {
        self.choice.fail(error.kind.name());
        self.generation = None;
        self.opening = None;
        self.to_score = 0;
        self.end = None;
        error
    }

    /// Waits for the log-probabilities of the prompt.
    async fn until_scored(&mut self) -> Result<(), ApiError> {
        while self.scored.len() + 1 < self.to_score
            && let Some(generation) = self.generation.as_mut()
        {
            match generation.next().await {
                Some(Event::Prompt(tokens)) => self.scored.extend(tokens),
                Some(Event::Ended(Err(error))) => return Err(error.into()),
                Some(Event::Token(_) | Event::Ended(Ok(_))) => {
                    let problem = "the replica left tokens of the prompt without log-probabilities";
                    return Err(ApiError::new(ErrorKind::Failed, problem));
                }
                None => return Err(no_reason()),
            }
        }
        Ok(())
    }

    /// The prompt where it is to be shown, with what is shown of its tokens.
    fn open(&mut self) -> Option<Delta> {
        let mut opening = self.opening.take()?;
        if let Some(top) = self.opening_top {
            for (shown, scored) in opening.tokens.iter_mut().skip(1).zip(&self.scored) {
                let mut scored = scored.clone();
                scored.top.truncate(top as usize);
                shown.sampled = Some(scored);
            }
        }
        Some(opening)
    }

    fn take(&mut self, sampled: SampledToken) -> Result<Step, ApiError> {
        self.generated_tokens = self.generated_tokens.saturating_add(1);
        self.choice.token();
        let offset = self.characters;
        let mut events = Vec::new();
        self.decoder.push(sampled.token, &mut events).map_err(|error| {
            ApiError::new(ErrorKind::Failed, format!("the replica emitted a token: {error}"))
        })?;
        let (pieces, stopped) = self.before_stop(events);
        if let Some(reason) = stopped
            && let Some(generation) = self.generation.take()
        {
            generation.satisfied();
            self.end = Some(reason);
        }
        let tokens = vec![Reported {
            id: sampled.token,
            sampled: Some(sampled),
            offset,
        }];
        Ok(Step::Delta(Delta { pieces, tokens }))
    }

    fn finish(&mut self, finish: Finish) -> Delta {
        self.generation = None;
        let mut events = Vec::new();
        self.decoder.finish(&mut events);
        let (mut pieces, stopped) = self.before_stop(events);
        if stopped.is_none() {
            self.release(&mut pieces);
        }
        self.end = stopped.or(Some(match finish {
            Finish::Length => FinishReason::Length,
            Finish::Stop if self.decoder.calls() > 0 => FinishReason::ToolCalls,
            Finish::Stop => FinishReason::Stop,
        }));
        let tokens = Vec::new();
        Delta { pieces, tokens }
    }

    /// What may be shown of new events, and why they ended the answer if they did. Stop strings end content only:
    /// reasoning and tool calls are not what the client reads for its stop strings.
    fn before_stop(&mut self, events: Vec<OutputEvent>) -> (Vec<OutputEvent>, Option<FinishReason>) {
        let mut pieces = Vec::new();
        for event in events {
            match event {
                OutputEvent::Content(text) => {
                    self.characters += text.chars().count();
                    let mut shown = String::new();
                    let stopped = self.stop.push(&text, &mut shown).is_some();
                    push_content(&mut pieces, shown);
                    if stopped {
                        return (pieces, Some(FinishReason::Stop));
                    }
                }
                OutputEvent::ToolCall { index, .. } if index > 0 && self.calls == Calls::One => {
                    self.release(&mut pieces);
                    return (pieces, Some(FinishReason::ToolCalls));
                }
                OutputEvent::Reasoning(_) | OutputEvent::ToolCall { .. } | OutputEvent::Arguments { .. } => {
                    self.release(&mut pieces);
                    pieces.push(event);
                }
            }
        }
        (pieces, None)
    }

    /// Gives out what was held back as the possible start of a stop string.
    fn release(&mut self, pieces: &mut Vec<OutputEvent>) {
        let mut held = String::new();
        self.stop.finish(&mut held);
        self.stop = self.fresh_stop.clone();
        push_content(pieces, held);
    }
}

fn no_reason() -> ApiError {
    ApiError::new(ErrorKind::Failed, "the request ended without a reason")
}

fn push_content(pieces: &mut Vec<OutputEvent>, text: String) {
    if !text.is_empty() {
        pieces.push(OutputEvent::Content(text));
    }
}
