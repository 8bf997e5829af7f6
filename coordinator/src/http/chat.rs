//! `POST /v1/chat/completions` and `/mistral/v1/chat/completions`: answers to a conversation, reasoning and tool calls
//! told from text.

use std::sync::Arc;

use axum::extract::{Extension, Request, State};
use axum::response::Response;
use futures_util::future::try_join_all;
use tramontane_model::sampling::SamplingParams;

use super::answer::{Answer, Calls};
use super::call::Call;
use super::chat_reply::ChatReply;
use super::choices;
use super::error::{ApiError, ErrorKind};
use super::fields::{Fields, without_place};
use super::grammars::Held;
use super::labels;
use super::mistral::{self, Dialect};
use super::mistral_reply;
use super::params::{self, Params};
use super::prompt_scores::PromptScores;
use super::sse;
use super::table::Routes;
use super::tool_choice::{Form, ToolChoice};
use super::{Api, Ask};
use crate::gateway::Together;
use crate::text::{ChatError, ChatRequest, encode_chat};

pub(super) fn routes() -> Routes {
    Routes::new()
        .post("/v1/chat/completions", create)
        .post("/mistral/v1/chat/completions", create_mistral)
}

struct ChatCompletionRequest {
    chat: ChatRequest,
    dialect: Dialect,
    calls: Calls,
    n: u32,
    params: Params,
    /// How many alternatives to report.
    logprobs: Option<u32>,
    /// What to report of the prompt.
    scores: PromptScores,
    /// What the answer is held to.
    held: Held,
}

impl ChatCompletionRequest {
    fn read(body: &[u8], api: &Api, route: Dialect) -> Result<Self, ApiError> {
        let mut fields = Fields::read(body)?;
        params::model(&mut fields, &api.model.name)?;
        let mut chat = conversation(body, &mut fields)?;
        let own = mistral::Fields::take(&mut fields)?;
        let dialect = own.dialect(route, &chat);
        chat.preamble = own.preamble();
        let n = choices::take(&mut fields, 1)?;
        let one_call = fields.take::<bool>("parallel_tool_calls")? == Some(false);
        let scores = PromptScores::take(&mut fields)?;
        let names = [("max_completion_tokens", 1), ("max_tokens", 1)];
        let mut params = Params::read(
            &mut fields,
            &names,
            api.model.max_context,
            api.tokenizer.vocab_size(),
        )?;
        params.seed = params.seed.or(own.random_seed);
        let logprobs = logprobs(&mut fields)?;
        scores.check_stream(params.stream)?;
        let choice = ToolChoice::take(&mut fields, &chat.tools, Form::Nested)?;
        if choice == ToolChoice::None {
            chat.tools.clear();
        }
        let held = Held::chat(params.structured.take(), &chat.tools, &choice, one_call)?;
        labels::check(&mut fields)?;
        params::log_ignored(&fields);
        let calls = match (chat.tools.is_empty(), one_call) {
            (true, _) => Calls::None,
            (false, true) => Calls::One,
            (false, false) => Calls::Many,
        };
        Ok(Self {
            chat,
            dialect,
            calls,
            n,
            params,
            logprobs,
            scores,
            held,
        })
    }
}

/// Reads `messages` and `tools` from the body as a whole: their types keep parts of it as raw text.
pub(super) fn conversation(body: &[u8], fields: &mut Fields<'_>) -> Result<ChatRequest, ApiError> {
    if fields.raw("messages").is_none() {
        let problem = "is missing, it must be an array of at least one message";
        return Err(ApiError::invalid("messages", problem));
    }
    fields.raw("tools");
    let mut reader = serde_json::Deserializer::from_slice(body);
    serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let problem = error.inner().to_string();
        ApiError::invalid(error.path().to_string(), without_place(&problem))
    })
}

/// `logprobs` switches them on, `top_logprobs` says how many alternatives.
fn logprobs(fields: &mut Fields<'_>) -> Result<Option<u32>, ApiError> {
    let on = fields.flag("logprobs")?;
    let top = params::top_logprobs(fields, "top_logprobs")?;
    match (on, top) {
        (true, top) => Ok(Some(top.unwrap_or(0))),
        (false, None | Some(0)) => Ok(None),
        (false, Some(_)) => Err(ApiError::invalid(
            "top_logprobs",
            "is allowed only where logprobs is true",
        )),
    }
}

