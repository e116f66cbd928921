"""POST /v1/images/generations and /v1/images/edits: images of a prompt, complete or streamed."""

import base64
import json
import struct
from contextlib import suppress
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from fastapi.sse import EventSourceResponse
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile

from calumma.serve.api_errors import APIError
from calumma.serve.content_parts import TextPart
from calumma.serve.handler import RequestHandler
from calumma.serve.output_processor import EncodedImage, OutputEvent
from calumma.serve.prompt_encoder import ImageEdit, Prompt, chat_prompt
from calumma.serve.protocol import (
    ChatMessage,
    ImageData,
    ImageEditRequest,
    ImageGenerationRequest,
    ImagesResponse,
    ImageUsage,
)
from calumma.serve.request_context import RequestContext, get_request_context
from calumma.serve.request_params import image_generation_params
from calumma.serve.response_stream import ERROR_RESPONSES, STREAM_HEADERS, ResponseStream, event_stream, sse_event
from calumma.serve.routes.chat import to_image_part

_MAX_FIELD_BYTES = 2**20
"""Bytes of a form field that is not a file."""


def image_routes(handler: RequestHandler) -> APIRouter:
    """Build the router."""
    router = APIRouter()

    @router.post("/v1/images/generations", response_model=ImagesResponse, responses=ERROR_RESPONSES)
    async def generate_images(body: ImageGenerationRequest, request: Request) -> Any:
        """Generate images of a prompt."""
        prompt = chat_prompt([ChatMessage(role="user", content=body.prompt)])
        return await _respond(handler, get_request_context(request), body, prompt, "image_generation")

    @router.post(
        "/v1/images/edits", response_model=ImagesResponse, responses=ERROR_RESPONSES, openapi_extra=_edit_form_schema()
    )
    async def edit_images(request: Request) -> Any:
        """Generate edited versions of an image, by instruction or inside a mask."""
        async with request.form(
            max_files=handler.config.limits.max_images + 1, max_part_size=_MAX_FIELD_BYTES
        ) as form:
            body = _edit_request(form)
            images = [await file.read() for name in ("image", "image[]") for file in _files(form, name)]
            masks = [await file.read() for file in _files(form, "mask")]
        if not images or len(masks) > 1:
            message = (
                f"the form has {len(images)} images and {len(masks)} masks; expected an image and at most one mask."
            )
            raise APIError(400, message, "invalid_value", param="mask" if images else "image")
        parts = [to_image_part(data) for data in images]
        turn = ChatMessage(role="user", content=[*parts, TextPart(text=body.prompt)])
        edit = ImageEdit(mask=masks[0] if masks else None, margin=body.mask_margin or 0)
        prompt = replace(chat_prompt([turn]), edit=edit)
        return await _respond(handler, get_request_context(request), body, prompt, "image_edit")

    return router


async def _respond(
    handler: RequestHandler, context: RequestContext, body: ImageGenerationRequest, prompt: Prompt, event_type: str
) -> Any:
    """Generate the images of a prompt; `event_type` is the first part of the names of events."""
    params = image_generation_params(body, handler.model)
    stream = await handler.submit(context, [prompt], params)
    if body.stream:
        return EventSourceResponse(_events(context, stream, event_type), headers=STREAM_HEADERS)
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
        size=png_size(outputs[0].images[0]),
        usage=usage,
    )


def png_size(png: bytes) -> str:
    """Return the size of a PNG file in the format of the API; its first chunk has it."""
    return "{}x{}".format(*struct.unpack(">II", png[16:24]))


def _files(form: FormData, name: str) -> list[UploadFile]:
    return [value for value in form.getlist(name) if isinstance(value, UploadFile)]


def _edit_request(form: FormData) -> ImageEditRequest:
    """Parse the fields of a form that are not files.

    Raises:
        RequestValidationError: a field is invalid.
    """
    body: dict[str, Any] = {name: value for name, value in form.items() if isinstance(value, str)}
    for name, field in ImageEditRequest.model_fields.items():
        if name in body and "str" not in str(field.annotation) and "Literal" not in str(field.annotation):
            # A number or a boolean that is not valid JSON stays a text, which the model rejects.
            with suppress(ValueError):
                body[name] = json.loads(body[name])
    try:
        return ImageEditRequest.model_validate(body)
    except ValidationError as error:
        raise RequestValidationError(error.errors(), body=body) from error


def _edit_form_schema() -> dict[str, Any]:
    """Return the part of the OpenAPI schema that describes the form of an edit."""
    schema = ImageEditRequest.model_json_schema()
    file = {"type": "string", "format": "binary"}
    schema["properties"] |= {"image": file, "mask": file}
    schema["required"] = [*schema["required"], "image"]
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def _usage(stream: ResponseStream) -> ImageUsage:
    usage = stream.usage()
    return ImageUsage(
        total_tokens=usage.total_tokens,
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        input_tokens_details=usage.prompt_tokens_details,
    )


def _events(context: RequestContext, stream: ResponseStream, event_type: str) -> Any:
    finished: dict[int, bytes] = {}

    def event(index: int, kind: str, png: bytes, **more: Any) -> bytes:
        value = {
            "type": f"{event_type}.{kind}",
            "b64_json": base64.b64encode(png).decode(),
            "created_at": context.created,
            "size": png_size(png),
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
