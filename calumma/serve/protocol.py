"""Request and response bodies: those of OpenAI's API, with additional fields for images.

A field of OpenAI's API or of vLLM's that would change the response but is not supported (tools,
audio, ...) is rejected, and so is a mistyped one; a field that none of them has is ignored.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from calumma.serve.content_parts import Content, ContentPart, ImagePart, PromptInput, StrictModel, TokenIds, Utf8Str
from calumma.serve.unsupported_fields import mistyped_fields, unsupported_fields, unsupported_message_fields
from calumma.vocabulary import TokenCounts

_INT64 = 2**63

MAX_LOGPROBS = 20
"""Most likely tokens that a request may ask for at each token, as in OpenAI's API."""


StopStrings = Annotated[
    list[Annotated[Utf8Str, Field(min_length=1, max_length=256)]],
    BeforeValidator(
        lambda value: [value] if isinstance(value, str) else value, json_schema_input_type=str | list[str]
    ),
    Field(max_length=8),
]


# ---- requests ------------------------------------------------------------------------------------


class ChatMessage(StrictModel):
    """One turn of a conversation. A message of a response can be sent back unchanged."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content | None = None

    content_parts: list[ContentPart] | None = None
    """Text and images in reading order, as in responses; takes precedence over `content`."""

    @model_validator(mode="before")
    @classmethod
    def _reject_unsupported_fields(cls, message: Any) -> Any:
        for name, reason in unsupported_message_fields(message) if isinstance(message, dict) else ():
            raise ValueError(f"{name} is not supported: {reason}")
        return message


class RequestBody(StrictModel):
    """Base of request bodies: fields that would change the response are known, or rejected."""

    @model_validator(mode="before")
    @classmethod
    def _reject_unsupported_fields(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        for name, reason in unsupported_fields(body):
            if name not in cls.model_fields:
                raise ValueError(f"{name} is not supported: {reason}")
        for name, known in mistyped_fields(body, cls.model_fields):
            raise ValueError(f"{name} is not known; perhaps {known} is meant")
        response_format = body.get("response_format")
        is_text = isinstance(response_format, dict) and response_format.get("type") == "text"
        if response_format and not is_text and "response_format" not in cls.model_fields:
            raise ValueError("response_format is not supported: responses are plain text")
        return body


class SamplingFields(RequestBody):
    """Sampling parameters. Without a value the default of the model applies."""

    temperature: float | None = Field(None, ge=0, le=2, description="of text and of images")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=2**31)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.1, le=10)
    guidance_scale: float | None = Field(
        None, ge=0, le=50, description="classifier-free guidance of images by the text"
    )
    image_guidance_scale: float | None = Field(
        None, ge=0, le=50, description="classifier-free guidance of images by earlier images"
    )
    image_temperature: float | None = Field(None, ge=0, le=2)
    num_speculative_tokens: int | None = Field(
        None, ge=0, le=64, description="image tokens drafted per step (Jacobi decoding)"
    )
    image_decoding: Literal["raster", "diagonal"] | None = None
    seed: int | None = Field(None, ge=-_INT64, lt=_INT64)
    size: str | None = Field(None, max_length=32, description="of images: auto, or WIDTHxHEIGHT of the model")
    n: int | None = Field(None, ge=1)
    best_of: int | None = Field(None, ge=1, description="completions to choose the n best from")
    reward: Utf8Str | None = Field(None, max_length=256, description="what chooses them; by default logprob")
    stream: bool | None = None

    @model_validator(mode="after")
    def _check_best_of(self) -> "SamplingFields":
        n = self.n or 1
        if self.best_of is not None and (self.best_of < n or (self.stream and self.best_of > n)):
            raise ValueError("best_of must be at least n, and equal to n in a stream; expected such a number")
        if self.reward is not None and self.best_of is None:
            raise ValueError("reward chooses among best_of completions; expected best_of with it")
        return self


class StreamOptions(StrictModel):
    """Additional content of a stream."""

    include_usage: bool | None = None
    include_partial_images: bool | None = Field(None, description="default true")


class GenerationRequest(SamplingFields):
    """Common fields of chat completions and completions."""

    model: str | None = Field(None, max_length=512)
    stop: StopStrings | None = None
    stream_options: StreamOptions | None = None
    modalities: list[Literal["text", "image"]] | None = Field(None, min_length=1)
    max_images: int | None = Field(None, ge=0, le=2**31)
    max_tokens: int | None = Field(None, ge=1, le=2**31)
    min_tokens: int | None = Field(None, ge=0, le=2**31)
    stop_token_ids: TokenIds | None = Field(None, max_length=256)
    ignore_eos: bool | None = None
    return_token_ids: bool | None = None
    embed_prompt_metadata: bool | None = Field(None, description="write the prompt into images")


class ChatCompletionRequest(GenerationRequest):
    """Body of /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=1024)
    max_completion_tokens: int | None = Field(None, ge=1, le=2**31)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)

    @model_validator(mode="after")
    def _require_logprobs(self) -> "ChatCompletionRequest":
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        return self


class CompletionRequest(GenerationRequest):
    """Body of /v1/completions."""

    prompt: PromptInput
    max_tokens: int | None = Field(None, ge=0, le=2**31, description="0 with echo only")
    echo: bool | None = Field(None, description="put the prompt before each text")
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)

    @model_validator(mode="after")
    def _check_echo(self) -> "CompletionRequest":
        if self.echo and self.stream:
            raise ValueError("echo is not supported in a stream: expected stream: false")
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens must be at least 1 without echo; expected such a number")
        return self


