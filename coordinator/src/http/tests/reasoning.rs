//! Reasoning in OpenAI's shapes, and answers with at most one call.

use super::*;

fn question() -> Value {
    json!([{"role": "user", "content": "Tell me the capital of Vietnam."}])
}

/// `[THINK]` text `[/THINK]` answer `</s>`.
pub(super) fn thinking(thought: &str, answer: &str) -> Vec<u32> {
    let encode = |text| TOKENIZER.encode(text).unwrap();
    [&[34], &encode(thought)[..], &[35], &encode(answer)[..], &[2]].concat()
}

#[tokio::test]
async fn reasoning_is_no_content() {
    let world = saying(&thinking("Hanoi? é😀", "It is Hanoi."));
    let reply = world
        .chat(json!({"messages": question(), "stop": "?"}))
        .await
        .json();
    let message = &reply["choices"][0]["message"];
    assert_eq!(message["reasoning_content"], "Hanoi? é😀");
    assert_eq!(message["content"], "It is Hanoi.");
    assert_eq!(reply["choices"][0]["finish_reason"], "stop");
    // What thinks and never speaks has no content.
    let silent = saying(&thinking("Hm.", ""))
        .chat(json!({"messages": question()}))
        .await
        .json();
    assert_eq!(silent["choices"][0]["message"]["content"], "");
}

#[tokio::test]
async fn reasoning_is_streamed_in_whole_characters() {
    let world = saying(&thinking("é ☃ 😀", "字 yes"));
    let fields = json!({"messages": question(), "stream": true});
    let chunks = world.chat(fields).await.chunks("chatcmpl-");
    let (mut reasoning, mut content) = (String::new(), String::new());
    for chunk in &chunks {
        let delta = &chunk["choices"][0]["delta"];
        let thought = delta["reasoning_content"].as_str().unwrap_or_default();
        let text = delta["content"].as_str().unwrap_or_default();
        assert!(
            content.is_empty() || thought.is_empty(),
            "it thought after it spoke"
        );
        assert!(
            !thought.contains('\u{fffd}') && !thought.contains("THINK"),
            "{thought}"
        );
        reasoning.push_str(thought);
        content.push_str(text);
    }
    assert_eq!((reasoning.as_str(), content.as_str()), ("é ☃ 😀", "字 yes"));
    assert!(chunks.len() > 6, "reasoning came all at once");
}

#[tokio::test]
async fn reasoning_goes_back_into_the_prompt() {
    let world = world();
    let fields = json!({"messages": [
        question()[0],
        {"role": "assistant", "content": "Hanoi.", "reasoning_content": "Hm."},
        {"role": "user", "content": "Sure?"},
    ]});
    let reply = world.chat(fields).await.json();
    // The field is no one dialect's: the answer stays OpenAI's.
    assert_eq!(reply["choices"][0]["message"]["refusal"], json!(null));
    let prompt = &world.heads.seen()[0].1.prompt;
    let thought = [&[4, 34], &TOKENIZER.encode("Hm.").unwrap()[..], &[35]].concat();
    assert!(
        prompt.windows(thought.len()).any(|window| window == thought),
        "{prompt:?}"
    );
}

#[tokio::test]
async fn one_call_can_be_all_that_is_wanted() {
    let tools = json!([{"type": "function", "function": {"name": "f"}}]);
    let call = [
        &[9],
        &TOKENIZER.encode("f").unwrap()[..],
        &[32],
        &TOKENIZER.encode("{}").unwrap(),
    ]
    .concat();
    let acts = vec![Act::HangAfter(2 * call.len()); 2];
    let world = Setup {
        script: always(&[&call[..], &call[..], &[2]].concat()),
        acts,
        ..Setup::default()
    }
    .build();
    let fields = json!({"messages": question(), "tools": tools, "parallel_tool_calls": false});
    let reply = world.chat(fields).await.json();
    let choice = &reply["choices"][0];
    assert_eq!(choice["message"]["tool_calls"].as_array().map(Vec::len), Some(1));
    assert_eq!(choice["finish_reason"], "tool_calls");
    // The rest is given up, not waited for.
    world.all_closed().await;
}

#[tokio::test]
async fn without_tools_marks_of_calls_stand_for_nothing() {
    let tokens = [&[1784, 9][..], &TOKENIZER.encode("f").unwrap(), &[32, 2]].concat();
    let reply = saying(&tokens).chat(json!({"messages": question()})).await.json();
    assert_eq!(reply["choices"][0]["message"]["content"], "Thef");
    assert_eq!(reply["choices"][0]["finish_reason"], "stop");
}
