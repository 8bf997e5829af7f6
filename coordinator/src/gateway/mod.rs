//! The gateway: keeps a journal per live request, picks a replica by prefix and load, and submits again when a stream
//! breaks.
//!
//! No text here: prompts come as token ids and tokens leave as ids. No placement decisions: the routes, drawn
//! from the applied cluster state, say which replicas serve. Journals are local to the coordinator that holds the client's connection.
//!
//! **Invariants:** ST-1 (see [`journal`]), ST-2 (see [`generation`](self)), BQ-1: the queue of tokens to each client
//! is bounded, and so is the number of live requests.

mod account;
mod admission;
mod balance;
mod choice;
mod error;
mod generation;
mod grpc;
mod head;
pub mod journal;
mod prefixes;
mod routes;
#[cfg(test)]
pub(crate) mod scripted;
#[cfg(test)]
mod several;
mod telemetry;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tramontane_model::ids::{Fence, RequestId, TraceId};
use tramontane_model::members::SchedulerLoad;
use tramontane_model::sampling::{SampledToken, SamplingParams};

pub use account::{Account, Facts};
pub use admission::Permit;
pub use balance::Together;
pub use error::GatewayError;
pub use grpc::GrpcHeads;
pub use head::{HeadClient, HeadError, HeadStream};
pub use journal::Finish;
pub use routes::{NotServing, Route, Routes};
pub use telemetry::describe as describe_metrics;

use admission::Admission;
use balance::Balancer;
use journal::{Journal, Request};

use crate::config::RoutingConfig;

/// Limits of a gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayOptions {
    /// Most live requests; each prompt and choice counts as one.
    pub max_live_requests: usize,
    /// Most tokens that wait for one client; at least 1.
    pub queued_tokens: usize,
    /// Time that a request has from its arrival to its end.
    pub request_timeout: Duration,
    /// How requests spread over replicas.
    pub routing: RoutingConfig,
    /// Tokens in a block of the replicas' caches; at least 1.
    pub block_tokens: u32,
}

impl Default for GatewayOptions {
    fn default() -> Self {
        Self {
            max_live_requests: 1024,
            queued_tokens: 256,
            request_timeout: Duration::from_secs(600),
            routing: RoutingConfig::default(),
            block_tokens: 16,
        }
    }
}

/// What to generate.
#[derive(Clone, Debug, PartialEq)]
pub struct NewRequest {
    /// Its name in the whole cluster, from [`random_id`].
    pub id: RequestId,
    /// Ids of the prompt; never empty.
    pub prompt: Arc<[u32]>,
    /// How tokens are chosen, its seed set.
    pub sampling: SamplingParams,
    /// Most tokens to emit; at least 1.
    pub max_tokens: u32,
    /// Tokens that end the sequence; empty to go on past them.
    pub stop_tokens: Vec<u32>,
    /// Lower is served first; from `-MAX_PRIORITY` to `MAX_PRIORITY` of the model.
    pub priority: i32,
    /// Keeps tenants apart in the prefix cache: only requests of one salt share what is cached.
    pub cache_salt: Vec<u8>,
    /// The trace that it is part of.
    pub trace: TraceId,
    /// Requests of equal value go to one replica, as the choices for one prompt do.
    pub together: Together,
}

struct Shared {
    heads: Arc<dyn HeadClient>,
    options: GatewayOptions,
    admission: Admission,
    balancer: Arc<Balancer>,
    /// Cancelled once no new request is taken in.
    draining: CancellationToken,
    /// Cancelled once live requests are to end.
    over: CancellationToken,
}

/// Cheap handle to a coordinator's gateway.
#[derive(Clone)]
pub struct Gateway {
    shared: Arc<Shared>,
    routes: watch::Receiver<Arc<Routes>>,
}

impl Gateway {
    /// A gateway that follows the routes and submits through `heads`.
    pub fn new(
        routes: watch::Receiver<Arc<Routes>>,
        heads: Arc<dyn HeadClient>,
        options: GatewayOptions,
    ) -> Self {
        let admission = Admission::new(options.max_live_requests);
        let balancer = Balancer::new(options.routing, options.block_tokens);
        let shared = Shared {
            heads,
            options,
            admission,
            balancer: Arc::new(balancer),
            draining: CancellationToken::new(),
            over: CancellationToken::new(),
        };
        Self {
            shared: Arc::new(shared),
            routes,
        }
    }

