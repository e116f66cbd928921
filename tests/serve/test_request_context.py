"""A context: one request from its beginning to its end."""

from __future__ import annotations

from starlette.requests import Request

from calumma.serve.request_context import RequestContext, get_request_context


def test_a_visit_goes_with_its_request_and_closes_what_was_opened() -> None:
    scope: dict[str, object] = {"type": "http"}
    context, closed = RequestContext(), []
    context.attach(scope)
    assert get_request_context(Request(scope)) is context
    context.cleanup.callback(lambda: closed.append(1))
    context.cleanup.callback(lambda: closed.append(2))
    context.close()
    assert closed == [1, 2]
    assert len(context.id) == 32
    assert context.id != RequestContext().id
