"""Plain completions, tokens and errors with OpenAI's own client: the cluster at argv[1], which serves argv[2]."""

import sys

import openai

from steps import run, step, user

base_url, model = sys.argv[1:]
client = openai.OpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=60)
PROMPT = "The capital of France is"


def complete(prompt=PROMPT, **fields):
    fields = {"model": model, "temperature": 0, "max_tokens": 8, **fields}
    return client.completions.create(prompt=prompt, **fields)


def server(path, body):
    """A route of the server that the client has no method for."""
    return client.post(f"/../{path}", cast_to=object, body=body)


@step
def text():
    answer = complete()
    (choice,) = answer.choices
    assert " Paris" in choice.text and choice.finish_reason in ("stop", "length"), choice
    assert answer.object == "text_completion" and answer.usage.completion_tokens > 0


@step
def stream():
    whole = complete()
    texts, reasons, usage = "", [], None
    for chunk in complete(stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts += choice.text
            reasons += [choice.finish_reason] if choice.finish_reason else []
    assert texts == whole.choices[0].text and reasons == [whole.choices[0].finish_reason]
    assert usage.completion_tokens == whole.usage.completion_tokens


@step
def several_prompts_and_choices():
    prompts = [PROMPT, "The capital of Chile is"]
    answer = complete(prompts, n=2, temperature=1.2, seed=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    for place, prompt in enumerate(prompts):
        alone = complete(prompt, n=2, temperature=1.2, seed=3)
        together = answer.choices[2 * place : 2 * place + 2]
        assert [choice.text for choice in together] == [choice.text for choice in alone.choices]


@step
def token_ids():
    ids = server("tokenize", {"prompt": PROMPT})["tokens"]
    assert complete(ids).choices[0].text == complete().choices[0].text
    assert complete([ids, ids]).choices[1].text == complete().choices[0].text
    assert complete(ids).usage.prompt_tokens == len(ids)


@step
def echo():
    answer = complete(echo=True)
    assert answer.choices[0].text == PROMPT + complete().choices[0].text
    streamed = "".join(choice.text for chunk in complete(echo=True, stream=True) for choice in chunk.choices)
    assert streamed == answer.choices[0].text


@step
def prompt_log_probabilities():
    scored = complete(echo=True, logprobs=2, max_tokens=0)
    (choice,) = scored.choices
    assert choice.text == PROMPT and choice.finish_reason == "length", choice
    logprobs = choice.logprobs
    assert scored.usage.completion_tokens == 0 and scored.usage.prompt_tokens == len(logprobs.tokens)
    assert logprobs.token_logprobs[0] is None and all(logprob <= 0 for logprob in logprobs.token_logprobs[1:])
    assert logprobs.text_offset == sorted(logprobs.text_offset)
    answered = complete(echo=True, logprobs=2)
    count = len(logprobs.tokens)
    assert answered.choices[0].logprobs.token_logprobs[:count] == logprobs.token_logprobs
    assert answered.choices[0].text == complete(echo=True).choices[0].text
    listed = complete(extra_body={"prompt_logprobs": 1}).choices[0].prompt_logprobs
    assert listed[0] is None and len(listed) == count
    for entry, logprob in zip(listed[1:], logprobs.token_logprobs[1:]):
        assert logprob in [alternative["logprob"] for alternative in entry.values()]


@step
def log_probabilities():
    answer = complete(logprobs=3)
    logprobs = answer.choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == answer.usage.completion_tokens
    for logprob, top in zip(logprobs.token_logprobs, logprobs.top_logprobs):
        assert logprob <= 0 and logprob == max(top.values()) and 3 <= len(top) <= 4
    assert logprobs.text_offset == sorted(logprobs.text_offset)
    ids = complete(logprobs=0, extra_body={"return_tokens_as_token_ids": True}).choices[0].logprobs.tokens
    assert all(token.startswith("token_id:") for token in ids)


@step
def stop_and_limits():
    whole = complete(max_tokens=16).choices[0].text
    assert complete(max_tokens=16, stop="ris").choices[0].text == whole.partition("ris")[0]
    assert complete(max_tokens=16, stop=["ris", "zzz"]).choices[0].finish_reason == "stop"
    assert complete(max_tokens=2).usage.completion_tokens == 2
    first = server("tokenize", {"prompt": " Paris", "add_special_tokens": False})["tokens"][0]
    stopped = complete(extra_body={"stop_token_ids": [first]})
    # As vLLM has it, a stop token that is text is part of the answer.
    assert (stopped.choices[0].text, stopped.choices[0].finish_reason) == (" Paris", "stop")
    more = complete(max_tokens=20, extra_body={"min_tokens": 20})
    assert more.usage.completion_tokens == 20


@step
def choosing():
    fields = {"temperature": 1.5, "max_tokens": 12}

    def story(seed):
        return complete("A story:", seed=seed, **fields).choices[0].text

    assert story(9) == story(9) and len({story(seed) for seed in range(6)}) > 1
    first = server("tokenize", {"prompt": " Paris", "add_special_tokens": False})["tokens"][0]
    assert not complete(logit_bias={str(first): -100}).choices[0].text.startswith(" Paris")
    on = {"prompt": "rot rot rot rot", "max_tokens": 20}
    plain = complete(**on, extra_body={"ignore_eos": True})
    held = complete(**on, presence_penalty=2, frequency_penalty=2, extra_body={"ignore_eos": True, "repetition_penalty": 3})
    assert plain.choices[0].text != held.choices[0].text
    labels = {"user": "someone", "extra_body": {"priority": 7, "metadata": {"of": "a test"}}}
    assert complete(**labels).choices[0].text == complete().choices[0].text


@step
def tokens_there_and_back():
    text = "Größe, 12 – déjà vu! 🙂"
    there = server("tokenize", {"model": model, "prompt": text, "return_token_strs": True})
    assert there["count"] == len(there["tokens"]) == len(there["token_strs"]) and there["max_model_len"] == 4096
    assert server("detokenize", {"tokens": there["tokens"]})["prompt"] == text
    messages = user("What is the capital of France?")
    asked = server("tokenize", {"messages": messages})
    usage = client.chat.completions.create(model=model, messages=messages, max_tokens=1).usage
    assert asked["count"] == usage.prompt_tokens


@step
def errors():
    def refused(kind, param, **fields):
        fields = {"model": model, "messages": user("Hi"), **fields}
        try:
            client.chat.completions.create(**fields)
        except kind as error:
            assert error.param == param, (error.param, param)
            assert param is None or param in error.message and error.type == "invalid_request_error", error
            return error
        raise AssertionError(f"{fields} was answered")

    bad = openai.BadRequestError
    assert refused(openai.NotFoundError, "model", model="gpt-4").code == "model_not_found"
    refused(bad, "messages", messages=[])
    refused(bad, "messages[0].role", messages=[{"role": "king", "content": "Hi"}])
    refused(bad, "temperature", temperature=3)
    refused(bad, "top_p", top_p=0)
    refused(bad, "n", n=0)
    refused(bad, "max_tokens", max_tokens=-1)
    refused(bad, "stop", stop=[""])
    refused(bad, "logit_bias", logit_bias={"x": 1})
    refused(bad, "top_logprobs", top_logprobs=3)
    refused(bad, "stream_options", stream_options={"include_usage": True})
    refused(bad, "seed", extra_body={"seed": "one"})
    refused(bad, "min_tokens", max_tokens=2, extra_body={"min_tokens": 3})
    assert refused(bad, "max_tokens", max_tokens=4096).code == "context_length_exceeded"
    # In a stream too, before anything of it.
    refused(bad, "temperature", temperature=3, stream=True)
    try:
        complete([9_000_000])
    except bad as error:
        assert error.param == "prompt[0]", error
    else:
        raise AssertionError("a token that is not there was continued")


run()
