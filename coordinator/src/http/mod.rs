//! The HTTP side: OpenAI-compatible routes, health, metrics, cluster status.
//!
//! Everything a handler needs is in [`Api`], passed explicitly. No listener is opened here and no placement known:
//! requests go to the gateway, text in and out through `text`. Every body, field and wait is bounded, and every error
//! goes through the one table of `error`.

mod answer;
mod body;
mod call;
mod chat;
mod chat_reply;
mod choices;
mod cluster;
mod collected;
mod completions;
mod connection;
mod error;
mod fields;
mod grammars;
mod health;
mod idempotency;
mod labels;
mod logprobs;
mod metrics;
mod mistral;
mod mistral_reply;
mod models;
mod observe;
mod openapi;
mod params;
mod prompt;
mod prompt_scores;
mod reply;
mod responses;
mod sampling;
mod serve;
mod sse;
mod structured;
mod table;
#[cfg(test)]
mod tests;
mod tokens;
mod tool_choice;
mod trace;
mod unsupported;
mod version;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::Request;
use axum::middleware::{from_fn, from_fn_with_state};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use tramontane_model::sampling::SamplingParams;

pub use cluster::{ClusterAdmin, ClusterAdminError};
pub use serve::{ServeOptions, serve};

use crate::gateway::{self, Gateway, GatewayError, Generation, NewRequest, Permit, Together};
use crate::text::Tokenizer;
use call::{Call, Choice};
use error::{ApiError, ErrorKind};
use grammars::Grammars;
use idempotency::Answers;
use table::Routes;

/// Longest wait for the leader's answer to an operator.
const ADMIN_DEADLINE: Duration = Duration::from_secs(10);

/// The model that is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelCard {
    /// Its name in requests.
    pub name: String,
    /// Most tokens of prompt and answer together.
    pub max_context: u32,
    /// When it was first served, in seconds since 1970.
    pub created: u64,
}

/// Limits of the HTTP side, and what it may log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiLimits {
    /// Largest body, in bytes.
    pub max_body_bytes: usize,
    /// Longest wait for a body.
    pub body_timeout: Duration,
    /// Most prompts that are tokenised at once; at least 1.
    pub max_encoders: usize,
    /// Whether bodies of requests, and so prompts, stand in the log.
    pub log_prompts: bool,
}

impl Default for ApiLimits {
    fn default() -> Self {
        Self {
            max_body_bytes: 4 << 20,
            body_timeout: Duration::from_secs(30),
            max_encoders: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            log_prompts: false,
        }
    }
}

/// Everything that handlers need.
pub struct Api {
    model: ModelCard,
    tokenizer: Arc<Tokenizer>,
    gateway: Gateway,
    cluster: Arc<dyn ClusterAdmin>,
    metrics: PrometheusHandle,
    limits: ApiLimits,
    encoders: Arc<Semaphore>,
    grammars: Grammars,
    /// Answers to requests that may come again.
    answers: Answers,
    /// Replicas that the metrics have shown.
    shown: metrics::Shown,
}

impl Api {
    /// The state of the routes.
    pub fn new(
        model: ModelCard,
        tokenizer: Arc<Tokenizer>,
        gateway: Gateway,
        cluster: Arc<dyn ClusterAdmin>,
        metrics: PrometheusHandle,
        limits: ApiLimits,
    ) -> Self {
        let encoders = limits.max_encoders.clamp(1, Semaphore::MAX_PERMITS);
        Self {
            model,
            grammars: Grammars::new(Arc::clone(&tokenizer)),
            tokenizer,
            gateway,
            cluster,
            metrics,
            limits,
            encoders: Arc::new(Semaphore::new(encoders)),
            answers: Answers::default(),
            shown: metrics::Shown::default(),
        }
    }

    /// When a request that arrives now must have ended.
    fn deadline(&self) -> Instant {
        Instant::now() + self.gateway.options().request_timeout
    }

    async fn read_body(&self, request: Request) -> Result<Bytes, ApiError> {
        let call = request.extensions().get::<Call>().cloned();
        let body = body::read(request, self.limits.max_body_bytes, self.limits.body_timeout).await?;
        if let Some(call) = call.filter(|_| self.limits.log_prompts) {
            call.keep_prompt(&body);
        }
        Ok(body)
    }

