"""Figures for Prometheus: of requests, of answers, and of the engine."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from calumma.generate.params import EngineStats

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


class Metrics:
    """All figures of one server. Rates (tokens a second, say) are Prometheus' own to make."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "calumma_requests",
            "Requests by endpoint and status",
            ["endpoint", "status"],
            registry=self.registry,
        )
        self.errors = Counter(
            "calumma_errors", "Refusals and failures by code", ["code"], registry=self.registry
        )
        self.answers = Counter(
            "calumma_answers", "Answers by how they ended", ["reason"], registry=self.registry
        )
        self.tokens = Counter(
            "calumma_tokens",
            "Ids by modality, read from prompts or made",
            ["modality", "direction"],
            registry=self.registry,
        )
        self.first = Histogram(
            "calumma_time_to_first_token_seconds",
            "From a request's admission to the first id of its answer",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.whole = Histogram(
            "calumma_answer_seconds",
            "From a request's admission to the end of an answer",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.lost = self._gauge(
            "calumma_picture_processes_lost", "Picture processes that hung or crashed"
        )
        self.under_way = self._gauge("calumma_answers_under_way", "Answers admitted, not yet whole")

    def _gauge(self, name: str, meaning: str) -> Gauge:
        return Gauge(name, meaning, registry=self.registry)

    def watch(self, load: Callable[[], EngineStats]) -> None:
        """Show what an engine has to do, as it stands whenever somebody asks."""
        shown = {
            "calumma_batch_running": ("Requests that hold rows", "running"),
            "calumma_queue_waiting": ("Requests that wait for room", "waiting"),
            "calumma_batch_rows": ("Rows taken", "rows"),
            "calumma_cache_slots_used": ("Slots of the cache that are taken", "slots_used"),
            "calumma_cache_slots": ("Slots of the cache", "slots"),
        }
        for name, (meaning, field) in shown.items():
            self._gauge(name, meaning).set_function(_reader(load, field))

    def text(self) -> bytes:
        """All figures, as Prometheus reads them."""
        return generate_latest(self.registry)


def _reader(load: Callable[[], EngineStats], field: str) -> Callable[[], float]:
    return lambda: float(getattr(load(), field))
