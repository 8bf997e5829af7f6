//! Answers as they come: the events of a stream, one at a time, by a client that may be slow or leave.

use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tramontane_proto::net::connect_http;

use crate::client::{Answer, Client};

/// Longest wait for the whole of a completion.
const DEADLINE: Duration = Duration::from_secs(240);

/// A stream that has begun. Dropping it closes its connection.
pub struct Events {
    body: Incoming,
    buffer: String,
    connection: JoinHandle<()>,
}

/// What came of asking for a stream.
pub enum Asked {
    /// It has begun.
    Begun(Events),
    /// Another answer than a 200.
    Refused(Answer),
}

impl Client {
    /// Asks for a stream on a connection of its own.
    pub async fn stream(&self, path: &str, body: &Value, within: Duration) -> Result<Asked, String> {
        self.stream_with(path, &[], body, within).await
    }

    /// The same with headers of its own.
    pub async fn stream_with(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        body: &Value,
        within: Duration,
    ) -> Result<Asked, String> {
        let asked = async {
            let stream = connect_http(&self.address, self.identity())
                .await
                .map_err(|error| error.to_string())?;
            let broke = |error: hyper::Error| format!("the connection broke: {error}");
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broke)?;
            let connection = tokio::spawn(async move {
                // What is wrong with it is seen by whoever reads.
                let _ = connection.await;
            });
            let request = headers
                .iter()
                .fold(Request::builder(), |request, (name, value)| {
                    request.header(*name, *value)
                })
                .method(Method::POST)
                .uri(path)
                .header("host", &self.address)
                .body(Full::new(Bytes::from(body.to_string())))
                .map_err(|error| error.to_string())?;
            let answer = sender.send_request(request).await.map_err(broke)?;
            let status = answer.status().as_u16();
            if status != 200 {
                let headers = answer.headers().clone();
                let body = answer.into_body().collect().await.map_err(broke)?.to_bytes();
                let body = String::from_utf8_lossy(&body).into_owned();
                return Ok(Asked::Refused(Answer {
                    status,
                    body,
                    headers,
                }));
            }
            Ok(Asked::Begun(Events {
                body: answer.into_body(),
                buffer: String::new(),
                connection,
            }))
        };
        timeout(within, asked)
            .await
            .map_err(|_| format!("no stream began within {within:?}"))?
    }
}

impl Events {
    /// The data of the next event; nothing at the end of the stream.
    pub async fn next(&mut self, within: Duration) -> Result<Option<String>, String> {
        loop {
            if let Some((event, rest)) = self.buffer.split_once("\n\n") {
                let data = event.strip_prefix("data: ").map(str::to_owned);
                self.buffer = rest.to_owned();
                match data {
                    Some(data) => return Ok(Some(data)),
                    // A comment, which keeps the stream alive.
                    None => continue,
                }
            }
            let frame = timeout(within, self.body.frame())
                .await
                .map_err(|_| format!("no event within {within:?}"))?;
            match frame {
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(format!("the stream ended within an event: {:?}", self.buffer)),
                Some(Err(error)) => return Err(format!("the stream broke: {error}")),
                Some(Ok(frame)) => {
                    let data = frame.into_data().unwrap_or_default();
                    let text = std::str::from_utf8(&data).map_err(|error| error.to_string())?;
                    self.buffer.push_str(text);
                }
            }
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// A streamed completion that has ended.
#[derive(Clone, Debug, Default)]
pub struct Streamed {
    /// The text of its first choice.
    pub text: String,
    /// Why it ended; empty if it did not say.
    pub finish_reason: String,
    /// When each part of the text came.
    pub times: Vec<Instant>,
}

impl Streamed {
    /// The gaps between parts that both came within `from..to`.
    pub fn gaps(&self, from: Instant, to: Instant) -> Vec<Duration> {
        let within = |time: &Instant| (from..to).contains(time);
        let pairs = self.times.windows(2).filter(|pair| pair.iter().all(within));
        pairs.map(|pair| pair[1] - pair[0]).collect()
    }
}

impl Client {
    /// Streams a completion to its end; `parts` is told how many parts of the text have come.
    pub async fn completion(&self, body: &Value, parts: watch::Sender<usize>) -> Result<Streamed, String> {
        let mut events = match self.stream("/v1/completions", body, DEADLINE).await? {
            Asked::Begun(events) => events,
            Asked::Refused(answer) => return Err(format!("{}: {}", answer.status, answer.body)),
        };
        let mut streamed = Streamed::default();
        while let Some(data) = events.next(DEADLINE).await? {
            if data == "[DONE]" {
                return Ok(streamed);
            }
            let chunk: Value = serde_json::from_str(&data).map_err(|error| format!("{error}: {data}"))?;
            if chunk.get("error").is_some() {
                return Err(data);
            }
            let choice = &chunk["choices"][0];
            if let Some(text) = choice["text"].as_str().filter(|text| !text.is_empty()) {
                streamed.text += text;
                streamed.times.push(Instant::now());
                parts.send_replace(streamed.times.len());
            }
            if let Some(reason) = choice["finish_reason"].as_str() {
                reason.clone_into(&mut streamed.finish_reason);
            }
        }
        Err(format!("the stream ended before its end: {streamed:?}"))
    }
}
