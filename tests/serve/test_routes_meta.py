"""Models, tokens, health."""

from __future__ import annotations

from starlette.testclient import TestClient

from calumma.generate.model import Model
from tests.images import noise
from tests.serve.conftest import image_part, serving, user_message


def test_the_model_is_named_with_what_it_can(client: TestClient) -> None:
    (card,) = client.get("/v1/models").json()["data"]
    assert (card["id"], card["object"], card["modalities"]) == ("tiny", "model", ["text", "image"])
    assert (card["max_tokens"], card["image_size"]) == (128, "16x16")
    assert client.get("/v1/models/tiny").json() == card
    assert client.get("/v1/models/gpt").json()["error"]["code"] == "model_not_found"


def test_a_prompt_is_reported_in_ids_and_ids_in_words(client: TestClient, model: Model) -> None:
    v = model.vocabulary
    body = {"messages": user_message("ab", image_part(1))}
    result = client.post("/v1/tokens", json=body).json()
    ids = [token["id"] for token in result["tokens"]]
    assert ids == list(model.request(["ab", noise(1)]).prompt_token_ids)
    kinds = {
        v.bos: ("special", "begin"),
        v.begin_image: ("special", "begin of image"),
        v.end_image: ("special", "end of image"),
        v.end_turn: ("special", "end of turn"),
    }
    for token in result["tokens"]:
        if token["id"] in kinds:
            assert (token["kind"], token["text"]) == kinds[token["id"]]
        elif token["kind"] == "code":
            assert int(token["text"]) == v.id_to_code(token["id"])
    words = [token["text"] for token in result["tokens"] if token["kind"] == "text"]
    assert "".join(words) == "ab"
    assert result["num_tokens"] == {"text_tokens": len(ids) - 6, "image_tokens": 6}
    assert result["codes_per_side"] == 2
    again = client.post("/v1/tokens", json={"ids": ids}).json()
    assert again == result
    plain = client.post("/v1/tokens", json={"prompt": "ab"}).json()
    assert [token["id"] for token in plain["tokens"]] == list(model.encode(["ab"]))
    reserved = client.post("/v1/tokens", json={"ids": [v.unk]}).json()["tokens"]
    assert reserved[0]["text"] == "reserved"


def test_health_reports_whether_requests_are_taken(model: Model) -> None:
    with serving(model) as (client, handler):
        result = client.get("/health")
        assert result.status_code == 200
        assert result.json() == {
            "live": True,
            "ready": True,
            "answers": 0,
            "running": 0,
            "waiting": 0,
        }
        handler.drain()
        assert client.get("/health/ready").status_code == 503
        assert client.get("/health/live").status_code == 200
        body = {"messages": user_message("a")}
        refused = client.post("/v1/chat/completions", json=body)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")


def test_an_engine_that_failed_is_not_live(model: Model) -> None:
    with serving(model) as (client, handler):

        def fail() -> None:
            raise RuntimeError("the engine is broken")

        handler.backend._engine.step = fail  # type: ignore[method-assign, assignment]
        body = {"messages": user_message("a")}
        for _ in range(2):
            assert client.post("/v1/chat/completions", json=body).status_code == 500
        result = client.get("/health/live")
        assert result.status_code == 503
        assert result.json()["live"] is False
        assert handler.num_in_flight == 0
