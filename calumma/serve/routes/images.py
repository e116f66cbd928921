"""POST /v1/images/generations: pictures of a prompt, whole or as they grow."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.sse import EventSourceResponse

from calumma.serve.answers import ImageData, ImagesResponse, ImageUsage
from calumma.serve.api_errors import APIError
from calumma.serve.output_processor import Drawn, Ended, Growing, Piece
from calumma.serve.prompt_encoder import chat_prompt
from calumma.serve.protocol import ChatMessage, ImageGenerationRequest
from calumma.serve.request_context import RequestContext, get_request_context
from calumma.serve.request_params import first_seed, modality_of, sampling_of
from calumma.serve.service import Asked, Service, Wanted, base64_of
from calumma.serve.sse import ERROR_RESPONSES, STREAM_HEADERS, event_stream, sse_event

_KIND = "image_generation"


def drawing_routes(service: Service) -> APIRouter:
    """The endpoint."""
    router = APIRouter()

    @router.post("/v1/images/generations", response_model=ImagesResponse, responses=ERROR_RESPONSES)
    async def draw(body: ImageGenerationRequest, request: Request) -> Any:
        """Draw what a prompt says."""
        service.require_model(body.model)
        _require_size(body.size, service.size)
        visit = get_request_context(request)
        prompt = chat_prompt([ChatMessage(role="user", content=body.prompt)])
        asked = await service.ask(visit, [prompt], _wanted(body, service))
        if body.stream:
            partial = bool(body.partial_images)
            stream = _stream(service, visit, asked, partial=partial)
            return EventSourceResponse(stream, headers=STREAM_HEADERS)
        told = await service.gather(asked)
        ended = [one.ended for one in told if one.ended is not None]
        if any(not one.pictures for one in told):
            message = "a picture does not pass a filter of this server; expected another prompt."
            raise APIError(400, message, "content_filter")
        return ImagesResponse(
            created=visit.created,
            data=[
                ImageData(b64_json=base64_of(one.pictures[0]), seed=seed)
                for one, seed in zip(told, asked.seeds, strict=True)
            ],
            size=service.size,
            usage=_usage(service, visit, asked, ended),
        )

    return router


def _require_size(wanted: str | None, size: str) -> None:
    if wanted not in (None, "auto", size):
        raise APIError(
            400,
            f"this model draws pictures of {size} alone; expected that size, or auto. Leave size "
            "out.",
            "invalid_size",
            param="size",
        )


def _wanted(body: ImageGenerationRequest, service: Service) -> Wanted:
    first, count = first_seed(body), 1 if body.n is None else body.n
    service.require_choices(count)
    codes = service.model.image.config.codes_per_image
    return Wanted(
        seeds=[(first + number) % 2**63 for number in range(count)],
        options={
            **sampling_of(body),
            "modality": modality_of(["image"], service.model),
            "max_images": 1,
            "max_new_tokens": codes + 2,
        },
        # So many partial pictures, as evenly as their number allows.
        codes_between=max(1, codes // (1 + (body.partial_images or 0))),
        prompt_in_picture=bool(body.embed_prompt_metadata),
    )


def _usage(service: Service, visit: RequestContext, asked: Asked, ended: list[Ended]) -> ImageUsage:
    usage = service.usage(visit, asked, ended)
    return ImageUsage(
        total_tokens=usage.total_tokens,
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        input_tokens_details=usage.prompt_tokens_details,
    )


def _stream(service: Service, visit: RequestContext, asked: Asked, *, partial: bool) -> Any:
    def event(number: int, kind: str, png: bytes, **more: Any) -> bytes:
        told = {"type": kind, "b64_json": base64_of(png), "created_at": visit.created}
        shape = {"size": service.size, "output_format": "png", "index": number}
        return sse_event({**told, **shape, "seed": asked.seeds[number], **more}, kind)

    whole: dict[int, bytes] = {}

    def told(number: int, piece: Piece) -> bytes | None:
        if isinstance(piece, Growing) and partial:
            return event(
                number, f"{_KIND}.partial_image", piece.png, partial_image_index=piece.index
            )
        if isinstance(piece, Drawn):
            whole[number] = piece.png
        return None

    def closing(ended: list[Ended]) -> list[bytes]:
        usage = _usage(service, visit, asked, ended).model_dump()
        return [
            event(number, f"{_KIND}.completed", png, usage=usage)
            for number, png in sorted(whole.items())
        ]

    return event_stream(asked.talk, (), told, closing)
