"""What the tests of clients share: steps that all run, each of which says how it went."""

import sys
import traceback

STEPS = []

WEATHER = {
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
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}


def step(function):
    """Makes a function one of the steps."""
    STEPS.append(function)
    return function


def user(text):
    """A conversation of one question."""
    return [{"role": "user", "content": text}]


def run():
    """Runs every step; fails if one did, or if there are none."""
    failed = 0
    for one in STEPS:
        try:
            one()
            print(f"{one.__name__}: ok")
        except Exception:
            failed += 1
            print(f"{one.__name__}: failed")
            traceback.print_exc()
    print(f"{len(STEPS) - failed} of {len(STEPS)} steps went well")
    sys.exit(1 if failed or not STEPS else 0)
