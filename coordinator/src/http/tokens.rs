//! `POST /tokenize` and `/detokenize`: text to token ids and back, as the model reads them.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use serde::Serialize;

use super::Api;
use super::chat;
use super::error::{ApiError, ErrorKind};
use super::fields::Fields;
use super::params;
use super::prompt::{self, Prompt};
use super::table::Routes;
use crate::text::{ChatRequest, SpecialText, StreamDecoder, Tokenizer, encode_chat};

pub(super) fn routes() -> Routes {
    Routes::new()
        .post("/tokenize", tokenize)
        .post("/detokenize", detokenize)
}

/// What is to be encoded.
enum Text {
    Plain {
        prompt: String,
        /// Whether `<s>` comes first, as a completion has it.
        special: bool,
    },
    Chat(ChatRequest),
}

#[derive(Serialize)]
struct Tokens {
    tokens: Vec<u32>,
    count: usize,
    max_model_len: u32,
    /// The tokens' names, where they were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    token_strs: Option<Vec<String>>,
}

#[derive(Serialize)]
struct Detokenized {
    prompt: String,
}

/// Checks the model's name if there is one.
fn model(fields: &mut Fields<'_>, api: &Api) -> Result<(), ApiError> {
    if fields.has("model") {
        params::model(fields, &api.model.name)?;
    }
    Ok(())
}

async fn tokenize(State(api): State<Arc<Api>>, request: Request) -> Result<Json<Tokens>, ApiError> {
    let deadline = api.deadline();
    let body = api.read_body(request).await?;
    let mut fields = Fields::read(&body)?;
    model(&mut fields, &api)?;
    let prompt = fields.take::<String>("prompt")?;
    let special = fields.take::<bool>("add_special_tokens")?.unwrap_or(true);
    let with_names = fields.flag("return_token_strs")?;
    let text = match (prompt, fields.has("messages")) {
        (Some(_), false) if fields.has("tools") => {
            let problem = "is there beside a prompt, only messages have tools";
            return Err(ApiError::invalid("tools", problem));
        }
        (Some(prompt), false) => Text::Plain { prompt, special },
        (None, true) => Text::Chat(chat::conversation(&body, &mut fields)?),
        (Some(_), true) => {
            let problem = "and messages are both there, a request has one of them";
            return Err(ApiError::invalid("prompt", problem));
        }
        (None, false) => {
            let problem = "is missing, it must be a string unless there are messages";
            return Err(ApiError::invalid("prompt", problem));
        }
    };
    params::log_ignored(&fields);
    let max_model_len = api.model.max_context;
    let encoded = api.encode(deadline, move |tokenizer| {
        let tokens = encode(tokenizer, text)?;
        let token_strs = with_names.then(|| tokens.iter().map(|&id| name(tokenizer, id)).collect());
        Ok(Tokens {
            count: tokens.len(),
            tokens,
            max_model_len,
            token_strs,
        })
    });
    Ok(Json(encoded.await?))
}

fn encode(tokenizer: &Tokenizer, text: Text) -> Result<Vec<u32>, ApiError> {
    match text {
        Text::Chat(chat) => encode_chat(tokenizer, &chat).map_err(chat::of_conversation),
        Text::Plain {
            prompt,
            special: true,
        } => Prompt::Text(prompt).encode(tokenizer, "prompt"),
        Text::Plain {
            prompt,
            special: false,
        } => {
            let encoded = tokenizer.encode(&prompt);
            encoded.map_err(|error| ApiError::field(ErrorKind::ContextLength, "prompt", error))
        }
    }
}

fn name(tokenizer: &Tokenizer, id: u32) -> String {
    // Every id comes from the tokenizer itself.
    String::from_utf8_lossy(tokenizer.token_bytes(id).unwrap_or_default()).into_owned()
}

async fn detokenize(State(api): State<Arc<Api>>, request: Request) -> Result<Json<Detokenized>, ApiError> {
    let deadline = api.deadline();
    let body = api.read_body(request).await?;
    let mut fields = Fields::read(&body)?;
    model(&mut fields, &api)?;
    let tokens = prompt::take_ids(&mut fields, "tokens", api.tokenizer.vocab_size())?;
    let special = match fields.take::<bool>("skip_special_tokens")? {
        Some(false) => SpecialText::Show,
        Some(true) | None => SpecialText::Skip,
    };
    params::log_ignored(&fields);
    let shared = Arc::clone(&api.tokenizer);
    let decoded = api.encode(deadline, move |_| {
        let mut decoder = StreamDecoder::new(shared, special);
        let mut prompt = String::new();
        for id in tokens {
            let pushed = decoder.push(id, &mut prompt);
            pushed.map_err(|error| ApiError::invalid("tokens", error))?;
        }
        decoder.finish(&mut prompt);
        Ok(Detokenized { prompt })
    });
    Ok(Json(decoded.await?))
}
