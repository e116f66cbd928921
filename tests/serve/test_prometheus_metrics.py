"""Metrics in the text format of Prometheus."""

from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from calumma.generate.model import Model
from calumma.generate.params import EngineStats
from calumma.serve.prometheus_metrics import PrometheusMetrics
from tests.serve.conftest import WILD, serving, user_message


def read(text: str) -> dict[str, float]:
    """Parse metrics: name and label values, in the order of the label names, to value."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = [value for _, value in sorted(sample.labels.items())]
            found[" ".join([sample.name, *labels])] = sample.value
    return found


def test_the_load_of_the_engine_is_read_at_each_scrape() -> None:
    metrics = PrometheusMetrics()
    stats = EngineStats(num_running=1, num_waiting=2, num_sequences=3, num_reserved_tokens=4, max_cached_tokens=5)
    metrics.add_engine_gauges(lambda: stats)
    found = read(metrics.exposition().decode())
    assert found["calumma_num_requests_running"] == 1
    assert found["calumma_num_requests_waiting"] == 2
    assert found["calumma_num_sequences_running"] == 3
    assert found["calumma_kv_cache_used_tokens"] == 4
    assert found["calumma_kv_cache_total_tokens"] == 5
    assert found["calumma_kv_cache_usage_perc"] == 0.8


def test_requests_and_tokens_are_counted(model: Model) -> None:
    with serving(model) as (client, handler):
        usage = _chat(client).json()["usage"]
        client.post("/v1/chat/completions", json={"messages": []})
        client.get("/nowhere/1")
        client.get("/nowhere/2")
        handler.encoder.decoder_pool.on_crash()
        response = client.get("/metrics")
        assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
        found = read(response.text)
    assert found["calumma_http_requests_total /v1/chat/completions 200"] == 1
    assert found["calumma_http_requests_total /v1/chat/completions 400"] == 1
    assert found["calumma_http_requests_total other 404"] == 2
    assert found["calumma_http_errors_total invalid_value"] == 1
    completion, prompt = usage["completion_tokens_details"], usage["prompt_tokens_details"]
    assert found["calumma_generation_tokens_total image"] == completion["image_tokens"]
    assert found["calumma_generation_tokens_total text"] == completion["text_tokens"]
    assert found["calumma_prompt_tokens_total text"] == prompt["text_tokens"]
    assert found["calumma_time_to_first_token_seconds_count"] == 2
    assert found["calumma_e2e_request_latency_seconds_count"] == 2
    assert found["calumma_requests_in_flight"] == 0
    assert found["calumma_image_decoder_crashes_total"] == 1


def _chat(client: TestClient) -> Any:
    body = {"messages": user_message("a"), "max_tokens": 20, "n": 2, **WILD}
    return client.post("/v1/chat/completions", json=body)
