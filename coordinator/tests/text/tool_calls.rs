//! Generated tokens to content and tool calls.

use proptest::prelude::*;
use tramontane_coordinator::text::{OutputEvent, OutputParser, encode_chat};
use tramontane_model::ids::RequestId;

use super::{special, tokenizer};

/// Token ids of text in which `[TOOL_CALLS]`, `[ARGS]`, `</s>` and `[INST]` stand for the special tokens.
fn ids(marked: &str) -> Vec<u32> {
    let mut ids = Vec::new();
    let mut rest = marked;
    'next: while !rest.is_empty() {
        for name in ["[TOOL_CALLS]", "[ARGS]", "</s>", "[INST]", "[THINK]", "[/THINK]"] {
            if let Some(after) = rest.strip_prefix(name) {
                ids.push(special(name));
                rest = after;
                continue 'next;
            }
        }
        let end = rest[1..].find(['[', '<']).map_or(rest.len(), |at| at + 1);
        ids.extend(tokenizer().encode(&rest[..end]).unwrap());
        rest = &rest[end..];
    }
    ids
}

/// What an answer holds: content, then names and arguments of the calls.
#[derive(Debug, Default, PartialEq)]
struct Answer {
    content: String,
    reasoning: String,
    calls: Vec<(String, String)>,
    call_ids: Vec<String>,
}

fn parse(tokens: &[u32]) -> Answer {
    parse_with(OutputParser::new(tokenizer(), RequestId(7), 0), tokens)
}

fn parse_with(mut parser: OutputParser, tokens: &[u32]) -> Answer {
    let mut answer = Answer::default();
    for step in 0..=tokens.len() {
        let mut events = Vec::new();
        match tokens.get(step) {
            Some(&id) => parser.push(id, &mut events).unwrap(),
            None => parser.finish(&mut events),
        }
        for event in events {
            match event {
                OutputEvent::Content(text) => {
                    assert!(!text.is_empty());
                    answer.content += &text;
                }
                OutputEvent::Reasoning(text) => {
                    assert!(!text.is_empty());
                    answer.reasoning += &text;
                }
                OutputEvent::ToolCall { index, id, name } => {
                    assert_eq!(index as usize, answer.calls.len());
                    answer.calls.push((name, String::new()));
                    answer.call_ids.push(id);
                }
                OutputEvent::Arguments { index, text } => {
                    assert!(!text.is_empty());
                    assert_eq!(
                        index as usize + 1,
                        answer.calls.len(),
                        "calls come one after another"
                    );
                    answer.calls[index as usize].1 += &text;
                }
            }
        }
    }
    assert_eq!(parser.tool_calls() as usize, answer.calls.len());
    answer
}

fn check(marked: &str, content: &str, calls: &[(&str, &str)]) {
    let answer = parse(&ids(marked));
    assert_eq!(answer.content, content, "{marked}");
    let found: Vec<_> = answer
        .calls
        .iter()
        .map(|(name, args)| (name.as_str(), args.as_str()))
        .collect();
    assert_eq!(found, calls, "{marked}");
}

#[test]
fn content_and_calls_are_told_apart() {
    check("Hello, world.</s>", "Hello, world.", &[]);
    check("[TOOL_CALLS]f[ARGS]{\"a\": 1}</s>", "", &[("f", "{\"a\": 1}")]);
    check(
        "Let me see.[TOOL_CALLS]get_weather[ARGS]{\"city\":\"Zürich\"}[TOOL_CALLS]add[ARGS]{ }</s>",
        "Let me see.",
        &[("get_weather", "{\"city\":\"Zürich\"}"), ("add", "{ }")],
    );
}

#[test]
fn arguments_are_the_models_own_text() {
    check(
        "[TOOL_CALLS]f[ARGS]{'a' :1,  }\n not json",
        "",
        &[("f", "{'a' :1,  }\n not json")],
    );
    check("[TOOL_CALLS]f[ARGS]</s>", "", &[("f", "")]);
}

#[test]
fn malformed_calls_fall_back() {
    check("[TOOL_CALLS]f</s>", "", &[("f", "")]);
    check(
        "[TOOL_CALLS]f[TOOL_CALLS] g [ARGS]{}",
        "",
        &[("f", ""), ("g", "{}")],
    );
    check("[TOOL_CALLS]f{\"a\": 1}</s>", "f{\"a\": 1}", &[]);
    check("[TOOL_CALLS]not a name[ARGS]{}</s>", "not a name{}", &[]);
    check("[TOOL_CALLS][ARGS]{}</s>", "{}", &[]);
    check("[TOOL_CALLS]</s>", "", &[]);
    check("one[ARGS]two[INST]three", "onetwothree", &[]);
    let long = "x ".repeat(500);
    check(&format!("[TOOL_CALLS]{long}"), &long, &[]);
}