    /// The same gateway, following routes from elsewhere.
    pub fn following(&self, routes: watch::Receiver<Arc<Routes>>) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            routes,
        }
    }

    /// The limits.
    pub fn options(&self) -> &GatewayOptions {
        &self.shared.options
    }

    /// A replica generation that serves, or what is missing.
    pub fn readiness(&self) -> Result<Fence, NotServing> {
        let routes = self.routes.borrow();
        let first = routes.targets().next();
        first
            .map(|target| target.fence)
            .ok_or_else(|| routes.missing.clone())
    }

    /// Takes in what the schedulers of all replicas are doing, as the leader knows it.
    pub fn heard(&self, loads: &[SchedulerLoad]) {
        self.shared.balancer.heard(loads);
    }

    /// Room for `count` requests, or for none of them.
    pub fn admit(&self, count: usize) -> Result<Vec<Permit>, GatewayError> {
        self.check_open()?;
        self.shared.admission.admit(count)
    }

    /// Room for one request.
    pub fn admit_one(&self) -> Result<Permit, GatewayError> {
        self.check_open()?;
        self.shared.admission.admit_one()
    }

    /// Takes in no new request from now on; live ones go on.
    pub fn drain(&self) {
        self.shared.draining.cancel();
    }

    /// Whether the gateway takes in no new request because the coordinator is shutting down.
    pub fn is_draining(&self) -> bool {
        self.shared.draining.is_cancelled()
    }

    /// Resolves once no request is live; to be called after [`Gateway::drain`].
    pub async fn drained(&self) {
        self.shared.admission.empty().await;
    }

    /// Ends every live request with [`GatewayError::ShuttingDown`].
    pub fn end_all(&self) {
        self.shared.draining.cancel();
        self.shared.over.cancel();
    }

    fn check_open(&self) -> Result<(), GatewayError> {
        if self.is_draining() {
            return Err(GatewayError::ShuttingDown);
        }
        Ok(())
    }

    /// Submits a request and resolves once a head has taken it in. Dropping the future, or the generation that comes
    /// of it, cancels the request at the head.
    pub async fn submit(
        &self,
        permit: Permit,
        request: NewRequest,
        deadline: Instant,
    ) -> Result<Generation, GatewayError> {
        let id = request.id;
        let submitted = Instant::now();
        let prompt_tokens = request.prompt.len();
        let (tokens, tokens_rx) = mpsc::channel(self.shared.options.queued_tokens.max(1));
        let (started, started_rx) = oneshot::channel();
        let (end, end_rx) = oneshot::channel();
        let satisfied = Arc::new(AtomicBool::new(false));
        let account = Arc::new(Account::default());
        let prefix = self.shared.balancer.prefix(&request.cache_salt, &request.prompt);
        let run = generation::Run {
            shared: Arc::clone(&self.shared),
            prefix,
            together: request.together,
            journal: Journal::new(Request {
                id,
                prompt: request.prompt,
                sampling: request.sampling,
                max_tokens: request.max_tokens,
                stop_tokens: request.stop_tokens,
                priority: request.priority,
                cache_salt: request.cache_salt,
                trace: request.trace,
            }),
            submitted,
            last_token: None,
            deadline,
            routes: self.routes.clone(),
            tokens,
            started: Some(started),
            satisfied: Arc::clone(&satisfied),
            account: Arc::clone(&account),
        };
        telemetry::live(self.shared.admission.live());
        let shared = Arc::clone(&self.shared);
        tokio::spawn(async move {
            run.run(end).await;
            drop(permit);
            telemetry::live(shared.admission.live());
        });
        let mut generation = Generation {
            id,
            tokens: tokens_rx,
            end: Some(end_rx),
            satisfied,
            account,
        };
        if started_rx.await.is_err() {
            // The request ended before a head took it in.
            if let Some(Event::Ended(Err(error))) = generation.next().await {
                return Err(error);
            }
        }
        telemetry::started(prompt_tokens);
        Ok(generation)
    }
}

/// A name for a request: 128 random bits.
pub fn random_id() -> Result<RequestId, GatewayError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| GatewayError::Random {
        detail: error.to_string(),
    })?;
    Ok(RequestId(u128::from_be_bytes(bytes)))
}

/// What a request brings its client's side.
#[derive(Debug)]
enum Piece {
    /// Further tokens of the prompt, scored.
    Prompt(Vec<SampledToken>),
    Token(SampledToken),
}

/// What happens to a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Log-probabilities of the next tokens of the prompt, if they were asked for: from its second token on, all of them
    /// before the first token.
    Prompt(Vec<SampledToken>),
    /// The next token.
    Token(SampledToken),
    /// The end; nothing follows.
    Ended(Result<Finish, GatewayError>),
}

/// The client's side of a live request. Dropping it cancels the request.
#[derive(Debug)]
pub struct Generation {
    id: RequestId,
    tokens: mpsc::Receiver<Piece>,
    end: Option<oneshot::Receiver<Result<Finish, GatewayError>>>,
    satisfied: Arc<AtomicBool>,
    account: Arc<Account>,
}

impl Generation {
    /// The request's name in the cluster.
    pub fn id(&self) -> RequestId {
        self.id
    }

    /// The next event; `None` after the end. Cancel-safe.
    pub async fn next(&mut self) -> Option<Event> {
        match self.tokens.recv().await {
            Some(Piece::Token(token)) => {
                telemetry::generated();
                return Some(Event::Token(token));
            }
            Some(Piece::Prompt(tokens)) => return Some(Event::Prompt(tokens)),
            None => {}
        }
        let end = self.end.as_mut()?;
        let result = end.await.unwrap_or(Err(GatewayError::ShuttingDown));
        self.end = None;
        Some(Event::Ended(result))
    }

    /// How many tokens of the prompt the replica had in its prefix cache; known once the first token has come.
    pub fn cached_prompt_tokens(&self) -> u32 {
        self.account.facts().cached_prompt_tokens
    }

    /// What becomes known of it, to be looked at also once it is over.
    pub fn account(&self) -> &Arc<Account> {
        &self.account
    }

    /// Leaves early because the client has all it wants, as after a stop string.
    pub fn satisfied(self) {
        self.satisfied.store(true, Ordering::Relaxed);
    }
}
