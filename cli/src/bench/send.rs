//! One request and its answer, with the moments at which its tokens came.

use std::time::Duration;

use anyhow::{Result, bail};
use serde::Deserialize;
use tokio::time::Instant;

use super::load::Ask;
use super::stats::Sample;
use crate::client::{Client, Refused};
use crate::events::Chunk;

/// Sends a request that was to arrive at `intended`, and reads its answer to the end; an error in a few words.
pub(super) async fn send(client: &Client, ask: Ask, intended: Instant) -> Result<Sample, String> {
    let sent = Instant::now();
    match answer(client, ask, intended, sent).await {
        Ok(sample) => Ok(sample),
        Err(error) => Err(in_short(&error)),
    }
}

async fn answer(client: &Client, ask: Ask, intended: Instant, sent: Instant) -> Result<Sample> {
    let Ask { path, body, tokens } = ask;
    let mut events = client.stream(path, body).await?;
    let (mut first, mut last) = (None, None);
    let mut gaps = Vec::new();
    let (mut counted, mut usage) = (0, None);
    while let Some(data) = events.next().await? {
        let now = Instant::now();
        let chunk = Chunk::read(&data)?;
        // Without log-probabilities a chunk of text is taken for a token.
        let came = chunk.tokens().max(u64::from(chunk.has_text()));
        usage = chunk.usage.or(usage);
        if came == 0 {
            continue;
        }
        counted += came;
        first.get_or_insert(now);
        if let Some(last) = last.replace(now) {
            gaps.push(now - last);
        }
        // Tokens of one chunk come at once.
        gaps.extend((1..came).map(|_| Duration::ZERO));
    }
    let end = Instant::now();
    if let Some(expected) = tokens
        && counted != u64::from(expected)
    {
        bail!("{counted} tokens came, {expected} were asked for");
    }
    let Some(first) = first else {
        bail!("no token came");
    };
    Ok(Sample {
        delay: sent - intended,
        first_token: first - intended,
        end: end - intended,
        gaps,
        prompt_tokens: usage.as_ref().map_or(0, |usage| usage.prompt_tokens),
        cached_tokens: usage.as_ref().map_or(0, |usage| usage.cached_tokens()),
        completion_tokens: usage.map_or(counted, |usage| usage.completion_tokens),
    })
}

/// An error without what differs from one request to the next.
fn in_short(error: &anyhow::Error) -> String {
    #[derive(Deserialize)]
    struct Body {
        error: Failure,
    }
    #[derive(Deserialize)]
    struct Failure {
        message: String,
    }
    match error.downcast_ref::<Refused>() {
        Some(Refused { status, text }) => match serde_json::from_str::<Body>(text) {
            Ok(body) => format!("{}: {}", status.as_u16(), body.error.message),
            Err(_) => format!("{}: {text}", status.as_u16()),
        },
        None => format!("{error:#}"),
    }
}

#[cfg(test)]
mod tests {
    use hyper::StatusCode;

    use super::*;

    #[test]
    fn errors_are_told_by_status_and_message() {
        let refused = |text: &str| {
            let refused = Refused {
                status: StatusCode::TOO_MANY_REQUESTS,
                text: text.to_owned(),
            };
            in_short(&anyhow::Error::new(refused).context("/v1/completions"))
        };
        let body = r#"{"error": {"message": "too much waits", "type": "rate_limit_error"}}"#;
        assert_eq!(refused(body), "429: too much waits");
        assert_eq!(refused("busy"), "429: busy");
        let other = anyhow::anyhow!("reset").context("the stream broke off");
        assert_eq!(in_short(&other), "the stream broke off: reset");
    }
}
