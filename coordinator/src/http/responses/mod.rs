//! `POST /v1/responses`: OpenAI's newer API over the same answers: items in and out, events of many kinds.
//!
//! Nothing is kept: a request that wants its response stored, or names one that was, is refused.

mod input;
mod output;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, Request, State};
use axum::response::sse::{Event, KeepAlive};
use axum::response::{IntoResponse, Response, Sse};
use futures_util::{Stream, StreamExt, stream};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::answer::{Answer, Calls, Step};
use super::call::Call;
use super::chat_reply::ChatReply;
use super::error::{ApiError, ErrorKind};
use super::fields::Fields;
use super::grammars::Held;
use super::labels;
use super::params::{self, Params};
use super::reply::{Usage, unix_seconds};
use super::sse::{KEEP_ALIVE, unbuffered};
use super::structured;
use super::table::Routes;
use super::tool_choice::{Form, ToolChoice};
use super::{Api, Ask};
use crate::gateway::Together;
use crate::text::encode_chat;
use input::Input;
use output::{Shown, TextConfig, Writer};

/// What `include` may name to have log-probabilities; other names change nothing here.
const LOGPROBS: &str = "message.output_text.logprobs";
/// Most names in `include`.
const MAX_INCLUDES: usize = 16;

pub(super) fn routes() -> Routes {
    Routes::new().post("/v1/responses", create)
}

struct CreateResponse {
    input: Input,
    params: Params,
    calls: Calls,
    /// How many alternatives to report.
    logprobs: Option<u32>,
    /// What the answer is held to.
    held: Held,
    shown: Shown,
}

impl CreateResponse {
    fn read(body: &[u8], api: &Api) -> Result<Self, ApiError> {
        let mut fields = Fields::read(body)?;
        params::model(&mut fields, &api.model.name)?;
        let metadata = fields.peek("metadata");
        let mut input = Input::take(&mut fields)?;
        let one_call = fields.take::<bool>("parallel_tool_calls")? == Some(false);
        let (max_context, vocab_size) = (api.model.max_context, api.tokenizer.vocab_size());
        let mut params = Params::read(&mut fields, &[("max_output_tokens", 1)], max_context, vocab_size)?;
        refuse_what_is_kept(&mut fields)?;
        let (structured, format) = structured::take_text(&mut fields, params.structured.take())?;
        let logprobs = logprobs(&mut fields)?;
        let choice = ToolChoice::take(&mut fields, &input.chat.tools, Form::Flat)?;
        if choice == ToolChoice::None {
            input.chat.tools.clear();
        }
        let held = Held::chat(structured, &input.chat.tools, &choice, one_call)?;
        labels::check(&mut fields)?;
        params::log_ignored(&fields);
        let calls = match (input.chat.tools.is_empty(), one_call) {
            (true, _) => Calls::None,
            (false, true) => Calls::One,
            (false, false) => Calls::Many,
        };
        let shown = Shown {
            model: api.model.name.clone(),
            instructions: input.instructions.clone(),
            max_output_tokens: params.max_tokens.map(|limit| limit.tokens),
            parallel_tool_calls: !one_call,
            temperature: params.temperature,
            top_p: params.top_p,
            top_logprobs: logprobs.unwrap_or(0),
            tool_choice: repeated(choice),
            tools: on_one_line(input.tools.as_deref().map_or("[]", RawValue::get))?,
            text: TextConfig {
                format: on_one_line(format.as_deref().map_or("{\"type\":\"text\"}", RawValue::get))?,
            },
            metadata: on_one_line(metadata.map_or("{}", RawValue::get))?,
        };
        Ok(Self {
            input,
            params,
            calls,
            logprobs,
            held,
            shown,
        })
    }
}

/// A choice of tools, as a response repeats it.
fn repeated(choice: ToolChoice) -> Value {
    match choice {
        ToolChoice::Auto => json!("auto"),
        ToolChoice::None => json!("none"),
        ToolChoice::Required => json!("required"),
        ToolChoice::Function(name) => json!({"type": "function", "name": name}),
    }
}

/// A JSON text without line breaks, which are white space in it: events have none.
fn on_one_line(json: &str) -> Result<Box<RawValue>, ApiError> {
    RawValue::from_string(json.replace(['\r', '\n'], ""))
        .map_err(|error| ApiError::new(ErrorKind::Failed, error))
}

/// Fields by which a client means to find its response again.
fn refuse_what_is_kept(fields: &mut Fields<'_>) -> Result<(), ApiError> {
    if fields.flag("store")? {
        let problem =
            "is true, responses are not kept here: leave it out and send the whole conversation as input";
        return Err(ApiError::field(ErrorKind::Unsupported, "store", problem));
    }
    if fields.flag("background")? {
        let problem = "is true, responses are not kept here: leave it out and stream";
        return Err(ApiError::field(ErrorKind::Unsupported, "background", problem));
    }
    if fields.has("prompt") {
        let problem = "names a prompt that is stored, nothing is kept here: use input and instructions";
        return Err(ApiError::field(ErrorKind::Unsupported, "prompt", problem));
    }
    Ok(())
}

