//! Plain completions.

use super::*;

#[tokio::test]
async fn completions_name_the_field() {
    let right = "it must be a string, an array of token ids, or an array of either";
    let mut cases = shared_cases("max_completion_tokens");
    cases.extend(sampling_cases());
    cases.extend([
        case(
            json!({"prompt": null}),
            "prompt",
            &format!("prompt: is missing, {right}"),
        ),
        case(
            json!({"prompt": []}),
            "prompt",
            &format!("prompt: is empty, {right}"),
        ),
        case(
            json!({"prompt": {"a": 1}}),
            "prompt",
            &format!("prompt: is of another type, {right}"),
        ),
        case(
            json!({"prompt": [1, 8192]}),
            "prompt[1]",
            "prompt[1]: token id 8192 is outside the vocabulary, ids are below 8192",
        ),
        case(
            json!({"prompt": [-1]}),
            "prompt[0]",
            "prompt[0]: token id -1 is below 0",
        ),
        too_long(
            json!({"prompt": vec![7; 4096]}),
            "prompt",
            "prompt: has 4096 tokens, at most 4095 leave room for an answer in the context of 4096",
        ),
        too_long(
            json!({"prompt": [[7], vec![7; 5000]]}),
            "prompt[1]",
            "prompt[1]: has 5000 tokens, at most 4095 leave room for an answer in the context of 4096",
        ),
        too_long(
            json!({"prompt": vec![7; 4000], "max_tokens": 97}),
            "max_tokens",
            "max_tokens: is 97, after a prompt of 4000 tokens at most 96 fit the context of 4096",
        ),
        case(
            json!({"logprobs": 21}),
            "logprobs",
            "logprobs: is 21, it must be a whole number from 0 to 20",
        ),
        case(
            json!({"logprobs": true}),
            "logprobs",
            "logprobs: is true, it must be a whole number from 0 to 20",
        ),
        case(
            json!({"prompt": vec!["a"; 64], "n": 3}),
            "n",
            "n: is 3, for 64 prompts it must be at most 2: a request has at most 128 choices",
        ),
        case(
            json!({"echo": 1}),
            "echo",
            "echo: invalid type: integer `1`, expected a boolean",
        ),
        unsupported(
            json!({"random_seed": 1}),
            "random_seed",
            "is not supported here, use seed",
        ),
        unsupported(
            json!({"suffix": "end"}),
            "suffix",
            "is not supported yet, leave it out",
        ),
    ]);
    check("/v1/completions", json!({"prompt": "a"}), cases).await;
}
