"""Models, tokenization, health, and the files of the web page."""

import re
from pathlib import Path

from fastapi import FastAPI
from starlette.testclient import TestClient

from calumma.generate.model import Model
from calumma.serve.api_errors import register_exception_handlers
from calumma.serve.config import ServeLimits
from calumma.serve.middleware import SecurityMiddleware
from calumma.serve.prometheus_metrics import PrometheusMetrics
from calumma.serve.routes.meta import MEDIA_TYPES, STATIC_FOLDER, static_routes
from tests.images import noise
from tests.serve.conftest import image_part, serving, user_message


def test_the_model_card_lists_modalities_and_sizes(client: TestClient) -> None:
    (card,) = client.get("/v1/models").json()["data"]
    assert (card["id"], card["object"], card["modalities"]) == ("tiny", "model", ["text", "image"])
    assert (card["max_model_len"], card["image_size"]) == (128, "16x16")
    assert client.get("/v1/models/tiny").json() == card
    assert client.get("/v1/models/gpt").json()["error"]["code"] == "model_not_found"


def test_a_prompt_is_tokenized_and_detokenized(client: TestClient, model: Model) -> None:
    v = model.vocabulary
    body = {"messages": user_message("ab", image_part(1))}
    result = client.post("/tokenize", json=body).json()
    ids = result["tokens"]
    assert ids == list(model.request(["ab", noise(1)]).prompt_token_ids)
    assert (result["count"], result["max_model_len"]) == (len(ids), 128)
    kinds = {
        v.bos: ("special", "begin of sequence"),
        v.begin_image: ("special", "begin of image"),
        v.end_image: ("special", "end of image"),
        v.end_turn: ("special", "end of turn"),
    }
    for token in result["token_info"]:
        if token["id"] in kinds:
            assert (token["kind"], token["text"]) == kinds[token["id"]]
        elif token["kind"] == "code":
            assert int(token["text"]) == v.id_to_code(token["id"])
    texts = [token["text"] for token in result["token_info"] if token["kind"] == "text"]
    assert "".join(texts) == "ab"
    assert result["token_counts"] == {"text_tokens": len(ids) - 6, "image_tokens": 6}
    assert result["codes_per_side"] == 2
    decoded = client.post("/detokenize", json={"tokens": ids}).json()
    assert decoded["prompt"] == "ab"
    assert decoded["token_info"] == result["token_info"]
    plain = client.post("/tokenize", json={"prompt": "ab"}).json()
    assert plain["tokens"] == list(model.encode(["ab"]))
    reserved = client.post("/detokenize", json={"tokens": [v.unk]}).json()["token_info"]
    assert reserved[0]["text"] == "reserved"


def test_a_token_id_out_of_range_is_rejected(client: TestClient, model: Model) -> None:
    size = model.vocabulary.size
    error = client.post("/detokenize", json={"tokens": [0, size]}).json()["error"]
    assert (error["code"], error["param"]) == ("invalid_token_ids", "tokens")
    assert error["message"] == (f"token id {size} is out of range; expected 0 to {size - 1}. Remove it.")


def test_health_reports_whether_requests_are_accepted(model: Model) -> None:
    with serving(model) as (client, handler):
        result = client.get("/health")
        assert result.status_code == 200
        assert result.json() == {"live": True, "ready": True, "num_in_flight": 0, "num_running": 0, "num_waiting": 0}
        handler.drain()
        assert client.get("/health/ready").status_code == 503
        assert client.get("/health/live").status_code == 200
        body = {"messages": user_message("a")}
        rejected = client.post("/v1/chat/completions", json=body)
        assert (rejected.status_code, rejected.headers["retry-after"]) == (503, "5")


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


def test_the_files_of_the_web_page_have_their_media_types(client: TestClient) -> None:
    index = client.get("/")
    assert index.status_code == 200
    assert index.headers["content-type"] == "text/html; charset=utf-8"
    assert index.headers["cache-control"] == "no-cache"
    for path in STATIC_FOLDER.iterdir():
        response = client.get(f"/static/{path.name}")
        assert response.content == path.read_bytes()
        assert response.headers["content-type"] == MEDIA_TYPES[path.suffix]


def test_the_web_page_needs_only_its_own_files(client: TestClient) -> None:
    paths = re.findall(r'(?:src|href)="([^"#]+)"', client.get("/").text)
    assert paths
    for path in paths:
        assert client.get(path).status_code == 200, path


def test_other_files_are_not_served(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text("a")
    (tmp_path / "b.py").write_text("b")
    app = FastAPI()
    register_exception_handlers(app)
    app.include_router(static_routes(tmp_path))
    app.add_middleware(
        SecurityMiddleware, api_keys=None, is_local=False, limits=ServeLimits(), metrics=PrometheusMetrics()
    )
    client = TestClient(app)
    assert client.get("/static/a.html").text == "a"
    for name in ("b.py", "c.html"):
        response = client.get(f"/static/{name}")
        assert response.json()["error"]["message"] == ("there is no such file; the web page is at /.")
