"""Prometheus metrics of requests, completions and the engine, named as vLLM names its own."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from calumma.generate.params import EngineStats

METRICS_CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)

_ENGINE_GAUGES: dict[str, tuple[str, Callable[[EngineStats], float]]] = {
    "num_requests_running": ("Requests in the batch", lambda s: s.num_running),
    "num_requests_waiting": ("Requests that wait for capacity", lambda s: s.num_waiting),
    "num_sequences_running": (
        "KV-cached sequences of the running requests, guidance included",
        lambda s: s.num_sequences,
    ),
    "kv_cache_used_tokens": ("Tokens of KV cache that running requests reserve", lambda s: s.num_reserved_tokens),
    "kv_cache_total_tokens": ("Tokens of KV cache", lambda s: s.max_cached_tokens),
    "kv_cache_usage_perc": (
        "Share of the KV cache that running requests reserve, 0 to 1",
        lambda s: s.num_reserved_tokens / max(1, s.max_cached_tokens),
    ),
}


class PrometheusMetrics:
    """The metrics of one server. Prometheus derives rates, such as tokens per second, from them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.http_requests = self._counter(
            "http_requests", "HTTP requests by endpoint and status", "endpoint", "status"
        )
        self.http_errors = self._counter("http_errors", "Error responses by code", "code")
        self.request_success = self._counter(
            "request_success", "Finished completions by finish reason", "finished_reason"
        )
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens by modality", "modality")
        self.generation_tokens = self._counter("generation_tokens", "Generated tokens by modality", "modality")
        self.image_decoder_crashes = self._counter(
            "image_decoder_crashes", "Image decoder processes that hung or crashed"
        )
        self.time_to_first_token = self._histogram(
            "time_to_first_token_seconds", "From the admission of a request to its first token"
        )
        self.e2e_request_latency = self._histogram(
            "e2e_request_latency_seconds", "From the admission of a request to the last token"
        )
        self.requests_in_flight = self._gauge("requests_in_flight", "Completions admitted and not finished")

    def _counter(self, name: str, description: str, *labels: str) -> Counter:
        return Counter(f"calumma_{name}", description, labels, registry=self.registry)

    def _gauge(self, name: str, description: str) -> Gauge:
        return Gauge(f"calumma_{name}", description, registry=self.registry)

    def _histogram(self, name: str, description: str) -> Histogram:
        return Histogram(f"calumma_{name}", description, buckets=_SECONDS, registry=self.registry)

    def add_engine_gauges(self, stats: Callable[[], EngineStats]) -> None:
        """Export the load of an engine, read at each scrape."""

        def reader(value: Callable[[EngineStats], float]) -> Callable[[], float]:
            return lambda: float(value(stats()))

        for name, (description, value) in _ENGINE_GAUGES.items():
            self._gauge(name, description).set_function(reader(value))

    def exposition(self) -> bytes:
        """Return all metrics in the text format of Prometheus."""
        return generate_latest(self.registry)
