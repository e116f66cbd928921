"""Logs: one object per line, and no prompts unless requested."""

import io
import json
from collections.abc import Iterator
from typing import Any

import pytest

from calumma.generate.model import Model
from calumma.serve.config import ServeConfig
from calumma.serve.logs import log_event, log_internal_error, log_to
from tests.serve.conftest import serving, user_message


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    made = io.StringIO()
    with log_to(made):
        yield made
    log_event("after it")
    assert "after it" not in made.getvalue()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_one_json_object(stream: io.StringIO) -> None:
    log_event("request", path='a"\nb', status=200)
    (result,) = lines(stream)
    assert (result["event"], result["level"], result["path"]) == ("request", "info", 'a"\nb')
    assert result["time"].endswith("+00:00")


def test_an_internal_error_has_its_traceback(stream: io.StringIO) -> None:
    try:
        raise ValueError("odd")
    except ValueError as error:
        log_internal_error(error, id="7")
    (result,) = lines(stream)
    assert (result["level"], result["event"], result["id"]) == ("error", "internal_error", "7")
    assert "ValueError: odd" in result["error"]


@pytest.mark.parametrize("expected", [False, True])
def test_a_prompt_is_logged_only_if_the_operator_requests_it(
    model: Model, stream: io.StringIO, expected: bool
) -> None:
    config = ServeConfig(served_model_name="tiny", log_prompts=expected)
    with serving(model, config) as (client, _):
        body = {"messages": user_message("a secret"), "max_tokens": 2}
        response = client.post("/v1/chat/completions", json=body)
    (result,) = (line for line in lines(stream) if line["event"] == "request")
    assert result["id"] == response.headers["x-request-id"]
    assert (result["method"], result["status"]) == ("POST", 200)
    assert result["prompt_tokens"] > 0
    assert result["text_tokens"] + result["image_tokens"] == 2
    assert ("a secret" in stream.getvalue()) is expected
