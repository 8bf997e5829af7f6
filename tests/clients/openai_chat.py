"""Chats with OpenAI's own client: the cluster at argv[1], which serves the model argv[2]."""

import json
import math
import sys
import time

import openai

from steps import ADD, WEATHER, run, step, user

base_url, model = sys.argv[1:]
client = openai.OpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=60)
FRANCE = user("What is the capital of France?")
PARIS = "The capital of France is Paris."
COUNT = user("Count from 1 to 10.")
COUNTED = "1 2 3 4 5 6 7 8 9 10"


def chat(messages, **fields):
    fields = {"model": model, "temperature": 0, "max_tokens": 64, **fields}
    return client.chat.completions.create(messages=messages, **fields)


def text_of(messages, **fields):
    return chat(messages, **fields).choices[0].message.content


def joined(stream):
    """The text of each choice, the reason of each, the last usage, and how many chunks had text."""
    texts, reasons, usage, with_text = {}, {}, None, 0
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            assert choice.index not in reasons, "a choice went on after its end"
            piece = choice.delta.content or ""
            with_text += bool(piece)
            texts[choice.index] = texts.get(choice.index, "") + piece
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    return texts, reasons, usage, with_text


@step
def models():
    assert [one.id for one in client.models.list()] == [model]
    assert client.models.retrieve(model).id == model


@step
def whole_answer():
    answer = chat(FRANCE)
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", PARIS, "stop")
    usage = answer.usage
    assert usage.prompt_tokens > 0 and usage.completion_tokens > 0
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert answer.object == "chat.completion" and answer.model == model and answer.id.startswith("chatcmpl-")


@step
def stream():
    whole = chat(FRANCE)
    texts, reasons, usage, with_text = joined(chat(FRANCE, stream=True, stream_options={"include_usage": True}))
    assert texts == {0: PARIS} and reasons == {0: "stop"}
    assert with_text > 1, "the answer came in one piece"
    assert usage.completion_tokens == whole.usage.completion_tokens
    assert usage.prompt_tokens == whole.usage.prompt_tokens
    assert joined(chat(FRANCE, stream=True))[2] is None, "usage that nobody asked for"


@step
def cached_tokens():
    # Long enough for whole blocks of the cache, and like nothing asked before.
    messages = user(f"The secret code is {time.time_ns()}. " + "The house is old. The sea is blue. " * 20 + "What is the secret code?")
    first, second = chat(messages).usage, chat(messages).usage
    assert second.prompt_tokens == first.prompt_tokens > 100
    assert first.prompt_tokens_details.cached_tokens < second.prompt_tokens_details.cached_tokens
    assert second.prompt_tokens_details.cached_tokens < second.prompt_tokens
    salted = chat(messages, extra_body={"cache_salt": "of one tenant"}).usage
    assert salted.prompt_tokens_details.cached_tokens == 0


@step
def several_choices():
    fields = {"n": 3, "temperature": 1.5, "seed": 11, "max_tokens": 12}
    answer = chat(user("Tell me a story."), **fields)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    texts = [choice.message.content for choice in answer.choices]
    assert len(set(texts)) > 1, texts
    one = chat(user("Tell me a story."), **{**fields, "n": 1})
    assert one.choices[0].message.content == texts[0], "n changes the first choice"
    assert answer.usage.prompt_tokens == one.usage.prompt_tokens, "the prompt counts once"
    streamed, reasons, _, _ = joined(chat(user("Tell me a story."), stream=True, **fields))
    assert [streamed[index] for index in range(3)] == texts and len(reasons) == 3


@step
def seed():
    def tell(seed):
        return text_of(user("Tell me a story."), temperature=1.5, seed=seed, max_tokens=16)

    assert tell(5) == tell(5) and tell(-(2**63)) == tell(-(2**63)) and tell(2**63 - 1) == tell(2**63 - 1)
    assert len({tell(seed) for seed in range(6)}) > 1


@step
def nucleus_and_top_k():
    # Whatever the temperature, one token is left to choose from.
    assert text_of(FRANCE, temperature=2, top_p=1e-6, seed=1) == PARIS
    assert text_of(FRANCE, temperature=2, seed=1, extra_body={"top_k": 1}) == PARIS
    assert text_of(FRANCE, temperature=2, seed=1, extra_body={"min_p": 1}) == PARIS


@step
def stop_strings():
    cut = chat(COUNT, stop=" 5 ")
    assert (cut.choices[0].message.content, cut.choices[0].finish_reason) == ("1 2 3 4", "stop")
    # Across the border of tokens: it begins within one and ends within another.
    across = chat(FRANCE, stop=["ital of Fra"])
    assert (across.choices[0].message.content, across.choices[0].finish_reason) == ("The cap", "stop")
    texts, reasons, _, _ = joined(chat(FRANCE, stop=["ital of Fra", "x"], stream=True))
    assert (texts, reasons) == ({0: "The cap"}, {0: "stop"})
    # A beginning that does not go on to a stop string is given out after all.
    assert text_of(FRANCE, stop="is Paris!") == PARIS


@step
def stop_tokens():
    number = client.post("/../tokenize", cast_to=object, body={"prompt": " 5", "add_special_tokens": False})["tokens"]
    cut = chat(COUNT, extra_body={"stop_token_ids": [number[-1]]})
    assert cut.choices[0].finish_reason == "stop"
    assert COUNTED.startswith(cut.choices[0].message.content) and cut.choices[0].message.content != COUNTED