    /// Runs tokenising work off the runtime's threads.
    async fn encode<T: Send + 'static>(
        &self,
        deadline: Instant,
        work: impl FnOnce(&Tokenizer) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let limit = self.gateway.options().request_timeout;
        let late = |_| ApiError::from(GatewayError::Deadline { limit });
        let stopped = || ApiError::new(ErrorKind::Failed, "the prompt could not be tokenised");
        let encoders = Arc::clone(&self.encoders);
        let turn = timeout_at(deadline, encoders.acquire_owned())
            .await
            .map_err(late)?;
        let turn = turn.map_err(|_| stopped())?;
        let tokenizer = Arc::clone(&self.tokenizer);
        let encoded = tokio::task::spawn_blocking(move || {
            let encoded = work(&tokenizer);
            drop(turn);
            encoded
        });
        encoded.await.map_err(|_| stopped())?
    }

    /// Submits one prompt of a request. The first has the request's own id, so that its log lines join.
    async fn start(
        &self,
        ask: Ask,
        call: &Call,
        index: usize,
        deadline: Instant,
    ) -> Result<(Generation, Arc<Choice>), ApiError> {
        let (id, trace) = (call.id(), call.trace().id);
        call.asks(&self.model.name);
        let own_id = if index == 0 { id } else { gateway::random_id()? };
        if own_id != id {
            tracing::info!(%trace, request = %id, prompt = index, as_request = %own_id, "prompt submitted");
        }
        let prompt_tokens = ask.prompt_tokens();
        let (mut sampling, eos) = (ask.sampling, self.tokenizer.eos());
        let stop_tokens = sampling::end_tokens(&mut sampling, eos, ask.ignore_eos, ask.stop_token_ids);
        let request = NewRequest {
            id: own_id,
            prompt: ask.prompt,
            sampling,
            max_tokens: ask.max_tokens,
            stop_tokens,
            priority: ask.priority,
            cache_salt: ask.cache_salt,
            trace,
            together: ask.together,
        };
        let generation = self.gateway.submit(ask.permit, request, deadline).await?;
        let shown_id = call.shown_id(index, own_id);
        let choice = Arc::new(Choice::new(
            shown_id,
            Arc::clone(generation.account()),
            prompt_tokens,
        ));
        call.add(Arc::clone(&choice));
        Ok((generation, choice))
    }
}

/// One prompt to be continued, once.
struct Ask {
    permit: Permit,
    prompt: Arc<[u32]>,
    sampling: SamplingParams,
    max_tokens: u32,
    ignore_eos: bool,
    priority: i32,
    cache_salt: Vec<u8>,
    stop_token_ids: Vec<u32>,
    /// Equal for all choices of a prompt.
    together: Together,
}

impl Ask {
    /// Tokens of the prompt as the usage counts them: once, however many choices continue it.
    fn prompt_tokens(&self) -> u32 {
        if self.sampling.choice > 0 {
            return 0;
        }
        // A prompt is shorter than the context, a u32.
        u32::try_from(self.prompt.len()).unwrap_or(u32::MAX)
    }
}

/// Every route.
fn routes() -> Routes {
    Routes::new()
        .merge(models::routes())
        .merge(chat::routes())
        .merge(completions::routes())
        .merge(responses::routes())
        .merge(tokens::routes())
        .merge(version::routes())
        .merge(openapi::routes())
        .merge(health::routes())
        .merge(metrics::routes())
        .merge(cluster::routes())
}

/// What [`serve`] serves: the routes, and the gateway that a shutdown drains.
#[derive(Clone)]
pub struct App {
    router: Router,
    gateway: Gateway,
}

/// Every route, ready to be served.
pub fn router(api: Api) -> App {
    let gateway = api.gateway.clone();
    let api = Arc::new(api);
    let router = routes()
        .into_router()
        .fallback(unknown_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(Arc::clone(&api), idempotency::keyed))
        .layer(from_fn(error::in_dialect))
        .layer(from_fn(observe::observe))
        .with_state(api);
    App { router, gateway }
}

/// Describes every metric of the HTTP side and the gateway to the recorder.
pub fn describe_metrics() {
    gateway::describe_metrics();
    observe::describe();
    idempotency::describe();
    metrics::describe();
}

async fn unknown_route(request: Request) -> ApiError {
    let message = format!("there is no route {}", fields::shown(request.uri().path()));
    body::discard(request).await;
    ApiError::new(ErrorKind::UnknownRoute, message)
}

async fn wrong_method(request: Request) -> ApiError {
    let (method, path) = (request.method(), request.uri().path());
    let message = format!(
        "{} does not take {}",
        fields::shown(path),
        fields::shown(method.as_str())
    );
    body::discard(request).await;
    ApiError::new(ErrorKind::Method, message)
}
