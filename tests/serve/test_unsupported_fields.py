"""Fields that would change a response and are not supported are rejected."""

from typing import Any

import pytest
from pydantic import ValidationError
from starlette.testclient import TestClient

from calumma.serve.protocol import ChatCompletionRequest

TEXT = {"role": "user", "content": "a"}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("tools", [{}], "tools is not supported: this model calls no tools"),
        ("logit_bias", {"1": 2}, "logit_bias is not supported: tokens cannot be biased"),
        ("presence_penalty", 0.5, "presence_penalty is not supported: use repetition_penalty"),
        ("guided_choice", ["a"], "guided_choice is not supported: outputs are constrained by"),
        ("bad_words", ["a"], "bad_words is not supported: words cannot be excluded"),
        ("use_beam_search", True, "use_beam_search is not supported: outputs are sampled"),
        ("prompt_logprobs", 0, "prompt_logprobs is not supported: /v1/completions has them with echo"),
        ("echo", True, "echo is not supported: only /v1/completions has it"),
        ("tool_choice", "required", "tool_choice is not supported: this model calls no tools"),
        ("skip_special_tokens", False, "skip_special_tokens is not supported: text has no"),
        ("response_format", {"type": "json_object"}, "response_format is not supported: responses are plain text"),
    ],
)
def test_unsupported_fields_are_rejected(field: str, value: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ChatCompletionRequest.model_validate({"messages": [TEXT], field: value})
    harmless = {
        "tools": [],
        "presence_penalty": 0,
        "response_format": {"type": "text"},
        "tool_choice": "auto",
        "length_penalty": 1.0,
        "skip_special_tokens": True,
    }
    ChatCompletionRequest.model_validate({"messages": [TEXT], **harmless})


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("tool_calls", [{}], "tool_calls is not supported: this model calls no tools"),
        ("refusal", "no", "refusal is not supported: send the refusal as content"),
        ("images", ["aGk="], "images is not supported: send each image as an image_url part of content"),
    ],
)
def test_unsupported_fields_of_messages_are_rejected(field: str, value: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ChatCompletionRequest.model_validate({"messages": [TEXT | {field: value}]})
    ChatCompletionRequest.model_validate({"messages": [TEXT | {field: None, "name": "me"}]})


def test_mistyped_fields_are_rejected_and_unknown_ones_ignored(client: TestClient) -> None:
    body = {"messages": [TEXT], "max_tokens": 1}
    error = client.post("/v1/chat/completions", json=body | {"temprature": 0}).json()["error"]
    assert error["param"] == "temprature"
    assert error["message"] == ("temprature is not known; perhaps temperature is meant. Fix it, or leave it out.")
    assert client.post("/v1/chat/completions", json=body | {"user": "me", "store": True, "x": 1}).status_code == 200
    assert client.post("/tokenize", json={"messages": [TEXT], "add_generation_prompt": False}).status_code == 400
