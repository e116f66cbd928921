"""Bodies of requests, read strictly."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from calumma.serve.protocol import (
    ChatCompletionRequest,
    CompletionRequest,
    ImageGenerationRequest,
    ImagePart,
    TextPart,
    TokenizeRequest,
)

TEXT = {"role": "user", "content": "a"}


def test_a_chat_is_read_with_all_its_fields() -> None:
    content = [
        {"type": "text", "text": "a"},
        {"type": "image_url", "image_url": {"url": "data:,", "detail": "low"}},
    ]
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


@pytest.mark.parametrize(
    ("field", "value", "result"),
    [
        ("tools", [{}], "tools cannot be honoured: this model calls no tools"),
        ("logit_bias", {"1": 2}, "logit_bias cannot be honoured: ids cannot be weighed"),
        ("presence_penalty", 0.5, "presence_penalty cannot be honoured: use repetition_penalty"),
        (
            "response_format",
            {"type": "json_object"},
            "response_format cannot be honoured: answers are plain text",
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused(field: str, value: Any, result: str) -> None:
    with pytest.raises(ValidationError, match=result):
        ChatCompletionRequest.model_validate({"messages": [TEXT], field: value})
    harmless = {"tools": [], "presence_penalty": 0, "response_format": {"type": "text"}}
    ChatCompletionRequest.model_validate({"messages": [TEXT], **harmless})


def test_prompts_are_one_text_several_texts_or_parts() -> None:
    for prompt in ("a", ["a", "b"], [{"type": "text", "text": "a"}], []):
        CompletionRequest.model_validate({"prompt": prompt})
    for prompt in (7, [7], {"type": "text"}, ["a", {"type": "text", "text": "a"}]):
        with pytest.raises(ValidationError):
            CompletionRequest.model_validate({"prompt": prompt})


def test_images_come_in_base64_of_png_alone() -> None:
    ImageGenerationRequest.model_validate({"prompt": "a", "response_format": "b64_json"})
    for wrong in ({"response_format": "url"}, {"output_format": "webp"}, {"prompt": ""}):
        with pytest.raises(ValidationError):
            ImageGenerationRequest.model_validate({"prompt": "a", **wrong})


def test_tokens_are_of_messages_or_of_a_prompt() -> None:
    for body in ({}, {"messages": [TEXT], "prompt": "a"}, {"prompt": "a", "ids": [1]}):
        with pytest.raises(ValidationError, match="exactly one of messages, prompt and ids"):
            TokenizeRequest.model_validate(body)
