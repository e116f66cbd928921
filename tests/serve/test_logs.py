"""Logs: one object a line, and no prompts unless they are asked for."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import pytest

from calumma.generate.model import Model
from calumma.serve.config import ServeConfig
from calumma.serve.logs import log_event, log_internal_error, log_to
from tests.serve.conftest import said, serving


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    made = io.StringIO()
    with log_to(made):
        yield made
    log_event("behind it")
    assert "behind it" not in made.getvalue()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_an_object_whatever_it_holds(stream: io.StringIO) -> None:
    log_event("request", path='a"\nb', status=200)
    (result,) = lines(stream)
    assert (result["event"], result["level"], result["path"]) == ("request", "info", 'a"\nb')
    assert result["time"].endswith("+00:00")


def test_a_mistake_of_ours_has_its_traceback(stream: io.StringIO) -> None:
    try:
        raise ValueError("odd")
    except ValueError as error:
        log_internal_error(error, id="7")
    (result,) = lines(stream)
    assert (result["level"], result["id"]) == ("error", "7")
    assert "ValueError: odd" in result["error"]


@pytest.mark.parametrize("expected", [False, True])
def test_a_prompt_is_logged_only_where_the_operator_says_so(
    model: Model, stream: io.StringIO, expected: bool
) -> None:
    config = ServeConfig(served_model_name="tiny", log_prompts=expected)
    with serving(model, config) as (client, _):
        body = {"messages": said("a secret"), "max_tokens": 2}
        response = client.post("/v1/chat/completions", json=body)
    (result,) = (line for line in lines(stream) if line["event"] == "request")
    assert result["id"] == response.headers["x-request-id"]
    assert (result["method"], result["status"]) == ("POST", 200)
    assert result["prompt_tokens"] > 0
    assert result["text_tokens"] + result["image_tokens"] == 2
    assert ("a secret" in stream.getvalue()) is expected
