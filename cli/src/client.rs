//! A small HTTP client for a cluster's own endpoint: bounded answers, a deadline on every wait.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::time::Instant;
use tramontane_proto::net::{Identity, connect_http};

use crate::sse::Parser;

/// Longest wait for an answer to begin.
const ANSWER_DEADLINE: Duration = Duration::from_secs(600);
/// Longest wait for the answer to a question about health, which is answered from memory.
const HEALTH_DEADLINE: Duration = Duration::from_secs(5);
/// Longest stream of events, and the longest silence in one: a living stream sends comments.
const STREAM_DEADLINE: Duration = Duration::from_secs(1800);
const SILENCE_DEADLINE: Duration = Duration::from_secs(60);
/// What ends OpenAI's streams.
const DONE: &str = "[DONE]";
/// Longest wait for the rest of an answer.
const BODY_DEADLINE: Duration = Duration::from_secs(120);
/// Largest whole answer, in bytes.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// A runtime for a command.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("starting the async runtime")
}

/// A model that is served.
#[derive(serde::Deserialize)]
pub(crate) struct Model {
    pub(crate) id: String,
    /// Most tokens of prompt and answer together.
    pub(crate) max_model_len: u32,
}

/// Asks one coordinator.
#[derive(Clone)]
pub(crate) struct Client {
    address: String,
    identity: Identity,
}

impl Client {
    /// For `http://host:port` or, with certificates, `https://host:port`.
    pub(crate) fn new(url: &str, identity: Identity) -> Result<Self> {
        let tls = matches!(identity, Identity::Mutual(_));
        let scheme = if tls { "https://" } else { "http://" };
        let address = url.strip_prefix(scheme).map(|rest| rest.trim_end_matches('/'));
        let Some(address) = address.filter(|address| !address.contains('/')) else {
            if url.starts_with("https://") {
                bail!("{url}: https needs --ca, --certificate and --key");
            }
            bail!("{url} is not valid: it must be {scheme}host:port");
        };
        Ok(Self {
            address: address.to_owned(),
            identity,
        })
    }

    /// `GET`, the answer as text.
    pub(crate) async fn get(&self, path: &str) -> Result<String> {
        self.whole(Method::GET, path, String::new()).await
    }

    /// `POST` of JSON, the answer as text.
    pub(crate) async fn post(&self, path: &str, body: String) -> Result<String> {
        self.whole(Method::POST, path, body).await
    }

    /// Whether the cluster serves, or else why not.
    pub(crate) async fn readiness(&self) -> Result<(), NotReady> {
        #[derive(serde::Deserialize)]
        struct Body {
            reason: String,
        }
        let asked = async {
            let answer = self.send(Method::GET, "/readyz", String::new()).await?;
            let status = answer.status();
            Ok::<_, anyhow::Error>((status, text(answer).await?))
        };
        match tokio::time::timeout(HEALTH_DEADLINE, asked).await {
            Ok(Ok((status, _))) if status.is_success() => Ok(()),
            Ok(Ok((status, text))) => {
                let reason = serde_json::from_str(&text).map(|Body { reason }| reason);
                Err(NotReady::Waits(
                    reason.unwrap_or_else(|_| format!("{status}: {text}")),
                ))
            }
            Ok(Err(error)) => Err(NotReady::Silent(format!("{error:#}"))),
            Err(_) => Err(NotReady::Silent(format!(
                "{} did not answer within {HEALTH_DEADLINE:?}",
                self.address
            ))),
        }
    }

    /// The name of the model that is served.
    pub(crate) async fn model(&self) -> Result<String> {
        Ok(self.served().await?.id)
    }

    /// The model that is served.
    pub(crate) async fn served(&self) -> Result<Model> {
        #[derive(serde::Deserialize)]
        struct Models {
            data: Vec<Model>,
        }
        let text = self.get("/v1/models").await?;
        let models: Models =
            serde_json::from_str(&text).context("the list of models is not what it should be")?;
        let first = models.data.into_iter().next();
        first.context("the cluster serves no model")
    }

