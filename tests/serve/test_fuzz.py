"""A schema fuzzer over the OpenAPI document: no request causes an internal error."""

from collections import Counter

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance
from starlette.testclient import TestClient

from calumma.serve.handler import RequestHandler
from tests.serve.test_handler import is_idle

WITH_INPUT = {
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/images/edits"),
    ("POST", "/v1/images/generations"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("GET", "/v1/models/{name}"),
}
"""Endpoints with input: they get valid and invalid requests."""

WITHOUT_INPUT = {("GET", path) for path in ("/v1/models", "/health", "/health/live", "/health/ready", "/metrics")}
VALID, INVALID = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
CASES = [
    *((endpoint, VALID, 5) for endpoint in sorted(WITH_INPUT)),
    # Bodies only: any string is a valid name of a model.
    *((endpoint, INVALID, 5) for endpoint in sorted(WITH_INPUT) if endpoint[0] == "POST"),
    *((endpoint, VALID, 1) for endpoint in sorted(WITHOUT_INPUT)),
]
"""Endpoint, mode and number of requests. 300 of each were sent once (dev/log.md)."""


def test_all_documented_endpoints_are_fuzzed(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    named = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    assert named == WITH_INPUT | WITHOUT_INPUT


@pytest.mark.parametrize(("endpoint", "mode", "count"), CASES)
def test_no_request_causes_an_internal_error(
    running_server: tuple[str, RequestHandler],
    client: TestClient,
    endpoint: tuple[str, str],
    mode: GenerationMode,
    count: int,
) -> None:
    (url, handler), (method, path) = running_server, endpoint
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
    assert is_idle(handler)
