"""Log probabilities of chats and completions, complete and streamed, in OpenAI's shapes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion
from starlette.testclient import TestClient

from calumma.generate.model import Model
from calumma.serve.logprobs import CompletionLogprobsBuilder, TokenLogprobs, chat_logprobs
from tests.serve.conftest import ALONE, WILD, user_message


def post(client: TestClient, path: str, **body: Any) -> Any:
    response = client.post(path, json={"max_tokens": 12, "modalities": ["text"], **WILD, **body})
    assert response.status_code == 200, response.text
    if not body.get("stream"):
        return response.json()
    lines = [line[6:] for line in response.text.splitlines() if line.startswith("data: {")]
    return [json.loads(line) for line in lines]


def test_a_chat_has_the_most_likely_tokens(client: TestClient, model: Model) -> None:
    options = ALONE | {"max_new_tokens": 12, "modality": "text", "seed": 4, "num_logprobs": 3}
    sample = model.generate(["a red "], **options)
    body = {"messages": user_message("a red "), "seed": 4, "logprobs": True, "top_logprobs": 3}
    response = post(client, "/v1/chat/completions", **body)
    ChatCompletion.model_validate(response, strict=True)
    content = response["choices"][0]["logprobs"]["content"]
    texts = [id_ in model.vocabulary.text for id_ in sample.token_ids]
    tops = [top for top, is_text in zip(sample.top_logprobs, texts, strict=True) if is_text]
    assert len(content) == sum(texts)
    for item, top in zip(content, tops, strict=True):
        assert [t["logprob"] for t in item["top_logprobs"]] == pytest.approx(list(top.values()))
        assert item["logprob"] < 0 and len(item["top_logprobs"]) == 3
    chunks = post(client, "/v1/chat/completions", **body, stream=True)
    streamed = [c["choices"][0]["logprobs"] for c in chunks if c["choices"]]
    assert [item for scored in streamed if scored for item in scored["content"]] == content
    plain = post(client, "/v1/chat/completions", **body | {"logprobs": False, "top_logprobs": 0})
    assert plain["choices"][0]["logprobs"] is None


def test_a_completion_has_the_most_likely_tokens(client: TestClient, model: Model) -> None:
    body = {"prompt": "a red ", "seed": 4, "logprobs": 2}
    response = post(client, "/v1/completions", **body)
    Completion.model_validate(response, strict=True)
    choice = response["choices"][0]
    logprobs = choice["logprobs"]
    lengths = {len(values) for values in logprobs.values()}
    assert lengths == {len(logprobs["tokens"])} and lengths != {0}
    for token, logprob, top, offset in zip(
        *(logprobs[k] for k in ("tokens", "token_logprobs", "top_logprobs", "text_offset")), strict=True
    ):
        assert top[token] == logprob and len(top) in (2, 3)
        if not token.startswith("bytes:"):
            assert choice["text"][offset:].startswith(token)
    chunks = [c["choices"][0]["logprobs"] for c in post(client, "/v1/completions", **body, stream=True)]
    for name, values in logprobs.items():
        assert [value for chunk in chunks if chunk for value in chunk[name]] == values
    chosen = post(client, "/v1/completions", **body | {"logprobs": 0})["choices"][0]["logprobs"]
    assert chosen == logprobs | {"top_logprobs": None}
    assert post(client, "/v1/completions", prompt="a")["choices"][0]["logprobs"] is None


def test_best_of_returns_the_most_likely_completions(client: TestClient) -> None:
    body = {"prompt": ["a red ", "the "], "seed": 1, "return_token_ids": True, "logprobs": 0}
    every = post(client, "/v1/completions", **body, n=4)["choices"]
    best = post(client, "/v1/completions", **body, n=2, best_of=4)
    assert best["usage"]["completion_tokens"] == sum(len(c["token_ids"]) for c in every)

    def mean(choice: Any) -> float:
        values = choice["logprobs"]["token_logprobs"]
        return float(sum(values) / len(choice["token_ids"]))

    for number in range(2):
        four = sorted(every[4 * number : 4 * number + 4], key=mean, reverse=True)
        two = best["choices"][2 * number : 2 * number + 2]
        assert [c["token_ids"] for c in two] == [c["token_ids"] for c in four[:2]]
        assert [c["index"] for c in best["choices"]] == [0, 1, 2, 3]


def test_characters_of_several_tokens_have_names_and_offsets(model: Model) -> None:
    ids = [*model.text.encode("\u2603"), *model.text.encode("ab")]
    tokens = TokenLogprobs(ids, [-1.0] * len(ids), [{model.vocabulary.eos: -0.5}] * len(ids))
    made = CompletionLogprobsBuilder(model, 1).add(tokens)
    assert made.tokens[0].startswith("bytes:\\xe2")
    assert made.text_offset[0] == 0 and made.text_offset[-1] in (1, 2)
    assert made.top_logprobs is not None and made.top_logprobs[0]["</s>"] == -0.5
    first = chat_logprobs(model, tokens).content[0]
    assert first.top_logprobs[0].token == "</s>"
    infinite = TokenLogprobs(ids[:1], [-float("inf")], [{}])
    assert chat_logprobs(model, infinite).content[0].logprob == -9999.0


def test_token_ids_are_a_prompt_and_stops_are_honored(client: TestClient, model: Model) -> None:
    ids = model.encode(["a red "])
    assert ids[0] == model.vocabulary.bos
    text = post(client, "/v1/completions", prompt="a red ", seed=2)["choices"][0]["text"]
    for prompt in (ids, [ids]):
        assert post(client, "/v1/completions", prompt=prompt, seed=2)["choices"][0]["text"] == text
    two = post(client, "/v1/completions", prompt=[ids, ids[:2]], seed=2)["choices"]
    assert len(two) == 2 and two[0]["text"] == text
    error = client.post("/v1/completions", json={"prompt": [0, 10**6]}).json()["error"]
    assert error["message"].startswith("the prompt has the token id 1000000; expected ids below")
    body = {"prompt": ids, "seed": 2, "return_token_ids": True, "ignore_eos": True}
    (choice,) = post(client, "/v1/completions", **body)["choices"]
    assert len(choice["token_ids"]) == 12 and choice["finish_reason"] == "length"
    stop = choice["token_ids"][5]
    (short,) = post(client, "/v1/completions", **body, stop_token_ids=[stop])["choices"]
    count = choice["token_ids"].index(stop) + 1
    assert short["token_ids"] == choice["token_ids"][:count]
    assert short["finish_reason"] == "stop"
    error = client.post("/v1/completions", json={"prompt": "a", "stop_token_ids": [4]}).json()
    assert error["error"]["message"].startswith("stop_token_ids has 4; expected ids of text")
    (longer,) = post(client, "/v1/completions", **body, stop_token_ids=[stop], min_tokens=12)["choices"]
    assert len(longer["token_ids"]) == 12 and stop not in longer["token_ids"]
