//! `POST /v1/completions`: plain continuation of one or several prompts, `n` choices for each.
//!
//! Every choice is a request of its own to the cluster, with the same seed and its number within its prompt's choices:
//! a prompt among others gets the tokens that it gets alone.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, Request, State};
use axum::response::{IntoResponse, Response};
use futures_util::future::try_join_all;
use serde::Serialize;
use tramontane_model::sampling::SamplingParams;

use super::answer::{Answer, Delta, FinishReason, Reported};
use super::call::Call;
use super::choices;
use super::collected::collect;
use super::error::ApiError;
use super::fields::Fields;
use super::grammars::Held;
use super::labels;
use super::logprobs::{Names, TextLogprobs};
use super::params::{self, Params};
use super::prompt::{self, Prompt};
use super::prompt_scores::{PromptLogprobs, PromptScores};
use super::reply::{Header, Usage, null_if};
use super::sse::{self, Chunks};
use super::table::Routes;
use super::{Api, Ask};
use crate::gateway::Together;
use crate::text::{OutputEvent, Tokenizer};

/// Tokens generated where the client sets no limit, as OpenAI does.
const DEFAULT_MAX_TOKENS: u32 = 16;
const OBJECT: &str = "text_completion";

pub(super) fn routes() -> Routes {
    Routes::new().post("/v1/completions", create)
}

struct CompletionRequest {
    prompts: Vec<Prompt>,
    /// How many choices continue each.
    n: u32,
    /// Whether the text begins with the prompt.
    echo: bool,
    params: Params,
    /// How many alternatives to report.
    logprobs: Option<u32>,
    /// What to report of the prompts.
    scores: PromptScores,
}

impl CompletionRequest {
    fn read(body: &[u8], api: &Api) -> Result<Self, ApiError> {
        let mut fields = Fields::read(body)?;
        params::model(&mut fields, &api.model.name)?;
        let prompts = prompt::take(&mut fields, api.tokenizer.vocab_size())?;
        let n = choices::take(&mut fields, prompts.len())?;
        let echo = fields.flag("echo")?;
        let mut scores = PromptScores::take(&mut fields)?;
        let names = [("max_tokens", 0), ("max_completion_tokens", 1)];
        let params = Params::read(
            &mut fields,
            &names,
            api.model.max_context,
            api.tokenizer.vocab_size(),
        )?;
        let logprobs = params::top_logprobs(&mut fields, "logprobs")?;
        scores.check_stream(params.stream)?;
        scores.echoed = logprobs.filter(|_| echo);
        if params.max_tokens.is_some_and(|most| most.tokens == 0) && !echo && scores.listed.is_none() {
            let problem = "is 0, it must be at least 1 unless echo or prompt_logprobs ask for the prompt";
            return Err(ApiError::invalid("max_tokens", problem));
        }
        labels::check(&mut fields)?;
        params::log_ignored(&fields);
        Ok(Self {
            prompts,
            n,
            echo,
            params,
            logprobs,
            scores,
        })
    }
}

