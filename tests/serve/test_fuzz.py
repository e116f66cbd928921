"""A schema fuzzer over the OpenAPI document: whatever it sends, the server makes no mistake."""

from __future__ import annotations

from collections import Counter

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance
from starlette.testclient import TestClient

from calumma.serve.handler import RequestHandler
from tests.serve.test_handler import emptied

ASKED = {
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/images/generations"),
    ("POST", "/v1/tokens"),
    ("GET", "/v1/models/{name}"),
}
"""What takes anything from a client: it is sent right and wrong things."""

CALLED = {
    ("GET", path) for path in ("/v1/models", "/health", "/health/live", "/health/ready", "/metrics")
}
RIGHT, WRONG = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
CASES = [
    *((place, RIGHT, 5) for place in sorted(ASKED)),
    # Of bodies alone: any name is one that a model could have.
    *((place, WRONG, 5) for place in sorted(ASKED) if place[0] == "POST"),
    *((place, RIGHT, 1) for place in sorted(CALLED)),
]
"""With how many requests are made up. 300 of each were sent once (dev/log.md)."""


def test_all_that_the_document_names_is_fuzzed(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    named = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    assert named == ASKED | CALLED


@pytest.mark.parametrize(("place", "mode", "count"), CASES)
def test_whatever_is_sent_no_mistake_of_ours_comes_back(
    running_server: tuple[str, RequestHandler],
    client: TestClient,
    place: tuple[str, str],
    mode: GenerationMode,
    count: int,
) -> None:
    (url, handler), (method, path) = running_server, place
    schema = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
    statuses: Counter[int] = Counter()

    @settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(case=schema[path][method].as_strategy(generation_mode=mode))
    def fuzz(case: Case) -> None:
        response = case.call(base_url=url)
        case.validate_response(response, checks=[not_a_server_error, response_schema_conformance])
        statuses[response.status_code] += 1

    fuzz()
    assert statuses
    assert emptied(handler)
