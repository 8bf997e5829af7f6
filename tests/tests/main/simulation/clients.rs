//! What clients ask for, and the answers that they must get: worked out without a cluster, as a sequence alone.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;
use tramontane_coordinator::gateway::{Event, Finish, Gateway, GatewayError, NewRequest, Together};
use tramontane_model::ids::{Origin, RequestId};
use tramontane_model::sampling::{SampledToken, SamplingParams};
use tramontane_model::step::{RowRole, StepBounds, expanded_tokens};
use tramontane_sim::Rng;
use tramontane_sim::cache::{Cell, read};

use super::heads::Outgoing;
use super::sampler::{self, Change, Draw};
use super::scenario::{LAYERS, MAX_POSITIONS, VOCAB};

/// Ends a sequence.
pub(super) const STOP: u32 = 0;
/// What tells an attempt from a token's index in [`Mark`]s.
const ATTEMPT: u32 = 1024;

/// What a token says of where it came from. The simulated last stage writes it where log-probabilities are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) index: u32,
    pub(super) attempt: u32,
    /// Another attempt had begun when it was handed to the gateway.
    pub(super) is_stale: bool,
}

impl Mark {
    pub(super) fn write(attempt: u32, index: u32, token: &mut SampledToken) {
        token.logprob = (attempt * ATTEMPT + index) as f32;
    }

    pub(super) fn make_stale(token: &mut SampledToken) {
        token.top = vec![(0, 0.0)];
    }

    fn read(token: &SampledToken) -> Self {
        let both = token.logprob as u32;
        Self {
            index: both % ATTEMPT,
            attempt: both / ATTEMPT,
            is_stale: !token.top.is_empty(),
        }
    }
}

/// What one client asks for.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) prompt: Vec<u32>,
    pub(super) sampling: SamplingParams,
    pub(super) max_tokens: u32,
    pub(super) ignore_eos: bool,
    pub(super) timeout_ms: u64,
    pub(super) priority: i32,
    pub(super) salt: Vec<u8>,
    /// Rows of the prompt up to here are expanded.
    expanded: usize,
    /// The client goes away after so many tokens.
    pub(super) leaves_after: Option<usize>,
    expected: OnceLock<Vec<u32>>,
}

impl Request {
    pub(super) fn random(rng: &mut Rng, steps: StepBounds) -> Self {
        let length = 1 + rng.below(28);
        let common = rng.chance(50);
        let mut token = |at: u64| {
            if common && at < 20 {
                1 + (at * 7 % 49) as u32
            } else {
                1 + rng.below(u64::from(VOCAB) - 1) as u32
            }
        };
        let prompt: Vec<u32> = (0..length).map(&mut token).collect();
        let greedy = SamplingParams::GREEDY;
        let sampling = SamplingParams {
            temperature: if rng.chance(30) { 0.0 } else { 0.8 },
            frequency_penalty: if rng.chance(30) { 0.5 } else { 0.0 },
            presence_penalty: if rng.chance(10) { 0.25 } else { 0.0 },
            repetition_penalty: if rng.chance(20) { 1.5 } else { 1.0 },
            seed: rng.next(),
            choice: rng.below(3) as u32,
            ..greedy
        };
        Self {
            expanded: expanded_tokens(prompt.len(), steps.expanded_group),
            prompt,
            sampling,
            max_tokens: 1 + rng.below(24) as u32,
            ignore_eos: rng.chance(50),
            timeout_ms: if rng.chance(10) {
                500 + rng.below(6000)
            } else {
                600_000
            },
            priority: rng.below(3) as i32 - 1,
            salt: if rng.chance(20) { vec![1] } else { Vec::new() },
            leaves_after: rng.chance(10).then(|| rng.below(6) as usize),
            expected: OnceLock::new(),
        }
    }

    /// The tokens of a world without faults.
    pub(super) fn expected(&self) -> &[u32] {
        self.expected.get_or_init(|| self.alone())
    }

    fn alone(&self) -> Vec<u32> {
        let room = MAX_POSITIONS as usize - self.prompt.len();
        let most = room.min(self.max_tokens as usize);
        let role = |at| {
            if at < self.expanded {
                RowRole::Expanded
            } else {
                RowRole::Given
            }
        };
        let mut cells: Vec<Cell> = self.prompt.iter().copied().zip((0..).map(role)).collect();
        let mut emitted: Vec<u32> = Vec::new();
        while emitted.len() < most && (self.ignore_eos || emitted.last() != Some(&STOP)) {
            let layers = 0..LAYERS as usize;
            let state = layers.fold(0, |state, layer| read(state, layer, cells.iter().copied()));
            let draw = Draw {
                seed: self.sampling.seed,
                choice: self.sampling.choice,
                position: cells.len() as u32,
                temperature: self.sampling.temperature,
            };
            let token = sampler::choose(state, draw, &self.changes(&emitted), VOCAB);
            cells.push((token, RowRole::Generated));
            emitted.push(token);
        }
        emitted
    }

