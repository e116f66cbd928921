"""POST /v1/completions: continuations of texts, or of text and images, without turns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.sse import EventSourceResponse

from calumma.generate.events import TextPiece
from calumma.serve.api_errors import APIError
from calumma.serve.handler import RequestHandler
from calumma.serve.output_processor import EncodedImage, Finished, OutputEvent, TokenIds
from calumma.serve.prompt_encoder import Prompt, completion_prompt
from calumma.serve.protocol import Completion, CompletionChoice, CompletionRequest
from calumma.serve.request_context import RequestContext, get_request_context
from calumma.serve.request_params import completion_params
from calumma.serve.response_stream import CompletedOutput, ResponseStream
from calumma.serve.routes.chat import content_parts, to_image_part
from calumma.serve.sse import ERROR_RESPONSES, STREAM_HEADERS, event_stream, sse_event


def completion_routes(handler: RequestHandler) -> APIRouter:
    """Build the router."""
    router = APIRouter()

    @router.post("/v1/completions", response_model=Completion, responses=ERROR_RESPONSES)
    async def complete(body: CompletionRequest, request: Request) -> Any:
        """Continue each prompt."""
        context = get_request_context(request)
        params = completion_params(body, handler.model, handler.config.limits)
        stream = await handler.submit(context, _prompts(body), params)
        if body.stream:
            events = _events(handler, context, stream, body)
            return EventSourceResponse(events, headers=STREAM_HEADERS)
        return _response(handler, context, stream, await stream.collect(), body)

    return router


def _prompts(body: CompletionRequest) -> list[Prompt]:
    prompt = body.prompt
    if isinstance(prompt, str):
        return [completion_prompt(prompt)]
    if not prompt:
        message = "the list of prompts is empty; expected at least one. Add one."
        raise APIError(400, message, "empty_prompt", param="prompt")
    texts = [item for item in prompt if isinstance(item, str)]
    if texts:
        return [completion_prompt(text) for text in texts]
    return [completion_prompt([item for item in prompt if not isinstance(item, str)])]


def _response(
    handler: RequestHandler,
    context: RequestContext,
    stream: ResponseStream,
    outputs: Sequence[CompletedOutput],
    body: CompletionRequest,
) -> Completion:
    choices = []
    per_prompt = len(outputs) // len(stream.prompts)
    for index, (output, seed) in enumerate(zip(outputs, stream.seeds, strict=True)):
        images, parts = content_parts(output)
        prompt = stream.prompts[index // per_prompt]
        choice = CompletionChoice(
            index=index,
            text=output.text,
            images=images,
            content_parts=parts,
            finish_reason=output.finished.reason,
            seed=seed,
            token_ids=output.finished.token_ids if body.return_token_ids else None,
            prompt_token_ids=prompt if body.return_token_ids else None,
        )
        choices.append(choice)
    return Completion(
        id=f"cmpl-{context.id}",
        created=context.created,
        model=handler.config.served_model_name,
        choices=choices,
        usage=stream.usage(),
    )


def _events(
    handler: RequestHandler,
    context: RequestContext,
    stream: ResponseStream,
    body: CompletionRequest,
) -> Any:
    def chunk(index: int, text: str = "", **more: Any) -> dict[str, Any]:
        choice = {"index": index, "text": text, "finish_reason": None, "logprobs": None, **more}
        return {
            "id": f"cmpl-{context.id}",
            "object": "text_completion",
            "created": context.created,
            "model": handler.config.served_model_name,
            "choices": [choice],
        }

    def encode(index: int, event: OutputEvent) -> bytes | None:
        match event:
            case TextPiece():
                return sse_event(chunk(index, event.text))
            case EncodedImage(partial_index=None):
                return sse_event(chunk(index, images=[to_image_part(event.png).model_dump()]))
            case TokenIds():
                return sse_event(chunk(index) | {"token_ids": list(event.token_ids)}, "tokens")
            case Finished():
                return sse_event(chunk(index, finish_reason=event.reason))
        return None

    def trailer() -> Iterator[bytes]:
        usage = stream.usage().model_dump()
        if body.stream_options is not None and body.stream_options.include_usage:
            yield sse_event(chunk(0) | {"choices": [], "usage": usage})

    return event_stream(stream, encode, trailer=trailer)
