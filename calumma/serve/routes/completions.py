"""POST /v1/completions: texts, or text and pictures, that the model goes on from."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.sse import EventSourceResponse

from calumma.serve.answers import Completion, CompletionChoice
from calumma.serve.api_errors import APIError
from calumma.serve.output_processor import Drawn, Ended, Piece, Said
from calumma.serve.prompt_encoder import Prompt, completion_prompt
from calumma.serve.protocol import CompletionRequest
from calumma.serve.request_context import RequestContext, get_request_context
from calumma.serve.routes.chat import parts_of, picture_of, reason_of, wanted_of
from calumma.serve.service import Asked, Service, Told
from calumma.serve.sse import ERROR_RESPONSES, STREAM_HEADERS, event_stream, sse_event


def completion_routes(service: Service) -> APIRouter:
    """The endpoint."""
    router = APIRouter()

    @router.post("/v1/completions", response_model=Completion, responses=ERROR_RESPONSES)
    async def complete(body: CompletionRequest, request: Request) -> Any:
        """Go on from each prompt, without turns."""
        wanted = wanted_of(body, body.max_tokens, service)
        visit = get_request_context(request)
        asked = await service.ask(visit, _prompts(body), wanted)
        if body.stream:
            usage = body.stream_options is not None and bool(body.stream_options.include_usage)
            stream = _stream(service, visit, asked, usage=usage)
            return EventSourceResponse(stream, headers=STREAM_HEADERS)
        return _answer(service, visit, asked, await service.gather(asked))

    return router


def _prompts(body: CompletionRequest) -> list[Prompt]:
    prompt = body.prompt
    if isinstance(prompt, str):
        return [completion_prompt(prompt)]
    texts = [one for one in prompt if isinstance(one, str)]
    if not prompt:
        message = "the list of prompts is empty; expected at least one. Send one."
        raise APIError(400, message, "empty_prompt", param="prompt")
    if texts:
        return [completion_prompt(text) for text in texts]
    return [completion_prompt([one for one in prompt if not isinstance(one, str)])]


def _answer(service: Service, visit: RequestContext, asked: Asked, told: list[Told]) -> Completion:
    choices, ended = [], []
    for number, one in enumerate(told):
        assert one.ended is not None
        ended.append(one.ended)
        images, parts = parts_of(one)
        choice = CompletionChoice(
            index=number,
            text=one.text,
            images=images,
            content_parts=parts,
            finish_reason=reason_of(one.ended.reason),
            seed=asked.seeds[number],
        )
        choices.append(choice)
    return Completion(
        id=f"cmpl-{visit.id}",
        created=visit.created,
        model=service.config.served_model_name,
        choices=choices,
        usage=service.usage(visit, asked, ended),
    )


def _stream(service: Service, visit: RequestContext, asked: Asked, *, usage: bool) -> Any:
    def chunk(number: int, text: str, **more: Any) -> dict[str, Any]:
        choice = {"index": number, "text": text, "finish_reason": None, "logprobs": None, **more}
        return {
            "id": f"cmpl-{visit.id}",
            "object": "text_completion",
            "created": visit.created,
            "model": service.config.served_model_name,
            "choices": [choice],
        }

    def told(number: int, piece: Piece) -> bytes | None:
        if isinstance(piece, Said):
            return sse_event(chunk(number, piece.text))
        if isinstance(piece, Drawn):
            return sse_event(chunk(number, "", images=[picture_of(piece.png).model_dump()]))
        if isinstance(piece, Ended):
            return sse_event(chunk(number, "", finish_reason=reason_of(piece.reason)))
        return None

    def closing(ended: list[Ended]) -> list[bytes]:
        counted = service.usage(visit, asked, ended).model_dump()
        return [sse_event(chunk(0, "") | {"choices": [], "usage": counted})] if usage else []

    return event_stream(asked.talk, (), told, closing)
