//! Answers as they come: the events of a stream, one at a time, by a client that may be slow or leave.

use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tramontane_proto::net::connect_http;

use crate::client::{Answer, Client};

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
            let request = Request::builder()
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
