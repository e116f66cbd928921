"""What clients get: OpenAI's answer bodies, with pictures beside and between the text."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

FinishReason = Literal["stop", "length", "content_filter"]


class TokenCounts(BaseModel):
    """Ids by what they are: text, or images with their begin and end."""

    text_tokens: int
    image_tokens: int


class CompletionUsage(BaseModel):
    """Ids read and ids made."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: TokenCounts
    completion_tokens_details: TokenCounts


class PictureURL(BaseModel):
    """A picture as a data: URL."""

    url: str


class Picture(BaseModel):
    """A picture of an answer."""

    type: Literal["image_url"] = "image_url"
    image_url: PictureURL


class Words(BaseModel):
    """A piece of text of an answer."""

    type: Literal["text"] = "text"
    text: str


class ChatCompletionMessage(BaseModel):
    """An answer: its text joined, its pictures, and both in reading order."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: str | None = None
    images: list[Picture]
    content_parts: list[Words | Picture]


class TokenLogprob(BaseModel):
    """How likely a text id was among the allowed ones, in natural log."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[Any] = []


class ChoiceLogprobs(BaseModel):
    """Of the text of an answer, id by id."""

    content: list[TokenLogprob]
    refusal: list[TokenLogprob] | None = None


class ChatChoice(BaseModel):
    """One of the answers to a chat."""

    index: int
    message: ChatCompletionMessage
    logprobs: ChoiceLogprobs | None = None
    finish_reason: FinishReason
    seed: int


class ChatCompletion(BaseModel):
    """The answer of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: CompletionUsage


class CompletionChoice(BaseModel):
    """One of the answers to a prompt."""

    index: int
    text: str
    images: list[Picture]
    content_parts: list[Words | Picture]
    logprobs: None = None
    finish_reason: FinishReason
    seed: int


class Completion(BaseModel):
    """The answer of /v1/completions."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: CompletionUsage


class ImageData(BaseModel):
    """One picture of /v1/images/generations."""

    b64_json: str
    seed: int


class ImageUsage(BaseModel):
    """Ids read and ids made, as the images API counts them."""

    total_tokens: int
    input_tokens: int
    output_tokens: int
    input_tokens_details: TokenCounts


class ImagesResponse(BaseModel):
    """The answer of /v1/images/generations."""

    created: int
    data: list[ImageData]
    output_format: Literal["png"] = "png"
    size: str
    usage: ImageUsage


class TokenInfo(BaseModel):
    """One id, what it is, and what it says."""

    id: int
    kind: Literal["text", "code", "control"]
    text: str
    """The bytes of a text id as text, the name of a control id, the number of a code."""


class TokenizeResponse(BaseModel):
    """The answer of /v1/tokens."""

    tokens: list[TokenInfo]
    num_tokens: TokenCounts
    codes_per_side: int
    """Codes in a row of a picture."""


class ModelCard(BaseModel):
    """One model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    modalities: list[Literal["text", "image"]]
    max_model_len: int
    image_size: str


class ModelList(BaseModel):
    """The answer of /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
