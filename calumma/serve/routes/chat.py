"""POST /v1/chat/completions: conversations, whole or as they grow."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.sse import EventSourceResponse

from calumma.documents.image_formats import data_url
from calumma.serve.answers import (
    ChatChoice,
    ChatCompletion,
    ChatCompletionMessage,
    ChoiceLogprobs,
    FinishReason,
    Picture,
    PictureURL,
    TokenLogprob,
    Words,
)
from calumma.serve.output_processor import Chosen, Drawn, Ended, Growing, Piece, Reason, Said
from calumma.serve.prompt_encoder import chat_prompt
from calumma.serve.protocol import ChatCompletionRequest, GenerationRequest, StreamOptions
from calumma.serve.request_context import RequestContext, get_request_context
from calumma.serve.request_params import first_seed, images_of, modality_of, room_for, sampling_of
from calumma.serve.service import Asked, Service, Told, Wanted, base64_of
from calumma.serve.sse import ERROR_RESPONSES, STREAM_HEADERS, event_stream, sse_event


def wanted_of(body: GenerationRequest, room: int | None, service: Service) -> Wanted:
    """What a chat or a continuation asks of the engine."""
    service.require_model(body.model)
    count = 1 if body.n is None else body.n
    service.require_choices(count)
    modality = modality_of(body.modalities, service.model)
    first = first_seed(body)
    return Wanted(
        seeds=[(first + number) % 2**63 for number in range(count)],
        options={
            **sampling_of(body),
            "modality": modality,
            "max_images": images_of(body.max_images, modality),
            "max_new_tokens": room_for(room, service.model, service.config.limits),
        },
        stops=body.stop or (),
        prompt_in_picture=bool(body.embed_prompt_metadata),
    )


def chat_routes(service: Service) -> APIRouter:
    """The endpoint."""
    router = APIRouter()

    @router.post("/v1/chat/completions", response_model=ChatCompletion, responses=ERROR_RESPONSES)
    async def chat(body: ChatCompletionRequest, request: Request) -> Any:
        """Answer a conversation with text and pictures."""
        room = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
        wanted = wanted_of(body, room, service)
        visit = get_request_context(request)
        asked = await service.ask(visit, [chat_prompt(body.messages)], wanted)
        if body.stream:
            stream = ChatStream(service, visit, body.stream_options or StreamOptions())
            return EventSourceResponse(stream.lines(asked), headers=STREAM_HEADERS)
        return chat_answer(service, visit, asked, await service.gather(asked), bool(body.logprobs))

    return router


def chat_answer(
    service: Service, visit: RequestContext, asked: Asked, told: list[Told], logprobs: bool
) -> ChatCompletion:
    """The body of a whole answer."""
    choices, ended = [], []
    for number, one in enumerate(told):
        assert one.ended is not None
        ended.append(one.ended)
        images, parts = parts_of(one)
        choice = ChatChoice(
            index=number,
            message=ChatCompletionMessage(content=one.text, images=images, content_parts=parts),
            logprobs=_logprobs(service, one.ended) if logprobs else None,
            finish_reason=reason_of(one.ended.reason),
            seed=asked.seeds[number],
        )
        choices.append(choice)
    return ChatCompletion(
        id=f"chatcmpl-{visit.id}",
        created=visit.created,
        model=service.config.served_model_name,
        choices=choices,
        usage=service.usage(visit, asked, ended),
    )


def parts_of(told: Told) -> tuple[list[Picture], list[Words | Picture]]:
    """The pictures of an answer, and all its parts in reading order."""
    parts: list[Words | Picture] = [
        Words(text=part) if isinstance(part, str) else picture_of(part) for part in told.parts
    ]
    return [part for part in parts if isinstance(part, Picture)], parts


def picture_of(png: bytes) -> Picture:
    """A picture of an answer."""
    return Picture(image_url=PictureURL(url=data_url(png)))


def reason_of(reason: Reason) -> FinishReason:
    """How an answer ended, in the API's words."""
    return "length" if reason == "cancelled" else reason


def _logprobs(service: Service, ended: Ended) -> ChoiceLogprobs:
    text = service.model.text
    chosen = zip(ended.sample.token_ids, ended.sample.logprobs, strict=True)
    return ChoiceLogprobs(
        content=[
            TokenLogprob(
                token=text.token_bytes(id_).decode(errors="replace"),
                # JSON has no infinity.
                logprob=logprob if math.isfinite(logprob) else -9999.0,
                bytes=list(text.token_bytes(id_)),
            )
            for id_, logprob in list(chosen)[: ended.num_ids]
            if id_ in service.model.vocabulary.text
        ]
    )


class ChatStream:
    """A chat as events: `chat.completion.chunk` objects, some of them under a name.

    partial_image    a picture so far: partial_image_b64, partial_image_index, image_index
    tokens           the ids behind the event that comes next; first those of the prompt

    Events with a name are whole chunks too, whose delta is empty: a client that knows nothing of
    names passes over them.
    """

    def __init__(self, service: Service, visit: RequestContext, options: StreamOptions) -> None:
        self.service, self.visit, self.options = service, visit, options

    def lines(self, asked: Asked) -> AsyncIterator[bytes]:
        """The lines of the stream."""
        return event_stream(asked.talk, self._opening(asked), self._told, self._closing(asked))

    def _chunk(
        self, number: int, delta: dict[str, Any], reason: str | None = None
    ) -> dict[str, Any]:
        choice = {"index": number, "delta": delta, "finish_reason": reason, "logprobs": None}
        return {
            "id": f"chatcmpl-{self.visit.id}",
            "object": "chat.completion.chunk",
            "created": self.visit.created,
            "model": self.service.config.served_model_name,
            "choices": [choice],
        }

    def _opening(self, asked: Asked) -> list[bytes]:
        opening = []
        for number, seed in enumerate(asked.seeds):
            chunk = self._chunk(number, {"role": "assistant", "content": ""})
            chunk["choices"][0]["seed"] = seed
            opening.append(sse_event(chunk))
            if self.options.include_tokens:
                ids = {"prompt_ids": asked.prompts[0], "ids": []}
                opening.append(sse_event(self._chunk(number, {}) | ids, "tokens"))
        return opening

    def _told(self, number: int, piece: Piece) -> bytes | None:
        if isinstance(piece, Said):
            return sse_event(self._chunk(number, {"content": piece.text}))
        if isinstance(piece, Drawn):
            picture = picture_of(piece.png).model_dump() | {"index": piece.number}
            return sse_event(self._chunk(number, {"images": [picture]}))
        if isinstance(piece, Growing) and self.options.include_partial_images is not False:
            partial = {
                "partial_image_b64": base64_of(piece.png),
                "partial_image_index": piece.index,
                "image_index": piece.number,
            }
            return sse_event(self._chunk(number, {}) | partial, "partial_image")
        if isinstance(piece, Chosen) and self.options.include_tokens:
            return sse_event(self._chunk(number, {}) | {"ids": list(piece.ids)}, "tokens")
        if isinstance(piece, Ended):
            return sse_event(self._chunk(number, {}, reason_of(piece.reason)))
        return None

    def _closing(self, asked: Asked) -> Any:
        def closing(ended: list[Ended]) -> list[bytes]:
            usage = self.service.usage(self.visit, asked, ended)
            if not self.options.include_usage:
                return []
            chunk = self._chunk(0, {}) | {"choices": [], "usage": usage.model_dump()}
            return [sse_event(chunk)]

        return closing
