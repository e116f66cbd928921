"""Prompts of strangers -> ids: messages read, pictures decoded and encoded, bounds kept."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

import PIL.Image

from calumma.documents.document import Role
from calumma.generate.model import Model, UserPart
from calumma.serve.api_errors import APIError
from calumma.serve.config import ServeConfig
from calumma.serve.images.decoder_pool import ImageDecoderPool
from calumma.serve.images.remote_images import fetch_image
from calumma.serve.moderation import ContentFilter
from calumma.serve.protocol import ChatMessage, ContentPart, ImagePart, TextPart
from calumma.tokens.image_preprocessing import ResizeMode
from calumma.tokens.sequence import image_resize_mode


@dataclass(frozen=True)
class ImageRef:
    """A picture that is yet to be fetched or decoded."""

    url: str


@dataclass(frozen=True)
class ChatTurn:
    """What one side says, its pictures unread."""

    role: Role
    parts: tuple[str | ImageRef, ...]


@dataclass(frozen=True)
class Prompt:
    """What an answer goes on from."""

    turns: tuple[ChatTurn, ...]

    is_chat: bool
    """Turns of a conversation; False for one piece of a document, which is gone on with."""

    @property
    def parts(self) -> Iterator[str | ImageRef]:
        """All parts in reading order."""
        for turn in self.turns:
            yield from turn.parts

    @property
    def text(self) -> str:
        """Its text, one part a line."""
        return "\n".join(part for part in self.parts if isinstance(part, str))

    @property
    def urls(self) -> list[str]:
        """Where its pictures are."""
        return [part.url for part in self.parts if isinstance(part, ImageRef)]


def chat_prompt(messages: Sequence[ChatMessage]) -> Prompt:
    """The prompt of a chat.

    Raises:
        Refusal: no message holds anything.
    """
    turns = tuple(ChatTurn(_role(message), _parts(message)) for message in messages)
    prompt = Prompt(turns, is_chat=True)
    if not any(prompt.parts):
        message = "the messages hold no text and no picture; expected at least one. Ask something."
        raise APIError(400, message, "empty_prompt", param="messages")
    return prompt


def completion_prompt(prompt: str | Sequence[ContentPart]) -> Prompt:
    """The prompt of a continuation, which may be empty."""
    parts = (prompt,) if isinstance(prompt, str) else tuple(map(_part, prompt))
    return Prompt((ChatTurn("user", tuple(part for part in parts if part)),), is_chat=False)


def _role(message: ChatMessage) -> Role:
    return "system" if message.role == "developer" else message.role


def _parts(message: ChatMessage) -> tuple[str | ImageRef, ...]:
    said = message.content if message.content_parts is None else message.content_parts
    if said is None or isinstance(said, str):
        return (said,) if said else ()
    return tuple(part for part in map(_part, said) if part)


def _part(part: ContentPart) -> str | ImageRef:
    return part.text if isinstance(part, TextPart) else _picture_at(part)


def _picture_at(part: ImagePart) -> ImageRef:
    return ImageRef(part.image_url.url)


class PromptEncoder:
    """Makes ids of prompts. Threads may share it."""

    def __init__(
        self,
        model: Model,
        readers: ImageDecoderPool,
        config: ServeConfig,
        filters: Sequence[ContentFilter] = (),
    ) -> None:
        self.model, self.readers, self.config, self.filters = model, readers, config, filters
        self.longest = model.decoder.config.max_seq_len
        text = model.vocabulary.text
        self.most_bytes = self.longest * max(len(model.text.token_bytes(id_)) for id_ in text)
        """No longer text can fit: so many of the longest ids are the longest prompt."""

    def encode(self, prompt: Prompt) -> list[int]:
        """The ids of a prompt; takes as long as its pictures take.

        Raises:
            Refusal: it is too long, a filter is against it, or a picture cannot be had.
            CalummaError: a picture is broken, or the turns are out of order.
        """
        self._require_bounds(prompt)
        self._require_passing([part for part in prompt.parts if isinstance(part, str)])
        images = []
        for turn in prompt.turns:
            fit: ResizeMode = image_resize_mode(turn.role) if prompt.is_chat else "crop"
            for part in turn.parts:
                if isinstance(part, ImageRef):
                    name = f"picture {len(images) + 1}"
                    images.append(self._picture(part.url, name, fit))
        self._require_passing(images)
        opened = iter(images)
        contents: list[list[UserPart]] = [
            [part if isinstance(part, str) else next(opened) for part in turn.parts]
            for turn in prompt.turns
        ]
        if not prompt.is_chat:
            return self.model.encode(contents[0])
        return self.model.encode_chat(
            [
                {"role": turn.role, "content": content}
                for turn, content in zip(prompt.turns, contents, strict=True)
            ]
        )

    def _require_bounds(self, prompt: Prompt) -> None:
        pictures, most = len(prompt.urls), self.config.limits.max_images
        if pictures > most:
            raise APIError(
                400,
                f"the prompt has {pictures} pictures; expected at most {most}. Leave some out.",
                "too_many_pictures",
            )
        ids = pictures * (self.model.image.config.codes_per_image + 2)
        size = sum(len(part.encode()) for part in prompt.parts if isinstance(part, str))
        if ids > self.longest or size > self.most_bytes:
            raise APIError(
                400,
                f"the prompt has {size:,} bytes of text and {pictures} pictures; expected what fits "
                f"into {self.longest} ids, the most this model reads. Shorten it.",
                "context_length_exceeded",
            )

    def _require_passing(self, parts: Sequence[str | PIL.Image.Image]) -> None:
        for filter_ in self.filters:
            for part in parts:
                if not (
                    filter_.passes_text(part)
                    if isinstance(part, str)
                    else filter_.passes_image(part)
                ):
                    raise APIError(
                        400,
                        "the prompt does not pass a filter of this server; expected another one. "
                        "Say it otherwise.",
                        "content_filter",
                    )

    def _picture(self, url: str, name: str, fit: ResizeMode) -> PIL.Image.Image:
        if url[:5].lower() == "data:":
            data = decode_data_url(url, name)
        else:
            limits = self.config.limits
            data = fetch_image(
                url,
                self.config.allowed_media_domains,
                max_bytes=limits.max_body_bytes,
                timeout_seconds=limits.image_timeout_seconds,
            )
        return self.readers.decode(data, name, fit)


def decode_data_url(url: str, name: str) -> bytes:
    """The bytes in a data: URL.

    >>> data_of("data:image/png;base64,aGVsbG8=", "picture 1")
    b'hello'

    Raises:
        Refusal: it is none of a picture, or its base64 is broken.
    """
    head, comma, body = url.partition(",")
    kind, *options = head[5:].lower().split(";")
    if not comma or not kind.startswith("image/") or "base64" not in options:
        raise APIError(
            400,
            f"{name}: its URL is no picture in base64; expected data:image/png;base64,... Send the "
            "picture so.",
            "invalid_picture",
        )
    try:
        return base64.b64decode(unquote(body) if "%" in body else body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise APIError(
            400,
            f"{name}: its base64 is broken; expected letters, digits, +, / and = alone. Encode it "
            "again.",
            "invalid_picture",
        ) from error