async fn create(
    State(api): State<Arc<Api>>,
    Extension(call): Extension<Call>,
    request: Request,
) -> Result<Response, ApiError> {
    let deadline = api.deadline();
    let body = api.read_body(request).await?;
    let CompletionRequest {
        prompts,
        n,
        echo,
        mut params,
        logprobs,
        scores,
    } = CompletionRequest::read(&body, &api)?;
    drop(body);
    let count = prompts.len();
    let mut permits = api.gateway.admit(count * n as usize)?.into_iter();
    let encoded = api
        .encode(deadline, move |tokenizer| encode(tokenizer, prompts))
        .await?;
    let mut held = Held::text(params.structured.take())?;
    let grammar = held.grammar(&api.tokenizer, &[])?;
    if let Some(grammar) = &grammar {
        api.grammars.check(grammar, &held).await?;
    }
    let scored = encoded.iter().map(Vec::len).sum::<usize>();
    scores.check_size(scored.saturating_mul(n as usize))?;
    let sampling = params.sampling(call.key(), (logprobs, scores.asked()), grammar)?;
    let prompt_only = params.max_tokens.is_some_and(|most| most.tokens == 0);
    let mut asked = Vec::with_capacity(permits.len());
    for (index, ids) in encoded.into_iter().enumerate() {
        let field = prompt::field_of(index, count);
        let max_tokens = params.budget(&field, ids.len(), api.model.max_context, DEFAULT_MAX_TOKENS)?;
        let prompt: Arc<[u32]> = ids.into();
        let together = Together::default();
        asked.extend((0..n).zip(permits.by_ref()).map(|(choice, permit)| Ask {
            permit,
            prompt: Arc::clone(&prompt),
            sampling: SamplingParams {
                choice,
                ..sampling.clone()
            },
            // Of a prompt alone no token is waited for.
            max_tokens: max_tokens.max(1),
            ignore_eos: params.ignore_eos,
            priority: params.priority,
            cache_salt: params.cache_salt.clone(),
            stop_token_ids: params.choosing.stop_token_ids.clone(),
            together: together.clone(),
        }));
    }
    let answers = try_join_all(asked.into_iter().enumerate().map(|(index, ask)| {
        let (api, call, stop) = (&api, &call, params.stop.clone());
        async move {
            let prompt_tokens = ask.prompt_tokens();
            let prompt = Arc::clone(&ask.prompt);
            let started = api.start(ask, call, index, deadline).await?;
            let mut answer = Answer::plain(started, &api.tokenizer, stop, prompt_tokens);
            if scores.asked().is_some() {
                answer = answer.scoring(prompt.len());
            }
            if prompt_only {
                answer = answer.prompt_only();
            }
            if echo {
                answer = answer.after_prompt(&prompt, scores.echoed)?;
            }
            Ok::<_, ApiError>(answer)
        }
    }))
    .await?;
    let reply = TextReply {
        header: Header::new(format!("cmpl-{}", call.answer_id()), OBJECT, &api.model.name),
        tokenizer: Arc::clone(&api.tokenizer),
        token_ids: params.token_ids,
        logprobs: logprobs.is_some(),
        prompt_logprobs: scores.listed,
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
    /// Alternatives in the list of the prompt's tokens, if there is to be one.
    prompt_logprobs: Option<u32>,
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
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<PromptLogprobs>,
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

    async fn choice(&self, index: usize, answer: Answer) -> Result<(Choice, Usage), ApiError> {
        let collected = collect(answer, self.logprobs).await?;
        let choice = Choice {
            index,
            logprobs: self.logprobs(&collected.tokens),
            finish_reason: collected.finish.map(FinishReason::name),
            prompt_logprobs: self
                .prompt_logprobs
                .map(|top| PromptLogprobs::new(self.names(), &collected.prompt, top)),
            text: collected.content(),
        };
        Ok((choice, collected.usage))
    }

    fn names(&self) -> Names<'_> {
        Names {
            tokenizer: &self.tokenizer,
            as_ids: self.token_ids,
        }
    }

    fn logprobs(&self, tokens: &[Reported]) -> Option<TextLogprobs> {
        self.logprobs.then(|| TextLogprobs::new(self.names(), tokens))
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

    fn delta(&mut self, index: usize, delta: &Delta) -> Result<Option<String>, ApiError> {
        let text = content(delta);
        let tokens = delta.tokens.as_slice();
        if text.is_empty() && (tokens.is_empty() || !self.logprobs) {
            return Ok(None);
        }
        let choice = Choice {
            index,
            text,
            logprobs: self.logprobs(tokens),
            finish_reason: None,
            prompt_logprobs: None,
        };
        self.chunk(vec![choice], null_if(self.include_usage)).map(Some)
    }

    fn end(&mut self, index: usize, reason: FinishReason, _all: Option<Usage>) -> Result<String, ApiError> {
        let choice = Choice {
            index,
            text: String::new(),
            logprobs: None,
            finish_reason: Some(reason.name()),
            prompt_logprobs: None,
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
        // A plain answer is text alone.
        OutputEvent::Reasoning(_) | OutputEvent::ToolCall { .. } | OutputEvent::Arguments { .. } => None,
    });
    texts.collect()
}
