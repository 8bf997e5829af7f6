"""Chats with Mistral's own client, of which only the server URL changes: argv[1], which serves the model argv[2]."""

import json
import sys

from mistralai.client import Mistral, errors, models

from steps import ADD, WEATHER, run, step, user

server_url, model = sys.argv[1:]
client = Mistral(api_key="none", server_url=server_url, timeout_ms=60_000)
FRANCE = user("What is the capital of France?")
PARIS = "The capital of France is Paris."
COUNT = user("Count from 1 to 10.")


def complete(messages, **fields):
    return client.chat.complete(**{"model": model, "messages": messages, "temperature": 0, "max_tokens": 64, **fields})


def text_of(messages, **fields):
    return complete(messages, **fields).choices[0].message.content


def streamed(messages, **fields):
    """Text, reason and usage of a stream, and its pieces."""
    fields = {"model": model, "messages": messages, "temperature": 0, "max_tokens": 64, **fields}
    pieces, reason, usage = [], None, None
    for event in client.chat.stream(**fields):
        chunk = event.data
        usage = chunk.usage or usage
        (choice,) = chunk.choices
        pieces.append(choice.delta.content)
        reason = choice.finish_reason or reason
    return pieces, reason, usage


@step
def the_models():
    (card,) = client.models.list().data
    assert isinstance(card, models.BaseModelCard) and card.id == model
    assert card.capabilities.completion_chat and card.capabilities.function_calling
    assert card.max_context_length == 4096
    one = client.models.retrieve(model_id=model)
    assert isinstance(one, models.BaseModelCard) and one.id == model


@step
def whole_answer():
    answer = complete(FRANCE)
    (choice,) = answer.choices
    assert (choice.message.content, choice.finish_reason) == (PARIS, "stop")
    assert not choice.message.tool_calls
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0


@step
def stream():
    whole = complete(FRANCE)
    pieces, reason, usage = streamed(FRANCE)
    assert "".join(pieces) == PARIS and reason == "stop"
    assert len([piece for piece in pieces if piece]) > 1, "the answer came in one piece"
    assert usage.completion_tokens == whole.usage.completion_tokens
    assert usage.prompt_tokens == whole.usage.prompt_tokens


@step
def several_choices_of_one_seed():
    fields = {"n": 3, "temperature": 1.5, "random_seed": 11, "max_tokens": 12}
    texts = [choice.message.content for choice in complete(user("Tell me a story."), **fields).choices]
    again = [choice.message.content for choice in complete(user("Tell me a story."), **fields).choices]
    assert len(texts) == 3 and len(set(texts)) > 1 and texts == again
    other = complete(user("Tell me a story."), **{**fields, "random_seed": 12}).choices
    assert [choice.message.content for choice in other] != texts


@step
def choosing():
    assert text_of(COUNT, stop=[" 5 "]) == "1 2 3 4"
    assert text_of(FRANCE, stop="ital of Fra") == "The cap"
    short = complete(COUNT, max_tokens=3)
    assert short.choices[0].finish_reason == "length" and short.usage.completion_tokens == 3
    assert text_of(FRANCE, top_p=1e-6, temperature=1.5, random_seed=3) == PARIS
    repeated = user("Repeat exactly: rot rot rot rot rot rot")
    held = text_of(repeated, frequency_penalty=2.0, presence_penalty=2.0)
    assert held != text_of(repeated)
    assert text_of(FRANCE, response_format={"type": "text"}, metadata={"of": "a test"}) == PARIS


@step
def safe_prompt():
    plain, safe = complete(FRANCE), complete(FRANCE, safe_prompt=True)
    assert safe.usage.prompt_tokens > plain.usage.prompt_tokens
    assert complete(FRANCE, safe_prompt=False).usage.prompt_tokens == plain.usage.prompt_tokens


@step
def prefix():
    begun = [*FRANCE, {"role": "assistant", "content": "The capital of", "prefix": True}]
    assert text_of(begun).endswith(" France is Paris.")


@step
def thinking():
    # The miniature does not reason by itself: a prefix opens a span, and what follows is reasoning.
    begun = {"type": "thinking", "thinking": [{"type": "text", "text": "1 2 3"}], "closed": False}
    messages = [*COUNT, {"role": "assistant", "prefix": True, "content": [begun]}]
    answer = complete(messages, max_tokens=6).choices[0].message
    (chunk,) = answer.content
    assert isinstance(chunk, models.ThinkChunk) and chunk.thinking[0].text
    pieces, _, _ = streamed(messages, max_tokens=6)
    chunks = [one for piece in pieces if isinstance(piece, list) for one in piece]
    assert "".join(one.thinking[0].text for one in chunks) == chunk.thinking[0].text
    # An answer goes back as it came.
    assert text_of([*COUNT, answer, *FRANCE]) is not None
    told = complete(FRANCE, prompt_mode="reasoning", max_tokens=4)
    assert told.usage.prompt_tokens > complete(FRANCE, max_tokens=4).usage.prompt_tokens + 20


@step
def tools():
    ask = user("What is the weather in Lisbon?")
    answer = complete(ask, tools=[WEATHER, ADD], tool_choice="auto").choices[0]
    assert answer.finish_reason == "tool_calls"
    (call,) = answer.message.tool_calls
    assert call.function.name == "get_weather" and json.loads(call.function.arguments) == {"city": "Lisbon"}
    result = {"role": "tool", "name": "get_weather", "tool_call_id": call.id, "content": '{"result": "sunny"}'}
    worded = complete([*ask, answer.message, result], tools=[WEATHER, ADD]).choices[0]
    assert "sunny" in worded.message.content and worded.finish_reason == "stop"
    assert not complete(ask, tools=[WEATHER], tool_choice="none").choices[0].message.tool_calls


@step
def streamed_tools():
    calls, reason = [], None
    events = client.chat.stream(
        model=model,
        messages=user("What is the weather in Lisbon?"),
        tools=[WEATHER, ADD],
        parallel_tool_calls=False,
        temperature=0,
        max_tokens=64,
    )
    for event in events:
        calls += event.data.choices[0].delta.tool_calls or []
        reason = event.data.choices[0].finish_reason or reason
    (call,) = calls
    assert call.function.name == "get_weather" and json.loads(call.function.arguments) == {"city": "Lisbon"}
    assert reason == "tool_calls"


@step
def refusals():
    def refused(status, param, ask=complete, **fields):
        try:
            ask(**{"messages": user("Hi"), **fields})
        except errors.SDKError as error:
            said = json.loads(error.body)
            assert error.status_code == status, error
            assert said["object"] == "error" and said["param"] == param and param in said["message"], said
            assert said["message"] in error.message.encode().decode("unicode_escape") or said["message"] in error.message
            return
        raise AssertionError(f"{fields} was answered")

    refused(404, "model", model="mistral-large-latest")
    refused(400, "messages", messages=[])
    refused(400, "temperature", temperature=3)
    refused(400, "n", n=99)
    refused(400, "max_tokens", max_tokens=4096)
    refused(400, "temperature", ask=streamed, temperature=3)
    refused(404, "model", ask=lambda messages: client.models.retrieve(model_id="mistral-large-latest"))


run()
