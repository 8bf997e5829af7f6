"""What schemathesis does before it sends a request: answers are kept short, as it is the requests that are tested."""

import schemathesis
from hypothesis.internal import lambda_sources

LIMITS = ("max_tokens", "max_output_tokens")
MOST_TOKENS = 4

# Hypothesis parses source texts to name its parts in messages, at which Python 3.11 fails when it is deep in calls.
lambda_sources.lambda_description = lambda function: "lambda"


def is_count(value):
    return isinstance(value, int) and not isinstance(value, bool)


@schemathesis.hook
def before_call(context, case, kwargs):
    body = case.body
    if not isinstance(body, dict) or not {"prompt", "messages", "input"} & body.keys():
        return
    limits = [name for name in LIMITS + ("max_completion_tokens",) if is_count(body.get(name))]
    for name in limits:
        body[name] = min(body[name], MOST_TOKENS)
    # Fields that are there and wrong stay as they are.
    absent = [name for name in LIMITS if body.get(name) is None]
    if not limits and len(absent) == len(LIMITS):
        body["input" in body and "max_output_tokens" or "max_tokens"] = MOST_TOKENS
