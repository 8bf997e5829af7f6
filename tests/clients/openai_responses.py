"""Responses with OpenAI's own client: the cluster at argv[1], which serves the model argv[2]."""

import json
import sys

import openai

from steps import ADD, WEATHER, run, step, user

base_url, model = sys.argv[1:]
client = openai.OpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=60)
FRANCE = "What is the capital of France?"
PARIS = "The capital of France is Paris."


def respond(given, **fields):
    fields = {"model": model, "temperature": 0, "max_output_tokens": 64, **fields}
    return client.responses.create(input=given, **fields)


def flat(tool):
    """A tool as this API has it."""
    return {"type": "function", "strict": False, **tool["function"]}


@step
def text():
    response = respond(FRANCE)
    assert response.output_text == PARIS and response.status == "completed"
    assert response.object == "response" and response.id.startswith("resp_") and response.error is None
    usage = response.usage
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens > usage.output_tokens > 0
    assert usage.output_tokens_details.reasoning_tokens == 0


@step
def items_and_instructions():
    first = respond(user(FRANCE), instructions="You are brief.")
    assert first.output_text and first.instructions == "You are brief."
    # What came back goes in again.
    given = [*user(FRANCE), *first.output, *user("What is the capital of Chile?")]
    assert respond(given).output_text == "The capital of Chile is Santiago."


@step
def limits():
    cut = respond("Count from 1 to 10.", max_output_tokens=3)
    assert cut.status == "incomplete" and cut.incomplete_details.reason == "max_output_tokens"
    assert cut.usage.output_tokens == 3 and cut.max_output_tokens == 3


@step
def stream():
    whole = respond(FRANCE)
    events = list(respond(FRANCE, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created" and events[-1].type == "response.completed"
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == PARIS and len(deltas) > 1
    (done,) = [event for event in events if event.type == "response.output_text.done"]
    assert done.text == PARIS
    assert events[-1].response.output_text == PARIS
    assert events[-1].response.usage.output_tokens == whole.usage.output_tokens
    # The client's own helper puts a stream together.
    with client.responses.stream(model=model, input=FRANCE, temperature=0, max_output_tokens=64) as helped:
        assert helped.get_final_response().output_text == PARIS


@step
def log_probabilities():
    response = respond(FRANCE, include=["message.output_text.logprobs"], top_logprobs=2)
    logprobs = response.output[0].content[0].logprobs
    assert len(logprobs) == response.usage.output_tokens
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 2 for token in logprobs)


@step
def tools():
    given = user("What is the weather in Lisbon?")
    response = respond(given, tools=[flat(WEATHER), flat(ADD)])
    (call,) = response.output
    assert call.type == "function_call" and call.name == "get_weather"
    assert json.loads(call.arguments) == {"city": "Lisbon"}
    result = {"type": "function_call_output", "call_id": call.call_id, "output": '{"result": "sunny"}'}
    worded = respond([*given, call, result], tools=[flat(WEATHER), flat(ADD)])
    assert "sunny" in worded.output_text
    none = respond(given, tools=[flat(WEATHER)], tool_choice="none")
    assert all(item.type == "message" for item in none.output)


@step
def streamed_tools():
    events = list(respond(user("What is the weather in Lisbon?"), tools=[flat(WEATHER), flat(ADD)], stream=True))
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    (done,) = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert "".join(deltas) == done.arguments and len(deltas) > 1
    assert json.loads(done.arguments) == {"city": "Lisbon"} and done.name == "get_weather"
    assert events[-1].response.output[0].call_id


@step
def tool_choice():
    given = user("What is the capital of France?")
    for choice in ["required", {"type": "function", "name": "add"}]:
        response = respond(given, tools=[flat(WEATHER), flat(ADD)], tool_choice=choice)
        assert response.output and all(item.type == "function_call" for item in response.output), response.output
    (call,) = response.output
    arguments = json.loads(call.arguments)
    assert call.name == "add" and all(type(arguments[name]) is int for name in ["a", "b"]), call
    assert response.tool_choice.name == "add"


@step
def text_formats():
    schema = {
        "type": "object",
        "properties": {"size": {"enum": ["small", "large"]}},
        "required": ["size"],
        "additionalProperties": False,
    }
    shape = {"format": {"type": "json_schema", "name": "thing", "strict": True, "schema": schema}}
    response = respond("Describe a house.", text=shape)
    sized = json.loads(response.output_text)
    assert list(sized) == ["size"] and sized["size"] in ("small", "large"), sized
    assert response.text.format.type == "json_schema" and response.text.format.schema_ == schema
    events = list(respond("Describe a house.", text=shape, stream=True))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == response.output_text and events[-1].response.text.format.schema_ == schema
    cut = respond("Describe a house.", text={"format": {"type": "json_object"}})
    assert cut.output_text.startswith("{")
    assert cut.status == "incomplete" or type(json.loads(cut.output_text)) is dict


@step
def refusals():
    for fields, param in [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"store": True}, "store"),
        ({"temperature": 3}, "temperature"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
    ]:
        try:
            respond(FRANCE, **fields)
        except openai.BadRequestError as error:
            assert error.param == param, error
        else:
            raise AssertionError(f"{fields} was answered")


run()
