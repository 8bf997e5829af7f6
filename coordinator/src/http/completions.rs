//! `POST /v1/completions`: plain continuation of one or several prompts, a choice for each.
//!
//! Every prompt is a request of its own to the cluster, with the same seed: a prompt among others gets the tokens that
//! it gets alone.

use std::sync::Arc;

use axum::extract::{Extension, Request, State};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router, routing};
use futures_util::future::try_join_all;
use serde::Serialize;
use tramontane_model::ids::RequestId;

use super::answer::{Answer, Delta, FinishReason, Reported, Step};
use super::error::ApiError;
use super::fields::Fields;
use super::logprobs::{Names, TextLogprobs};
use super::params::{self, Params};
use super::prompt::{self, Prompt};
use super::reply::{Header, Usage, null_if};
use super::sse::{self, Chunks};
use super::{Api, Ask};
use crate::text::{OutputEvent, Tokenizer};

/// Tokens generated where the client sets no limit, as OpenAI does.
const DEFAULT_MAX_TOKENS: u32 = 16;
const OBJECT: &str = "text_completion";

pub(super) fn routes() -> Router<Arc<Api>> {
    Router::new().route("/v1/completions", routing::post(create))
}

struct CompletionRequest {
    prompts: Vec<Prompt>,
    params: Params,
    /// How many alternatives to report.
    logprobs: Option<u32>,
}

impl CompletionRequest {
    fn read(body: &[u8], api: &Api) -> Result<Self, ApiError> {
        let mut fields = Fields::read(body)?;
        params::model(&mut fields, &api.model.name)?;
        let prompts = prompt::take(&mut fields, api.tokenizer.vocab_size())?;
        let names = ["max_tokens", "max_completion_tokens"];
        let params = Params::read(
            &mut fields,
            &names,
            api.model.max_context,
            api.tokenizer.vocab_size(),
        )?;
        let logprobs = params::top_logprobs(&mut fields, "logprobs")?;
        params::log_ignored(&fields);
        Ok(Self {
            prompts,
            params,
            logprobs,
        })
    }
}

async fn create(
    State(api): State<Arc<Api>>,
    Extension(id): Extension<RequestId>,
    request: Request,
) -> Result<Response, ApiError> {
    let deadline = api.deadline();
    let body = api.read_body(request).await?;
    let CompletionRequest {
        prompts,
        params,
        logprobs,
    } = CompletionRequest::read(&body, &api)?;
    drop(body);
    let permits = api.gateway.admit(prompts.len())?;
    let count = prompts.len();
    let encoded = api
        .encode(deadline, move |tokenizer| encode(tokenizer, prompts))
        .await?;
    let sampling = params.sampling(logprobs)?;
    let mut asked = Vec::with_capacity(count);
    for ((index, ids), permit) in encoded.into_iter().enumerate().zip(permits) {
        let field = prompt::field_of(index, count);
        let max_tokens = params.budget(&field, ids.len(), api.model.max_context, DEFAULT_MAX_TOKENS)?;
        asked.push(Ask {
            permit,
            prompt: ids,
            sampling: sampling.clone(),
            max_tokens,
            ignore_eos: params.ignore_eos,
            priority: params.priority,
            cache_salt: params.cache_salt.clone(),
            stop_token_ids: params.choosing.stop_token_ids.clone(),
        });
    }
    let answers = try_join_all(asked.into_iter().enumerate().map(|(index, ask)| {
        let (api, stop) = (&api, params.stop.clone());
        async move {
            let prompt_tokens = ask.prompt_tokens();
            let generation = api.start(ask, id, index, deadline).await?;
            Ok::<_, ApiError>(Answer::plain(generation, &api.tokenizer, stop, prompt_tokens))
        }
    }))
    .await?;
    let reply = TextReply {
        header: Header::new(format!("cmpl-{id}"), OBJECT, &api.model.name),
        tokenizer: Arc::clone(&api.tokenizer),
        token_ids: params.token_ids,
        logprobs: logprobs.is_some(),
        include_usage: params.include_usage,
    };
    if params.stream {
        Ok(sse::respond(answers, reply))
    } else {
        reply.whole(answers).await
    }
}

