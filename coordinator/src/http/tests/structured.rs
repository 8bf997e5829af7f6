//! What answers are held to: the grammar that reaches the head, compiled here, takes what it must and nothing else; and
//! every field that cannot be held to is refused by its name.

use tramontane_model::grammar::{Compiler, Grammar};

use super::*;

static COMPILER: LazyLock<Compiler> = LazyLock::new(|| Compiler::new(&TOKENIZER.words()).unwrap());

const THINK: u32 = 34;
const END_THINK: u32 = 35;
const CALL: u32 = 9;
const ARGS: u32 = 32;

/// Whether a grammar allows these tokens one after another, and allows the answer to end after them.
fn takes(grammar: &Grammar, tokens: &[u32]) -> bool {
    let mut matcher = COMPILER.matcher(grammar).unwrap();
    let allows = |mask: &[u32], token: u32| mask[token as usize / 32] >> (token % 32) & 1 == 1;
    for &token in tokens {
        if !allows(&matcher.mask().unwrap(), token) {
            return false;
        }
        matcher.consume(token).unwrap();
    }
    allows(&matcher.mask().unwrap(), TOKENIZER.eos())
}

fn text(text: &str) -> Vec<u32> {
    TOKENIZER.encode(text).unwrap()
}

fn call(name: &str, arguments: &str) -> Vec<u32> {
    [&[CALL], &text(name)[..], &[ARGS], &text(arguments)].concat()
}

fn thought() -> Vec<u32> {
    [&[THINK], &text("Hm. {\"a\": é}\n")[..], &[END_THINK]].concat()
}

fn question() -> Value {
    json!([{"role": "user", "content": "Tell me the capital of Vietnam."}])
}

/// The grammar that the head gets for this request; none if answers are free.
async fn sent(path: &str, body: Value) -> Option<Grammar> {
    let world = world();
    let reply = world.post(path, with_model(body)).await;
    assert_eq!(reply.status, StatusCode::OK, "{:?}", reply.body);
    let (_, sent) = &world.heads.seen()[0];
    sent.sampling.grammar.clone()
}

async fn chat(mut body: Value) -> Option<Grammar> {
    let object = body.as_object_mut().unwrap();
    object.entry("messages").or_insert(question());
    sent("/v1/chat/completions", body).await
}

/// What a grammar must take, and what it must not.
fn check(grammar: Option<&Grammar>, good: &[Vec<u32>], bad: &[Vec<u32>]) {
    let grammar = grammar.expect("a grammar is sent");
    let shown =
        |tokens: &[u32]| String::from_utf8_lossy(&TOKENIZER.decode_bytes(tokens).unwrap()).into_owned();
    for tokens in good {
        assert!(
            takes(grammar, tokens),
            "{} does not take {}",
            grammar.text(),
            shown(tokens)
        );
    }
    for tokens in bad {
        assert!(
            !takes(grammar, tokens),
            "{} takes {}",
            grammar.text(),
            shown(tokens)
        );
    }
}

fn person() -> Value {
    json!({
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 9}, "age": {"type": "integer", "minimum": 0}},
        "required": ["name"],
        "additionalProperties": false,
    })
}

fn tools() -> Value {
    json!([
        {"type": "function", "function": {"name": "add", "parameters": person()}},
        {"type": "function", "function": {"name": "add_all", "strict": true, "parameters": {
            "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": false}}},
        {"type": "function", "function": {"name": "list"}},
    ])
}

