"""Request bodies are validated strictly; responses match OpenAI's client."""

from typing import Any

import pytest
from openai.types import Completion as OpenAICompletion
from openai.types import ImagesResponse, Model
from openai.types.chat import ChatCompletion
from pydantic import ValidationError
from starlette.testclient import TestClient

from calumma.serve.content_parts import ImagePart, TextPart
from calumma.serve.protocol import ChatCompletionRequest, CompletionRequest, ImageGenerationRequest, TokenizeRequest
from tests.serve.conftest import WILD, user_message

TEXT = {"role": "user", "content": "a"}


def test_a_chat_is_parsed_with_all_its_fields() -> None:
    content = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "data:,", "detail": "low"}}]
    body = {
        "messages": [TEXT, {"role": "user", "content": content}],
        "stop": "end",
        "seed": -3,
        "temperature": 1,
        "unknown": {},
        "n": None,
    }
    chat = ChatCompletionRequest.model_validate(body)
    assert chat.stop == ["end"]
    assert (chat.seed, chat.temperature, chat.n) == (-3, 1.0, None)
    parts = chat.messages[1].content
    assert isinstance(parts, list)
    assert [type(part) for part in parts] == [TextPart, ImagePart]


def test_generated_images_are_png_in_base64_only() -> None:
    ImageGenerationRequest.model_validate({"prompt": "a", "response_format": "b64_json"})
    for wrong in ({"response_format": "url"}, {"output_format": "webp"}, {"prompt": ""}):
        with pytest.raises(ValidationError):
            ImageGenerationRequest.model_validate({"prompt": "a", **wrong})


def test_tokenize_takes_messages_or_a_prompt() -> None:
    for body in ({}, {"messages": [TEXT], "prompt": "a"}):
        with pytest.raises(ValidationError, match="exactly one of messages and prompt"):
            TokenizeRequest.model_validate(body)


def test_responses_match_the_types_of_openai_s_client(client: TestClient) -> None:
    def post(path: str, **body: Any) -> Any:
        return client.post(path, json={**body, **WILD}).json()

    chat = post("/v1/chat/completions", messages=user_message("a"), max_tokens=9, logprobs=True)
    ChatCompletion.model_validate(chat, strict=True)
    OpenAICompletion.model_validate(post("/v1/completions", prompt="a", max_tokens=9), strict=True)
    images = post("/v1/images/generations", prompt="a")
    # Their type allows only OpenAI's sizes.
    ImagesResponse.model_validate({**images, "size": "1024x1024"}, strict=True)
    for card in client.get("/v1/models").json()["data"]:
        Model.model_validate(card, strict=True)


def test_a_message_has_its_content_in_three_forms(client: TestClient) -> None:
    body = {"messages": user_message("a"), "max_tokens": 30, "n": 4, "seed": 1, **WILD}
    for choice in client.post("/v1/chat/completions", json=body).json()["choices"]:
        message = choice["message"]
        texts = [p["text"] for p in message["content_parts"] if p["type"] == "text"]
        images = [p for p in message["content_parts"] if p["type"] == "image_url"]
        assert message["content"] == "".join(texts)
        assert message["images"] == images
        assert message["role"] == "assistant"


def test_logprobs_and_best_of_are_checked() -> None:
    with pytest.raises(ValidationError, match="top_logprobs needs logprobs: true"):
        ChatCompletionRequest.model_validate({"messages": [TEXT], "top_logprobs": 2})
    for body in ({"best_of": 1, "n": 2}, {"best_of": 3, "stream": True}):
        with pytest.raises(ValidationError, match="best_of must be at least n, and equal to n"):
            CompletionRequest.model_validate({"prompt": "a", **body})
        with pytest.raises(ValidationError, match="best_of must be at least n, and equal to n"):
            ImageGenerationRequest.model_validate({"prompt": "a", **body})
    with pytest.raises(ValidationError, match="reward chooses among best_of completions; expected best_of with it"):
        ImageGenerationRequest.model_validate({"prompt": "a", "reward": "likelihood"})
    with pytest.raises(ValidationError, match="top_logprobs is not supported: /v1/completions"):
        CompletionRequest.model_validate({"prompt": "a", "top_logprobs": 2})
    for value in (True, 21, -1):
        with pytest.raises(ValidationError):
            CompletionRequest.model_validate({"prompt": "a", "logprobs": value})