fn encode(tokenizer: &Tokenizer, prompts: Vec<Prompt>) -> Result<Vec<Vec<u32>>, ApiError> {
    let count = prompts.len();
    let each = prompts.into_iter().enumerate();
    each.map(|(index, prompt)| prompt.encode(tokenizer, &prompt::field_of(index, count)))
        .collect()
}

/// How the answers of a request are shown.
struct TextReply {
    header: Header,
    tokenizer: Arc<Tokenizer>,
    token_ids: bool,
    logprobs: bool,
    include_usage: bool,
}

#[derive(Serialize)]
struct Body<'a> {
    #[serde(flatten)]
    header: &'a Header,
    choices: Vec<Choice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

#[derive(Serialize)]
struct Choice {
    index: usize,
    text: String,
    logprobs: Option<TextLogprobs>,
    finish_reason: Option<&'static str>,
}

impl TextReply {
    async fn whole(&self, answers: Vec<Answer>) -> Result<Response, ApiError> {
        let each = answers.into_iter().enumerate();
        let choices = try_join_all(each.map(|(index, answer)| self.choice(index, answer))).await?;
        let mut usage = Usage::default();
        let choices = choices.into_iter().map(|(choice, own)| {
            usage.add(own);
            choice
        });
        let choices = choices.collect();
        let body = Body {
            header: &self.header,
            choices,
            usage: Some(Some(usage)),
        };
        Ok(Json(body).into_response())
    }

    async fn choice(&self, index: usize, mut answer: Answer) -> Result<(Choice, Usage), ApiError> {
        let mut text = String::new();
        let mut tokens = Vec::new();
        let mut finish_reason = None;
        while let Some(step) = answer.next().await {
            match step? {
                Step::Delta(delta) => {
                    text.push_str(&content(&delta));
                    if self.logprobs {
                        tokens.extend(delta.token);
                    }
                }
                Step::End(reason) => finish_reason = Some(reason.name()),
            }
        }
        let choice = Choice {
            index,
            text,
            logprobs: self.logprobs(&tokens),
            finish_reason,
        };
        Ok((choice, Usage::of(&answer)))
    }

    fn logprobs(&self, tokens: &[Reported]) -> Option<TextLogprobs> {
        let names = Names {
            tokenizer: &self.tokenizer,
            as_ids: self.token_ids,
        };
        self.logprobs.then(|| TextLogprobs::new(names, tokens))
    }

    fn chunk(&self, choices: Vec<Choice>, usage: Option<Option<Usage>>) -> Result<String, ApiError> {
        sse::json(&Body {
            header: &self.header,
            choices,
            usage,
        })
    }
}

impl Chunks for TextReply {
    fn opening(&self, _choice: usize) -> Result<Option<String>, ApiError> {
        Ok(None)
    }

    fn delta(&self, index: usize, delta: &Delta) -> Result<Option<String>, ApiError> {
        let text = content(delta);
        let tokens = delta.token.as_slice();
        if text.is_empty() && (tokens.is_empty() || !self.logprobs) {
            return Ok(None);
        }
        let choice = Choice {
            index,
            text,
            logprobs: self.logprobs(tokens),
            finish_reason: None,
        };
        self.chunk(vec![choice], null_if(self.include_usage)).map(Some)
    }

    fn end(&self, index: usize, reason: FinishReason) -> Result<String, ApiError> {
        let choice = Choice {
            index,
            text: String::new(),
            logprobs: None,
            finish_reason: Some(reason.name()),
        };
        self.chunk(vec![choice], null_if(self.include_usage))
    }

    fn usage(&self, usage: Usage) -> Result<Option<String>, ApiError> {
        if !self.include_usage {
            return Ok(None);
        }
        self.chunk(Vec::new(), Some(Some(usage))).map(Some)
    }
}

fn content(delta: &Delta) -> String {
    let texts = delta.pieces.iter().filter_map(|piece| match piece {
        OutputEvent::Content(text) => Some(text.as_str()),
        // A plain answer has no calls.
        OutputEvent::ToolCall { .. } | OutputEvent::Arguments { .. } => None,
    });
    texts.collect()
}
