//! What a step's result does: prompts are scored, tokens are emitted, sequences end, blocks of cancelled sequences come free.
//!
//! A result that does not answer the oldest step in flight exactly changes nothing: the last stage is then not the
//! one this scheduler speaks to, or is broken, and its host gives the replica up.

use tramontane_model::ids::{Fence, SequenceId, StepId};
use tramontane_model::sampling::{MAX_TOP_LOGPROBS, SampledToken};
use tramontane_model::step::{StepResult, Unsampled};

use super::event::{EndReason, Event};
use super::{FlightChunk, InFlight, Scheduler};

/// A result that is not the answer to the oldest step in flight.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// Of another replica or generation.
    #[error("result of {found}, this scheduler serves {expected}")]
    Fence {
        /// Whose it was.
        found: Fence,
        /// Whose it had to be.
        expected: Fence,
    },
    /// No step is in flight.
    #[error("result of step {0}, no step is in flight")]
    NothingInFlight(StepId),
    /// Another step is to complete first.
    #[error("result of step {found}, step {expected} must complete first")]
    OutOfOrder {
        /// Whose result came.
        found: StepId,
        /// The oldest step in flight.
        expected: StepId,
    },
    /// Too few or too many tokens.
    #[error("step {step}: the result has {found} tokens, {expected} were to be sampled")]
    Count {
        /// The step.
        step: StepId,
        /// Tokens in the result.
        found: usize,
        /// Chunks to be sampled.
        expected: usize,
    },
    /// A token of another sequence than the chunk's.
    #[error("step {step}: token {index} is of sequence {found}, it must be of sequence {expected}")]
    Sequence {
        /// The step.
        step: StepId,
        /// Which token.
        index: usize,
        /// Whose it was.
        found: SequenceId,
        /// Whose it had to be.
        expected: SequenceId,
    },
    /// A token outside the vocabulary.
    #[error("step {step}: sequence {sequence} was given token id {token}, the vocabulary has {vocab_size}")]
    Token {
        /// The step.
        step: StepId,
        /// The sequence.
        sequence: SequenceId,
        /// The id.
        token: u32,
        /// Ids are below this.
        vocab_size: u32,
    },
    /// A sequence that was not to be sampled cannot be.
    #[error("step {step}: sequence {sequence} has no token, and was to have none")]
    Unsampled {
        /// The step.
        step: StepId,
        /// The sequence.
        sequence: SequenceId,
    },
    /// Scored tokens that are not those of the step's chunks.
    #[error("step {step}: the scored tokens of the result are not those of the step")]
    Scores {
        /// The step.
        step: StepId,
    },
    /// More alternatives than anyone may ask for.
    #[error(
        "step {step}: sequence {sequence} has {found} alternatives, at most {MAX_TOP_LOGPROBS} are allowed"
    )]
    Alternatives {
        /// The step.
        step: StepId,
        /// The sequence.
        sequence: SequenceId,
        /// How many there are.
        found: usize,
    },
}

impl Scheduler {
    /// Takes the result of the oldest step in flight. On an error nothing has changed.
    pub fn complete(&mut self, result: StepResult, events: &mut Vec<Event>) -> Result<(), ProtocolError> {
        self.check_result(&result)?;
        let Some(flight) = self.in_flight.pop_front() else {
            return Err(ProtocolError::NothingInFlight(result.step));
        };
        for table in flight.draining {
            self.blocks.release(table);
        }
        let mut tokens = result.tokens.into_iter().map(|(_, token)| token);
        let mut scores = result.scored.into_iter().map(|(_, scores)| scores);
        for chunk in flight.chunks {
            let scored = if chunk.scored.is_empty() {
                None
            } else {
                scores.next()
            };
            let token = if chunk.sampled { tokens.next() } else { None };
            let failed = result
                .unsampled
                .iter()
                .find(|failed| failed.sequence == chunk.sequence);
            let token = token.filter(|_| failed.is_none());
            self.land(&chunk, scored.unwrap_or_default(), token, events);
            if let Some(failed) = failed {
                self.give_up(&chunk, failed, events);
            }
        }
        Ok(())
    }

    /// No token can be chosen for a sequence.
    fn give_up(&mut self, chunk: &FlightChunk, failed: &Unsampled, events: &mut Vec<Event>) {
        let running = self.running.get(&chunk.place);
        if running.is_none_or(|running| running.sequence != chunk.sequence) {
            return;
        }
        let why = failed.reason.as_str().into();
        let reason = match failed.passing {
            true => EndReason::Failed(why),
            false => EndReason::Grammar(why),
        };
        self.end(chunk.place, reason, events);
    }

