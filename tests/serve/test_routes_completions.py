"""Completions: each prompt continued, without turns."""

from typing import Any

import pytest
from starlette.testclient import TestClient

from calumma.generate.model import Model
from tests.images import noise
from tests.serve.conftest import ALONE, WILD, image_part
from tests.serve.test_routes_chat import as_bytes, parts_reported


def complete(client: TestClient, **body: Any) -> Any:
    return client.post("/v1/completions", json={"max_tokens": 30, **WILD, **body})


def test_a_prompt_is_continued_as_the_model_does(client: TestClient, model: Model) -> None:
    parts = [{"type": "text", "text": "a red "}, image_part(1)]
    for seed in range(3):
        result = complete(client, prompt=parts, seed=seed).json()["choices"][0]
        alone = model.generate(["a red ", noise(1)], add_generation_prompt=False, seed=seed, **ALONE)
        assert parts_reported(result) == as_bytes(alone.parts)
        assert result["text"] == "".join(p for p in alone.parts if isinstance(p, str))
        assert result["finish_reason"] == alone.finish_reason


def test_every_prompt_gets_every_seed_in_order(client: TestClient) -> None:
    result = complete(client, prompt=["a", "b"], n=2, seed=3).json()["choices"]
    assert [(one["index"], one["seed"]) for one in result] == [(0, 3), (1, 4), (2, 3), (3, 4)]
    alone = complete(client, prompt="b", seed=4).json()["choices"][0]
    assert result[3]["text"] == alone["text"]


def test_an_empty_prompt_is_allowed_and_an_empty_list_is_not(client: TestClient) -> None:
    assert complete(client, prompt="").status_code == 200
    rejected = complete(client, prompt=[])
    assert rejected.json()["error"]["message"] == ("the list of prompts is empty; expected at least one. Add one.")
    assert complete(client, prompt=["a"] * 9).json()["error"]["code"] == "too_many_choices"


@pytest.mark.parametrize("usage", [False, True])
def test_a_stream_has_usage_only_on_request(client: TestClient, usage: bool) -> None:
    options = {"include_usage": usage}
    text = complete(client, prompt="a", seed=1, stream=True, stream_options=options).text
    assert text.endswith("data: [DONE]\n\n")
    assert ('"usage"' in text) is usage


def test_token_ids_are_returned_on_request(client: TestClient, model: Model) -> None:
    body = {"prompt": "a red", "seed": 2, "return_token_ids": True}
    choice = complete(client, **body).json()["choices"][0]
    sample = model.generate(["a red"], add_generation_prompt=False, seed=2, **ALONE)
    assert choice["token_ids"] == sample.token_ids
    assert choice["prompt_token_ids"] == sample.prompt_token_ids
    text = complete(client, **body, stream=True).text
    assert text.count("event: tokens") > 1
    assert complete(client, prompt="a red").json()["choices"][0]["token_ids"] is None