/// As OpenAI's clients ask, unless the request names fields that only Mistral has.
async fn create(
    State(api): State<Arc<Api>>,
    Extension(call): Extension<Call>,
    request: Request,
) -> Result<Response, ApiError> {
    answer(api, call, request, Dialect::OpenAi).await
}

async fn create_mistral(
    State(api): State<Arc<Api>>,
    Extension(call): Extension<Call>,
    request: Request,
) -> Result<Response, ApiError> {
    answer(api, call, request, Dialect::Mistral).await
}

async fn answer(api: Arc<Api>, call: Call, request: Request, route: Dialect) -> Result<Response, ApiError> {
    let deadline = api.deadline();
    let body = api.read_body(request).await?;
    let ChatCompletionRequest {
        chat,
        dialect,
        calls,
        n,
        params,
        logprobs,
        scores,
        mut held,
    } = ChatCompletionRequest::read(&body, &api, route)?;
    drop(body);
    let permits = api.gateway.admit(n as usize)?;
    let (prompt, in_reasoning, held, grammar) = api
        .encode(deadline, move |tokenizer| {
            let prompt = encode_chat(tokenizer, &chat).map_err(of_conversation)?;
            let in_reasoning = tokenizer.leaves_reasoning_open(&prompt);
            let grammar = held.grammar(tokenizer, &prompt)?;
            Ok((prompt, in_reasoning, held, grammar))
        })
        .await?;
    if let Some(grammar) = &grammar {
        api.grammars.check(grammar, &held).await?;
    }
    let max_context = api.model.max_context;
    let max_tokens = params.budget("messages", prompt.len(), max_context, max_context)?;
    scores.check_size(prompt.len())?;
    let sampling = params.sampling(call.key(), (logprobs, scores.asked()), grammar)?;
    let prompt: Arc<[u32]> = prompt.into();
    let together = Together::default();
    let asked = (0..n).zip(permits).map(|(choice, permit)| Ask {
        permit,
        prompt: Arc::clone(&prompt),
        sampling: SamplingParams {
            choice,
            // The choices have one prompt.
            prompt_logprobs: sampling.prompt_logprobs.filter(|_| choice == 0),
            ..sampling.clone()
        },
        max_tokens,
        ignore_eos: params.ignore_eos,
        priority: params.priority,
        cache_salt: params.cache_salt.clone(),
        stop_token_ids: params.choosing.stop_token_ids.clone(),
        together: together.clone(),
    });
    let answers = try_join_all(asked.enumerate().map(|(index, ask)| {
        let (api, call, stop) = (&api, &call, params.stop.clone());
        async move {
            let prompt_tokens = ask.prompt_tokens();
            let to_score = ask.sampling.prompt_logprobs.map(|_| ask.prompt.len());
            let started = api.start(ask, call, index, deadline).await?;
            let how = (calls, in_reasoning);
            let answer = Answer::chat(started, &api.tokenizer, how, stop, prompt_tokens);
            Ok::<_, ApiError>(answer.scoring(to_score.unwrap_or(0)))
        }
    }))
    .await?;
    let reply = ChatReply {
        id: format!("chatcmpl-{}", call.answer_id()),
        model: api.model.name.clone(),
        tokenizer: Arc::clone(&api.tokenizer),
        token_ids: params.token_ids,
        logprobs: logprobs.is_some(),
        prompt_logprobs: scores.listed,
        include_usage: params.include_usage,
    };
    match (dialect, params.stream) {
        (Dialect::OpenAi, true) => Ok(sse::respond(answers, reply.streamed())),
        (Dialect::OpenAi, false) => reply.whole(answers).await,
        (Dialect::Mistral, true) => Ok(sse::respond(answers, mistral_reply::streamed(reply))),
        (Dialect::Mistral, false) => mistral_reply::whole(&reply, answers).await,
    }
}

/// The error of a conversation, which names its field itself.
pub(super) fn of_conversation(error: ChatError) -> ApiError {
    ApiError {
        kind: ErrorKind::Invalid,
        message: error.to_string(),
        param: Some(error.field),
    }
}
