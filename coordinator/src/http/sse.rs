//! Answers as they are made: server-sent events, ended by `[DONE]`.
//!
//! The body is pulled by the connection, so a client that does not read stops its own generations and nobody else's
//! (BQ-1); a client that goes away drops them. An error after the first byte is an event of its own, and the stream
//! ends without `[DONE]`.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue};
use axum::response::sse::{Event, KeepAlive};
use axum::response::{IntoResponse, Response, Sse};
use futures_util::stream::{BoxStream, SelectAll};
use futures_util::{Stream, StreamExt, stream};
use serde::Serialize;

use super::answer::{Answer, Delta, FinishReason, Step};
use super::error::{ApiError, ErrorKind};
use super::reply::Usage;

/// How often a silent stream sends a comment, so that nobody between takes it for dead.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// How a route shows the steps of its answers, each as one JSON text.
pub(super) trait Chunks: Send + 'static {
    /// What comes before anything of a choice.
    fn opening(&self, choice: usize) -> Result<Option<String>, ApiError>;
    /// More of a choice; nothing if it adds nothing to show.
    fn delta(&mut self, choice: usize, delta: &Delta) -> Result<Option<String>, ApiError>;
    /// The end of a choice; the last one to end gets the usage of all.
    fn end(&mut self, choice: usize, reason: FinishReason, all: Option<Usage>) -> Result<String, ApiError>;
    /// The usage of all choices, if the client wants it.
    fn usage(&self, usage: Usage) -> Result<Option<String>, ApiError>;
}

/// One chunk as JSON.
pub(super) fn json(chunk: &impl Serialize) -> Result<String, ApiError> {
    serde_json::to_string(chunk).map_err(|error| {
        ApiError::new(
            ErrorKind::Failed,
            format!("a chunk could not be written: {error}"),
        )
    })
}

/// The response that streams these answers.
pub(super) fn respond(answers: Vec<Answer>, chunks: impl Chunks) -> Response {
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE);
    let events = events(answers, chunks).map(Ok::<_, Infallible>);
    unbuffered(Sse::new(events).keep_alive(keep_alive).into_response())
}

/// A response that nobody between is to hold back.
pub(super) fn unbuffered(mut response: Response) -> Response {
    let name = HeaderName::from_static("x-accel-buffering");
    response
        .headers_mut()
        .insert(name, HeaderValue::from_static("no"));
    response
}

fn events(answers: Vec<Answer>, chunks: impl Chunks) -> impl Stream<Item = Event> {
    let mut merge = Merge::new(answers, chunks);
    merge.open();
    stream::unfold(merge, |mut merge| async {
        let data = merge.next().await?;
        Some((Event::default().data(data), merge))
    })
}

/// A step of one of the choices, with the tokens that it has had.
struct ChoiceStep {
    choice: usize,
    step: Result<Step, ApiError>,
    usage: Usage,
}

/// The choices of one response, in the order in which their steps come.
struct Merge<C> {
    chunks: C,
    steps: SelectAll<BoxStream<'static, ChoiceStep>>,
    choices: usize,
    ended: usize,
    ready: VecDeque<String>,
    usage: Usage,
    over: bool,
}

impl<C: Chunks> Merge<C> {
    fn new(answers: Vec<Answer>, chunks: C) -> Self {
        let choices = answers.len();
        let steps = answers.into_iter().enumerate();
        Self {
            chunks,
            steps: steps.map(|(choice, answer)| steps_of(choice, answer)).collect(),
            choices,
            ended: 0,
            ready: VecDeque::new(),
            usage: Usage::default(),
            over: false,
        }
    }

    fn open(&mut self) {
        for choice in 0..self.choices {
            let opening = self.chunks.opening(choice);
            self.push(opening);
        }
    }

    /// The next event's data; `None` once all has been said.
    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(ready) = self.ready.pop_front() {
                return Some(ready);
            }
            if self.over {
                return None;
            }
            match self.steps.next().await {
                Some(ChoiceStep { choice, step, usage }) => self.take(choice, step, usage),
                None => self.close(),
            }
        }
    }

    fn take(&mut self, choice: usize, step: Result<Step, ApiError>, usage: Usage) {
        match step {
            Ok(Step::Delta(delta)) => {
                let chunk = self.chunks.delta(choice, &delta);
                self.push(chunk);
            }
            Ok(Step::End(reason)) => {
                self.usage.add(usage);
                self.ended += 1;
                let all = (self.ended == self.choices).then_some(self.usage);
                let chunk = self.chunks.end(choice, reason, all).map(Some);
                self.push(chunk);
            }
            Err(error) => self.fail(&error),
        }
    }

    fn push(&mut self, chunk: Result<Option<String>, ApiError>) {
        match chunk {
            Ok(chunk) => self.ready.extend(chunk),
            Err(error) => self.fail(&error),
        }
    }

    fn close(&mut self) {
        let usage = self.chunks.usage(self.usage);
        self.push(usage);
        if !self.over {
            self.ready.push_back("[DONE]".to_owned());
            self.over = true;
        }
    }

    /// Tells the error and ends the stream; what else runs is dropped, and so cancelled.
    fn fail(&mut self, error: &ApiError) {
        self.steps.clear();
        // An error object always has a text.
        self.ready.extend(serde_json::to_string(&error.body()));
        self.over = true;
    }
}

fn steps_of(choice: usize, answer: Answer) -> BoxStream<'static, ChoiceStep> {
    let steps = stream::unfold(answer, move |mut answer| async move {
        let step = answer.next().await?;
        let usage = Usage::of(&answer);
        Some((ChoiceStep { choice, step, usage }, answer))
    });
    steps.boxed()
}
