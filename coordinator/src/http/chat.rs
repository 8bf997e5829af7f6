//! `POST /v1/chat/completions`: the answer to a conversation, tool calls told from text.

use std::sync::Arc;

use axum::extract::{Extension, Request, State};
use axum::response::Response;
use axum::{Router, routing};
use tramontane_model::ids::RequestId;

use super::answer::Answer;
use super::chat_reply::ChatReply;
use super::error::{ApiError, ErrorKind};
use super::fields::{Fields, parse, shown, without_place};
use super::params::{self, Params};
use super::sse;
use super::{Api, Ask};
use crate::text::{ChatRequest, encode_chat};

pub(super) fn routes() -> Router<Arc<Api>> {
    Router::new().route("/v1/chat/completions", routing::post(create))
}

struct ChatCompletionRequest {
    chat: ChatRequest,
    params: Params,
    /// How many alternatives to report.
    logprobs: Option<u32>,
}

impl ChatCompletionRequest {
    fn read(body: &[u8], api: &Api) -> Result<Self, ApiError> {
        let mut fields = Fields::read(body)?;
        params::model(&mut fields, &api.model.name)?;
        let mut chat = conversation(body, &mut fields)?;
        let names = ["max_completion_tokens", "max_tokens"];
        let params = Params::read(
            &mut fields,
            &names,
            api.model.max_context,
            api.tokenizer.vocab_size(),
        )?;
        let logprobs = logprobs(&mut fields)?;
        if !calls_tools(&mut fields)? {
            chat.tools.clear();
        }
        params::log_ignored(&fields);
        Ok(Self {
            chat,
            params,
            logprobs,
        })
    }
}

/// Reads `messages` and `tools` from the body as a whole: their types keep parts of it as raw text.
fn conversation(body: &[u8], fields: &mut Fields<'_>) -> Result<ChatRequest, ApiError> {
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

/// Whether the model may call the tools.
fn calls_tools(fields: &mut Fields<'_>) -> Result<bool, ApiError> {
    const FIELD: &str = "tool_choice";
    let Some(raw) = fields.raw(FIELD) else {
        return Ok(true);
    };
    let choice: serde_json::Value = parse(FIELD, raw)?;
    match choice.as_str() {
        Some("auto") => Ok(true),
        Some("none") => Ok(false),
        Some(_) | None => {
            let problem = format!(
                "{} is not supported yet, use \"auto\" or \"none\"",
                shown(raw.get())
            );
            Err(ApiError::field(ErrorKind::Unsupported, FIELD, problem))
        }
    }
}

async fn create(
    State(api): State<Arc<Api>>,
    Extension(id): Extension<RequestId>,
    request: Request,
) -> Result<Response, ApiError> {
    let deadline = api.deadline();
    let body = api.read_body(request).await?;
    let ChatCompletionRequest {
        chat,
        params,
        logprobs,
    } = ChatCompletionRequest::read(&body, &api)?;
    drop(body);
    let permit = api.gateway.admit_one()?;
    let has_tools = !chat.tools.is_empty();
    let prompt = api
        .encode(deadline, move |tokenizer| {
            encode_chat(tokenizer, &chat).map_err(|error| ApiError {
                kind: ErrorKind::Invalid,
                message: error.to_string(),
                param: Some(error.field),
            })
        })
        .await?;
    let max_context = api.model.max_context;
    let ask = Ask {
        permit,
        max_tokens: params.budget("messages", prompt.len(), max_context, max_context)?,
        prompt,
        sampling: params.sampling(logprobs)?,
        ignore_eos: params.ignore_eos,
        priority: params.priority,
        cache_salt: params.cache_salt,
        stop_token_ids: params.choosing.stop_token_ids.clone(),
    };
    let prompt_tokens = ask.prompt_tokens();
    let generation = api.start(ask, id, 0, deadline).await?;
    let tokenizer = &api.tokenizer;
    let answer = if has_tools {
        Answer::with_calls(generation, tokenizer, params.stop, prompt_tokens)
    } else {
        Answer::plain(generation, tokenizer, params.stop, prompt_tokens)
    };
    let reply = ChatReply {
        id: format!("chatcmpl-{id}"),
        model: api.model.name.clone(),
        tokenizer: Arc::clone(tokenizer),
        token_ids: params.token_ids,
        logprobs: logprobs.is_some(),
        include_usage: params.include_usage,
    };
    if params.stream {
        Ok(sse::respond(vec![answer], reply.streamed()))
    } else {
        reply.whole(answer).await
    }
}