#[test]
fn text_after_the_end_of_a_call_is_content() {
    check("[TOOL_CALLS]f[ARGS]{}</s>more", "more", &[("f", "{}")]);
}

#[test]
fn reasoning_is_told_from_content() {
    let read = |marked: &str| {
        let answer = parse(&ids(marked));
        (answer.reasoning, answer.content, answer.calls.len())
    };
    let expect = |reasoning: &str, content: &str, calls| (reasoning.to_owned(), content.to_owned(), calls);
    assert_eq!(read("[THINK]2 + 2[/THINK]4</s>"), expect("2 + 2", "4", 0));
    // What a call or the end cuts short, and marks without a beginning.
    assert_eq!(read("[THINK]a[TOOL_CALLS]f[ARGS]{}</s>"), expect("a", "", 1));
    assert_eq!(read("[THINK]a</s>b"), expect("a", "b", 0));
    assert_eq!(read("a[/THINK]b"), expect("", "ab", 0));
    assert_eq!(read("[THINK]a[/THINK]b[THINK]c[/THINK]d"), expect("ac", "bd", 0));
    assert_eq!(read("[TOOL_CALLS]f[ARGS]{}[THINK]a[/THINK]"), expect("a", "", 1));
    // A character that a mark cuts in two does not run through it.
    let mut cut = ids("[THINK]");
    cut.extend(&tokenizer().encode("\u{1f600}").unwrap()[..1]);
    cut.extend(ids("[/THINK]x"));
    assert_eq!(parse(&cut).reasoning, "\u{fffd}");
}

#[test]
fn a_parser_can_be_told_what_not_to_expect() {
    let parser = || OutputParser::new(tokenizer(), RequestId(7), 0);
    let answer = parse_with(parser().without_calls(), &ids("a[TOOL_CALLS]f[ARGS]{}"));
    assert_eq!((answer.content.as_str(), answer.calls.len()), ("af{}", 0));
    let answer = parse_with(parser().within_reasoning(), &ids("a[/THINK]b"));
    assert_eq!((answer.reasoning.as_str(), answer.content.as_str()), ("a", "b"));
}

#[test]
fn call_ids_follow_from_request_choice_and_index() {
    let tokens = ids("[TOOL_CALLS]f[ARGS]{}[TOOL_CALLS]f[ARGS]{}");
    let first = parse(&tokens).call_ids;
    assert_eq!(first, parse(&tokens).call_ids);
    assert_ne!(first[0], first[1]);
    assert!(
        first
            .iter()
            .all(|id| id.len() == 9 && id.bytes().all(|b| b.is_ascii_alphanumeric()))
    );
    let id_of = |request, choice| {
        let mut parser = OutputParser::new(tokenizer(), RequestId(request), choice);
        let mut events = Vec::new();
        tokens
            .iter()
            .for_each(|&id| parser.push(id, &mut events).unwrap());
        let ids = events.into_iter().filter_map(|event| match event {
            OutputEvent::ToolCall { id, .. } => Some(id),
            OutputEvent::Content(_) | OutputEvent::Reasoning(_) | OutputEvent::Arguments { .. } => None,
        });
        ids.collect::<Vec<_>>()[0].clone()
    };
    assert_eq!(id_of(7, 0), first[0]);
    assert_ne!(id_of(7, 1), first[0]);
    assert_ne!(id_of(8, 0), first[0]);
}

#[test]
fn a_rendered_call_parses_back() {
    let arguments = r#"{"city": "Zürich", "days": [1, 2]}"#;
    let request = serde_json::json!({"messages": [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Well.", "tool_calls": [
            {"id": "a", "function": {"name": "get_weather", "arguments": arguments}}]},
        {"role": "tool", "tool_call_id": "a", "content": "rain"},
    ]});
    let prompt = encode_chat(&tokenizer(), &serde_json::from_value(request).unwrap()).unwrap();
    let start = prompt.iter().position(|&id| id == special("[/INST]")).unwrap() + 1;
    let end = prompt.iter().position(|&id| id == special("</s>")).unwrap();
    let answer = parse(&prompt[start..end]);
    assert_eq!(answer.content, "Well.");
    assert_eq!(answer.calls, [("get_weather".to_owned(), arguments.to_owned())]);
}

proptest! {
    #[test]
    fn any_tokens_are_parsed(ids in prop::collection::vec(
        prop_oneof![1000..8192u32, prop::sample::select(vec![2u32, 9, 32, 0, 34, 35])], 0..60,
    )) {
        let answer = parse(&ids);
        prop_assert!(answer.calls.len() <= ids.iter().filter(|&&id| id == special("[TOOL_CALLS]")).count());
    }
}
