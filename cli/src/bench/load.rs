//! What is asked: prompts made from a seed, or bodies from a file. Request `n` is the same however many are sent, and
//! whenever.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

use super::random::Random;

const CHAT: &str = "/v1/chat/completions";
const PLAIN: &str = "/v1/completions";
/// Ids of prompts: after the special tokens, and in every vocabulary of the family.
const FIRST_ID: u64 = 1000;
const IDS: u64 = 7000;
/// Streams of random numbers.
const LENGTHS: u64 = 2;
const PROMPTS: u64 = 3;
const PREFIXES: u64 = 4;
const WARM_UP: u64 = 5;
/// Largest file of requests.
const MAX_FILE_BYTES: u64 = 1 << 30;
/// Most requests in a file.
const MAX_LINES: usize = 1_000_000;

/// One request, ready to be sent.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Ask {
    pub(super) path: &'static str,
    pub(super) body: String,
    /// How many tokens must come, where that is certain.
    pub(super) tokens: Option<u32>,
}

/// Lengths and shape of prompts that are made up.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Synthetic {
    pub(super) model: String,
    pub(super) seed: u64,
    /// Tokens of each prompt beside what it shares.
    pub(super) prompt_tokens: u32,
    pub(super) output_tokens: u32,
    /// How far lengths may be from these, as a share of them.
    pub(super) spread: f64,
    /// Tokens at the beginning that the prompts of a group share.
    pub(super) shared_prefix: u32,
    pub(super) prefix_groups: u32,
}

/// Where requests come from.
#[derive(Clone, Debug)]
pub(super) enum Load {
    Synthetic(Synthetic),
    /// One after the other, and again from the first.
    File(Vec<Ask>),
}

impl Load {
    /// Request `number`, counted from 0.
    pub(super) fn ask(&self, number: u64) -> Ask {
        match self {
            Self::Synthetic(synthetic) => synthetic.ask(number),
            Self::File(asks) => {
                let at = usize::try_from(number).unwrap_or(usize::MAX) % asks.len().max(1);
                asks.get(at).cloned().unwrap_or_else(|| Ask {
                    path: PLAIN,
                    body: String::new(),
                    tokens: None,
                })
            }
        }
    }

    /// A request before the measurement: of the same lengths, with a prompt that none of the measured ones shares.
    pub(super) fn warm_up(&self, number: u64) -> Ask {
        match self {
            Self::Synthetic(synthetic) => synthetic.warm_up(number),
            Self::File(_) => self.ask(number),
        }
    }
}

impl Synthetic {
    fn ask(&self, number: u64) -> Ask {
        let mut lengths = Random::new(self.seed, LENGTHS, number);
        let prompt_tokens = lengths.around(self.prompt_tokens, self.spread);
        let output_tokens = lengths.around(self.output_tokens, self.spread);
        let group = lengths.below(u64::from(self.prefix_groups.max(1)));
        let prefix = ids(self.seed, PREFIXES, group, self.shared_prefix);
        let own = ids(self.seed, PROMPTS, number, prompt_tokens);
        self.body(&[prefix, own].concat(), output_tokens)
    }

    fn warm_up(&self, number: u64) -> Ask {
        let tokens = self.prompt_tokens.saturating_add(self.shared_prefix);
        self.body(&ids(self.seed, WARM_UP, number, tokens), self.output_tokens)
    }

    fn body(&self, prompt: &[u64], output_tokens: u32) -> Ask {
        let body = json!({
            "model": self.model,
            "prompt": prompt,
            "max_tokens": output_tokens,
            "temperature": 0,
            "ignore_eos": true,
            "stream": true,
            "stream_options": {"include_usage": true},
            // So that every token shows, also one that adds no text.
            "logprobs": 0,
            "return_tokens_as_token_ids": true,
        });
        Ask {
            path: PLAIN,
            body: body.to_string(),
            tokens: Some(output_tokens),
        }
    }
}

