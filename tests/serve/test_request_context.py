"""A visit: one request from its beginning to its end."""

from __future__ import annotations

from starlette.requests import Request

from calumma.serve.request_context import RequestContext, get_request_context


def test_a_visit_goes_with_its_request_and_closes_what_was_opened() -> None:
    scope: dict[str, object] = {"type": "http"}
    visit, closed = RequestContext(), []
    visit.attach(scope)
    assert get_request_context(Request(scope)) is visit
    visit.closers.append(lambda: closed.append(1))
    visit.closers.append(lambda: closed.append(2))
    visit.close()
    assert closed == [1, 2]
    assert len(visit.id) == 32
    assert visit.id != RequestContext().id