@step
def limits():
    for name in ("max_tokens", "max_completion_tokens"):
        answer = client.chat.completions.create(model=model, messages=COUNT, temperature=0, **{name: 3})
        assert answer.choices[0].finish_reason == "length" and answer.usage.completion_tokens == 3
    longer = chat(FRANCE, extra_body={"min_tokens": 20})
    assert longer.usage.completion_tokens >= 20 and longer.choices[0].message.content.startswith(PARIS)
    going_on = chat(FRANCE, max_tokens=24, extra_body={"ignore_eos": True})
    assert going_on.usage.completion_tokens == 24 and going_on.choices[0].finish_reason == "length"


@step
def penalties_and_bias():
    repeated = user("Repeat exactly: rot rot rot rot rot rot")
    plain = text_of(repeated)
    assert plain.count("rot") > 1, plain
    for fields in (
        {"frequency_penalty": 2.0, "presence_penalty": 2.0, "extra_body": {"repetition_penalty": 5.0}},
        {"extra_body": {"repetition_penalty": 100.0}},
    ):
        assert text_of(repeated, **fields).count("rot") < plain.count("rot")
    (paris,) = client.post("/../tokenize", cast_to=object, body={"prompt": " Paris", "add_special_tokens": False})["tokens"]
    assert "Paris" not in text_of(FRANCE, logit_bias={str(paris): -100}).split(".")[0]
    assert text_of(FRANCE, logit_bias={str(paris): 100}, max_tokens=3) == " Paris" * 3


@step
def log_probabilities():
    answer = chat(FRANCE, logprobs=True, top_logprobs=3)
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens
    assert b"".join(bytes(token.bytes) for token in content).startswith(PARIS.encode())
    for token in content:
        assert token.logprob <= 0 and len(token.top_logprobs) == 3
        top = [other.logprob for other in token.top_logprobs]
        assert top == sorted(top, reverse=True) and token.logprob == top[0], "a greedy token is the best one"
        assert sum(math.exp(logprob) for logprob in top) <= 1 + 1e-4
    streamed = []
    for chunk in chat(FRANCE, logprobs=True, top_logprobs=3, stream=True):
        for choice in chunk.choices:
            streamed += choice.logprobs.content if choice.logprobs else []
    assert streamed == content
    assert chat(FRANCE).choices[0].logprobs is None
    assert chat(FRANCE, logprobs=True).choices[0].logprobs.content[0].top_logprobs == []


@step
def labels():
    fields = {"user": "someone", "metadata": {"of": "a test"}, "store": False, "extra_body": {"priority": -5}}
    assert text_of(FRANCE, **fields) == PARIS
    assert text_of(FRANCE, response_format={"type": "text"}) == PARIS


@step
def conversations():
    parts = [{"role": "user", "content": [{"type": "text", "text": FRANCE[0]["content"]}]}]
    assert text_of(parts) == PARIS
    told = [
        {"role": "system", "content": "You are brief."},
        *FRANCE,
        {"role": "assistant", "content": PARIS},
        *user("What is the capital of Chile?"),
    ]
    assert text_of(told) == "The capital of Chile is Santiago."


@step
def tool_call_and_result():
    ask = user("What is the weather in Lisbon?")
    answer = chat(ask, tools=[WEATHER, ADD], tool_choice="auto")
    assert answer.choices[0].finish_reason == "tool_calls"
    message = answer.choices[0].message
    (call,) = message.tool_calls
    assert call.type == "function" and call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "Lisbon"}
    result = {"role": "tool", "tool_call_id": call.id, "content": '{"result": "sunny"}'}
    worded = chat([*ask, message, result], tools=[WEATHER, ADD]).choices[0]
    assert worded.finish_reason == "stop" and "sunny" in worded.message.content, worded
    assert not worded.message.tool_calls
    assert not chat(ask, tools=[WEATHER], tool_choice="none").choices[0].message.tool_calls


@step
def streamed_tool_call():
    ask = user("What is the weather in Lisbon?")
    names, ids, pieces, reason = [], [], [], None
    for chunk in chat(ask, tools=[WEATHER, ADD], parallel_tool_calls=False, stream=True):
        for choice in chunk.choices:
            reason = choice.finish_reason or reason
            for call in choice.delta.tool_calls or []:
                assert call.index == 0
                names += [call.function.name] if call.function.name else []
                ids += [call.id] if call.id else []
                pieces += [call.function.arguments] if call.function.arguments else []
    assert names == ["get_weather"] and len(ids) == 1 and reason == "tool_calls"
    assert len(pieces) > 1, "the arguments came in one piece"
    assert json.loads("".join(pieces)) == {"city": "Lisbon"}
    # The client's own helper puts a stream together.
    with client.chat.completions.stream(
        model=model, messages=ask, tools=[WEATHER, ADD], temperature=0, max_tokens=64
    ) as events:
        final = events.get_final_completion().choices[0].message
    assert json.loads(final.tool_calls[0].function.arguments) == {"city": "Lisbon"}


@step
def reasoning():
    # The miniature does not reason by itself: the prompt opens a span, and what follows is reasoning.
    begun = {"role": "assistant", "prefix": True, "content": [{"type": "thinking", "thinking": "1 2 3", "closed": False}]}
    answer = chat([*COUNT, begun], max_tokens=6)
    message = answer.choices[0].message
    chunks = message.content
    assert isinstance(chunks, list) and chunks[0]["type"] == "thinking", message
    # In OpenAI's own shape a turn's reasoning goes back as a field beside its text.
    told = [*FRANCE, {"role": "assistant", "content": PARIS, "reasoning_content": "France? Paris."}, *COUNT]
    with_reasoning = chat(told)
    without = chat([*FRANCE, {"role": "assistant", "content": PARIS}, *COUNT])
    assert with_reasoning.usage.prompt_tokens > without.usage.prompt_tokens


run()
