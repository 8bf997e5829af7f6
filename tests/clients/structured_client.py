"""Structured output and constrained calls, against the cluster at argv[1], which serves the model argv[2].

Every answer that ends by itself is checked by code that is not the cluster's: `jsonschema`, `re` and a scan for white
space. Says each step that went well; ends with a traceback at the first that does not.
"""

import json
import random
import re
import sys
from concurrent.futures import ThreadPoolExecutor

import openai
from jsonschema import Draft202012Validator

SCHEMAS = 300
CONCURRENCY = 16

base_url, model = sys.argv[1:]
client = openai.OpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=120)
pool = ThreadPoolExecutor(CONCURRENCY)


def ask(text, **fields):
    messages = [{"role": "user", "content": text}]
    return client.chat.completions.create(model=model, messages=messages, **fields)


def streamed(text, **fields):
    """The same answer as a stream: its text, its calls as name and arguments, its end."""
    content, calls, finish = "", [], None
    for chunk in ask(text, stream=True, **fields):
        for choice in chunk.choices:
            content += choice.delta.content or ""
            finish = choice.finish_reason or finish
            for piece in choice.delta.tool_calls or []:
                if piece.index == len(calls):
                    calls.append([piece.function.name, ""])
                calls[piece.index][1] += piece.function.arguments or ""
    return content, [tuple(call) for call in calls], finish


def check_spaces(text):
    """JSON with ", " and ": " and no other white space outside of its strings."""
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', '""', text)
    assert re.sub(r", |: ", "", bare) == re.sub(r"[,:\s]", "", bare), text


def check_json(text, schema):
    check_spaces(text)
    value = json.loads(text)
    Draft202012Validator(schema).validate(value)
    return value


