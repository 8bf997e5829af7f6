//! A small HTTP client for a cluster's own endpoint: bounded answers, a deadline on every wait.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use tramontane_proto::net::{Identity, connect_http};

/// Longest wait for an answer to begin.
const ANSWER_DEADLINE: Duration = Duration::from_secs(600);
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
            Ok::<_, anyhow::Error>(sender.send_request(request).await?)
        };
        let answer = tokio::time::timeout(ANSWER_DEADLINE, exchange).await;
        answer.with_context(|| format!("{} did not answer within {ANSWER_DEADLINE:?}", self.address))?
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
