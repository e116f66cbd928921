"""Chats, whole and as they grow, against what the model itself says."""

from __future__ import annotations

import base64
import io
from typing import Any

import PIL.Image
import pytest
from starlette.testclient import TestClient

from calumma.generate.config import ImageSampling, TextSampling
from calumma.generate.model import Model
from tests.pictures import noise
from tests.serve.conftest import WILD, picture_part, said

ALONE: dict[str, Any] = {
    "text": TextSampling(temperature=2.0, top_p=1.0),
    "image": ImageSampling(temperature=1.0, top_p=1.0),
}
"""The same rules, asked of the model."""


def chat(client: TestClient, messages: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    asked = {"messages": messages, "max_tokens": 40, **WILD, **more}
    response = client.post("/v1/chat/completions", json=asked)
    assert response.status_code == 200, response.text
    told: dict[str, Any] = response.json()
    return told


def opened(url: str) -> PIL.Image.Image:
    head, _, data = url.partition(",")
    assert head == "data:image/png;base64"
    return PIL.Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")


def parts_told(message: dict[str, Any]) -> list[str | bytes]:
    return [
        part["text"] if part["type"] == "text" else opened(part["image_url"]["url"]).tobytes()
        for part in message["content_parts"]
    ]


def as_bytes(parts: list[str | PIL.Image.Image]) -> list[str | bytes]:
    return [part if isinstance(part, str) else part.tobytes() for part in parts if part]


@pytest.mark.parametrize("seed", range(4))
def test_an_answer_is_what_the_model_says_and_draws_in_order(
    client: TestClient, model: Model, seed: int
) -> None:
    alone = model.generate(["a red ", noise(1)], max_new_tokens=40, seed=seed, **ALONE)
    told = chat(client, said("a red ", picture_part(1)), seed=seed)
    (choice,) = told["choices"]
    message = choice["message"]
    assert parts_told(message) == as_bytes(alone.parts)
    assert message["content"] == "".join(p for p in alone.parts if isinstance(p, str))
    assert [part["type"] for part in message["images"]] == ["image_url"] * len(message["images"])
    assert choice["finish_reason"] == alone.finish_reason
    assert choice["seed"] == seed
    usage = told["usage"]
    assert usage["completion_tokens"] == len(alone.ids)
    assert usage["prompt_tokens_details"] == {
        "text_tokens": alone.usage.prompt_text,
        "image_tokens": alone.usage.prompt_image,
    }
    assert usage["completion_tokens_details"] == {
        "text_tokens": alone.usage.new_text,
        "image_tokens": alone.usage.new_image,
    }
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
