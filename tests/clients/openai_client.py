"""What users of the official client do first, against the cluster at argv[1], which serves the model argv[2].

Says each step that went well; ends with a traceback at the first that does not.
"""

import json
import sys

import openai

base_url, model = sys.argv[1:]
client = openai.OpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=60)
question = [{"role": "user", "content": "What is the capital of France?"}]
greedy = {"model": model, "temperature": 0, "max_tokens": 64}

models = [one.id for one in client.models.list()]
assert models == [model], models
assert client.models.retrieve(model).id == model
print("models:", models)

answer = client.chat.completions.create(messages=question, **greedy)
text = answer.choices[0].message.content
assert text == "The capital of France is Paris.", text
assert answer.choices[0].finish_reason == "stop"
usage = answer.usage
assert usage.prompt_tokens > 0 and usage.completion_tokens > 0
assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
print("chat:", text)

stream = client.chat.completions.create(
    messages=question, stream=True, stream_options={"include_usage": True}, **greedy
)
pieces, finish, streamed_usage = [], None, None
for chunk in stream:
    streamed_usage = chunk.usage or streamed_usage
    for choice in chunk.choices:
        pieces.append(choice.delta.content or "")
        finish = choice.finish_reason or finish
assert "".join(pieces) == text, pieces
assert len([piece for piece in pieces if piece]) > 1, "the answer came in one piece"
assert finish == "stop" and streamed_usage == usage
print("stream:", pieces)

tools = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Get the weather in a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    }
]
ask = [{"role": "user", "content": "What is the weather in Lisbon?"}]
answer = client.chat.completions.create(messages=ask, tools=tools, **greedy)
assert answer.choices[0].finish_reason == "tool_calls"
(call,) = answer.choices[0].message.tool_calls
assert call.function.name == "get_weather"
assert json.loads(call.function.arguments) == {"city": "Lisbon"}
print("tool call:", call.function)

stream = client.chat.completions.create(messages=ask, tools=tools, stream=True, **greedy)
name, arguments = "", ""
for chunk in stream:
    for choice in chunk.choices:
        for piece in choice.delta.tool_calls or []:
            name += piece.function.name or ""
            arguments += piece.function.arguments or ""
assert (name, arguments) == (call.function.name, call.function.arguments), (name, arguments)

told = [
    *ask,
    answer.choices[0].message,
    {"role": "tool", "tool_call_id": call.id, "content": '{"result": "sunny"}'},
]
answer = client.chat.completions.create(messages=told, tools=tools, **greedy)
worded = answer.choices[0].message
assert worded.content and not worded.tool_calls, worded
assert "sunny" in worded.content, worded
print("tool result:", worded.content)

answer = client.completions.create(prompt="The capital of France is", logprobs=3, **greedy)
logprobs = answer.choices[0].logprobs
assert len(logprobs.tokens) == len(logprobs.token_logprobs) == answer.usage.completion_tokens
assert all(logprob <= 0 for logprob in logprobs.token_logprobs)
print("completion:", answer.choices[0].text)

try:
    client.chat.completions.create(messages=question, model="gpt-4")
    raise AssertionError("a model that is not there was served")
except openai.NotFoundError as error:
    assert error.param == "model" and error.code == "model_not_found", error
try:
    client.chat.completions.create(messages=[], model=model)
    raise AssertionError("no messages were answered")
except openai.BadRequestError as error:
    assert error.param == "messages", error
    print("error:", error.message)
