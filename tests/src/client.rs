//! A small HTTP client: whole answers, a deadline on every request.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{HeaderMap, Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tramontane_proto::net::{Identity, connect_http};

/// Longest wait for an answer.
const DEADLINE: Duration = Duration::from_secs(240);
/// Requests of [`all_at_once`] in flight.
pub const AT_ONCE: usize = 17;

/// Asks one coordinator.
#[derive(Clone)]
pub struct Client {
    /// `host:port`.
    pub address: String,
    identity: Identity,
}

/// An answer, whatever its status.
#[derive(Clone, Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// The body.
    pub body: String,
    /// The headers.
    pub headers: HeaderMap,
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The answer, if it is a 200.
    pub fn ok(self) -> Result<Self, String> {
        if self.status == 200 {
            Ok(self)
        } else {
            Err(format!("{}: {}", self.status, self.body))
        }
    }
}

impl Client {
    /// A client of `host:port`.
    pub fn new(address: impl Into<String>, identity: Identity) -> Self {
        Self {
            address: address.into(),
            identity,
        }
    }

    /// How it shows who it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// `GET`.
    pub async fn get(&self, path: &str) -> Result<Answer, String> {
        self.send(Method::GET, path, String::new(), DEADLINE).await
    }

    /// `POST` of a text that should be JSON.
    pub async fn post(&self, path: &str, body: impl ToString) -> Result<Answer, String> {
        self.send(Method::POST, path, body.to_string(), DEADLINE).await
    }

    /// One request on a connection of its own.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        body: impl Into<Bytes>,
        within: Duration,
    ) -> Result<Answer, String> {
        self.send_with(method, path, &[], body, within).await
    }

    /// The same with headers of its own.
    pub async fn send_with(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
        within: Duration,
    ) -> Result<Answer, String> {
        let body: Bytes = body.into();
        let exchange = async {
            let stream = connect_http(&self.address, &self.identity)
                .await
                .map_err(|error| error.to_string())?;
            let broke = |error: hyper::Error| format!("{}: the connection broke: {error}", self.address);
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broke)?;
            tokio::spawn(connection);
            let request = headers
                .iter()
                .fold(Request::builder(), |request, (name, value)| {
                    request.header(*name, *value)
                })
                .method(method)
                .uri(path)
                .header("host", &self.address)
                .header("content-type", "application/json")
                .body(Full::new(body))
                .map_err(|error| error.to_string())?;
            let answer = sender.send_request(request).await.map_err(broke)?;
            let status = answer.status().as_u16();
            let headers = answer.headers().clone();
            let body = answer.into_body().collect().await.map_err(broke)?.to_bytes();
            Ok(Answer {
                status,
                body: String::from_utf8_lossy(&body).into_owned(),
                headers,
            })
        };
        tokio::time::timeout(within, exchange)
            .await
            .map_err(|_| format!("{} {path}: no answer within {within:?}", self.address))?
    }

    /// The answer to one question.
    pub async fn ask(&self, model: &str, question: &str) -> Result<String, String> {
        let body = json!({
            "model": model,
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": 64,
        });
        let answer = self.post("/v1/chat/completions", body).await?.ok()?;
        let content = answer.json()["choices"][0]["message"]["content"].clone();
        content
            .as_str()
            .map(str::to_owned)
            .ok_or(format!("no content: {}", answer.body))
    }

    /// The sum of a metric over its labels; nothing if it is not there.
    pub async fn metric(&self, name: &str) -> Result<Option<f64>, String> {
        let text = self.get("/metrics").await?.ok()?.body;
        let values = text.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let (labels, value) = rest.rsplit_once(' ')?;
            let whole_name = labels.is_empty() || labels.starts_with('{');
            whole_name.then(|| value.parse::<f64>().ok())?
        });
        Ok(values.fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value)))
    }
}

/// Does `work` for every item, so many at a time; results in the order of the items.
pub async fn all_at_once<I, T>(
    at_once: usize,
    items: impl IntoIterator<Item = I>,
    work: impl AsyncFn(I) -> T,
) -> Vec<T> {
    let work = &work;
    stream::iter(items.into_iter().map(|item| async move { work(item).await }))
        .buffered(at_once)
        .collect()
        .await
}