/// So many token ids of a stream of random numbers.
fn ids(seed: u64, stream: u64, number: u64, count: u32) -> Vec<u64> {
    let mut random = Random::new(seed, stream, number);
    (0..count).map(|_| FIRST_ID + random.below(IDS)).collect()
}

/// Reads a file of requests, one a line: the body of a chat or plain completion, or a prompt as a JSON string.
pub(super) fn read(path: &Path, model: &str, output_tokens: u32) -> Result<Load> {
    let named = || path.display().to_string();
    let size = std::fs::metadata(path).with_context(named)?.len();
    if size > MAX_FILE_BYTES {
        bail!(
            "{}: it has {size} bytes, at most {MAX_FILE_BYTES} are read",
            named()
        );
    }
    let text = std::fs::read_to_string(path).with_context(named)?;
    let lines = text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty());
    let mut asks = Vec::new();
    for (line, number) in lines {
        if asks.len() == MAX_LINES {
            bail!(
                "{}: it has more than {MAX_LINES} requests, the most that are read",
                named()
            );
        }
        let ask = one(line, model, output_tokens).with_context(|| format!("{}: line {number}", named()))?;
        asks.push(ask);
    }
    if asks.is_empty() {
        bail!("{}: it has no request, it must have one a line", named());
    }
    Ok(Load::File(asks))
}

