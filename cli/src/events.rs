//! The chunks of OpenAI's streams, as far as the command line reads them.

use serde::Deserialize;

/// A chunk of either route, or an error.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Chunk {
    #[serde(default)]
    pub(crate) choices: Vec<Choice>,
    pub(crate) usage: Option<Usage>,
    pub(crate) error: Option<Failure>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Choice {
    /// Of chat answers.
    pub(crate) delta: Option<Delta>,
    /// Of plain answers that ask for log-probabilities.
    pub(crate) logprobs: Option<Logprobs>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Delta {
    pub(crate) content: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Logprobs {
    #[serde(default)]
    pub(crate) tokens: Vec<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Usage {
    pub(crate) completion_tokens: u64,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Failure {
    pub(crate) message: String,
}

impl Chunk {
    /// Reads a chunk; one that tells an error is one.
    pub(crate) fn read(data: &str) -> anyhow::Result<Self> {
        use anyhow::Context;
        let chunk: Self =
            serde_json::from_str(data).context("a chunk of the stream is not what it should be")?;
        match chunk.error {
            Some(failure) => anyhow::bail!("{}", failure.message),
            None => Ok(chunk),
        }
    }

    /// The text that it adds.
    pub(crate) fn text(&self) -> &str {
        let delta = self.choices.first().and_then(|choice| choice.delta.as_ref());
        delta
            .and_then(|delta| delta.content.as_deref())
            .unwrap_or_default()
    }

    /// How many tokens it adds, where log-probabilities were asked for.
    pub(crate) fn tokens(&self) -> u64 {
        let each = self.choices.iter().filter_map(|choice| choice.logprobs.as_ref());
        each.map(|logprobs| logprobs.tokens.len() as u64).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_of_both_routes_are_read() {
        let chat = r#"{"id":"x","choices":[{"index":0,"delta":{"content":"Pa"},"logprobs":null,"finish_reason":null}],"usage":null}"#;
        let chunk = Chunk::read(chat).expect("a chunk");
        assert_eq!((chunk.text(), chunk.tokens()), ("Pa", 0));
        let plain =
            r#"{"choices":[{"index":0,"text":"","logprobs":{"tokens":["token_id:5","token_id:6"]}}]}"#;
        assert_eq!(Chunk::read(plain).expect("a chunk").tokens(), 2);
        let usage = r#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":7,"total_tokens":10}}"#;
        let usage = Chunk::read(usage).expect("a chunk").usage;
        assert_eq!(usage.map(|usage| usage.completion_tokens), Some(7));
    }

    #[test]
    fn errors_are_told() {
        let failed = r#"{"error":{"message":"no replica serves","type":"server_error","code":null}}"#;
        assert_eq!(
            Chunk::read(failed).expect_err("an error").to_string(),
            "no replica serves"
        );
        assert!(Chunk::read("{").is_err());
    }
}
