//! The chunks of OpenAI's streams, as far as the command line reads them.

use serde::Deserialize;
use serde::de::IgnoredAny;

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
    /// Of plain answers.
    pub(crate) text: Option<String>,
    /// Where log-probabilities were asked for.
    pub(crate) logprobs: Option<Logprobs>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Delta {
    pub(crate) content: Option<String>,
    reasoning_content: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Logprobs {
    /// Of plain answers.
    #[serde(default)]
    tokens: Vec<IgnoredAny>,
    /// Of chat answers.
    #[serde(default)]
    content: Option<Vec<IgnoredAny>>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Usage {
    pub(crate) prompt_tokens: u64,
    pub(crate) completion_tokens: u64,
    pub(crate) prompt_tokens_details: Option<PromptTokensDetails>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct PromptTokensDetails {
    pub(crate) cached_tokens: u64,
}

impl Usage {
    /// Prompt tokens that were found in a prefix cache.
    pub(crate) fn cached_tokens(&self) -> u64 {
        self.prompt_tokens_details
            .as_ref()
            .map_or(0, |details| details.cached_tokens)
    }
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
        each.map(|logprobs| {
            logprobs
                .tokens
                .len()
                .max(logprobs.content.as_ref().map_or(0, Vec::len)) as u64
        })
        .sum()
    }

    /// Whether it adds any text or reasoning.
    pub(crate) fn has_text(&self) -> bool {
        let said = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
        self.choices.iter().any(|choice| {
            let delta = choice.delta.as_ref();
            said(&choice.text)
                || delta.is_some_and(|delta| said(&delta.content) || said(&delta.reasoning_content))
        })
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
        let usage = usage.map(|usage| {
            (
                usage.prompt_tokens,
                usage.cached_tokens(),
                usage.completion_tokens,
            )
        });
        assert_eq!(usage, Some((3, 0, 7)));
        let chat =
            r#"{"choices":[{"delta":{"content":""},"logprobs":{"content":[{"token":"a"},{"token":"b"}]}}]}"#;
        let chunk = Chunk::read(chat).expect("a chunk");
        assert_eq!((chunk.tokens(), chunk.has_text()), (2, false));
        let reasons = r#"{"choices":[{"delta":{"reasoning_content":"hm"}}]}"#;
        assert!(Chunk::read(reasons).expect("a chunk").has_text());
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
