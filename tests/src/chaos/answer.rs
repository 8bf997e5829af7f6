//! Answers as they are compared: everything of them but the time and what was cached.

use std::collections::BTreeMap;
use std::time::Duration;

use hyper::Method;
use serde_json::Value;

use super::request::Request;
use crate::client::Client;
use crate::stream::Asked;

/// Longest silence of a stream, and longest wait for a whole answer.
const SILENCE: Duration = Duration::from_secs(120);

/// An answer, or as much of it as came.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// Its id, which follows from the key.
    pub id: Option<String>,
    /// What came of each choice, in order: the parts of a stream, one by one.
    pub choices: BTreeMap<u64, Vec<Value>>,
    /// Tokens of prompt and answer.
    pub usage: Option<Value>,
}

/// How one attempt came out.
#[derive(Debug)]
pub enum Tried {
    /// All of it.
    Whole(Answer),
    /// The gateway is gone, in the middle or before.
    Gone(Answer),
    /// Nothing serves at present, or there is no room.
    NotNow(String),
    /// What must never be.
    Wrong(String),
}

impl Answer {
    /// Tokens that were generated.
    pub fn tokens(&self) -> u64 {
        let usage = self.usage.as_ref();
        usage
            .and_then(|usage| usage["completion_tokens"].as_u64())
            .unwrap_or(0)
    }

    /// Whether a whole answer goes on from what came of this one.
    pub fn begins(&self, whole: &Self) -> bool {
        let same_id = self.id.is_none() || self.id == whole.id;
        let mut choices = self.choices.iter();
        same_id
            && choices
                .all(|(index, parts)| whole.choices.get(index).is_some_and(|all| all.starts_with(parts)))
    }

    fn take(&mut self, mut body: Value) {
        if let Some(id) = body["id"].as_str() {
            self.id = Some(id.to_owned());
        }
        if let Some(usage) = body["usage"].as_object_mut() {
            usage.remove("prompt_tokens_details");
            self.usage = Some(body["usage"].take());
        }
        for choice in body["choices"].as_array_mut().into_iter().flatten() {
            let index = choice["index"].as_u64().unwrap_or(u64::MAX);
            self.choices.entry(index).or_default().push(choice.take());
        }
    }
}

/// Asks one coordinator once.
pub async fn ask(client: &Client, request: &Request) -> Tried {
    let headers = [("idempotency-key", request.key.as_str())];
    if !request.stream {
        let body = request.body.to_string();
        let answer = client
            .send_with(Method::POST, request.path, &headers, body, SILENCE)
            .await;
        return match answer {
            Err(error) if error.contains("no answer within") => Tried::Wrong(error),
            Err(_) => Tried::Gone(Answer::default()),
            Ok(answer) if answer.status == 200 => match serde_json::from_str(&answer.body) {
                Ok(body) => whole(body),
                Err(error) => Tried::Wrong(format!("{error}: {answer:?}")),
            },
            Ok(answer) => refused(answer.status, &answer.body),
        };
    }
    let mut events = match client
        .stream_with(request.path, &headers, &request.body, SILENCE)
        .await
    {
        Err(error) if error.contains("no stream began") => return Tried::Wrong(error),
        Err(_) => return Tried::Gone(Answer::default()),
        Ok(Asked::Refused(answer)) => return refused(answer.status, &answer.body),
        Ok(Asked::Begun(events)) => events,
    };
    let mut answer = Answer::default();
    loop {
        match events.next(SILENCE).await {
            Ok(Some(data)) if data == "[DONE]" => return Tried::Whole(answer),
            Ok(Some(data)) => match serde_json::from_str::<Value>(&data) {
                Ok(chunk) if chunk.get("error").is_none() => answer.take(chunk),
                Ok(_) => return Tried::Wrong(format!("after {} choices: {data}", answer.choices.len())),
                Err(error) => return Tried::Wrong(format!("{error}: {data}")),
            },
            Ok(None) => return Tried::Wrong("the stream ended before [DONE]".to_owned()),
            Err(error) if error.contains("no event within") => return Tried::Wrong(error),
            Err(_) => return Tried::Gone(answer),
        }
    }
}

fn whole(body: Value) -> Tried {
    let mut answer = Answer::default();
    answer.take(body);
    Tried::Whole(answer)
}

fn refused(status: u16, body: &str) -> Tried {
    match status {
        429 | 503 => Tried::NotNow(body.to_owned()),
        _ => Tried::Wrong(format!("{status}: {body}")),
    }
}
