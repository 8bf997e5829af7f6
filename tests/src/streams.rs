//! Streamed completions, with the moment at which each part came.

use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::Instant;
use tramontane_proto::net::{Identity, connect_http};

/// Longest wait for the whole of a stream.
const DEADLINE: Duration = Duration::from_secs(240);

/// A stream that has ended.
#[derive(Clone, Debug)]
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

/// Posts to `/v1/completions` at `host:port` without TLS; `parts` is told how many parts of the text have come.
pub async fn stream(address: &str, body: Value, parts: watch::Sender<usize>) -> Result<Streamed, String> {
    let exchange = follow(address, body, parts);
    tokio::time::timeout(DEADLINE, exchange)
        .await
        .map_err(|_| format!("{address}: no end within {DEADLINE:?}"))?
}

async fn follow(address: &str, body: Value, parts: watch::Sender<usize>) -> Result<Streamed, String> {
    let stream = connect_http(address, &Identity::Loopback)
        .await
        .map_err(|error| error.to_string())?;
    let broke = |error: hyper::Error| format!("{address}: the connection broke: {error}");
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broke)?;
    tokio::spawn(connection);
    let request = Request::post("/v1/completions")
        .header("host", address)
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body.to_string())))
        .map_err(|error| error.to_string())?;
    let mut answer = sender.send_request(request).await.map_err(broke)?;
    if answer.status() != 200 {
        let status = answer.status();
        let body = answer.into_body().collect().await.map_err(broke)?.to_bytes();
        return Err(format!("{status}: {}", String::from_utf8_lossy(&body)));
    }
    let mut streamed = Streamed {
        text: String::new(),
        finish_reason: String::new(),
        times: Vec::new(),
    };
    let mut waiting = Vec::new();
    while let Some(frame) = answer.frame().await {
        let Ok(data) = frame.map_err(broke)?.into_data() else {
            continue;
        };
        waiting.extend_from_slice(&data);
        while let Some(end) = waiting.windows(2).position(|two| two == b"\n\n") {
            let event: Vec<u8> = waiting.drain(..end + 2).collect();
            let event = String::from_utf8(event).map_err(|error| error.to_string())?;
            let Some(data) = event.trim_end().strip_prefix("data: ") else {
                continue;
            };
            if data == "[DONE]" {
                return Ok(streamed);
            }
            let chunk: Value = serde_json::from_str(data).map_err(|error| format!("{error}: {data}"))?;
            let choice = &chunk["choices"][0];
            if chunk.get("error").is_some() {
                return Err(data.to_owned());
            }
            if let Some(text) = choice["text"].as_str().filter(|text| !text.is_empty()) {
                streamed.text += text;
                streamed.times.push(Instant::now());
                parts.send_replace(streamed.times.len());
            }
            if let Some(reason) = choice["finish_reason"].as_str() {
                reason.clone_into(&mut streamed.finish_reason);
            }
        }
    }
    Err(format!(
        "{address}: the stream ended before its end: {streamed:?}"
    ))
}