    /// `POST` of JSON, the answer as events.
    pub(crate) async fn stream(&self, path: &str, body: String) -> Result<Events> {
        let answer = self.send(Method::POST, path, body).await?;
        let status = answer.status();
        if !status.is_success() {
            let text = text(answer).await?;
            let refused = Refused { status, text };
            return Err(anyhow::Error::new(refused).context(path.to_owned()));
        }
        Ok(Events {
            body: answer.into_body(),
            parser: Parser::default(),
            ready: VecDeque::new(),
            deadline: Instant::now() + STREAM_DEADLINE,
        })
    }

    async fn whole(&self, method: Method, path: &str, body: String) -> Result<String> {
        let answer = self.send(method, path, body).await?;
        let status = answer.status();
        let text = text(answer).await?;
        if status.is_success() {
            Ok(text)
        } else {
            bail!("{path}: {status}: {text}")
        }
    }

    async fn send(&self, method: Method, path: &str, body: String) -> Result<Response<Incoming>> {
        let exchange = async {
            let stream = connect_http(&self.address, &self.identity)
                .await
                .with_context(|| format!("cannot reach {}", self.address))?;
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            let request = Request::builder()
                .method(method)
                .uri(path)
                .header("host", &self.address)
                .header("content-type", "application/json")
                .body(Full::new(Bytes::from(body)))?;
            let answer = sender.send_request(request).await;
            answer.with_context(|| match self.identity {
                Identity::Loopback => format!(
                    "{} gives no HTTP answer (if it has certificates, the URL begins with https)",
                    self.address
                ),
                Identity::Mutual(_) => format!("{} gives no HTTP answer", self.address),
            })
        };
        let answer = tokio::time::timeout(ANSWER_DEADLINE, exchange).await;
        answer.with_context(|| format!("{} did not answer within {ANSWER_DEADLINE:?}", self.address))?
    }
}

/// An answer that is an error.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) status: StatusCode,
    pub(crate) text: String,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.status, self.text)
    }
}

impl std::error::Error for Refused {}

/// Why a cluster does not serve.
#[derive(Debug)]
pub(crate) enum NotReady {
    /// It says why.
    Waits(String),
    /// It does not answer.
    Silent(String),
}

impl NotReady {
    /// The reason, for people.
    pub(crate) fn reason(self) -> String {
        match self {
            Self::Waits(reason) | Self::Silent(reason) => reason,
        }
    }
}

/// The events of an answer, as they come.
pub(crate) struct Events {
    body: Incoming,
    parser: Parser,
    ready: VecDeque<String>,
    deadline: Instant,
}

impl Events {
    /// The data of the next event; `None` after the end of a whole answer. An answer that breaks off is an error.
    pub(crate) async fn next(&mut self) -> Result<Option<String>> {
        loop {
            match self.ready.pop_front() {
                Some(data) if data == DONE => return Ok(None),
                Some(data) => return Ok(Some(data)),
                None => self.read().await?,
            }
        }
    }

    async fn read(&mut self) -> Result<()> {
        let deadline = self.deadline.min(Instant::now() + SILENCE_DEADLINE);
        let frame = tokio::time::timeout_at(deadline, self.body.frame()).await;
        let frame = frame.context("the stream stands still, or lasts too long")?;
        let frame = frame.context("the stream ended before its end was told")?;
        let frame = frame.context("the stream broke off")?;
        let Ok(bytes) = frame.into_data() else {
            return Ok(());
        };
        let mut events = Vec::new();
        let parsed = self.parser.push(&bytes, &mut events);
        self.ready.extend(events);
        parsed.map_err(|_| anyhow::anyhow!("an event of the stream is too long"))
    }
}

async fn text(answer: Response<Incoming>) -> Result<String> {
    let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect();
    let body = tokio::time::timeout(BODY_DEADLINE, body)
        .await
        .context("the answer did not end")?;
    let bytes = body
        .map_err(|error| anyhow::anyhow!("the answer broke off: {error}"))?
        .to_bytes();
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_checked() {
        assert_eq!(
            Client::new("http://127.0.0.1:8080/", Identity::Loopback)
                .expect("valid")
                .address,
            "127.0.0.1:8080"
        );
        for bad in [
            "127.0.0.1:8080",
            "https://127.0.0.1:8080",
            "http://127.0.0.1:8080/v1",
            "ftp://x:1",
        ] {
            assert!(Client::new(bad, Identity::Loopback).is_err(), "{bad} was taken");
        }
    }
}
