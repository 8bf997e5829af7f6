//! Heads in memory for tests: they emit a script's tokens, and fail where they are told to.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, stream};
use tokio::sync::watch;
use tramontane_model::ids::{Fence, Generation, ReplicaId};
use tramontane_model::sampling::SampledToken;
use tramontane_proto::{Ended, GenerateSubmission, GenerateUpdate, Progress};

use super::head::{HeadClient, HeadError, HeadStream};
use super::{NotServing, Route, Routes};

/// Tokens of every prompt that these heads say they had cached, if it has as many; later attempts find more.
pub(crate) const CACHED_PROMPT_TOKENS: u32 = 2;

/// How long these heads say that every attempt waited, in microseconds.
pub(crate) const QUEUED_US: u64 = 1500;

/// What a head does with one attempt.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// Emits everything up to the end.
    Answer,
    /// Refuses.
    Refuse(HeadError),
    /// Emits so many tokens, then the stream breaks.
    BreakAfter(usize),
    /// Emits so many tokens, then the stream just ends.
    EndEarlyAfter(usize),
    /// Emits so many tokens, then nothing more comes.
    HangAfter(usize),
    /// Emits so many tokens, then ends like this.
    EndAfter(usize, Ended),
    /// Sends these updates as they are, then hangs.
    Raw(Vec<GenerateUpdate>),
}

/// The tokens that follow a prompt.
pub(crate) type Script = Arc<dyn Fn(&[u32]) -> Vec<SampledToken> + Send + Sync>;

/// Heads that all follow one script.
pub(crate) struct ScriptedHeads {
    script: Script,
    acts: Mutex<VecDeque<Act>>,
    seen: Mutex<Vec<(String, GenerateSubmission)>>,
    open: watch::Sender<usize>,
}

impl ScriptedHeads {
    /// Heads that do `acts` in order, then answer.
    pub(crate) fn new(script: Script, acts: impl IntoIterator<Item = Act>) -> Arc<Self> {
        Arc::new(Self {
            script,
            acts: Mutex::new(acts.into_iter().collect()),
            seen: Mutex::default(),
            open: watch::Sender::new(0),
        })
    }

    /// Every submission so far, with the address that it went to.
    pub(crate) fn seen(&self) -> Vec<(String, GenerateSubmission)> {
        self.seen.lock().unwrap().clone()
    }

    /// How many streams are open.
    pub(crate) fn open(&self) -> watch::Receiver<usize> {
        self.open.subscribe()
    }

    /// The prompt's tokens with their log-probabilities if they were asked for, in pieces of two.
    fn scores(submission: &GenerateSubmission) -> Vec<GenerateUpdate> {
        let Some(top) = submission.sampling.prompt_logprobs else {
            return Vec::new();
        };
        let scored = |&id: &u32| {
            let mut scored = sampled(id);
            scored.top.truncate(top as usize);
            scored
        };
        let rest = submission.prompt.get(1..).unwrap_or_default();
        let pieces = (1..).step_by(2).zip(rest.chunks(2));
        let progress = pieces.map(|(first, piece)| Progress::Prompt {
            first,
            tokens: piece.iter().map(scored).collect(),
        });
        progress.map(|progress| update(submission, progress)).collect()
    }

    /// What a submission would still get: its prompt's log-probabilities, and the tokens from the first index on.
    fn rest(&self, submission: &GenerateSubmission) -> (Vec<GenerateUpdate>, Ended) {
        let mut updates = Self::scores(submission);
        let mut ended = Ended::Length;
        let script = (self.script)(&submission.prompt);
        let due = script.into_iter().take(submission.max_tokens as usize);
        for (index, token) in due.enumerate() {
            let id = token.token;
            match submission.emitted.get(index) {
                Some(&emitted) => assert_eq!(emitted, id, "an emitted prefix changed"),
                None => updates.push(update(
                    submission,
                    Progress::Token {
                        index: index as u32,
                        token,
                        cached_prompt_tokens: (index == submission.emitted.len())
                            .then_some(CACHED_PROMPT_TOKENS + index as u32),
                        queued_us: (index == submission.emitted.len()).then_some(QUEUED_US),
                    },
                )),
            }
            if submission.stop_tokens.contains(&id) && !submission.ignore_eos {
                ended = Ended::Stop;
                break;
            }
        }
        (updates, ended)
    }
}

