"""What clients send: OpenAI's request bodies, with a few fields of our own beside theirs.

A field that is known but cannot be honoured (tools, audio, ...) is refused, not passed over; one
that nobody knows is ignored, as the API's own servers do.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

_INT64 = 2**63


def _whole(text: str) -> str:
    """Refuse half a character, which no encoding can hold."""
    text.encode()
    return text


def _no_longer_than(most: int) -> Any:
    return Field(max_length=most)


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Utf8Str = Annotated[str, AfterValidator(_whole)]
"""Text that UTF-8 can hold."""

StopStrings = Annotated[
    list[Annotated[Utf8Str, Field(min_length=1, max_length=256)]],
    BeforeValidator(_as_list, json_schema_input_type=str | list[str]),
    _no_longer_than(8),
]


class StrictModel(BaseModel):
    """Numbers are numbers and strings strings: "5" is refused where 5 is meant."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class TextPart(StrictModel):
    """A piece of text."""

    type: Literal["text"]
    text: Utf8Str


class ImageURL(StrictModel):
    """Where a picture is: in the URL itself, or at a host that the operator allows."""

    url: Utf8Str
    detail: str | None = None


class ImagePart(StrictModel):
    """A picture."""

    type: Literal["image_url"]
    image_url: ImageURL


ContentPart = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class ChatMessage(StrictModel):
    """One turn. An answer of this server can be sent back as it came."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Utf8Str | list[ContentPart] | None = None

    content_parts: list[ContentPart] | None = None
    """Text and pictures in reading order, as this server answers; it goes before `content`."""


class SamplingFields(StrictModel):
    """How ids are chosen. Without a value the model's own default holds."""

    temperature: float | None = Field(None, ge=0, le=2, description="of text and of images")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=2**31)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.1, le=10)
    guidance_scale: float | None = Field(None, ge=0, le=50, description="of images, by the text")
    image_guidance_scale: float | None = Field(None, ge=0, le=50, description="by earlier images")
    image_temperature: float | None = Field(None, ge=0, le=2)
    seed: int | None = Field(None, ge=-_INT64, lt=_INT64)
    user: str | None = None


_REFUSED = {
    "tools": "this model calls no tools",
    "functions": "this model calls no functions",
    "audio": "this model makes no sound",
    "logit_bias": "ids cannot be weighed one by one",
    "suffix": "text cannot be put before a suffix",
    "frequency_penalty": "use repetition_penalty instead",
    "presence_penalty": "use repetition_penalty instead",
    "prediction": "no text is taken as foreseen",
}
"""Fields of the API that would change an answer and cannot be honoured."""


class StreamOptions(StrictModel):
    """What a stream holds beside the answer."""

    include_usage: bool | None = None
    include_tokens: bool | None = Field(None, description="named events with each new id")
    include_partial_images: bool | None = Field(None, description="true if not given")


class GenerationRequest(SamplingFields):
    """What chats and continuations have in common."""

    model: str | None = Field(None, max_length=512)
    n: int | None = Field(None, ge=1)
    stop: StopStrings | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    modalities: list[Literal["text", "image"]] | None = Field(None, min_length=1)
    max_images: int | None = Field(None, ge=0, le=2**31)
    embed_prompt_metadata: bool | None = Field(None, description="write the prompt into pictures")

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_cannot_be_honoured(cls, body: Any) -> Any:
        if isinstance(body, dict):
            for name, reason in _REFUSED.items():
                if body.get(name):
                    raise ValueError(f"{name} cannot be honoured: {reason}")
            wanted = body.get("response_format")
            if isinstance(wanted, dict) and wanted.get("type", "text") != "text":
                raise ValueError("response_format cannot be honoured: answers are plain text")
        return body


class ChatCompletionRequest(GenerationRequest):
    """The body of /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=1024)
    max_tokens: int | None = Field(None, ge=1, le=2**31)
    max_completion_tokens: int | None = Field(None, ge=1, le=2**31)
    logprobs: bool | None = None


class CompletionRequest(GenerationRequest):
    """The body of /v1/completions: text, or parts, that the model goes on from."""

    prompt: Utf8Str | list[Utf8Str] | list[ContentPart]
    max_tokens: int | None = Field(None, ge=1, le=2**31)
    echo: Literal[False] | None = None


class ImageGenerationRequest(SamplingFields):
    """The body of /v1/images/generations."""

    prompt: Utf8Str = Field(min_length=1)
    model: str | None = Field(None, max_length=512)
    n: int | None = Field(None, ge=1)
    size: str | None = Field(None, max_length=32, description="auto, or the model's own size")
    response_format: Literal["b64_json"] | None = None
    output_format: Literal["png"] | None = None
    stream: bool | None = None
    partial_images: int | None = Field(None, ge=0, le=64)
    embed_prompt_metadata: bool | None = None


class TokenizeRequest(StrictModel):
    """The body of /v1/tokens: a chat, a prompt to be gone on from, or ids that a stream told."""

    messages: list[ChatMessage] | None = Field(None, min_length=1, max_length=1024)
    prompt: Utf8Str | list[ContentPart] | None = None
    ids: list[Annotated[int, Field(ge=0, le=2**31)]] | None = Field(None, max_length=2**16)

    @model_validator(mode="after")
    def _one_of_them(self) -> TokenizeRequest:
        if [self.messages, self.prompt, self.ids].count(None) != 2:
            raise ValueError("expected exactly one of messages, prompt and ids")
        return self
