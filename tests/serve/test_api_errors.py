"""API errors: one format, and no internal details."""

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from calumma.errors import GenerationError, RankError
from calumma.serve.api_errors import APIError, queue_full, server_stopping, timed_out, to_api_error


def test_an_error_has_the_format_that_clients_read() -> None:
    error = APIError(400, "found this; expected that.", "odd", param="n")
    assert error.body() == {
        "error": {
            "message": "found this; expected that.",
            "type": "invalid_request_error",
            "param": "n",
            "code": "odd",
        }
    }
    assert str(error) == "found this; expected that."


def test_a_full_queue_says_when_to_retry() -> None:
    response = queue_full(12, 3.4).response()
    assert (response.status_code, response.headers["retry-after"]) == (429, "3")
    assert queue_full(12, 3.4).body()["error"]["type"] == "rate_limit_error"
    assert queue_full(12, 3.4).message == ("12 completions are in flight, the limit of this server; retry in 3 s.")
    assert server_stopping().response().headers["retry-after"] == "5"


def test_a_user_error_is_reported_and_an_internal_error_is_not() -> None:
    error = to_api_error(GenerationError("too long; expected less."))
    assert (error.status, error.message, error.code) == (400, "too long; expected less.", "generation")
    assert to_api_error(ValueError("a secret")).message == ("internal server error; the server's log has the details.")
    assert to_api_error(ValueError("a secret")).body()["error"]["type"] == "server_error"
    assert timed_out("the completion", 2.5, 504).message == (
        "the completion took more than 2.5 s and was aborted. Send a smaller request."
    )


def test_a_lost_worker_is_a_server_error() -> None:
    error = to_api_error(RankError("rank 1 has ended; expected it."))
    assert (error.status, error.message, error.code) == (
        503,
        "the server lost a worker process of its model; retry, or use another server.",
        "worker_lost",
    )
    assert error.headers["Retry-After"] == "5"


def test_an_invalid_field_is_named_and_its_value_not_repeated(client: TestClient) -> None:
    body = {"messages": [{"role": "user", "content": "a"}, {"role": "\ud800 king"}]}
    head = {"Content-Type": "application/json"}
    text = json.dumps(body)
    error = client.post("/v1/chat/completions", content=text, headers=head).json()["error"]
    assert error["param"] == "messages.1.role"
    assert "king" not in error["message"]
    assert error["message"].endswith(". Fix it, or leave it out.")


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"messages": [', b"[" * 100_000, b'{"messages": "\xfc"}', b'{"n": ' + b"9" * 5_000 + b"}"]
)
def test_a_body_that_is_no_json_object_is_rejected(client: TestClient, body: bytes) -> None:
    response = client.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert (response.status_code, response.json()["error"]["message"]) == (
        400,
        "the body is no JSON object in UTF-8; expected the fields of the request as one. Fix its JSON.",
    )


def test_an_unknown_path_and_a_wrong_method_are_reported(client: TestClient) -> None:
    lost = client.get("/v1/nothing")
    assert (lost.status_code, lost.json()["error"]["code"]) == (404, "not_found")
    assert lost.json()["error"]["message"] == (
        'nothing is served at "/v1/nothing"; /openapi.json lists the endpoints.'
    )
    wrong = client.get("/v1/chat/completions")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert wrong.json()["error"]["code"] == "method_not_allowed"


def test_an_old_field_is_rejected_with_its_present_name(client: TestClient) -> None:
    body = {"messages": [{"role": "user", "content": "a"}], "guidance": 3.0}
    response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["message"] == ("unknown field guidance; it is now guidance_scale.")
    body = {"prompt": "a", "prompt_in_picture": True}
    assert client.post("/v1/images/generations", json=body).json()["error"]["message"] == (
        "unknown field prompt_in_picture; it is now embed_prompt_metadata."
    )
    options = {"include_tokens": True}
    body = {"prompt": "a", "stream": True, "stream_options": options}
    assert client.post("/v1/completions", json=body).json()["error"]["message"] == (
        "stream_options: unknown field include_tokens; it is now return_token_ids."
    )


@pytest.mark.parametrize(
    ("part", "path", "message"),
    [
        ({"type": "input_image", "image_url": "data:"}, "", "it is no content part of a known type"),
        ({"text": "a"}, "", "it is no content part of a known type"),
        ("a", "", "it is no content part of a known type"),
        ({"type": "text"}, ".text", "Field required. Fix it, or leave it out."),
        ({"type": "text", "text": 5}, ".text", "Input should be a valid string."),
        ({"type": "image_url", "image_url": 5}, ".image_url", "it is no URL; expected {"),
        ({"type": "image_url", "image_url": {}}, ".image_url.url", "Field required."),
    ],
)
def test_a_wrong_part_is_named_with_the_remedy(client: TestClient, part: Any, path: str, message: str) -> None:
    content = [{"type": "text", "text": "a"}, part]
    error = client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": content}]}).json()[
        "error"
    ]
    where = f"messages.0.content.1{path}"
    assert error["param"] == where
    assert error["message"].startswith(f"{where}: {message}")
    if not path:
        assert error["message"].endswith(
            'Send {"type": "text", "text": "..."} or {"type": "image_url", "image_url": {"url": "data:..."}}.'
        )
    error = client.post("/v1/completions", json={"prompt": content}).json()["error"]
    assert error["param"] == f"prompt.1{path}"


def test_a_field_without_support_is_the_param_of_the_error(client: TestClient) -> None:
    for name in ("guided_choice", "logit_bias", "tools"):
        body = {"prompt": "a", name: {"5": 1}}
        error = client.post("/v1/completions", json=body).json()["error"]
        assert error["param"] == name
        assert error["message"].startswith(f"{name} is not supported: ")
    error = client.post("/v1/completions", json={"prompt": [5, "a", 6]}).json()["error"]
    assert error["param"] == "prompt.1"


def test_messages_use_the_names_of_the_api(client: TestClient) -> None:
    body = {"messages": [{"role": "user", "content": "a"}], "modalities": ["image"]}
    error = client.post("/v1/chat/completions", json=body | {"max_tokens": 3}).json()["error"]
    assert error["message"] == (
        "an image needs 6 tokens, but 3 may be generated; expected enough for the complete image. "
        "Raise max_tokens, or shorten the prompt."
    )
