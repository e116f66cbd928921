"""POST /v1/chat/completions: the next message of a conversation, complete or streamed."""

import base64
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.sse import EventSourceResponse

from calumma.documents.image_formats import data_url
from calumma.generate.events import TextPiece
from calumma.serve.content_parts import ContentPart, ImagePart, ImageURL, TextPart
from calumma.serve.handler import RequestHandler
from calumma.serve.logprobs import chat_logprobs, token_id_logprobs
from calumma.serve.output_processor import EncodedImage, Finished, NewTokens, OutputEvent
from calumma.serve.prompt_encoder import chat_prompt
from calumma.serve.protocol import ChatChoice, ChatCompletion, ChatCompletionMessage, ChatCompletionRequest
from calumma.serve.request_context import RequestContext, get_request_context
from calumma.serve.request_params import completion_params
from calumma.serve.response_stream import (
    ERROR_RESPONSES,
    STREAM_HEADERS,
    CompletedOutput,
    ResponseStream,
    event_stream,
    sse_event,
)


def chat_routes(handler: RequestHandler) -> APIRouter:
    """Build the router."""
    router = APIRouter()

    @router.post("/v1/chat/completions", response_model=ChatCompletion, responses=ERROR_RESPONSES)
    async def chat(body: ChatCompletionRequest, request: Request) -> Any:
        """Generate the next message of a conversation: text and images."""
        context = get_request_context(request)
        params = completion_params(body, handler.model, handler.config.limits)
        stream = await handler.submit(context, [chat_prompt(body.messages)], params)
        if body.stream:
            events = _events(handler, context, stream, body)
            return EventSourceResponse(events, headers=STREAM_HEADERS)
        return _response(handler, context, stream, await stream.collect(), body)

    return router


def _response(
    handler: RequestHandler,
    context: RequestContext,
    stream: ResponseStream,
    outputs: Sequence[CompletedOutput],
    body: ChatCompletionRequest,
) -> ChatCompletion:
    choices = []
    for index, (output, seed) in enumerate(zip(outputs, stream.seeds, strict=True)):
        images, parts = content_parts(output)
        tokens = output.finished.tokens
        choice = ChatChoice(
            index=index,
            message=ChatCompletionMessage(content=output.text, images=images, content_parts=parts),
            logprobs=chat_logprobs(handler.model, tokens) if body.logprobs else None,
            finish_reason=output.finished.reason,
            seed=seed,
            token_ids=list(tokens.token_ids) if body.return_token_ids else None,
            **(token_id_logprobs(tokens) if body.return_token_ids and body.logprobs else {}),
        )
        choices.append(choice)
    return ChatCompletion(
        id=f"chatcmpl-{context.id}",
        created=context.created,
        model=context.model_name,
        choices=choices,
        usage=stream.usage(),
        prompt_token_ids=stream.prompts[0] if body.return_token_ids else None,
    )


def content_parts(output: CompletedOutput) -> tuple[list[ImagePart], list[ContentPart]]:
    """Return the images of an output, and all its parts in reading order."""
    parts: list[ContentPart] = [
        TextPart(text=part) if isinstance(part, str) else to_image_part(part) for part in output.parts
    ]
    return [part for part in parts if isinstance(part, ImagePart)], parts


def to_image_part(png: bytes) -> ImagePart:
    """Return a PNG file as a content part with a data: URL."""
    return ImagePart(image_url=ImageURL(url=data_url(png)))


def _chunk(
    handler: RequestHandler, context: RequestContext, index: int, delta: Mapping[str, Any], reason: str | None = None
) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "finish_reason": reason, "logprobs": None}
    return {
        "id": f"chatcmpl-{context.id}",
        "object": "chat.completion.chunk",
        "created": context.created,
        "model": context.model_name,
        "choices": [choice],
    }


def _partial_image(event: EncodedImage) -> dict[str, Any]:
    return {
        "partial_image_b64": base64.b64encode(event.png).decode(),
        "partial_image_index": event.partial_index,
        "image_index": event.index,
    }


def _events(
    handler: RequestHandler, context: RequestContext, stream: ResponseStream, body: ChatCompletionRequest
) -> AsyncIterator[bytes]:
    """Stream a chat completion as `chat.completion.chunk` objects, some in named events.

    partial_image    an image so far: partial_image_b64, partial_image_index, image_index
    tokens           token_ids of the event that follows; the first one has prompt_token_ids; with
                     logprobs also token_logprobs and top_token_logprobs

    A named event is a complete chunk with an empty delta, so clients that ignore event names
    skip it.
    """

    chunk = partial(_chunk, handler, context)

    def header() -> Iterator[bytes]:
        for index, seed in enumerate(stream.seeds):
            first = chunk(index, {"role": "assistant", "content": ""})
            first["choices"][0]["seed"] = seed
            yield sse_event(first)
            if body.return_token_ids:
                tokens = {"prompt_token_ids": stream.prompts[0], "token_ids": []}
                yield sse_event(chunk(index, {}) | tokens, "tokens")

    def encode(index: int, event: OutputEvent) -> bytes | None:
        match event:
            case TextPiece():
                return sse_event(chunk(index, {"content": event.text}))
            case EncodedImage(partial_index=None):
                image = to_image_part(event.png).model_dump() | {"index": event.index}
                return sse_event(chunk(index, {"images": [image]}))
            case EncodedImage():
                return sse_event(chunk(index, {}) | _partial_image(event), "partial_image")
            case NewTokens():
                sent = b""
                logprobs = chat_logprobs(handler.model, event.tokens)
                if body.logprobs and logprobs.content:
                    scored = chunk(index, {"content": ""})
                    scored["choices"][0]["logprobs"] = logprobs.model_dump()
                    sent += sse_event(scored)
                if body.return_token_ids:
                    tokens: dict[str, Any] = {"token_ids": list(event.tokens.token_ids)}
                    if body.logprobs:
                        tokens |= token_id_logprobs(event.tokens)
                    sent += sse_event(chunk(index, {}) | tokens, "tokens")
                return sent or None
            case Finished():
                return sse_event(chunk(index, {}, event.reason))
        return None

    def trailer() -> Iterator[bytes]:
        usage = stream.usage().model_dump()
        if body.stream_options is not None and body.stream_options.include_usage:
            yield sse_event(chunk(0, {}) | {"choices": [], "usage": usage})

    return event_stream(stream, encode, header=header(), trailer=trailer)
