//! Grammars over the miniature's vocabulary: what they allow, token by token, and what is refused.

use std::path::Path;
use std::sync::{LazyLock, mpsc};
use std::time::Duration;

use super::*;
use crate::tekken::Vocabulary;

const END: u32 = 2;

static VOCABULARY: LazyLock<Vocabulary> = LazyLock::new(|| {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/assets/mini-large-3/tekken.json");
    Vocabulary::load(&path, 8192).unwrap()
});

static COMPILER: LazyLock<Compiler> = LazyLock::new(|| {
    Compiler::new(&Words {
        special: VOCABULARY.special.len(),
        tokens: &VOCABULARY.tokens,
        end: END,
    })
    .unwrap()
});

fn id(name: &str) -> u32 {
    VOCABULARY.special_id(name).unwrap()
}

/// A token for each byte: any text can be written so.
fn bytes(text: &str) -> Vec<u32> {
    let first = VOCABULARY.special.len() as u32;
    text.bytes().map(|byte| first + u32::from(byte)).collect()
}

/// Runs where stacks are deep.
fn on_pool<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    static POOL: LazyLock<Pool> = LazyLock::new(|| Pool::start("test", 2, 64).unwrap());
    let (sender, receiver) = mpsc::channel();
    POOL.try_run(move || sender.send(work()).unwrap()).unwrap();
    receiver.recv_timeout(Duration::from_secs(60)).unwrap()
}

fn matcher(text: &str) -> Result<Matcher, GrammarError> {
    let grammar = Grammar::new(text)?;
    on_pool(move || COMPILER.matcher(&grammar))
}

fn allows(mask: &[u32], token: u32) -> bool {
    mask[token as usize / 32] >> (token % 32) & 1 == 1
}

fn allowed(mask: &[u32]) -> Vec<u32> {
    (0..8192).filter(|&token| allows(mask, token)).collect()
}

/// Whether the grammar allows these tokens one after another, and may end after them.
fn takes(text: &str, tokens: &[u32]) -> bool {
    let mut matcher = matcher(text).unwrap();
    for &token in tokens {
        if !allows(&matcher.mask().unwrap(), token) {
            return false;
        }
        matcher.consume(token).unwrap();
    }
    let ends = allows(&matcher.mask().unwrap(), END);
    assert_eq!(ends, matcher.is_complete().unwrap());
    ends
}

fn json(schema: &str) -> String {
    let options =
        r#""x-guidance": {"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "}"#;
    let schema = schema.strip_prefix('{').unwrap();
    let comma = if schema == "}" { "" } else { ", " };
    format!("start: %json {{{options}{comma}{schema}\n")
}

#[test]
fn json_has_the_schemas_shape_and_one_kind_of_white_space() {
    let grammar = json(
        r#"{"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "array", "items": {"type": "boolean"}}},
        "required": ["a"], "additionalProperties": false}"#,
    );
    for good in [
        r#"{"a": 1}"#,
        r#"{"a": -20, "b": [true, false]}"#,
        r#"{"a": 0, "b": []}"#,
    ] {
        assert!(takes(&grammar, &bytes(good)), "{good}");
    }
    for bad in [
        r#"{"a":1}"#,
        r#"{"a":  1}"#,
        r#"{ "a": 1}"#,
        r#"{"a": 1 }"#,
        r#"{"a": 1,"b": []}"#,
        r#"{"a": 1, "b": [true,false]}"#,
        "{\"a\": 1,\n\"b\": []}",
        r#"{"a": 1.5}"#,
        r#"{"b": []}"#,
        r#"{"a": 1, "c": 2}"#,
        r#"{"a": 1} "#,
        "",
    ] {
        assert!(!takes(&grammar, &bytes(bad)), "{bad}");
    }
}

