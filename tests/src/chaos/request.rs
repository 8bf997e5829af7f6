//! The requests of a run: of every kind, each the same whenever a run has the same seed.

use serde_json::{Value, json};

use crate::config::MODEL;
use crate::fixtures::{Question, questions};

/// A generator of numbers: the same seed gives the same ones.
#[derive(Clone, Debug)]
pub struct Numbers(u64);

impl Numbers {
    /// Numbers that follow from a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next one (splitmix64).
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// The next one below a limit.
    pub fn below(&mut self, limit: usize) -> usize {
        let limit = u64::try_from(limit).expect("a count");
        usize::try_from(self.next() % limit).expect("below a count")
    }
}

/// What a client sends.
#[derive(Clone, Debug)]
pub struct Request {
    /// Its place in the run.
    pub number: usize,
    /// What kind it is, for people.
    pub kind: &'static str,
    /// The route.
    pub path: &'static str,
    /// The body.
    pub body: Value,
    /// Its `Idempotency-Key`.
    pub key: String,
    /// Whether the answer is a stream.
    pub stream: bool,
}

/// Makes requests.
pub struct Requests {
    seed: u64,
    plain: Vec<Question>,
    with_tools: Vec<Question>,
}

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const MISTRAL: &str = "/mistral/v1/chat/completions";

impl Requests {
    /// Those of a run with this seed.
    pub fn new(seed: u64) -> Self {
        let (with_tools, plain) = questions().into_iter().partition(|one| one.tools.is_some());
        Self {
            seed,
            plain,
            with_tools,
        }
    }

    /// Request number `number` of the run.
    pub fn numbered(&self, number: usize) -> Request {
        let place = u64::try_from(number).expect("a count");
        let mut numbers = Numbers::new(self.seed ^ place.wrapping_mul(0x2545_f491_4f6c_dd1d));
        let stream = numbers.below(2) == 0;
        let (kind, path, mut body, streams) = match number % 8 {
            0 => {
                let messages = &self.plain[numbers.below(self.plain.len())].messages;
                (
                    "greedy chat",
                    CHAT,
                    json!({"messages": messages, "temperature": 0, "max_tokens": 48}),
                    true,
                )
            }
            1 => {
                let body = json!({"prompt": prompt(&mut numbers), "n": 2, "temperature": 0.9, "top_p": 0.95,
                    "max_tokens": 30, "ignore_eos": true});
                ("two sampled choices", COMPLETIONS, body, stream)
            }
            2 => {
                let question = &self.with_tools[numbers.below(self.with_tools.len())];
                let body = json!({"messages": question.messages, "tools": question.tools, "temperature": 0,
                    "max_tokens": 64});
                ("tools", CHAT, body, stream)
            }
            3 => {
                let messages = json!([{"role": "user", "content": "Describe a thing as JSON."}]);
                let body = json!({"messages": messages, "response_format": shape(), "temperature": 1, "max_tokens": 60});
                ("a JSON schema", CHAT, body, stream)
            }
            4 => {
                let tokens = 40 + numbers.below(60);
                let body = json!({"prompt": prompt(&mut numbers), "temperature": 0.8, "frequency_penalty": 0.5,
                    "max_tokens": tokens, "ignore_eos": true});
                ("seeded sampling", COMPLETIONS, body, true)
            }
            5 => {
                let body = json!({"prompt": prompt(&mut numbers), "temperature": 0, "max_tokens": 80, "ignore_eos": true});
                ("long greedy", COMPLETIONS, body, stream)
            }
            6 => {
                let thought = json!({"type": "thinking", "thinking": [{"type": "text", "text": "1 2 3"}], "closed": false});
                let messages = json!([{"role": "user", "content": "Count from 1 to 50."},
                    {"role": "assistant", "prefix": true, "content": [thought]}]);
                (
                    "reasoning",
                    MISTRAL,
                    json!({"messages": messages, "temperature": 0.7, "max_tokens": 24}),
                    stream,
                )
            }
            _ => {
                let messages = json!([{"role": "user", "content": "Tell me a story."}]);
                let body = json!({"messages": messages, "temperature": 1, "n": 2, "max_tokens": 32});
                ("a seed from the key", CHAT, body, true)
            }
        };
        body["model"] = json!(MODEL);
        // Every token with its log-probability, so that answers are compared bit by bit.
        body["logprobs"] = if path == COMPLETIONS {
            json!(1)
        } else {
            json!(true)
        };
        body["return_tokens_as_token_ids"] = json!(true);
        if kind == "seeded sampling" {
            body["seed"] = json!(numbers.next() >> 1);
        }
        if streams {
            body["stream"] = json!(true);
            body["stream_options"] = json!({"include_usage": true});
        }
        Request {
            number,
            kind,
            path,
            body,
            key: format!("chaos-{}-{number}", self.seed),
            stream: streams,
        }
    }
}

/// Token ids of ordinary text; a third of the prompts begin alike.
fn prompt(numbers: &mut Numbers) -> Vec<usize> {
    let length = 8 + numbers.below(40);
    let mut common = Numbers::new(7);
    let shared = if numbers.below(3) == 0 { 16 } else { 0 };
    let beginning = (0..shared).map(|_| 1100 + common.below(6000));
    let own = (0..length).map(|_| 1100 + numbers.below(6000));
    beginning.chain(own).collect()
}

fn shape() -> Value {
    let tags = json!({"type": "array", "minItems": 3, "maxItems": 8, "items": {"enum": ["red", "green", "blue", "old"]}});
    let schema = json!({
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 24}, "size": {"type": "integer"}, "tags": tags},
        "required": ["name", "size", "tags"],
        "additionalProperties": false,
    });
    json!({"type": "json_schema", "json_schema": {"name": "thing", "strict": true, "schema": schema}})
}