/// An update of a submission.
pub(crate) fn update(submission: &GenerateSubmission, progress: Progress) -> GenerateUpdate {
    GenerateUpdate {
        fence: submission.fence,
        attempt: submission.attempt,
        progress,
    }
}

/// Counts an open stream.
struct Open(watch::Sender<usize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.send_modify(|open| *open -= 1);
    }
}

impl HeadClient for ScriptedHeads {
    fn generate(
        &self,
        address: &str,
        submission: GenerateSubmission,
    ) -> BoxFuture<'_, Result<HeadStream, HeadError>> {
        let act = self.acts.lock().unwrap().pop_front().unwrap_or(Act::Answer);
        let (mut updates, ended) = self.rest(&submission);
        self.seen
            .lock()
            .unwrap()
            .push((address.to_owned(), submission.clone()));
        let broken = HeadError::Unavailable {
            address: address.to_owned(),
            detail: "connection reset".to_owned(),
        };
        let mut hangs = false;
        let last = match act {
            Act::Answer => Some(Ok(update(&submission, Progress::Ended(ended)))),
            Act::Refuse(error) => return async move { Err(error) }.boxed(),
            Act::BreakAfter(count) => {
                updates.truncate(count);
                Some(Err(broken))
            }
            Act::EndEarlyAfter(count) => {
                updates.truncate(count);
                None
            }
            Act::HangAfter(count) => {
                updates.truncate(count);
                hangs = true;
                None
            }
            Act::EndAfter(count, ended) => {
                updates.truncate(count);
                Some(Ok(update(&submission, Progress::Ended(ended))))
            }
            Act::Raw(raw) => {
                updates = raw;
                hangs = true;
                None
            }
        };
        self.open.send_modify(|open| *open += 1);
        let open = Open(self.open.clone());
        let events = stream::iter(updates.into_iter().map(Ok).chain(last));
        let events = if hangs {
            events.chain(stream::pending()).boxed()
        } else {
            events.boxed()
        };
        let counted = events.map(move |event| {
            let _open = &open;
            event
        });
        async move { Ok(counted.boxed()) }.boxed()
    }
}

/// A token with its log-probability and alternatives made up from its id.
pub(crate) fn sampled(token: u32) -> SampledToken {
    let logprob = -(token as f32) / 7.0;
    SampledToken {
        token,
        logprob,
        top: vec![(token, logprob), (token + 1, logprob - 1.0)],
    }
}

/// A script that gives every prompt the same tokens.
pub(crate) fn always(tokens: &[u32]) -> Script {
    let tokens: Vec<_> = tokens.iter().copied().map(sampled).collect();
    Arc::new(move |_| tokens.clone())
}

/// A generation of replica 1.
pub(crate) fn fence(generation: u64) -> Fence {
    Fence {
        replica: ReplicaId(1),
        generation: Generation(generation),
    }
}

/// Routes to one serving generation of replica 1.
pub(crate) fn serving(generation: u64) -> Routes {
    Routes {
        replicas: vec![Route {
            fence: fence(generation),
            head: Some(format!("w{generation}:7000")),
        }],
        missing: NotServing::Unknown,
    }
}

/// Routes to replicas 1 and 2 at generation 1, with heads at `w1:7000` and `w2:7000`; one that does not serve is broken.
pub(crate) fn both(serve: [bool; 2]) -> Routes {
    let route = |(replica, serves): (u64, bool)| Route {
        fence: Fence {
            replica: ReplicaId(replica),
            generation: Generation(1),
        },
        head: serves.then(|| format!("w{replica}:7000")),
    };
    Routes {
        replicas: (1..).zip(serve).map(route).collect(),
        missing: NotServing::Unknown,
    }
}

/// Routes with a generation of replica 1 that loads.
pub(crate) fn loading(generation: u64) -> Routes {
    Routes {
        replicas: vec![Route {
            fence: fence(generation),
            head: None,
        }],
        missing: NotServing::Loading {
            fence: fence(generation),
            loaded_bytes: 25,
            total_bytes: 100,
        },
    }
}

/// Routes of a cluster that the model does not fit.
pub(crate) fn unplaceable() -> Routes {
    Routes {
        replicas: vec![],
        missing: NotServing::Unplaceable {
            reason: "the model needs 1000 bytes more than all devices have".to_owned(),
        },
    }
}