#[test]
fn any_tokens_that_spell_an_allowed_text_are_allowed() {
    let mut matcher = matcher(&json(r#"{"const": "the capital"}"#)).unwrap();
    matcher.consume(bytes("\"")[0]).unwrap();
    let mask = matcher.mask().unwrap();
    let texts: Vec<&[u8]> = allowed(&mask)
        .into_iter()
        .map(|token| VOCABULARY.tokens[token as usize - VOCABULARY.special.len()].as_ref())
        .collect();
    let expected: Vec<&[u8]> = (VOCABULARY.tokens.iter())
        .map(AsRef::as_ref)
        .filter(|token| b"the capital\"".starts_with(token))
        .collect();
    assert_eq!(texts, expected);
    assert!(texts.len() > 2, "{texts:?}");
}

#[test]
fn special_tokens_stand_where_the_grammar_names_them_and_nowhere_else() {
    let (call, args, end_think) = (id("[TOOL_CALLS]"), id("[ARGS]"), id("[/THINK]"));
    let grammar = format!(
        "start: ANY? <[{end_think}]> answer\nANY: /(?s:.)+/\nanswer: ANY? call*\ncall: call_0 | call_1\n\
         call_0: <[{call}]> \"get\" <[{args}]> %json {{\"const\": {{}}}}\n\
         call_1: <[{call}]> \"get_all\" <[{args}]> ANY?\n"
    );
    let tokens = |parts: &[(&str, Option<u32>)]| -> Vec<u32> {
        let each = parts.iter();
        each.flat_map(|(text, special)| bytes(text).into_iter().chain(*special))
            .collect()
    };
    let thought = ("hm\n[/THINK] {", Some(end_think));
    assert!(takes(&grammar, &tokens(&[thought])));
    assert!(takes(
        &grammar,
        &tokens(&[("", Some(end_think)), ("text\u{e9}", None)])
    ));
    let first = [("", Some(call)), ("get", Some(args)), ("{}", None)];
    let second = [("", Some(call)), ("get_all", Some(args)), ("what{ever", None)];
    assert!(takes(
        &grammar,
        &tokens(&[&[thought][..], &first, &second, &first].concat())
    ));
    assert!(takes(
        &grammar,
        &tokens(&[&[thought, ("text", None)][..], &second].concat())
    ));
    for bad in [
        vec![("text", None)],
        vec![thought, ("", Some(end_think))],
        vec![thought, ("", Some(call)), ("ge", Some(args))],
        vec![thought, ("", Some(call)), ("get", Some(args)), ("[]", None)],
        vec![thought, ("", Some(call)), ("get", None)],
        vec![thought, ("", Some(call)), ("get", Some(args)), ("{}{}", None)],
        vec![thought, ("", Some(args))],
    ] {
        assert!(!takes(&grammar, &tokens(&bad)), "{bad:?}");
    }
}

#[test]
fn after_the_end_only_the_end_is_allowed() {
    let mut matcher = matcher("start: \"ab\"\n").unwrap();
    assert!(!matcher.is_complete().unwrap());
    for token in bytes("ab") {
        matcher.consume(token).unwrap();
    }
    for _ in 0..3 {
        assert_eq!(matcher.mask().unwrap(), only(END, 8192));
        assert!(matcher.is_complete().unwrap());
        matcher.consume(END).unwrap();
    }
    assert_eq!(allowed(&only(END, 8192)), [END]);
}

/// Numbers that look random and are the same in every run.
fn next(state: &mut u64) -> usize {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
    (*state >> 33) as usize
}

#[test]
fn a_mask_is_a_function_of_the_tokens() {
    let grammars = [
        json(
            r##"{"type": "object", "properties": {"name": {"type": "string", "pattern": "^[a-z]{2,5}$"},
            "next": {"$ref": "#"}, "value": {"type": "number", "minimum": -3, "maximum": 200}}, "required": ["value"]}"##,
        ),
        json(
            r#"{"anyOf": [{"type": "array", "items": {"enum": ["x", "yy", null, 5]}, "maxItems": 4}, {"type": "string"}]}"#,
        ),
        "start: /[a-c]{2,9}(foo|bar)+/\n".to_owned(),
    ];
    for (seed, grammar) in grammars.iter().enumerate() {
        let mut state = seed as u64 + 7;
        let mut walked = matcher(grammar).unwrap();
        let mut tokens = Vec::new();
        let mut masks = vec![walked.mask().unwrap()];
        for _ in 0..24 {
            let choices = allowed(&masks[tokens.len()]);
            let token = choices[next(&mut state) % choices.len()];
            walked.consume(token).unwrap();
            tokens.push(token);
            masks.push(walked.mask().unwrap());
        }
        assert_eq!(walked.consumed(), tokens);
        // Anew, and without the masks on the way.
        for length in [1, 5, 13, 24] {
            let mut again = matcher(grammar).unwrap();
            for &token in &tokens[..length] {
                again.consume(token).unwrap();
            }
            assert!(
                again.mask().unwrap() == masks[length],
                "grammar {seed} after {length}"
            );
        }
    }
}

