//! Fields that chat and plain completions share.

use super::*;

/// Faults in the fields that both routes share.
pub(super) fn shared_cases(limit: &str) -> Vec<Case> {
    let max = |value: Value, shown: &str| {
        let message = format!("{limit}: is {shown}, it must be a whole number from 1 to 4096");
        case(json!({limit: value}), limit, &message)
    };
    vec![
        max(json!(0), "0"),
        max(json!(-5), "-5"),
        max(json!(4097), "4097"),
        max(json!(u64::MAX), "18446744073709551615"),
        max(json!(1.5), "1.5"),
        max(json!("7"), "\"7\""),
        max(json!([1]), "[1]"),
        case(
            json!({"temperature": -0.1}),
            "temperature",
            "temperature: is -0.1, it must be a number from 0 to 2",
        ),
        case(
            json!({"temperature": 2.5}),
            "temperature",
            "temperature: is 2.5, it must be a number from 0 to 2",
        ),
        case(
            json!({"temperature": "hot"}),
            "temperature",
            "temperature: is \"hot\", it must be a number from 0 to 2",
        ),
        case(
            json!({"top_p": 0}),
            "top_p",
            "top_p: is 0, it must be a number above 0 and at most 1",
        ),
        case(
            json!({"top_p": 1.01}),
            "top_p",
            "top_p: is 1.01, it must be a number above 0 and at most 1",
        ),
        case(
            json!({"seed": 0.5}),
            "seed",
            "seed: is 0.5, it must be a whole number of at most 64 bits",
        ),
        case(
            json!({"priority": 101}),
            "priority",
            "priority: is 101, it must be a whole number from -100 to 100",
        ),
        case(
            json!({"cache_salt": "a".repeat(257)}),
            "cache_salt",
            "cache_salt: has 257 bytes, at most 256 are allowed",
        ),
        case(
            json!({"seed": "a"}),
            "seed",
            "seed: is \"a\", it must be a whole number of at most 64 bits",
        ),
        case(
            json!({"stop": 5}),
            "stop",
            "stop: must be a string or an array of strings",
        ),
        case(
            json!({"stop": ["a", 5]}),
            "stop",
            "stop: must be a string or an array of strings",
        ),
        case(json!({"stop": ["a", ""]}), "stop", "stop[1]: must not be empty"),
        case(
            json!({"stop": vec!["a"; 17]}),
            "stop",
            "stop: 17 stop strings, at most 16 are allowed",
        ),
        case(
            json!({"stop": "a".repeat(257)}),
            "stop",
            "stop[0]: 257 bytes, at most 256 are allowed",
        ),
        case(
            json!({"stream": "yes"}),
            "stream",
            "stream: invalid type: string \"yes\", expected a boolean",
        ),
        case(
            json!({"stream_options": {"include_usage": true}}),
            "stream_options",
            "stream_options: is allowed only where stream is true",
        ),
        case(
            json!({"stream": true, "stream_options": {"include_usage": 1}}),
            "stream_options.include_usage",
            "stream_options.include_usage: invalid type: integer `1`, expected a boolean",
        ),
        case(
            json!({"ignore_eos": 1}),
            "ignore_eos",
            "ignore_eos: invalid type: integer `1`, expected a boolean",
        ),
        case(
            json!({"model": 7}),
            "model",
            "model: invalid type: integer `7`, expected a string",
        ),
        case(
            json!({"model": null}),
            "model",
            "model: is missing, it must be \"mini-large-3\"",
        ),
        Case {
            status: 404,
            code: json!("model_not_found"),
            ..case(
                json!({"model": "gpt"}),
                "model",
                "model: \"gpt\" does not exist, this cluster serves \"mini-large-3\"",
            )
        },
        case(
            json!({"n": 0}),
            "n",
            "n: is 0, it must be a whole number from 1 to 16",
        ),
        case(
            json!({"n": 17}),
            "n",
            "n: is 17, it must be a whole number from 1 to 16",
        ),
        case(
            json!({"n": 1.5}),
            "n",
            "n: is 1.5, it must be a whole number from 1 to 16",
        ),
        case(
            json!({"n": [2]}),
            "n",
            "n: is [2], it must be a whole number from 1 to 16",
        ),
        case(
            json!({"user": 5}),
            "user",
            "user: invalid type: integer `5`, expected a string",
        ),
        case(
            json!({"user": "é".repeat(513)}),
            "user",
            "user: has 513 characters, at most 512 are taken",
        ),
        case(
            json!({"metadata": "a"}),
            "metadata",
            "metadata: invalid type: string \"a\", expected an object of at most 16 pairs",
        ),
        case(
            json!({"metadata": {"k": [1]}}),
            "metadata",
            "metadata: a value must be a string, a number or a boolean",
        ),
        case(
            json!({"metadata": {"k": "é".repeat(513)}}),
            "metadata",
            "metadata: a value has more than 512 characters, the most that are taken",
        ),
        case(
            json!({"metadata": {"é".repeat(65): "a"}}),
            "metadata",
            "metadata: a key has more than 64 characters, the most that are taken",
        ),
        case(
            json!({"metadata": (0..17).map(|key| (key.to_string(), json!("a"))).collect::<serde_json::Map<_, _>>()}),
            "metadata",
            "metadata: more than 16 pairs, the most that are taken",
        ),
        case(
            json!({"prompt_logprobs": 21}),
            "prompt_logprobs",
            "prompt_logprobs: is 21, it must be a whole number from 0 to 20",
        ),
        unsupported(
            json!({"prompt_logprobs": 1, "stream": true}),
            "prompt_logprobs",
            "is not supported where stream is true",
        ),
        unsupported(
            json!({"best_of": 3}),
            "best_of",
            "is not supported yet other than 1",
        ),
    ]
}