fn one(line: &str, model: &str, output_tokens: u32) -> Result<Ask> {
    let value: Value = serde_json::from_str(line).context("it is no JSON")?;
    let mut body = match value {
        Value::String(prompt) => Map::from_iter([("prompt".to_owned(), prompt.into())]),
        Value::Object(body) => body,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => {
            bail!("it is neither an object, the body of a request, nor a string, a prompt")
        }
    };
    let path = match (body.contains_key("messages"), body.contains_key("prompt")) {
        (true, false) => CHAT,
        (false, true) => PLAIN,
        (true, true) => bail!("it has messages and prompt, a request has one of them"),
        (false, false) => bail!("it has neither messages nor prompt"),
    };
    let limits = ["max_tokens", "max_completion_tokens"];
    if !limits.iter().any(|limit| body.contains_key(*limit)) {
        body.insert("max_tokens".to_owned(), output_tokens.into());
    }
    body.entry("model").or_insert_with(|| model.into());
    // So that every token shows, also one that adds no text.
    body.entry("logprobs").or_insert_with(|| match path {
        CHAT => true.into(),
        _ => 0.into(),
    });
    body.insert("stream".to_owned(), true.into());
    body.insert("stream_options".to_owned(), json!({"include_usage": true}));
    Ok(Ask {
        path,
        body: Value::Object(body).to_string(),
        tokens: None,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn synthetic() -> Synthetic {
        Synthetic {
            model: "m".to_owned(),
            seed: 5,
            prompt_tokens: 10,
            output_tokens: 4,
            spread: 0.0,
            shared_prefix: 0,
            prefix_groups: 1,
        }
    }

    fn prompt(ask: &Ask) -> Vec<u64> {
        let body: Value = serde_json::from_str(&ask.body).expect("JSON");
        serde_json::from_value(body["prompt"].clone()).expect("ids")
    }

    #[test]
    fn prompts_follow_from_seed_and_number_and_no_two_begin_alike() {
        let load = Load::Synthetic(synthetic());
        assert_eq!(load.ask(3), load.ask(3));
        let other = Load::Synthetic(Synthetic {
            seed: 6,
            ..synthetic()
        });
        assert_ne!(load.ask(3), other.ask(3));
        let asks = (0..500)
            .map(|number| load.ask(number))
            .chain((0..500).map(|number| load.warm_up(number)));
        let starts: BTreeSet<Vec<u64>> = asks.map(|ask| prompt(&ask)[..4].to_vec()).collect();
        assert_eq!(starts.len(), 1000);
        let ids = prompt(&load.ask(9));
        assert!(ids.len() == 10 && ids.iter().all(|id| (FIRST_ID..FIRST_ID + IDS).contains(id)));
        assert_eq!(load.ask(9).tokens, Some(4));
    }

    #[test]
    fn lengths_are_spread() {
        let load = Load::Synthetic(Synthetic {
            spread: 0.5,
            ..synthetic()
        });
        let asks: Vec<Ask> = (0..400).map(|number| load.ask(number)).collect();
        let lengths: BTreeSet<usize> = asks.iter().map(|ask| prompt(ask).len()).collect();
        assert_eq!(
            lengths.into_iter().collect::<Vec<_>>(),
            (5..=15).collect::<Vec<_>>()
        );
        let outputs: BTreeSet<_> = asks.iter().map(|ask| ask.tokens).collect();
        assert_eq!(
            outputs.into_iter().collect::<Vec<_>>(),
            (2..=6).map(Some).collect::<Vec<_>>()
        );
    }

    #[test]
    fn prompts_of_a_group_begin_alike_and_warm_ups_with_none() {
        let load = Load::Synthetic(Synthetic {
            shared_prefix: 20,
            prefix_groups: 3,
            ..synthetic()
        });
        let prompts: Vec<Vec<u64>> = (0..60).map(|number| prompt(&load.ask(number))).collect();
        assert!(prompts.iter().all(|prompt| prompt.len() == 30));
        let prefixes: BTreeSet<&[u64]> = prompts.iter().map(|prompt| &prompt[..20]).collect();
        assert_eq!(prefixes.len(), 3);
        let own: BTreeSet<&[u64]> = prompts.iter().map(|prompt| &prompt[20..]).collect();
        assert_eq!(own.len(), 60);
        let warm = prompt(&load.warm_up(0));
        assert!(warm.len() == 30 && !prefixes.contains(&warm[..20]));
    }

    fn file(text: &str) -> Result<Load> {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("requests.jsonl");
        std::fs::write(&path, text).expect("writes");
        read(&path, "m", 7)
    }

    #[test]
    fn bodies_and_prompts_of_a_file_are_completed() {
        let text = "{\"messages\": [], \"max_completion_tokens\": 3}\n\n\"a prompt\"\n\
                    {\"prompt\": [1], \"model\": \"x\", \"logprobs\": 2, \"stream\": false}\n";
        let load = file(text).expect("valid");
        let body = |number| -> Value { serde_json::from_str(&load.ask(number).body).expect("JSON") };
        assert_eq!((load.ask(0).path, load.ask(1).path), (CHAT, PLAIN));
        let streamed = json!({"include_usage": true});
        assert_eq!(
            body(0),
            json!({"messages": [], "max_completion_tokens": 3, "model": "m", "logprobs": true, "stream": true,
                   "stream_options": streamed})
        );
        assert_eq!(
            body(1),
            json!({"prompt": "a prompt", "max_tokens": 7, "model": "m", "logprobs": 0, "stream": true,
                   "stream_options": streamed})
        );
        assert_eq!(
            (body(2)["logprobs"].as_u64(), body(2)["model"].as_str()),
            (Some(2), Some("x"))
        );
        assert_eq!(body(2)["stream"], true);
        assert_eq!(load.ask(3), load.ask(0), "again from the first");
    }

    #[test]
    fn faults_of_a_file_name_the_line() {
        for (text, says) in [
            ("\n", "no request"),
            ("\"a\"\n{", "line 2"),
            ("5", "neither an object"),
            ("{\"model\": \"m\"}", "neither messages nor prompt"),
            ("{\"prompt\": \"\", \"messages\": []}", "one of them"),
        ] {
            let error = format!("{:#}", file(text).expect_err("refused"));
            assert!(
                error.contains(says) && error.contains("requests.jsonl"),
                "{error}"
            );
        }
        assert!(read(Path::new("no/such/file"), "m", 1).is_err());
    }
}
