"""Refusals: one shape for all, and nothing result that is not the client's to know."""

from __future__ import annotations

import json

from starlette.testclient import TestClient

from calumma.errors import GenerationError, RankError
from calumma.serve.api_errors import (
    APIError,
    internal_error,
    queue_full,
    server_stopping,
    timed_out,
    to_api_error,
)


def test_a_refusal_has_the_shape_that_clients_read() -> None:
    refusal = APIError(400, "found this; expected that.", "odd", param="n")
    assert refusal.body() == {
        "error": {
            "message": "found this; expected that.",
            "type": "invalid_request_error",
            "param": "n",
            "code": "odd",
        }
    }
    assert str(refusal) == "found this; expected that."


def test_a_full_queue_says_when_to_come_again() -> None:
    response = queue_full(12, 3.4).response()
    assert (response.status_code, response.headers["retry-after"]) == (429, "3")
    assert queue_full(12, 3.4).body()["error"]["type"] == "rate_limit_error"
    assert queue_full(12, 3.4).message == (
        "12 answers are under way, the most this server takes; ask again in 3 s."
    )
    assert server_stopping().response().headers["retry-after"] == "5"


def test_a_user_s_mistake_is_reported_whole_and_one_of_ours_not_at_all() -> None:
    mistake = to_api_error(GenerationError("too long; expected less."))
    assert (mistake.status, mistake.message, mistake.code) == (
        400,
        "too long; expected less.",
        "generation",
    )
    assert to_api_error(ValueError("a secret")).body() == internal_error().body()
    assert internal_error().body()["error"]["type"] == "server_error"
    assert timed_out("the answer", 2.5, 504).message == (
        "the answer took more than 2.5 s; it is given up. Ask for less at a time."
    )


def test_a_model_that_has_lost_a_rank_is_no_fault_of_the_client_s() -> None:
    refusal = to_api_error(RankError("rank 1 has ended; expected it."))
    assert (refusal.status, refusal.message, refusal.code) == (
        503,
        "the server has lost a part of its model, and ends; ask another one, or ask again.",
        "rank_lost",
    )
    assert refusal.headers["Retry-After"] == "5"


def test_a_wrong_field_is_named_and_not_repeated(client: TestClient) -> None:
    body = {"messages": [{"role": "user", "content": "a"}, {"role": "\ud800 king"}]}
    head = {"Content-Type": "application/json"}
    text = json.dumps(body)
    error = client.post("/v1/chat/completions", content=text, headers=head).json()["error"]
    assert error["param"] == "messages.1.role"
    assert "king" not in error["message"]
    assert error["message"].endswith(". Fix it, or leave it out.")


def test_an_unknown_path_and_a_wrong_method_are_reported(client: TestClient) -> None:
    lost = client.get("/v1/nothing")
    assert (lost.status_code, lost.json()["error"]["code"]) == (404, "not_found")
    assert lost.json()["error"]["message"] == (
        'nothing is served at "/v1/nothing"; /openapi.json says what is.'
    )
    wrong = client.get("/v1/chat/completions")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert wrong.json()["error"]["code"] == "method_not_allowed"
