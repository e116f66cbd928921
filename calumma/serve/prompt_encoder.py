"""Prompts of untrusted clients to token ids: size limits, content filters, image decoding."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

import PIL.Image

from calumma.documents.document import Role
from calumma.generate.model import Model
from calumma.serve.api_errors import APIError
from calumma.serve.config import ServeConfig
from calumma.serve.images.decoder_pool import ImageDecoderPool
from calumma.serve.images.remote_images import fetch_image
from calumma.serve.moderation import ContentFilter
from calumma.serve.protocol import ChatMessage, ContentPart, TextPart
from calumma.tokens.image_preprocessing import ResizeMode
from calumma.tokens.sequence import image_resize_mode


@dataclass(frozen=True)
class ImageRef:
    """URL of an image that is not yet fetched or decoded."""

    url: str


@dataclass(frozen=True)
class ChatTurn:
    """Content of one turn, its images not yet decoded."""

    role: Role
    parts: tuple[str | ImageRef, ...]


@dataclass(frozen=True)
class Prompt:
    """The input of a completion."""

    turns: tuple[ChatTurn, ...]

    is_chat: bool
    """Whether the turns are a conversation; False for one document that is continued."""

    @property
    def parts(self) -> Iterator[str | ImageRef]:
        """All parts in reading order."""
        for turn in self.turns:
            yield from turn.parts

    @property
    def text(self) -> str:
        """Text parts, one per line."""
        return "\n".join(part for part in self.parts if isinstance(part, str))

    @property
    def num_images(self) -> int:
        """Number of images."""
        return sum(isinstance(part, ImageRef) for part in self.parts)


def chat_prompt(messages: Sequence[ChatMessage]) -> Prompt:
    """Build the prompt of a chat.

    Raises:
        APIError: all messages are empty.
    """
    turns = tuple(ChatTurn(_role(message), _message_parts(message)) for message in messages)
    prompt = Prompt(turns, is_chat=True)
    if not any(prompt.parts):
        message = "the messages have no text and no image; expected at least one. Add a prompt."
        raise APIError(400, message, "empty_prompt", param="messages")
    return prompt


def completion_prompt(prompt: str | Sequence[ContentPart]) -> Prompt:
    """Build the prompt of a completion, which may be empty."""
    parts = _parts([TextPart(text=prompt)] if isinstance(prompt, str) else prompt)
    return Prompt((ChatTurn("user", parts),), is_chat=False)


def _role(message: ChatMessage) -> Role:
    return "system" if message.role == "developer" else message.role


def _message_parts(message: ChatMessage) -> tuple[str | ImageRef, ...]:
    content = message.content if message.content_parts is None else message.content_parts
    return _parts([TextPart(text=content)] if isinstance(content, str) else content or ())


def _parts(parts: Sequence[ContentPart]) -> tuple[str | ImageRef, ...]:
    """Convert content parts, without empty texts."""
    return tuple(
        part.text if isinstance(part, TextPart) else ImageRef(part.image_url.url)
        for part in parts
        if not isinstance(part, TextPart) or part.text
    )


class PromptEncoder:
    """Encodes prompts as token ids. Several threads may use it."""

    def __init__(
        self,
        model: Model,
        decoder_pool: ImageDecoderPool,
        config: ServeConfig,
        filters: Sequence[ContentFilter] = (),
    ) -> None:
        self.model, self.decoder_pool = model, decoder_pool
        self.config, self.filters = config, filters
        self.max_seq_len = model.decoder.config.max_seq_len
        longest_token = max(len(model.text.token_bytes(id_)) for id_ in model.vocabulary.text)
        self.max_bytes = self.max_seq_len * longest_token
        """No longer text can fit, whatever its tokens are."""

    def encode(self, prompt: Prompt) -> list[int]:
        """Encode a prompt; waits until its images are fetched, decoded and tokenized.

        Raises:
            APIError: it is too long, a content filter blocks it, or an image is not available.
            CalummaError: an image is damaged, or the order of the turns is invalid.
        """
        self._check_size(prompt)
        self._check_content([part for part in prompt.parts if isinstance(part, str)])
        contents: list[tuple[Role, list[str | PIL.Image.Image]]] = []
        num_images = 0
        for turn in prompt.turns:
            content: list[str | PIL.Image.Image] = []
            for part in turn.parts:
                if isinstance(part, ImageRef):
                    num_images += 1
                    mode = image_resize_mode(turn.role) if prompt.is_chat else "crop"
                    content.append(self._load_image(part.url, f"image {num_images}", mode))
                else:
                    content.append(part)
            contents.append((turn.role, content))
        images = [p for _, content in contents for p in content if not isinstance(p, str)]
        self._check_content(images)
        if prompt.is_chat:
            return self.model.encode_chat([{"role": r, "content": c} for r, c in contents])
        return self.model.encode(contents[0][1])

    def _check_size(self, prompt: Prompt) -> None:
        num_images, max_images = prompt.num_images, self.config.limits.max_images
        if num_images > max_images:
            raise APIError(
                400,
                f"the prompt has {num_images} images; expected at most {max_images}. Remove some.",
                "too_many_images",
            )
        image_tokens = num_images * (self.model.image.config.codes_per_image + 2)
        num_bytes = sum(len(part.encode()) for part in prompt.parts if isinstance(part, str))
        if image_tokens > self.max_seq_len or num_bytes > self.max_bytes:
            raise APIError(
                400,
                f"the prompt has {num_bytes:,} bytes of text and {num_images} images; expected at "
                f"most {self.max_seq_len} tokens, the context length of this model. Shorten it.",
                "context_length_exceeded",
            )

    def _check_content(self, parts: Sequence[str | PIL.Image.Image]) -> None:
        for filter_ in self.filters:
            for part in parts:
                if not (
                    filter_.passes_text(part)
                    if isinstance(part, str)
                    else filter_.passes_image(part)
                ):
                    raise APIError(
                        400,
                        "a content filter of this server blocks the prompt; expected another one. "
                        "Rephrase it.",
                        "content_filter",
                    )

    def _load_image(self, url: str, name: str, resize_mode: ResizeMode) -> PIL.Image.Image:
        if url[:5].lower() == "data:":
            data = decode_data_url(url, name)
        else:
            data = fetch_image(
                url,
                self.config.allowed_media_domains,
                max_bytes=self.config.limits.max_body_bytes,
                timeout_seconds=self.config.limits.image_timeout_seconds,
            )
        return self.decoder_pool.decode(data, name, resize_mode)


def decode_data_url(url: str, name: str) -> bytes:
    """Return the bytes of an image in a data: URL.

    >>> decode_data_url("data:image/png;base64,aGVsbG8=", "image 1")
    b'hello'

    Raises:
        APIError: the URL is not that of an image, or its base64 is invalid.
    """
    head, comma, body = url.partition(",")
    media_type, *options = head[5:].lower().split(";")
    if not comma or not media_type.startswith("image/") or "base64" not in options:
        raise APIError(
            400,
            f"{name}: its URL is not an image in base64; expected data:image/png;base64,... Encode "
            "the image this way.",
            "invalid_image",
        )
    try:
        return base64.b64decode(unquote(body) if "%" in body else body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise APIError(
            400,
            f"{name}: its base64 is invalid; expected only letters, digits, +, / and =. Encode it "
            "again.",
            "invalid_image",
        ) from error
