//! Each fault of a `tekken.json` has its own error, which names the field.

use std::path::Path;

use serde_json::{Value, json};
use tramontane_coordinator::text::Tokenizer;

const SPECIAL: [&str; 12] = [
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[TOOL_CALLS]",
    "[ARGS]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
];

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits =
            chunk.iter().fold(0u32, |bits, &byte| bits << 8 | u32::from(byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let sextet = (bits >> (18 - 6 * place)) & 63;
            text.push(if place <= chunk.len() {
                char::from(ALPHABET[sextet as usize])
            } else {
                '='
            });
        }
    }
    text
}

/// 16 special ids of which 12 have names, the bytes, and three merged tokens, the last of them unused.
fn good() -> Value {
    let mut tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    tokens.extend([b"ab".to_vec(), b"abc".to_vec(), b"ab".to_vec()]);
    let vocab: Vec<Value> = tokens
        .iter()
        .enumerate()
        .map(|(rank, bytes)| json!({"rank": rank, "token_bytes": base64(bytes), "token_str": null}))
        .collect();
    let special: Vec<Value> = SPECIAL
        .iter()
        .enumerate()
        .map(|(rank, name)| json!({"rank": rank, "token_str": name, "is_control": true}))
        .collect();
    json!({
        "config": {
            "pattern": r"\w+|\s+(?!\S)|\s+",
            "num_vocab_tokens": 259,
            "default_vocab_size": 16 + 258,
            "default_num_special_tokens": 16,
            "version": "v13",
        },
        "vocab": vocab,
        "special_tokens": special,
        "image": {"image_patch_size": 14},
    })
}

fn load(file: &Value) -> Result<Tokenizer, String> {
    let bytes = serde_json::to_vec(file).unwrap();
    Tokenizer::from_bytes(Path::new("t.json"), &bytes, 274).map_err(|e| e.to_string())
}

#[test]
fn the_good_file_loads() {
    let tokenizer = load(&good()).unwrap();
    assert_eq!(tokenizer.encode("abc ab").unwrap(), [16 + 257, 16 + 32, 16 + 256]);
    assert_eq!(tokenizer.token_bytes(15), Ok(&b"<SPECIAL_15>"[..]));
    assert_eq!(tokenizer.vocab_size(), 274);
}

#[test]
fn each_fault_has_its_error() {
    type Corrupt = fn(&mut Value);
    let cases: &[(Corrupt, &str)] = &[
        (
            |f| f["config"]["version"] = json!("v11"),
            "config.version is \"v11\", supported is \"v13\"",
        ),
        (
            |f| f["config"]["default_vocab_size"] = json!(300),
            "config.default_vocab_size needs 284 text tokens beside the special ones, vocab has 259 entries",
        ),
        (
            |f| f["config"]["default_vocab_size"] = json!(273),
            "config.default_vocab_size is 273, the model has vocab_size 274",
        ),
        (
            |f| f["config"]["default_vocab_size"] = json!(271),
            "config.default_vocab_size is 271, it must be at least default_num_special_tokens (16) + 256",
        ),
        (
            |f| f["config"]["default_num_special_tokens"] = json!(u64::MAX),
            "config.default_vocab_size is 274, it must be at least \
             default_num_special_tokens (18446744073709551615) + 256",
        ),
        (
            |f| f["config"]["default_num_special_tokens"] = json!(11),
            "special_tokens has 12 entries, config.default_num_special_tokens leaves room for 11",
        ),
        (
            |f| f["vocab"][257]["rank"] = json!(258),
            "vocab[257].rank is 258, expected 257",
        ),
        (
            |f| f["special_tokens"][3]["rank"] = json!(4),
            "special_tokens[3].rank is 4, expected 3",
        ),
        (
            |f| f["vocab"][256]["token_bytes"] = json!("?b=="),
            "vocab[256].token_bytes is not base64: Invalid symbol 63, offset 0.",
        ),
        (
            |f| f["vocab"][256]["token_bytes"] = json!(""),
            "vocab[256].token_bytes has 0 bytes, it must have 1 to 1024",
        ),
        (
            |f| f["vocab"][256]["token_bytes"] = json!(base64(&[7; 1025])),
            "vocab[256].token_bytes has 1025 bytes, it must have 1 to 1024",
        ),
        (
            |f| f["vocab"][256]["token_bytes"] = json!("A".repeat(1 << 20)),
            "vocab[256].token_bytes has 786432 bytes, it must have 1 to 1024",
        ),
        (
            |f| f["vocab"][65]["token_bytes"] = json!(base64(b"B")),
            "vocab[65].token_bytes must be the single byte 0x41",
        ),
        (
            |f| f["vocab"][257]["token_bytes"] = json!(base64(b"ab")),
            "vocab[257].token_bytes repeats vocab[256].token_bytes",
        ),
        (
            |f| f["special_tokens"][11]["token_str"] = json!("<s>"),
            "special_tokens[11].token_str repeats special_tokens[0].token_str \"<s>\"",
        ),
        (
            |f| f["special_tokens"][11]["token_str"] = json!("<SPECIAL_13>"),
            "special_tokens[13].token_str repeats special_tokens[11].token_str \"<SPECIAL_13>\"",
        ),
        (
            |f| f["special_tokens"][9]["token_str"] = json!("[ARGUMENTS]"),
            "special_tokens has no \"[ARGS]\", which the v13 chat format needs",
        ),
        (
            |f| f["config"]["pattern"] = json!("a".repeat(5000)),
            "config.pattern has 5000 bytes, at most 4096 are read",
        ),
        (
            |f| f["config"]["pattern"] = json!("(a"),
            "config.pattern is not a valid regular expression: ",
        ),
        (
            |f| f["config"] = json!({}),
            "is not a tekken file: missing field `pattern`",
        ),
        (
            |f| f["vocab"] = json!("none"),
            "is not a tekken file: invalid type: string \"none\"",
        ),
        (
            |f| f["vocab"][3]["rank"] = json!(-1),
            "is not a tekken file: invalid value: integer `-1`",
        ),
        (
            |f| f["vocab"][3] = json!({"rank": 3}),
            "is not a tekken file: missing field `token_bytes`",
        ),
        (
            |f| f["special_tokens"] = Value::from(vec![json!({"rank": 0, "token_str": ""}); (1 << 16) + 1]),
            "is not a tekken file: more than 65536 elements",
        ),
        (|f| *f = json!(null), "is not a tekken file: invalid type: null"),
    ];
    for (corrupt, expected) in cases {
        let mut file = good();
        corrupt(&mut file);
        let error = load(&file).unwrap_err();
        assert!(
            error.starts_with(&format!("t.json: {expected}")),
            "{error}\nexpected {expected}"
        );
    }
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let bytes = serde_json::to_vec(&good()).unwrap();
    for length in (0..bytes.len()).step_by(97) {
        let error = Tokenizer::from_bytes(Path::new("t.json"), &bytes[..length], 274).unwrap_err();
        assert!(
            error.to_string().starts_with("t.json: is not a tekken file: "),
            "{error}"
        );
    }
}

#[test]
fn a_huge_file_is_refused_unread() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len((64 << 20) + 1).unwrap();
    let error = Tokenizer::load(file.path(), 274).unwrap_err().to_string();
    assert!(
        error.ends_with("is longer than 67108864 bytes, the most a tokenizer file may have"),
        "{error}"
    );
}
