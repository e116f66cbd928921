"""Bodies of answers, in the shapes of OpenAI's own client."""

from __future__ import annotations

from typing import Any

from openai.types import Completion as TheirCompletion
from openai.types import ImagesResponse, Model
from openai.types.chat import ChatCompletion
from starlette.testclient import TestClient

from tests.serve.conftest import WILD, user_message


def test_every_answer_is_what_the_client_s_own_types_hold(client: TestClient) -> None:
    def result(path: str, **body: Any) -> Any:
        return client.post(path, json={**body, **WILD}).json()

    chat = result("/v1/chat/completions", messages=user_message("a"), max_tokens=9, logprobs=True)
    ChatCompletion.model_validate(chat, strict=True)
    TheirCompletion.model_validate(result("/v1/completions", prompt="a", max_tokens=9), strict=True)
    drawn = result("/v1/images/generations", prompt="a")
    # Their type knows only their own sizes.
    ImagesResponse.model_validate({**drawn, "size": "1024x1024"}, strict=True)
    for card in client.get("/v1/models").json()["data"]:
        Model.model_validate(card, strict=True)


def test_a_message_says_the_same_in_three_ways(client: TestClient) -> None:
    body = {"messages": user_message("a"), "max_tokens": 30, "n": 4, "seed": 1, **WILD}
    for choice in client.post("/v1/chat/completions", json=body).json()["choices"]:
        message = choice["message"]
        texts = [p["text"] for p in message["content_parts"] if p["type"] == "text"]
        images = [p for p in message["content_parts"] if p["type"] == "image_url"]
        assert message["content"] == "".join(texts)
        assert message["images"] == images
        assert message["role"] == "assistant"
