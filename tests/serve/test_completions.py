"""Plain completions, and log-probabilities as evaluation harnesses ask for them."""

from typing import Any, get_type_hints

import openai
import pytest
from openai.types import completion_create_params

from emu.generate.engine import Engine
from emu.generate.prompts import EncodedPrompt, TextOptions
from emu.serve.routes.completions import KNOWN
from tests.serve.conftest import Caller, error_of

PATH = "/v1/completions"


@pytest.fixture(scope="module")
def client(caller: Caller) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{caller.client.base_url}/v1", api_key="none", max_retries=0)


def complete(caller: Caller, **body: Any) -> dict[str, Any]:
    response = caller.client.post(PATH, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def test_a_text_is_continued(client: openai.OpenAI, engine: Engine) -> None:
    done = client.completions.create(model="tiny", prompt=["a red", "two"], max_tokens=6)
    assert [c.text for c in done.choices] == engine.generate_text(
        ["a red", "two"], TextOptions(max_new_tokens=6)
    )
    assert [choice.index for choice in done.choices] == [0, 1]
    whole = client.completions.create(model="tiny", prompt="a red", max_tokens=6, n=2, seed=1)
    chunks = list(
        client.completions.create(model="tiny", prompt="a red", max_tokens=6, stream=True)
    )
    text = "".join(chunk.choices[0].text for chunk in chunks)
    assert text == whole.choices[0].text == whole.choices[1].text
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_ids_continue_as_their_text_does(caller: Caller, engine: Engine) -> None:
    ids = engine.encode("a red circle").ids
    texts = [
        complete(caller, prompt=prompt, max_tokens=5)["choices"][0]["text"]
        for prompt in ("a red circle", list(ids), list(ids[1:]))
    ]
    assert len(set(texts)) == 1


def test_a_harness_gets_the_loss_of_an_answer(caller: Caller, engine: Engine) -> None:
    """As lm-eval does: ids of context and answer, echo, one new token, which is cut off."""
    context = list(engine.encode("a red circle").ids[1:])
    answer = list(engine.encode.tokenizer.encode(" above", bos=False))
    for sent in (context + answer, [engine.config.special.bos, *context, *answer]):
        body = {"prompt": [sent], "max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0}
        (choice,) = complete(caller, **body, seed=1234)["choices"]
        found = choice["logprobs"]
        assert len(found["token_logprobs"]) == len(sent) + 1
        start = len(sent) - len(answer)
        scores = found["token_logprobs"][start:-1]
        options = TextOptions(max_new_tokens=1, num_logprobs=1, prompt_logprobs=True)
        prompt = EncodedPrompt((engine.config.special.bos, *context, *answer))
        expected = engine.generate(prompt, options, max_images=0).prompt_scores
        assert scores == pytest.approx([s.logprob for s in expected[-len(answer) :]], abs=1e-4)
        for token, top in zip(found["tokens"], found["top_logprobs"], strict=True):
            assert top is None or token in top
    assert found["token_logprobs"][0] is None and found["top_logprobs"][0] is None


def test_no_new_token_gives_the_prompt_alone(caller: Caller) -> None:
    done = complete(caller, prompt="a red circle", max_tokens=0, logprobs=0, echo=True)
    (choice,) = done["choices"]
    assert choice["text"] == "a red circle" and choice["finish_reason"] == "length"
    assert "".join(choice["logprobs"]["tokens"]).strip() == "a red circle"
    assert done["usage"]["completion_tokens"] == 0
    offsets = choice["logprobs"]["text_offset"]
    assert offsets[0] == 0 and offsets == sorted(offsets)


def test_an_echo_is_streamed_too(caller: Caller) -> None:
    body = {"prompt": "a red", "max_tokens": 4, "echo": True, "logprobs": 2}
    whole = complete(caller, **body)["choices"][0]
    with caller.client.stream("POST", PATH, json=body | {"stream": True}) as response:
        lines = [line for line in response.iter_lines() if line.startswith("data: {")]
    assert len(lines) == 1 and whole["text"].startswith("a red")
    assert f'"text":"{whole["text"]}"' in lines[0]


def test_chat_has_log_probabilities(caller: Caller, engine: Engine, client: openai.OpenAI) -> None:
    options = TextOptions(max_new_tokens=5, num_logprobs=2)
    expected = engine.generate("describe", options, max_images=0).scores
    messages: list[Any] = [{"role": "user", "content": "describe"}]
    done = client.chat.completions.create(
        model="tiny", messages=messages, max_tokens=5, logprobs=True, top_logprobs=2
    )
    assert done.choices[0].logprobs and done.choices[0].logprobs.content
    content = done.choices[0].logprobs.content
    assert [each.token for each in content] == [score.text for score in expected]
    assert [each.logprob for each in content] == pytest.approx(
        [score.logprob for score in expected], abs=1e-4
    )
    assert all(len(each.top_logprobs) == 2 for each in content)
    chunks = caller.stream("describe", max_tokens=5, logprobs=True, top_logprobs=2)
    streamed = [c["choices"][0]["logprobs"] for c in chunks if c["choices"][0]["logprobs"]]
    assert [each["content"][0]["token"] for each in streamed] == [each.token for each in content]
    text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks)
    assert text == done.choices[0].message.content


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({}, "prompt", "missing"),
        ({"prompt": []}, "prompt", "at least 1"),
        ({"prompt": 3}, "prompt", "3"),
        ({"prompt": "a <image> b"}, "prompt", "<image>"),
        ({"prompt": ["a", "[IMG]"]}, "prompt.1", "[IMG]"),
        ({"prompt": [1, 10**6]}, "prompt.1", "1000000"),
        ({"prompt": "a", "logprobs": 21}, "logprobs", "21"),
        ({"prompt": "a", "suffix": "b"}, "suffix", "accepts only null"),
        ({"prompt": ["a"] * 17}, "prompt", "17, the limit is 16"),
        ({"prompt": "a", "max_token": 1}, "max_token", "mean max_tokens?"),
        ({"prompt": "a", "model": "b"}, "model", "only has"),
    ],
)
def test_a_wrong_completion_names_its_field(
    caller: Caller, body: dict[str, Any], param: str, words: str
) -> None:
    status, found, text = error_of(caller.client.post(PATH, json=body))
    assert found == param and words in text and status in (400, 404)


def test_every_field_of_the_client_is_known() -> None:
    fields = get_type_hints(completion_create_params.CompletionCreateParamsNonStreaming)
    assert set(fields) <= set(KNOWN[""]), set(fields) - set(KNOWN[""])
