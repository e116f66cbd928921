"""Request context: attached to a request, and cleaned up with it."""

from starlette.requests import Request

from calumma.serve.request_context import RequestContext, get_request_context


def test_a_context_is_attached_to_its_request_and_runs_its_callbacks() -> None:
    scope: dict[str, object] = {"type": "http"}
    context, closed = RequestContext(), []
    context.attach(scope)
    assert get_request_context(Request(scope)) is context
    context.cleanup.callback(closed.append, 1)
    context.cleanup.callback(closed.append, 2)
    context.cleanup.close()
    assert closed == [2, 1]
    assert len(context.id) == 32
    assert context.id != RequestContext().id
