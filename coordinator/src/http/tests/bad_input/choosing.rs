//! Fields that say how tokens are chosen.

use super::*;

/// Faults in the fields that say how tokens are chosen.
pub(super) fn sampling_cases() -> Vec<Case> {
    let number = |field: &str, value: Value, shown: &str, right: &str| {
        let message = format!("{field}: is {shown}, it must be a {right}");
        case(json!({field: value}), field, &message)
    };
    let top_k =
        |value: Value, shown: &str| number("top_k", value, shown, "whole number from -1 to 2147483647");
    let min_tokens =
        |value: Value, shown: &str| number("min_tokens", value, shown, "whole number from 0 to 4096");
    let mut cases = vec![
        top_k(json!(-2), "-2"),
        top_k(json!(1.5), "1.5"),
        top_k(json!("40"), "\"40\""),
        top_k(json!(u64::MAX), "18446744073709551615"),
        min_tokens(json!(-1), "-1"),
        min_tokens(json!(4097), "4097"),
        min_tokens(json!(true), "true"),
        case(
            json!({"min_tokens": 12, "max_tokens": 11}),
            "min_tokens",
            "min_tokens: is 12, at most 11 tokens will be generated",
        ),
    ];
    for (field, right, bad) in [
        (
            "min_p",
            "number from 0 to 1",
            [json!(-0.1), json!(1.1), json!("0.1"), json!([])],
        ),
        (
            "presence_penalty",
            "number from -2 to 2",
            [json!(-2.1), json!(2.1), json!("1"), json!({})],
        ),
        (
            "frequency_penalty",
            "number from -2 to 2",
            [json!(-2.1), json!(2.1), json!("1"), json!(true)],
        ),
        (
            "repetition_penalty",
            "number from 0.01 to 100",
            [json!(0), json!(-1.5), json!(101), json!("1")],
        ),
    ] {
        cases.extend(bad.into_iter().map(|value| {
            let shown = value.to_string();
            number(field, value, &shown, right)
        }));
    }
    let object = "expected an object of token ids and numbers";
    cases.extend([
        case(
            json!({"logit_bias": 5}),
            "logit_bias",
            &format!("logit_bias: invalid type: integer `5`, {object}"),
        ),
        case(
            json!({"logit_bias": [[5, 1]]}),
            "logit_bias",
            &format!("logit_bias: invalid type: sequence, {object}"),
        ),
        case(
            json!({"logit_bias": {"dog": 1}}),
            "logit_bias",
            "logit_bias: \"dog\" is not a token id",
        ),
        case(
            json!({"logit_bias": {"-1": 1}}),
            "logit_bias",
            "logit_bias: \"-1\" is not a token id",
        ),
        case(
            json!({"logit_bias": {"8192": 1}}),
            "logit_bias",
            "logit_bias: has token id 8192, token ids are from 0 to 8191",
        ),
        case(
            json!({"logit_bias": {"7": 100.5}}),
            "logit_bias.7",
            "logit_bias.7: is 100.5, it must be a number from -100 to 100",
        ),
        case(
            json!({"logit_bias": {"7": "1"}}),
            "logit_bias.7",
            "logit_bias.7: invalid type: string \"1\", expected f64",
        ),
        case(
            json!({"stop_token_ids": 7}),
            "stop_token_ids",
            "stop_token_ids: invalid type: integer `7`, expected a sequence",
        ),
        case(
            json!({"stop_token_ids": [7, "8"]}),
            "stop_token_ids[1]",
            "stop_token_ids[1]: invalid type: string \"8\", expected i64",
        ),
        case(
            json!({"stop_token_ids": [7, 8192]}),
            "stop_token_ids[1]",
            "stop_token_ids[1]: is 8192, token ids are from 0 to 8191",
        ),
        case(
            json!({"stop_token_ids": [-1]}),
            "stop_token_ids[0]",
            "stop_token_ids[0]: is -1, token ids are from 0 to 8191",
        ),
        case(
            json!({"stop_token_ids": vec![7; 64]}),
            "stop_token_ids",
            "stop_token_ids: has 64 token ids, at most 63 are allowed",
        ),
    ]);
    cases
}