/// `include` switches them on, and so does `top_logprobs`, which says how many alternatives.
fn logprobs(fields: &mut Fields<'_>) -> Result<Option<u32>, ApiError> {
    let includes = fields.take::<Vec<String>>("include")?.unwrap_or_default();
    if includes.len() > MAX_INCLUDES {
        let problem = format!("has {} names, at most {MAX_INCLUDES} are read", includes.len());
        return Err(ApiError::invalid("include", problem));
    }
    let top = params::top_logprobs(fields, "top_logprobs")?;
    let is_included = includes.iter().any(|name| name == LOGPROBS);
    Ok(top.or(is_included.then_some(0)))
}

async fn create(
    State(api): State<Arc<Api>>,
    Extension(call): Extension<Call>,
    request: Request,
) -> Result<Response, ApiError> {
    answer(&api, &call, request).await.map_err(in_flat_form)
}

/// The error of a part of a tool, which stands beside the tool's type here.
fn in_flat_form(mut error: ApiError) -> ApiError {
    const INNER: &str = ".function";
    if let Some(field) = &error.param
        && (field.starts_with("tools") || field.starts_with("tool_choice"))
        && field.contains(INNER)
    {
        let flat = field.replacen(INNER, "", 1);
        error.message = error.message.replacen(field.as_str(), &flat, 1);
        error.param = Some(flat);
    }
    error
}

async fn answer(api: &Api, call: &Call, request: Request) -> Result<Response, ApiError> {
    let deadline = api.deadline();
    let body = api.read_body(request).await?;
    let CreateResponse {
        input,
        params,
        calls,
        logprobs,
        mut held,
        shown,
    } = CreateResponse::read(&body, api)?;
    drop(body);
    let mut permits = api.gateway.admit(1)?.into_iter();
    let Some(permit) = permits.next() else {
        return Err(ApiError::new(
            ErrorKind::Failed,
            "there was no room for the request",
        ));
    };
    let (prompt, in_reasoning, held, grammar) = api
        .encode(deadline, move |tokenizer| {
            let prompt = encode_chat(tokenizer, &input.chat).map_err(|error| input.error(&error))?;
            let in_reasoning = tokenizer.leaves_reasoning_open(&prompt);
            let grammar = held.grammar(tokenizer, &prompt)?;
            Ok((prompt, in_reasoning, held, grammar))
        })
        .await?;
    if let Some(grammar) = &grammar {
        api.grammars.check(grammar, &held).await?;
    }
    let max_context = api.model.max_context;
    let ask = Ask {
        permit,
        max_tokens: params.budget("input", prompt.len(), max_context, max_context)?,
        sampling: params.sampling(call.key(), (logprobs, None), grammar)?,
        prompt: prompt.into(),
        ignore_eos: params.ignore_eos,
        priority: params.priority,
        cache_salt: params.cache_salt,
        stop_token_ids: params.choosing.stop_token_ids,
        together: Together::default(),
    };
    let prompt_tokens = ask.prompt_tokens();
    let started = api.start(ask, call, 0, deadline).await?;
    let how = (calls, in_reasoning);
    let answer = Answer::chat(started, &api.tokenizer, how, params.stop, prompt_tokens);
    let reply = ChatReply {
        id: call.answer_id().to_string(),
        model: api.model.name.clone(),
        tokenizer: Arc::clone(&api.tokenizer),
        token_ids: params.token_ids,
        logprobs: logprobs.is_some(),
        prompt_logprobs: None,
        include_usage: true,
    };
    let writer = Writer::new(reply, unix_seconds(), shown);
    if params.stream {
        Ok(streamed(answer, writer))
    } else {
        whole(answer, writer).await
    }
}

async fn whole(mut answer: Answer, mut writer: Writer) -> Result<Response, ApiError> {
    while let Some(step) = answer.next().await {
        match step? {
            Step::Delta(delta) => writer.take(&delta),
            Step::End(reason) => writer.end(reason, Usage::of(&answer)),
        }
        // Nobody is told on the way.
        writer.events();
    }
    Ok(Json(writer.into_response()).into_response())
}

fn streamed(answer: Answer, mut writer: Writer) -> Response {
    writer.open();
    let events = events(answer, writer).map(Ok::<_, Infallible>);
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE);
    unbuffered(Sse::new(events).keep_alive(keep_alive).into_response())
}

/// The events of an answer; the connection pulls them.
fn events(answer: Answer, writer: Writer) -> impl Stream<Item = Event> {
    let state = (Some(answer), writer, VecDeque::new());
    stream::unfold(state, |(mut answer, mut writer, mut ready)| async move {
        loop {
            ready.extend(writer.events());
            if let Some((kind, data)) = ready.pop_front() {
                let event = Event::default().event(kind).data(data);
                return Some((event, (answer, writer, ready)));
            }
            match answer.as_mut()?.next().await {
                Some(Ok(Step::Delta(delta))) => writer.take(&delta),
                Some(Ok(Step::End(reason))) => {
                    let usage = answer.as_ref().map(Usage::of).unwrap_or_default();
                    writer.end(reason, usage);
                    answer = None;
                }
                Some(Err(error)) => {
                    writer.fail(error.message);
                    answer = None;
                }
                None => answer = None,
            }
        }
    })
}