    /// A sequence's rows are through; a sequence that has left since then is none of ours.
    fn land(
        &mut self,
        chunk: &FlightChunk,
        scored: Vec<SampledToken>,
        token: Option<SampledToken>,
        events: &mut Vec<Event>,
    ) {
        let running = match self.running.get_mut(&chunk.place) {
            Some(running) if running.sequence == chunk.sequence => running,
            Some(_) | None => return,
        };
        running.in_flight.pop_front();
        running.landed = chunk.end;
        if let Some((first, tokens)) = running.request.score(chunk.first_scored, scored) {
            events.push(Event::Prompt {
                request: running.request.request,
                attempt: running.request.attempt,
                first,
                tokens,
            });
        }
        let mut completion = None;
        if let Some(token) = token {
            let request = &mut running.request;
            let index = request.push(token.token);
            if self.config.prefix_cache {
                request.hash_blocks(&self.cache_key, self.config.kv.block_tokens as usize);
            }
            events.push(Event::Token {
                request: request.request,
                attempt: request.attempt,
                index,
                token,
                cached_prompt_tokens: request.tell_cached_prompt(),
            });
            completion = request.completion(self.token_limit);
        }
        self.keep_prefix(chunk.place);
        if let Some(reason) = completion {
            self.end(chunk.place, reason, events);
        }
    }

    fn check_result(&self, result: &StepResult) -> Result<(), ProtocolError> {
        let step = result.step;
        if result.fence != self.config.fence {
            let (found, expected) = (result.fence, self.config.fence);
            return Err(ProtocolError::Fence { found, expected });
        }
        let flight = self
            .in_flight
            .front()
            .ok_or(ProtocolError::NothingInFlight(step))?;
        if flight.step != step {
            let (found, expected) = (step, flight.step);
            return Err(ProtocolError::OutOfOrder { found, expected });
        }
        let sampled = flight.chunks.iter().filter(|chunk| chunk.sampled);
        let (found, expected) = (result.tokens.len(), sampled.clone().count());
        if found != expected {
            return Err(ProtocolError::Count {
                step,
                found,
                expected,
            });
        }
        let vocab_size = self.config.vocab_size;
        for (index, (chunk, (sequence, token))) in sampled.zip(&result.tokens).enumerate() {
            let (found, expected) = (*sequence, chunk.sequence);
            if found != expected {
                return Err(ProtocolError::Sequence {
                    step,
                    index,
                    found,
                    expected,
                });
            }
            check_token(step, found, token, vocab_size)?;
        }
        let is_sampled = |sequence| {
            let mut chunks = flight.chunks.iter().filter(|chunk| chunk.sampled);
            chunks.any(|chunk| chunk.sequence == sequence)
        };
        let unasked = result
            .unsampled
            .iter()
            .find(|failed| !is_sampled(failed.sequence));
        if let Some(&Unsampled { sequence, .. }) = unasked {
            return Err(ProtocolError::Unsampled { step, sequence });
        }
        self.check_scores(flight, result)
    }

    /// The scored tokens are those of the chunks, in their order.
    fn check_scores(&self, flight: &InFlight, result: &StepResult) -> Result<(), ProtocolError> {
        let chunks = flight.chunks.iter().filter(|chunk| !chunk.scored.is_empty());
        let is_answer = |chunk: &FlightChunk, (sequence, tokens): &(SequenceId, Vec<SampledToken>)| {
            *sequence == chunk.sequence && chunk.scored.iter().eq(tokens.iter().map(|scored| &scored.token))
        };
        let told = chunks.clone().count() == result.scored.len();
        if !told
            || !chunks
                .zip(&result.scored)
                .all(|(chunk, scores)| is_answer(chunk, scores))
        {
            return Err(ProtocolError::Scores { step: result.step });
        }
        let vocab_size = self.config.vocab_size;
        let mut all = result
            .scored
            .iter()
            .flat_map(|(sequence, tokens)| tokens.iter().map(|token| (*sequence, token)));
        all.try_for_each(|(sequence, token)| check_token(result.step, sequence, token, vocab_size))
    }
}

fn check_token(
    step: StepId,
    sequence: SequenceId,
    sampled: &SampledToken,
    vocab_size: u32,
) -> Result<(), ProtocolError> {
    if sampled.token >= vocab_size {
        return Err(ProtocolError::Token {
            step,
            sequence,
            token: sampled.token,
            vocab_size,
        });
    }
    if sampled.top.len() > MAX_TOP_LOGPROBS as usize {
        return Err(ProtocolError::Alternatives {
            step,
            sequence,
            found: sampled.top.len(),
        });
    }
    Ok(())
}
