"""POST /v1/images/generations: images of a prompt, complete or streamed."""

import base64
from typing import Any

from fastapi import APIRouter, Request
from fastapi.sse import EventSourceResponse

from calumma.serve.api_errors import APIError
from calumma.serve.handler import RequestHandler
from calumma.serve.output_processor import EncodedImage, OutputEvent
from calumma.serve.prompt_encoder import chat_prompt
from calumma.serve.protocol import ChatMessage, ImageData, ImageGenerationRequest, ImagesResponse, ImageUsage
from calumma.serve.request_context import RequestContext, get_request_context
from calumma.serve.request_params import image_generation_params
from calumma.serve.response_stream import ResponseStream
from calumma.serve.sse import ERROR_RESPONSES, STREAM_HEADERS, event_stream, sse_event


def image_routes(handler: RequestHandler) -> APIRouter:
    """Build the router."""
    router = APIRouter()

    @router.post("/v1/images/generations", response_model=ImagesResponse, responses=ERROR_RESPONSES)
    async def generate_images(body: ImageGenerationRequest, request: Request) -> Any:
        """Generate images of a prompt."""
        if body.size not in (None, "auto", handler.image_size):
            message = (
                f"this model generates images of {handler.image_size} only; expected that size, or "
                "auto. Leave size out."
            )
            raise APIError(400, message, "invalid_size", param="size")
        context = get_request_context(request)
        params = image_generation_params(body, handler.model)
        prompt = chat_prompt([ChatMessage(role="user", content=body.prompt)])
        stream = await handler.submit(context, [prompt], params)
        if body.stream:
            return EventSourceResponse(_events(handler, context, stream), headers=STREAM_HEADERS)
        outputs = await stream.collect()
        usage = _usage(stream)
        if any(not output.images for output in outputs):
            message = "a content filter of this server blocks an image; expected another prompt."
            raise APIError(400, message, "content_filter")
        return ImagesResponse(
            created=context.created,
            data=[
                ImageData(b64_json=base64.b64encode(output.images[0]).decode(), seed=seed)
                for output, seed in zip(outputs, stream.seeds, strict=True)
            ],
            size=handler.image_size,
            usage=usage,
        )

    return router


def _usage(stream: ResponseStream) -> ImageUsage:
    usage = stream.usage()
    return ImageUsage(
        total_tokens=usage.total_tokens,
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        input_tokens_details=usage.prompt_tokens_details,
    )


def _events(handler: RequestHandler, context: RequestContext, stream: ResponseStream) -> Any:
    finished: dict[int, bytes] = {}

    def event(index: int, kind: str, png: bytes, **more: Any) -> bytes:
        value = {
            "type": f"image_generation.{kind}",
            "b64_json": base64.b64encode(png).decode(),
            "created_at": context.created,
            "size": handler.image_size,
            "output_format": "png",
            "index": index,
            "seed": stream.seeds[index],
            **more,
        }
        return sse_event(value, value["type"])

    def encode(index: int, output: OutputEvent) -> bytes | None:
        if not isinstance(output, EncodedImage):
            return None
        if output.partial_index is None:
            finished[index] = output.png
            return None
        return event(index, "partial_image", output.png, partial_image_index=output.partial_index)

    def trailer() -> list[bytes]:
        usage = _usage(stream).model_dump()
        return [event(index, "completed", png, usage=usage) for index, png in sorted(finished.items())]

    return event_stream(stream, encode, trailer=trailer)