class ImageGenerationRequest(SamplingFields):
    """Body of /v1/images/generations."""

    prompt: Utf8Str = Field(min_length=1)
    model: str | None = Field(None, max_length=512)
    response_format: Literal["b64_json"] | None = None
    output_format: Literal["png"] | None = None
    partial_images: int | None = Field(None, ge=0, le=64)
    embed_prompt_metadata: bool | None = None


class ImageEditRequest(ImageGenerationRequest):
    """Form of /v1/images/edits, besides the files `image` (or several `image[]`) and `mask`."""

    mask_margin: int | None = Field(None, ge=0, le=64, description="cells around the mask that change too")


class TokenizeRequest(RequestBody):
    """Body of /tokenize: the messages of a chat, or the prompt of a completion."""

    messages: list[ChatMessage] | None = Field(None, min_length=1, max_length=1024)
    prompt: Content | None = None

    @model_validator(mode="after")
    def _require_one(self) -> "TokenizeRequest":
        if (self.messages is None) == (self.prompt is None):
            raise ValueError("expected exactly one of messages and prompt")
        return self


class DetokenizeRequest(StrictModel):
    """Body of /detokenize."""

    tokens: list[Annotated[int, Field(ge=0, le=2**31)]] = Field(max_length=2**16)


# ---- responses -----------------------------------------------------------------------------------

APIFinishReason = Literal["stop", "length", "content_filter"]


class CompletionUsage(BaseModel):
    """Numbers of tokens, by modality."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: TokenCounts
    completion_tokens_details: TokenCounts


class ChatCompletionMessage(BaseModel):
    """A generated message: its text joined, its images, and both in reading order."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: str | None = None
    images: list[ImagePart]
    content_parts: list[ContentPart]


class TopLogprob(BaseModel):
    """Natural log of the probability of a token among the allowed tokens."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """A generated text token, with the most likely tokens in its place."""

    top_logprobs: list[TopLogprob] = []


class ChoiceLogprobs(BaseModel):
    """Log probabilities of the text tokens of a choice."""

    content: list[TokenLogprob]
    refusal: list[TokenLogprob] | None = None


class ChatChoice(BaseModel):
    """One of the `n` messages of a chat completion."""

    index: int
    message: ChatCompletionMessage
    logprobs: ChoiceLogprobs | None = None
    finish_reason: APIFinishReason
    seed: int
    token_ids: list[int] | None = None

    token_logprobs: list[float] | None = None
    """Log probability of each of `token_ids`, image tokens too; with `logprobs`."""

    top_token_logprobs: list[list[tuple[int, float]]] | None = None
    """The most likely token ids in the place of each, with their log probabilities."""


class ChatCompletion(BaseModel):
    """Response of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: CompletionUsage
    prompt_token_ids: list[int] | None = None


class CompletionLogprobs(BaseModel):
    """Log probabilities of the text tokens of a completion, one item per token in each list.

    With `echo` the tokens of the prompt come first; its first token has no probability.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One of the continuations of a prompt."""

    index: int
    text: str
    images: list[ImagePart]
    content_parts: list[ContentPart]
    logprobs: CompletionLogprobs | None = None
    finish_reason: APIFinishReason
    seed: int
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None


class Completion(BaseModel):
    """Response of /v1/completions."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: CompletionUsage


class ImageData(BaseModel):
    """One image of /v1/images/generations."""

    b64_json: str
    seed: int


class ImageUsage(BaseModel):
    """Numbers of tokens, in the fields of the images API."""

    total_tokens: int
    input_tokens: int
    output_tokens: int
    input_tokens_details: TokenCounts


class ImagesResponse(BaseModel):
    """Response of /v1/images/generations."""

    created: int
    data: list[ImageData]
    output_format: Literal["png"] = "png"
    size: str
    usage: ImageUsage


class TokenInfo(BaseModel):
    """A token of a prompt or of an output."""

    id: int
    kind: Literal["text", "code", "special"]
    text: str
    """Bytes of a text token as text, name of a special token, or number of an image code."""


class TokenizeResponse(BaseModel):
    """Response of /tokenize and /detokenize."""

    tokens: list[int]
    token_info: list[TokenInfo]
    count: int
    token_counts: TokenCounts
    prompt: str
    """Text of the text tokens."""

    max_model_len: int
    codes_per_side: int
    """Image codes in one row of an image."""


class ModelCard(BaseModel):
    """A served model, or an adapter of it."""

    id: str
    parent: str | None = None
    """Name of the model that an adapter belongs to."""

    object: Literal["model"] = "model"
    created: int
    owned_by: str
    modalities: list[Literal["text", "image"]]
    max_model_len: int
    image_size: str

    codes_per_side: int | None
    """Cells of a side of an image, which masks of edits select; None for a model of images of any
    size."""

    image_sizes: list[str] | None = None
    """Sizes to which images are cropped and from which a model of images of any size chooses."""

    text_sampling: dict[str, int | float]
    """Sampling parameters of text in requests that give none."""

    image_sampling: dict[str, int | float]
    """Sampling parameters of images in requests that give none."""


class ModelList(BaseModel):
    """Response of /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
