"""Figures, as Prometheus reads them."""

from __future__ import annotations

from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from calumma.generate.model import Model
from calumma.generate.params import EngineStats
from calumma.serve.prometheus_metrics import PrometheusMetrics
from tests.serve.conftest import WILD, said, serving


def read(text: str) -> dict[str, float]:
    """Each figure by its name and the values of its labels in the order of their names."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = [value for _, value in sorted(sample.labels.items())]
            found[" ".join([sample.name, *labels])] = sample.value
    return found


def test_what_the_engine_has_to_do_is_shown_as_it_is_now() -> None:
    metrics, load = (
        PrometheusMetrics(),
        EngineStats(
            num_running=1,
            num_waiting=2,
            num_sequences=3,
            num_reserved_tokens=4,
            max_cached_tokens=5,
        ),
    )
    metrics.watch(lambda: load)
    found = read(metrics.text().decode())
    assert found["calumma_batch_running"] == 1
    assert found["calumma_queue_waiting"] == 2
    assert found["calumma_batch_rows"] == 3
    assert (found["calumma_cache_slots_used"], found["calumma_cache_slots"]) == (4, 5)


def test_requests_and_ids_are_counted(model: Model) -> None:
    with serving(model) as (client, _):
        usage = _asked(client).json()["usage"]
        client.post("/v1/chat/completions", json={"messages": []})
        client.get("/nowhere/1")
        client.get("/nowhere/2")
        response = client.get("/metrics")
        assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
        found = read(response.text)
    assert found["calumma_requests_total /v1/chat/completions 200"] == 1
    assert found["calumma_requests_total /v1/chat/completions 400"] == 1
    assert found["calumma_requests_total other 404"] == 2
    assert found["calumma_errors_total invalid_value"] == 1
    made, asked = usage["completion_tokens_details"], usage["prompt_tokens_details"]
    assert found["calumma_tokens_total made image"] == made["image_tokens"]
    assert found["calumma_tokens_total made text"] == made["text_tokens"]
    assert found["calumma_tokens_total read text"] == asked["text_tokens"]
    assert found["calumma_time_to_first_token_seconds_count"] == 2
    assert found["calumma_answer_seconds_count"] == 2
    assert found["calumma_answers_under_way"] == 0


def _asked(client: TestClient) -> Any:
    body = {"messages": said("a"), "max_tokens": 20, "n": 2, **WILD}
    return client.post("/v1/chat/completions", json=body)