#[test]
fn what_cannot_be_held_to_is_refused_in_words() {
    let deep = (0..60).fold(r#"{"type": "integer"}"#.to_owned(), |inner, _| {
        format!(r#"{{"type": "array", "items": {inner}}}"#)
    });
    assert!(matcher(&json(&deep)).is_ok());
    let nested = |levels: usize| format!("{}a{}", "(".repeat(levels), ")".repeat(levels));
    assert!(matcher(&format!("start: /{}/\n", nested(64))).is_ok());
    let properties: Vec<String> = (0..400)
        .map(|index| format!(r#""p{index}": {{"type": "string", "pattern": "^(a|b)*a(a|b){{40}}$"}}"#))
        .collect();
    let products = format!(
        r#"{{"allOf": [{}]}}"#,
        vec![r#"{"anyOf": [{"properties": {"a": {"minLength": 1}}}, {"properties": {"b": {"minLength": 1}}}, {"required": ["c"]}]}"#; 30].join(", ")
    );
    let cases: Vec<(String, &str)> = vec![
        ("start: a b c".to_owned(), "unknown name: \"a\""),
        (json(r#"{"type": "text"}"#), "text"),
        (
            json(r#"{"type": "string", "pattern": "(a"}"#),
            "invalid regular expression: unclosed group",
        ),
        (
            json(r#"{"type": "string", "pattern": "(?=a)b"}"#),
            "invalid regular expression: look-around, including look-ahead and look-behind, is not supported",
        ),
        (
            json(r#"{"not": {"type": "string"}}"#),
            "Unimplemented keys: [\"not\"]",
        ),
        (
            json(r#"{"type": "array", "uniqueItems": true}"#),
            "Unimplemented keys: [\"uniqueItems\"]",
        ),
        (
            json(r#"{"type": "string", "format": "telephone"}"#),
            "Unknown format: telephone",
        ),
        (
            json(r##"{"$ref": "#/$defs/none"}"##),
            "Reference segment '$defs' not found",
        ),
        (
            json(r#"{"$ref": "https://example.com/schema"}"#),
            "https://example.com/schema",
        ),
        (
            json(r#"{"type": "integer", "minimum": 5, "maximum": 4}"#),
            "Unsatisfiable schema: minimum (5) is greater than maximum (4)",
        ),
        (json(r#"{"enum": []}"#), "Unsatisfiable schema: anyOf is empty"),
        (
            json(r##"{"$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"}"##),
            "no token is allowed",
        ),
        (
            json(r#"{"oneOf": [{"type": "string"}, {"minLength": 2}]}"#),
            "oneOf constraints are not supported",
        ),
        (json(&products), "schema too large"),
        (
            "start: /(a/\n".to_owned(),
            "invalid regular expression: unclosed group",
        ),
        (
            format!("start: /{}/\n", nested(5000)),
            "invalid regular expression: ",
        ),
    ];
    for (text, expected) in cases {
        let refused = matcher(&text).and_then(|mut matcher| on_pool(move || matcher.mask()));
        let message = refused.expect_err(&text).to_string();
        assert!(message.contains(expected), "{message}");
        assert!(
            !message.contains('\n') && !message.contains("%json") && message.len() < 400,
            "{message}"
        );
    }
    // What would be too much all at once is only ever worked at step by step, each within its limits.
    for text in [
        "start: /a{1,100000000}/\n".to_owned(),
        "start: /((((a{100}){100}){100}){100}){100}/\n".to_owned(),
        "start: /(a|b)*a(a|b){2000}c/\n".to_owned(),
        json(&format!(r#"{{"properties": {{{}}}}}"#, properties.join(", "))),
        format!("start: /{}/\n", "[^a]?".repeat(1600)),
    ] {
        let Ok(mut matcher) = matcher(&text) else {
            continue;
        };
        let state = on_pool(move || {
            let walk = |matcher: &mut Matcher| -> Result<(), GrammarError> {
                for _ in 0..40 {
                    let token = allowed(&matcher.mask()?).last().copied().unwrap_or(END);
                    matcher.consume(token)?;
                }
                Ok(())
            };
            walk(&mut matcher)
        });
        let is_bounded = matches!(state, Ok(()) | Err(GrammarError::Stuck(_)));
        assert!(is_bounded, "{state:?}");
    }
    assert_eq!(
        Grammar::new("x".repeat(MAX_GRAMMAR_BYTES + 1)),
        Err(GrammarError::TooLong {
            found: MAX_GRAMMAR_BYTES + 1
        })
    );
}

#[test]
fn work_can_be_given_up() {
    let mut matcher = matcher(&json("{}")).unwrap();
    matcher.mask().unwrap();
    matcher.cancel().cancel();
    assert_eq!(matcher.mask(), Err(GrammarError::Cancelled));
    assert_eq!(matcher.consume(END), Err(GrammarError::Cancelled));
}

#[test]
fn a_pool_has_bounded_room_and_outlives_panics() {
    let pool = Pool::start("small", 1, 1).unwrap();
    pool.try_run(|| panic!("on purpose")).unwrap();
    let (release, wait) = mpsc::channel::<()>();
    let (tell, told) = mpsc::channel();
    while pool
        .try_run({
            let tell = tell.clone();
            move || tell.send(1).unwrap()
        })
        .is_err()
    {
        std::thread::yield_now();
    }
    assert_eq!(told.recv_timeout(Duration::from_secs(20)), Ok(1));
    pool.try_run(move || {
        let _ = wait.recv();
    })
    .unwrap();
    // One runs or waits, one more waits at most.
    let mut refused = false;
    for _ in 0..3 {
        refused |= pool.try_run(|| ()) == Err(PoolFull);
    }
    assert!(refused);
    release.send(()).unwrap();
}