    /// What penalties do to the next token's logits.
    fn changes(&self, emitted: &[u32]) -> Vec<Change> {
        let params = &self.sampling;
        let plain = params.frequency_penalty == 0.0 && params.presence_penalty == 0.0;
        if plain && params.repetition_penalty == 1.0 {
            return Vec::new();
        }
        let mut counts: BTreeMap<u32, u32> = BTreeMap::new();
        if params.repetition_penalty != 1.0 {
            counts.extend(self.prompt.iter().map(|&token| (token, 0)));
        }
        for &token in emitted {
            *counts.entry(token).or_default() += 1;
        }
        let each = counts.into_iter();
        each.map(|(token, count)| Change {
            token,
            repetition: params.repetition_penalty,
            penalty: match count {
                0 => 0.0,
                count => params.frequency_penalty * count as f32 + params.presence_penalty,
            },
        })
        .collect()
    }
}

/// How far a client is.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) request: Arc<Request>,
    /// Which try at getting an answer this is; each begins anew at some coordinator.
    pub(super) tries: u64,
    /// The coordinator that has it now.
    pub(super) at: Option<u64>,
    pub(super) task: Option<tokio::task::AbortHandle>,
    pub(super) asked: u64,
    pub(super) accepted: bool,
    pub(super) tokens: Vec<u32>,
    pub(super) over: bool,
}

/// What a client's task tells.
#[derive(Debug)]
pub(super) enum Report {
    Accepted,
    Token(u32, Mark),
    Ended(Result<Finish, GatewayError>),
    Refused,
    Left,
}

#[derive(Debug, Default)]
struct Trays {
    reports: Vec<(usize, u64, Report)>,
    outgoing: Vec<Outgoing>,
    keys: u64,
}

/// Where tasks leave what the world is to see to.
#[derive(Clone, Debug, Default)]
pub(super) struct Desk {
    trays: Arc<Mutex<Trays>>,
    pub(super) news: Arc<Notify>,
}

impl Desk {
    fn trays(&self) -> MutexGuard<'_, Trays> {
        self.trays.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn key(&self) -> u64 {
        let mut trays = self.trays();
        trays.keys += 1;
        trays.keys
    }

    pub(super) fn send(&self, outgoing: Outgoing) {
        self.trays().outgoing.push(outgoing);
        self.news.notify_one();
    }

    fn report(&self, client: usize, tries: u64, report: Report) {
        self.trays().reports.push((client, tries, report));
        self.news.notify_one();
    }

    pub(super) fn reports(&self) -> Vec<(usize, u64, Report)> {
        std::mem::take(&mut self.trays().reports)
    }

    pub(super) fn outgoing(&self) -> Vec<Outgoing> {
        std::mem::take(&mut self.trays().outgoing)
    }
}

/// One try of a client at a gateway, to its end.
pub(super) async fn ask(desk: Desk, client: usize, tries: u64, gateway: Gateway, request: Arc<Request>) {
    let tell = |report| desk.report(client, tries, report);
    let id = RequestId((client as u128) << 64 | u128::from(tries));
    let deadline = Instant::now() + std::time::Duration::from_millis(request.timeout_ms);
    let asked = NewRequest {
        id,
        prompt: request.prompt.clone().into(),
        sampling: request.sampling.clone(),
        max_tokens: request.max_tokens,
        stop_tokens: if request.ignore_eos {
            Vec::new()
        } else {
            vec![STOP]
        },
        priority: request.priority,
        cache_salt: request.salt.clone(),
        trace: Origin::NOBODY.trace,
        together: Together::default(),
    };
    let permit = match gateway.admit_one() {
        Ok(permit) => permit,
        Err(_) => return tell(Report::Refused),
    };
    let mut generation = match gateway.submit(permit, asked, deadline).await {
        Ok(generation) => generation,
        Err(_) => return tell(Report::Refused),
    };
    tell(Report::Accepted);
    let mut tokens = 0;
    while request.leaves_after != Some(tokens) {
        match generation.next().await {
            Some(Event::Token(token)) => {
                tell(Report::Token(token.token, Mark::read(&token)));
                tokens += 1;
            }
            // No request here asks for its prompt's log-probabilities.
            Some(Event::Prompt(_)) => {}
            Some(Event::Ended(result)) => return tell(Report::Ended(result)),
            None => return,
        }
    }
    tell(Report::Left);
}