class Schemas:
    """Schemas of every kind that is promised, small enough that answers end."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.definitions = {}

    def whole(self):
        schema = self.object(2) if self.random.random() < 0.7 else self.any(2)
        if self.definitions:
            schema = {**schema, "$defs": self.definitions}
        return schema

    def any(self, depth):
        kinds = [self.string, self.integer, self.number, self.enum, self.const, self.boolean]
        if depth > 0:
            kinds += [self.array, self.object, self.any_of, self.reference]
        return self.random.choice(kinds)(depth - 1)

    def string(self, _):
        return self.random.choice(
            [
                {"type": "string", "maxLength": 5},
                {"type": "string", "minLength": 2, "maxLength": 4},
                {"type": "string", "pattern": "^[a-f]{1,4}$"},
                {"type": "string", "pattern": "^[A-Z][a-z]{1,3}-[0-9]{2}$"},
                {"type": "string", "pattern": "^(red|green|blue)$"},
            ]
        )

    def integer(self, _):
        low = self.random.randint(-50, 50)
        kind = self.random.choice([{}, {"multipleOf": 5}])
        bounds = [
            {"minimum": low, "maximum": low + self.random.randint(5, 900)},
            {"exclusiveMinimum": low, "exclusiveMaximum": low + 7},
        ]
        return {"type": "integer", **kind, **self.random.choice(bounds)}

    def number(self, _):
        low = self.random.choice([-1.5, 0, 2.25])
        return {"type": "number", "minimum": low, "maximum": low + self.random.choice([0.5, 3, 20])}

    def enum(self, _):
        values = ["x", "two words", 'a "quote"', "é☃", 7, -2.5, None, True, "tab\t"]
        return {"enum": self.random.sample(values, self.random.randint(1, 4))}

    def const(self, _):
        return {"const": self.random.choice(["fixed", 12, None, {"a": [1, "b"]}, [True, {}], ""])}

    def boolean(self, _):
        return {"type": self.random.choice(["boolean", "null", ["boolean", "null"]])}

    def array(self, depth):
        least = self.random.randint(0, 2)
        schema = {"type": "array", "minItems": least, "maxItems": least + self.random.randint(0, 2)}
        schema["items"] = self.any(min(depth, 0))
        if self.random.random() < 0.2:
            schema["prefixItems"] = [self.any(0)]
        return schema

    def object(self, depth):
        names = self.random.sample(["id", "name", "a b", "tag", "é", "n"], self.random.randint(1, 3))
        required = [name for name in names if self.random.random() < 0.6]
        return {
            "type": "object",
            "properties": {name: self.any(depth) for name in names},
            "required": required,
            "additionalProperties": False,
        }

    def any_of(self, depth):
        return {"anyOf": [self.any(min(depth, 0)) for _ in range(self.random.randint(2, 3))]}

    def reference(self, _):
        if not self.definitions or self.random.random() < 0.5:
            self.definitions[f"d{len(self.definitions)}"] = self.any(0)
        return {"$ref": f"#/$defs/{self.random.choice(sorted(self.definitions))}"}


def one_schema(seed):
    schema = Schemas(seed).whole()
    Draft202012Validator.check_schema(schema)
    shape = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
    fields = {"response_format": shape, "temperature": 1.0, "seed": seed, "max_tokens": 100}
    answer = ask("Describe something.", **fields).choices[0]
    text = answer.message.content
    if answer.finish_reason == "stop":
        try:
            check_json(text, schema)
        except Exception as error:
            raise AssertionError(f"{text!r} does not fit {json.dumps(schema)}") from error
    if seed % 25 == 0:
        assert streamed("Describe something.", **fields) == (text, [], answer.finish_reason)
    return answer.finish_reason == "stop"


ended = sum(pool.map(one_schema, range(SCHEMAS)))
assert ended >= 0.9 * SCHEMAS, f"{ended} of {SCHEMAS} answers ended by themselves"
print(f"schemas: {ended} of {SCHEMAS} answers ended by themselves, and all of those validate")

REGEXES = [
    r"[a-z]{2,6}",
    r"(cat|dog|bird)s?",
    r"\d{3}-\d{2}",
    r"^[A-F0-9]{4}$",
    r"v[0-9]\.[0-9]\.[0-9]",
    r"[^\n\"a-z ]{1,3}",
    r"(?:ab){1,3}/c?",
    r"\w{1,4} \w{1,4}",
    r"é{1,3}☃",
]


def one_regex(case):
    seed, regex = case
    fields = {"extra_body": {"guided_regex": regex}, "temperature": 1.0, "seed": seed, "max_tokens": 40}
    answer = ask("Say it.", **fields).choices[0]
    plain = client.completions.create(model=model, prompt="It is", **fields).choices[0]
    for text, finish in [(answer.message.content, answer.finish_reason), (plain.text, plain.finish_reason)]:
        assert finish != "stop" or re.fullmatch(regex, text), (regex, text)
    if seed == 0:
        assert streamed("Say it.", **fields) == (answer.message.content, [], answer.finish_reason)
    return [answer.finish_reason, plain.finish_reason]


finishes = sum(pool.map(one_regex, [(seed, regex) for regex in REGEXES for seed in range(2)]), [])
assert finishes.count("stop") >= 0.9 * len(finishes), finishes
print("guided_regex:", len(finishes), "answers")

CHOICES = ["Paris", "Paris, Texas", 'the "City"', "ja\n", "42"]


def one_choice(seed):
    fields = {"extra_body": {"guided_choice": CHOICES}, "temperature": 1.5, "seed": seed}
    answer = ask("What is the capital of France?", **fields).choices[0]
    assert answer.finish_reason == "stop" and answer.message.content in CHOICES, answer
    return answer.message.content


chosen = set(pool.map(one_choice, range(16)))
assert len(chosen) > 1, chosen
(words,) = {
    ask("Which?", temperature=0, extra_body={"structured_outputs": {"choice": ["one"]}}).choices[0].message.content
}
assert words == "one", words
print("guided_choice:", sorted(chosen))


def one_object(seed):
    fields = {"response_format": {"type": "json_object"}, "temperature": 1.0, "seed": seed, "max_tokens": 32}
    answer = ask("Write JSON.", **fields).choices[0]
    text = answer.message.content
    assert text.startswith("{"), text
    if answer.finish_reason == "stop":
        assert isinstance(check_json(text, {"type": "object"}), dict)
    return answer.finish_reason


print("json_object:", list(pool.map(one_object, range(8))))


def function(name, parameters, **more):
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome", "Lima"]}, "days": {"type": "integer", "minimum": 1, "maximum": 14}},
    "required": ["city"],
    "additionalProperties": False,
}
NOTE = {
    "type": "object",
    "properties": {"text": {"type": "string", "maxLength": 6}},
    "required": ["text"],
    "additionalProperties": False,
}
SCHEMA_OF = {"get_weather": CITY, "note": NOTE}
TOOLS = [function(name, schema) for name, schema in SCHEMA_OF.items()]


def calls_of(answer):
    return [(call.function.name, call.function.arguments) for call in answer.message.tool_calls or []]


def check_calls(calls):
    for name, arguments in calls:
        check_json(arguments, SCHEMA_OF[name])


def one_required(seed):
    fields = {"tools": TOOLS, "tool_choice": "required", "temperature": 1.0, "seed": seed, "max_tokens": 96}
    question = "What is the capital of France?"
    many = ask(question, **fields).choices[0]
    assert many.message.tool_calls and not many.message.content, many
    if many.finish_reason == "tool_calls":
        check_calls(calls_of(many))
    one = ask(question, parallel_tool_calls=False, **fields).choices[0]
    assert one.finish_reason == "tool_calls" and len(calls_of(one)) == 1, one
    check_calls(calls_of(one))
    if seed % 4 == 0:
        assert streamed(question, **fields) == ("", calls_of(many), many.finish_reason)
    return many.finish_reason, len(calls_of(many))


required = list(pool.map(one_required, range(12)))
assert any(finish == "tool_calls" for finish, _ in required), required
print("tool_choice required:", required)


def one_named(name):
    choice = {"type": "function", "function": {"name": name}}
    answer = ask("What is the weather in Lisbon?", tools=TOOLS, tool_choice=choice, temperature=0, max_tokens=64).choices[0]
    assert [called for called, _ in calls_of(answer)] == [name], answer
    check_calls(calls_of(answer))


list(pool.map(one_named, SCHEMA_OF))
print("tool_choice named:", list(SCHEMA_OF))

# Left free the model calls for Lisbon, which the schema does not have.
weather = {"temperature": 0, "max_tokens": 64}
free = ask("What is the weather in Lisbon?", tools=TOOLS, **weather).choices[0]
assert json.loads(calls_of(free)[0][1]) == {"city": "Lisbon"}, free
strict = [function("get_weather", CITY, strict=True), TOOLS[1]]
held = ask("What is the weather in Lisbon?", tools=strict, **weather).choices[0]
assert held.finish_reason == "tool_calls" and calls_of(held)[0][0] == "get_weather", held
check_calls([call for call in calls_of(held) if call[0] == "get_weather"])
assert streamed("What is the weather in Lisbon?", tools=strict, **weather)[1] == calls_of(held)
text = ask("What is the capital of France?", tools=strict, **weather).choices[0]
assert text.message.content == "The capital of France is Paris.", text
print("strict tools:", calls_of(held))

EXPLOSIVE = {"anyOf": [{"properties": {name: {"minLength": 1}}} for name in "abc"]}
for fields, param in [
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"not": {}}}}},
     "response_format.json_schema.schema"),
    ({"extra_body": {"guided_regex": "(a"}}, "guided_regex"),
    ({"extra_body": {"guided_json": {"allOf": [EXPLOSIVE] * 30}}}, "guided_json"),
    ({"tools": [function("f", {"type": "nothing"}, strict=True)]}, "tools[0].function.parameters"),
    ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice.function.name"),
]:
    try:
        ask("Hello", **fields)
        raise AssertionError(f"{fields} was served")
    except openai.BadRequestError as error:
        assert error.param == param, error
        print("error:", error.message)
