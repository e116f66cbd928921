"""The annotation page over HTTP: blind, protected, with exact records."""

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from calumma.compare.annotation_app import MAX_REQUEST_BYTES, AnnotationService, JudgmentRequest, make_annotation_app
from calumma.compare.judgment_store import JudgmentStore
from calumma.compare.study import QUESTIONS, Study
from calumma.errors import EvaluationError


@pytest.fixture
def store(study: Study) -> Iterator[JudgmentStore]:
    made = JudgmentStore(study.folder)
    yield made
    made.close()


@pytest.fixture
def client(study: Study, store: JudgmentStore) -> TestClient:
    return TestClient(make_annotation_app(study, store))


def _next(client: TestClient, annotator: str) -> dict[str, Any]:
    answer = client.get("/api/item", params={"annotator": annotator})
    assert answer.status_code == 200
    content: dict[str, Any] = answer.json()
    return content


def _judge(client: TestClient, annotator: str, item: dict[str, Any], choice: int = 0) -> Any:
    answers = {question["name"]: question["options"][choice][0] for question in item["questions"]}
    body = {"annotator": annotator, "item": item["key"], "answers": answers, "seconds": 1.5}
    return client.post("/api/judgment", json=body)


def test_an_annotator_goes_through_all_items_and_reaches_the_end(
    client: TestClient, study: Study, store: JudgmentStore
) -> None:
    seen = set()
    while (content := _next(client, "ann"))["item"] is not None:
        seen.add(content["item"]["key"])
        assert _judge(client, "ann", content["item"]).json() == {"done": len(seen)}
    assert seen == {item.key for item in study.items()}
    assert content["done"] == content["total"] == 9
    assert {judgment.seconds for judgment in store.judgments()} == {1.5}


def test_nothing_shown_names_a_system(client: TestClient) -> None:
    while (content := _next(client, "ann"))["item"] is not None:
        shown = dict(content["item"])
        shown["answers"] = [part for parts in shown["answers"] for part in parts]
        for part in shown.pop("answers"):
            assert set(part) <= {"type", "text", "url"}
        assert "ours" not in str(shown) and "other" not in str(shown)
        _judge(client, "ann", content["item"])


def test_the_order_of_a_pair_is_drawn_and_undone(study: Study, store: JudgmentStore) -> None:
    service = AnnotationService(study, store)
    pairs = [item for item in study.items() if item.question_set == "pairwise"]
    swapped = {service.is_swapped(f"a{n}", item) for n in range(8) for item in pairs}
    assert swapped == {True, False}
    for number in range(4):
        name = f"a{number}"
        for item in pairs:
            shown = service.render_item(name, item)["answers"]
            preferred = ["first", "second"][[part[0]["text"][:4] for part in shown].index("ours")]
            service.record(JudgmentRequest(annotator=name, item=item.key, answers={"preference": preferred}))
    assert {judgment.answers["preference"] for judgment in store.judgments()} == {"first"}


def test_images_are_embedded(client: TestClient) -> None:
    item = _next(client, "ann")["item"]
    assert item["answers"][0][1]["url"].startswith("data:image/png;base64,")


def test_invalid_judgments_are_refused(study: Study, store: JudgmentStore, client: TestClient) -> None:
    service = AnnotationService(study, store)
    with pytest.raises(EvaluationError) as caught:
        service.record(JudgmentRequest(annotator="ann", item="x", answers={}))
    assert str(caught.value) == (
        "the item 'x' is not one of this study's 9; expected one that the page was given. Load the page again."
    )
    pair = next(item for item in study.items() if item.question_set == "pairwise")
    answer = client.post("/api/judgment", json={"annotator": "a", "item": pair.key, "answers": {"preference": "?"}})
    assert answer.status_code == 422
    assert answer.json()["error"] == (
        "preference is answered '?'; expected one of first, same, second. Answer every question."
    )
    assert store.judgments() == []


def test_an_access_token_is_required_if_there_is_one(study: Study, store: JudgmentStore) -> None:
    client = TestClient(make_annotation_app(study, store, access_token="word"))
    assert client.get("/").status_code == 200
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        refused = client.get("/api/item", params={"annotator": "a"}, headers=headers)
        assert refused.status_code == 401
        assert refused.json()["error"].startswith("the access token is missing or wrong; expected the one in")
    right = client.get("/api/item", params={"annotator": "a"}, headers={"Authorization": "Bearer word"})
    assert right.status_code == 200


def test_a_large_request_is_not_read(client: TestClient) -> None:
    answer = client.post("/api/judgment", content=b"x" * (MAX_REQUEST_BYTES + 1))
    assert answer.status_code == 413
    assert answer.json()["error"] == (
        f"Content-Length of {MAX_REQUEST_BYTES + 1} bytes; expected 1 to {MAX_REQUEST_BYTES}."
    )
    assert client.post("/api/judgment", content=b"{").status_code == 422


def test_the_page_runs_nothing_but_its_own(client: TestClient) -> None:
    page = client.get("/")
    assert "calumma compare" in page.text and "<script>" not in page.text
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert client.get("/compare.js").status_code == 200
    assert client.get("/../study.json").status_code == 404
    assert len(QUESTIONS["absolute"]) == 8