#[tokio::test]
async fn schemas_expressions_and_choices_reach_the_head() {
    let good = [text(r#"{"name": "Ada é", "age": 36}"#), text(r#"{"name": ""}"#)];
    let bad = [
        text(r#"{"name":"Ada"}"#),
        text(r#"{"age": 36}"#),
        text(r#"{"name": "Ada"} "#),
        text("The capital"),
        thought(),
        vec![],
    ];
    let format =
        json!({"type": "json_schema", "json_schema": {"name": "p", "strict": true, "schema": person()}});
    for field in [
        json!({"response_format": format}),
        json!({"guided_json": person()}),
        json!({"guided_json": person().to_string()}),
        json!({"structured_outputs": {"json": person()}}),
    ] {
        check(chat(field.clone()).await.as_ref(), &good, &bad);
        let mut plain = field;
        plain["prompt"] = json!("Ada:");
        check(sent("/v1/completions", plain).await.as_ref(), &good, &bad);
    }
    let mut mistral = json!({"messages": question(), "response_format": {"type": "json_object"}});
    let objects = [text("{}"), text(r#"{"a": [1, 2.5, null], "b": {"c": "d"}}"#)];
    let others = [text("[]"), text("{ }"), text("5"), text(r#"{"a" : 1}"#)];
    let grammar = sent("/mistral/v1/chat/completions", mistral.clone()).await;
    check(grammar.as_ref(), &objects, &others);
    mistral["response_format"] = json!({"type": "text"});
    assert_eq!(sent("/mistral/v1/chat/completions", mistral).await, None);

    for field in [
        json!({"guided_regex": "^[a-c]+/\\d{2}$"}),
        json!({"structured_outputs": {"regex": "[a-c]+/\\d{2}"}}),
    ] {
        let bad = [
            text("abc/1"),
            text("abc/123"),
            text("xabc/12"),
            text("abc/12\n"),
            text(""),
        ];
        check(chat(field).await.as_ref(), &[text("abc/12"), text("c/90")], &bad);
    }
    let choices = json!(["yes", "yes, sir", "a \"quote\"\n\\ é\u{7f}/"]);
    for field in [
        json!({"guided_choice": choices}),
        json!({"structured_outputs": {"choice": choices}}),
    ] {
        let good = ["yes", "yes, sir", "a \"quote\"\n\\ é\u{7f}/"].map(text);
        let bad = [
            text("ye"),
            text("yes,"),
            text("YES"),
            text("yes, siryes"),
            text(""),
        ];
        check(chat(field).await.as_ref(), &good, &bad);
    }
}

#[tokio::test]
async fn forced_calls_are_calls_of_the_tools_and_nothing_else() {
    let add = call("add", r#"{"name": "Ada"}"#);
    let (all, list) = (call("add_all", r#"{"n": 2}"#), call("list", "{}"));
    let two = [&add[..], &all].concat();
    let bad = [
        text("The capital"),
        [&text("Yes.")[..], &add].concat(),
        call("add", r#"{"name":"Ada"}"#),
        call("add_all", r#"{"n": 3}"#),
        call("add_none", "{}"),
        call("list", "[]"),
        thought(),
        vec![],
    ];
    for word in ["required", "any"] {
        let grammar = chat(json!({"tools": tools(), "tool_choice": word})).await;
        check(
            grammar.as_ref(),
            &[add.clone(), all.clone(), list.clone(), two.clone()],
            &bad,
        );
    }
    let one = json!({"tools": tools(), "tool_choice": "required", "parallel_tool_calls": false});
    check(
        chat(one).await.as_ref(),
        &[add.clone(), all.clone()],
        &[&bad[..], std::slice::from_ref(&two)].concat(),
    );
    let named = json!({"type": "function", "function": {"name": "add"}});
    let named = chat(json!({"tools": tools(), "tool_choice": named})).await;
    check(
        named.as_ref(),
        std::slice::from_ref(&add),
        &[&bad[..], &[all, list, two]].concat(),
    );
}

#[tokio::test]
async fn strict_tools_hold_their_calls_and_leave_the_rest_free() {
    let (add, all) = (call("add", "anything, é"), call("add_all", r#"{"n": 2}"#));
    let said = text("The capital: {\n");
    let good = [
        vec![],
        said.clone(),
        add.clone(),
        [&said[..], &add, &all].concat(),
        [&all[..], &add].concat(),
    ];
    let bad = [
        call("add_all", "{}"),
        [&said[..], &call("add_all", r#"{"n":2}"#)].concat(),
        call("other", "{}"),
        [&all[..], &said].concat(),
    ];
    for choice in [json!(null), json!("auto")] {
        let grammar = chat(json!({"tools": tools(), "tool_choice": choice})).await;
        check(grammar.as_ref(), &good, &bad);
    }
    let one = chat(json!({"tools": tools(), "parallel_tool_calls": false})).await;
    check(one.as_ref(), &good[..3], &[[&all[..], &add].concat()]);
    // Text of a shape, or calls.
    let format = json!({"type": "json_object"});
    let shaped = chat(json!({"tools": tools(), "response_format": format})).await;
    check(
        shaped.as_ref(),
        &[text("{}"), add.clone(), all.clone()],
        &[said.clone(), [&text("{}")[..], &add].concat()],
    );

    let mut loose = tools();
    loose[1]["function"]["strict"] = json!(false);
    assert_eq!(chat(json!({"tools": loose})).await, None);
    assert_eq!(chat(json!({"tools": tools(), "tool_choice": "none"})).await, None);
}

#[tokio::test]
async fn responses_are_held_to_what_chats_are() {
    let flat = |tools: Value| -> Value {
        let each = tools.as_array().unwrap().iter().map(|tool| {
            let mut flat = tool["function"].clone();
            flat["type"] = json!("function");
            flat
        });
        each.collect()
    };
    let schema = json!({"name": "p", "strict": true, "schema": person()});
    let format = json!({"type": "json_schema", "name": "p", "strict": true, "schema": person()});
    let add = json!({"type": "function", "function": {"name": "add"}});
    let object = json!({"type": "json_object"});
    for (ours, of_chats) in [
        (
            json!({"text": {"format": format}}),
            json!({"response_format": {"type": "json_schema", "json_schema": schema}}),
        ),
        (
            json!({"text": {"format": object, "verbosity": "low"}}),
            json!({"response_format": object}),
        ),
        (
            json!({"tools": flat(tools()), "tool_choice": "required"}),
            json!({"tools": tools(), "tool_choice": "required"}),
        ),
        (
            json!({"tools": flat(tools()), "tool_choice": {"type": "function", "name": "add"}}),
            json!({"tools": tools(), "tool_choice": add}),
        ),
        (
            json!({"tools": flat(tools()), "parallel_tool_calls": false}),
            json!({"tools": tools(), "parallel_tool_calls": false}),
        ),
        (
            json!({"tools": flat(tools()), "text": {"format": object}}),
            json!({"tools": tools(), "response_format": object}),
        ),
    ] {
        let mut body = ours.clone();
        body["input"] = question();
        let held = sent("/v1/responses", body).await;
        assert!(held.is_some(), "{ours}");
        assert_eq!(held, chat(of_chats).await, "{ours}");
    }
    for free in [
        json!({"text": {"format": {"type": "text"}}}),
        json!({"text": {"format": null}}),
        json!({"tools": flat(tools()), "tool_choice": "none"}),
    ] {
        let mut body = free.clone();
        body["input"] = question();
        assert_eq!(sent("/v1/responses", body).await, None, "{free}");
    }
}

#[tokio::test]
async fn reasoning_may_come_first_where_the_chat_shows_some() {
    let format = json!({"type": "json_object"});
    let answer = text("{}");
    let bad = [
        thought(),
        [&thought()[..], &text("no")].concat(),
        [&answer[..], &thought()].concat(),
    ];
    let asked = chat(json!({"prompt_mode": "reasoning", "response_format": format})).await;
    check(
        asked.as_ref(),
        &[answer.clone(), [&thought()[..], &answer].concat()],
        &bad,
    );
    let required =
        chat(json!({"prompt_mode": "reasoning", "tools": tools(), "tool_choice": "required"})).await;
    let list = call("list", "{}");
    check(
        required.as_ref(),
        &[list.clone(), [&thought()[..], &list].concat()],
        &bad,
    );

    let open = json!([
        {"role": "user", "content": "Tell me the capital of Vietnam."},
        {"role": "assistant", "prefix": true, "content": [
            {"type": "thinking", "thinking": "Hm", "closed": false}]},
    ]);
    let within = chat(json!({"messages": open, "response_format": format})).await;
    let rest = [&text("so\n")[..], &[END_THINK], &answer].concat();
    check(
        within.as_ref(),
        &[rest, [&[END_THINK], &answer[..]].concat()],
        &[answer.clone(), thought()],
    );
}

#[tokio::test]
async fn a_choice_has_its_grammar_too() {
    let world = world();
    let reply = world
        .chat(json!({"messages": question(), "n": 3, "guided_regex": "a+", "min_tokens": 2}))
        .await;
    assert_eq!(reply.status, StatusCode::OK);
    let seen = world.heads.seen();
    assert_eq!(seen.len(), 3);
    let grammars: Vec<_> = seen
        .iter()
        .map(|(_, sent)| sent.sampling.grammar.clone())
        .collect();
    assert!(grammars[0].is_some() && grammars.windows(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(seen[0].1.sampling.held_back, [2]);
}

/// Field, value, the parameter that is blamed, and a part of what is said of it.
type Case = (&'static str, Value, &'static str, &'static str);

fn schema(schema: Value) -> Value {
    json!({"type": "json_schema", "json_schema": {"name": "a", "schema": schema}})
}

fn cases() -> Vec<Case> {
    const SCHEMA: &str = "response_format.json_schema.schema";
    let format = |format, param, says| ("response_format", format, param, says);
    let held = |value, says| ("response_format", schema(value), SCHEMA, says);
    let deep = (0..70).fold(json!({"type": "integer"}), |inner, _| json!({"items": inner}));
    let long = json!({"enum": ["x".repeat(60_000)]});
    let explosive = json!({"anyOf": [
        {"properties": {"a": {"minLength": 1}}}, {"properties": {"b": {"minLength": 1}}}, {"required": ["c"]}]});
    let patterns: serde_json::Map<_, _> = (0..33).map(|i| (format!("^{i}"), json!({}))).collect();
    let deep_groups = format!("{}a{}", "(".repeat(65), ")".repeat(65));
    vec![
        format(json!({}), "response_format", "missing field `type`"),
        format(json!("json"), "response_format", "invalid type"),
        format(json!(["text", null]), "response_format", "expected an object"),
        format(json!({"type": 5}), "response_format.type", "invalid type"),
        format(
            json!({"type": "xml"}),
            "response_format.type",
            "\"xml\" is not supported, use \"text\"",
        ),
        format(
            json!({"type": "json_schema"}),
            "response_format.json_schema",
            "is missing",
        ),
        format(
            json!({"type": "json_schema", "json_schema": {"name": "a"}}),
            SCHEMA,
            "is missing",
        ),
        format(
            json!({"type": "json_schema", "json_schema": {"schema": {}, "strict": 1}}),
            "response_format.json_schema.strict",
            "invalid type",
        ),
        format(
            json!({"type": "text", "json_schema": {"schema": "text"}}),
            SCHEMA,
            "must be a JSON schema, which is an object",
        ),
        held(json!("text"), "must be a JSON schema, which is an object"),
        held(json!([1]), "must be a JSON schema, which is an object"),
        held(deep, "is nested deeper than 64 levels"),
        held(long, "at most 49152 are allowed"),
        held(json!({"type": "text"}), "text"),
        held(json!({"not": {"type": "string"}}), "not"),
        held(json!({"type": "array", "uniqueItems": true}), "uniqueItems"),
        held(json!({"type": "integer", "minimum": 5, "maximum": 4}), "minimum"),
        held(json!({"$ref": "#/$defs/none"}), "none"),
        held(json!({"$ref": "https://example.com/a"}), "example.com"),
        held(json!({"type": "string", "pattern": "(a"}), "unclosed group"),
        held(json!({"allOf": vec![explosive; 30]}), "schema too large"),
        held(
            json!({"items": {"patternProperties": patterns}}),
            "has 33 patternProperties, at most 32",
        ),
        ("guided_json", json!([]), "guided_json", "must be a JSON schema"),
        ("guided_json", json!("{"), "guided_json", "is not JSON"),
        ("guided_json", json!({"type": 7}), "guided_json", "type"),
        ("guided_regex", json!("(a"), "guided_regex", "cannot be used"),
        (
            "guided_regex",
            json!("a\\"),
            "guided_regex",
            "ends with a single backslash",
        ),
        ("guided_regex", json!("(?=a)b"), "guided_regex", "cannot be used"),
        (
            "guided_regex",
            json!(deep_groups),
            "guided_regex",
            "is nested deeper than 64 levels",
        ),
        (
            "guided_regex",
            json!("a".repeat(9000)),
            "guided_regex",
            "has 9000 bytes, at most 8192",
        ),
        (
            "guided_regex",
            json!("[^\\s\\S]"),
            "guided_regex",
            "allows no answer",
        ),
        ("guided_choice", json!([]), "guided_choice", "has 0 choices"),
        (
            "guided_choice",
            json!(["a", 1]),
            "guided_choice[1]",
            "expected a string",
        ),
        (
            "guided_choice",
            json!(vec!["a"; 1025]),
            "guided_choice",
            "has 1025 choices",
        ),
        (
            "guided_choice",
            json!(["x".repeat(60_000)]),
            "guided_choice",
            "at most 49152",
        ),
        (
            "structured_outputs",
            json!({"grammar": "a"}),
            "structured_outputs.grammar",
            "unknown field `grammar`",
        ),
        (
            "structured_outputs",
            json!({"regex": "(a"}),
            "structured_outputs.regex",
            "cannot be used",
        ),
        (
            "structured_outputs",
            json!({"json": 5}),
            "structured_outputs.json",
            "must be a JSON schema",
        ),
        (
            "structured_outputs",
            json!({"regex": "a", "choice": ["a"]}),
            "structured_outputs.choice",
            "beside structured_outputs.regex",
        ),
    ]
}

#[tokio::test]
async fn what_cannot_be_held_to_is_refused_by_its_field() {
    let world = world();
    for (field, value, param, says) in cases() {
        for (path, other) in [
            ("/v1/chat/completions", json!({"messages": question()})),
            ("/v1/completions", json!({"prompt": "a"})),
        ] {
            let mut body = with_model(other);
            body[field] = value.clone();
            let reply = world.post(path, body).await;
            let shown: String = value.to_string().chars().take(100).collect();
            assert_eq!(
                reply.status,
                StatusCode::BAD_REQUEST,
                "{field} {shown}: {:?}",
                reply.body
            );
            let error = reply.json()["error"].clone();
            assert_eq!(error["param"], param, "{field} {shown}: {error}");
            let message = error["message"].as_str().unwrap();
            assert!(
                message.starts_with(&format!("{param}: ")) && message.contains(says),
                "{shown}: {message}"
            );
            assert!(
                message.len() < 600 && !message.contains("x-guidance"),
                "{shown}: {message}"
            );
        }
    }
    assert!(world.heads.seen().is_empty());
    let both =
        json!({"messages": question(), "guided_regex": "a", "response_format": {"type": "json_object"}});
    let error = world.chat(both).await.json()["error"].clone();
    assert_eq!(
        error["message"],
        "guided_regex: cannot be asked for beside response_format"
    );
}

#[tokio::test]
async fn a_choice_of_tools_that_cannot_be_is_refused_by_its_field() {
    let world = world();
    let named = |name: &str| json!({"type": "function", "function": {"name": name}});
    let unfit = json!([
        {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}},
        {"type": "function", "function": {"name": "g", "strict": true, "parameters": {"not": {}}}},
    ]);
    for (tools, choice, param, says) in [
        (
            json!(null),
            json!("required"),
            "tool_choice",
            "there are no tools",
        ),
        (json!([]), named("add"), "tool_choice", "there are no tools"),
        (
            tools(),
            json!("must"),
            "tool_choice",
            "\"must\" is no choice of tools",
        ),
        (tools(), json!(5), "tool_choice", "5 is no choice of tools"),
        (
            tools(),
            json!({"type": "function"}),
            "tool_choice",
            "is no choice of tools",
        ),
        (
            tools(),
            json!({"type": "tool", "function": {"name": "add"}}),
            "tool_choice",
            "is no choice",
        ),
        (
            tools(),
            named("sub"),
            "tool_choice.function.name",
            "\"sub\" is not the name of one of the tools",
        ),
        (
            unfit.clone(),
            json!("auto"),
            "tools[1].function.parameters",
            "not",
        ),
        (
            unfit.clone(),
            json!("required"),
            "tools[1].function.parameters",
            "not",
        ),
        (unfit, named("g"), "tools[1].function.parameters", "not"),
    ] {
        let fields = json!({"messages": question(), "tools": tools, "tool_choice": choice});
        let reply = world.chat(fields).await;
        assert_eq!(
            reply.status,
            StatusCode::BAD_REQUEST,
            "{choice}: {:?}",
            reply.body
        );
        let error = reply.json()["error"].clone();
        assert_eq!(error["param"], param, "{error}");
        assert!(
            error["message"]
                .as_str()
                .is_some_and(|message| message.contains(says)),
            "{error}"
        );
    }
    let bad_strict = json!([{"type": "function", "function": {"name": "f", "strict": "yes"}}]);
    let error = world
        .chat(json!({"messages": question(), "tools": bad_strict}))
        .await
        .json()["error"]
        .clone();
    assert_eq!(error["param"], "tools[0].function.strict");
}
