"""Prompts of untrusted clients to token ids: size limits, content filters, image decoding."""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import unquote

import PIL.Image

from calumma.documents.document import Role, SpecialToken
from calumma.errors import TokenizerError
from calumma.generate.editing import edited_grid, known_codes, masked_cells, require_same_size
from calumma.generate.grammar import image_length
from calumma.generate.model import Model
from calumma.serve.api_errors import APIError
from calumma.serve.config import ServeConfig
from calumma.serve.content_parts import ContentPart, ImagePart, SpecialTokenPart, TextPart
from calumma.serve.images.decoder_pool import ImageDecoderPool
from calumma.serve.images.remote_images import fetch_image
from calumma.serve.moderation import ContentFilter
from calumma.serve.protocol import ChatMessage
from calumma.tokens.sequence import image_resize_mode
from calumma.vocabulary import Grid


@dataclass(frozen=True)
class Prompt:
    """The input of a completion: content of its turns, images not yet fetched or decoded."""

    turns: tuple[tuple[Role, tuple[ContentPart, ...]], ...]

    is_chat: bool
    """Whether the turns are a conversation; False for one document that is continued."""

    token_ids: tuple[int, ...] | None = None
    """The encoded prompt, in place of turns."""

    edit: "ImageEdit | None" = None
    """The edit of the first image, which is cropped like generated images."""

    @property
    def texts(self) -> list[str]:
        """Text parts in reading order."""
        return [p.text for _, parts in self.turns for p in parts if isinstance(p, TextPart)]

    @property
    def num_images(self) -> int:
        """Number of image parts and masks."""
        num_masks = int(self.edit is not None and self.edit.mask is not None)
        return num_masks + sum(isinstance(part, ImagePart) for _, parts in self.turns for part in parts)


def chat_prompt(messages: Sequence[ChatMessage]) -> Prompt:
    """Build the prompt of a chat.

    Raises:
        APIError: all messages are empty.
    """
    turns = tuple(
        (
            "system" if message.role == "developer" else message.role,
            _parts(message.content if message.content_parts is None else message.content_parts),
        )
        for message in messages
    )
    if not any(parts for _, parts in turns):
        message = "the messages have no text and no image; expected at least one. Add a prompt."
        raise APIError(400, message, "empty_prompt", param="messages")
    return Prompt(turns, is_chat=True)


def completion_prompt(prompt: str | Sequence[ContentPart]) -> Prompt:
    """Build the prompt of a completion, which may be empty."""
    return Prompt((("user", _parts(prompt)),), is_chat=False)


def _parts(content: str | Sequence[ContentPart] | None) -> tuple[ContentPart, ...]:
    """Convert content to parts, without empty texts."""
    parts = [TextPart(text=content)] if isinstance(content, str) else content or ()
    return tuple(part for part in parts if isinstance(part, ImagePart) or part.text)


@dataclass(frozen=True)
class ImageEdit:
    """What of an image may change."""

    mask: bytes | None = None
    """Image file of the mask; None lets every code change."""

    margin: int = 0
    """Cells around the mask that change too."""


class EncodedPrompt(NamedTuple):
    """A prompt in token ids, and the codes that the first image of its output keeps."""

    token_ids: list[int]
    known_codes: tuple[int | None, ...] = ()

    image_grid: Grid | None = None
    """Rows and columns of the edited image, in a model of images of any size."""


class PromptEncoder:
    """Encodes prompts as token ids. Several threads may use it."""

    def __init__(
        self, model: Model, decoder_pool: ImageDecoderPool, config: ServeConfig, filters: Sequence[ContentFilter] = ()
    ) -> None:
        self.model, self.decoder_pool = model, decoder_pool
        self.config, self.filters = config, filters
        self.max_seq_len = model.decoder.config.max_seq_len
        longest_token = max(len(model.text.token_bytes(id_)) for id_ in model.vocabulary.text)
        self.max_bytes = self.max_seq_len * longest_token
        """No longer text can fit, whatever its tokens are."""

    def encode(self, prompt: Prompt) -> list[int]:
        """Encode a prompt as token ids; as `encode_edit`."""
        return self.encode_edit(prompt).token_ids

    def encode_edit(self, prompt: Prompt) -> EncodedPrompt:
        """Encode a prompt; waits until its images are fetched, decoded and tokenized.

        Raises:
            APIError: it is too long, a content filter blocks it, or an image is not available.
            CalummaError: an image is damaged, the order of the turns is invalid, or a mask does not
                fit its image.
        """
        if prompt.token_ids is not None:
            return EncodedPrompt(self._check_token_ids(list(prompt.token_ids)))
        self._check_size(prompt)
        self._check_content(prompt.texts)
        images: list[PIL.Image.Image] = []
        messages: list[dict[str, Any]] = []
        for role, parts in prompt.turns:
            mode = image_resize_mode(role) if prompt.is_chat and prompt.edit is None else "crop"
            content: list[str | SpecialToken | PIL.Image.Image] = []
            for part in parts:
                if isinstance(part, TextPart):
                    content.append(part.text)
                    continue
                if isinstance(part, SpecialTokenPart):
                    self._check_special_token(part.text, "messages" if prompt.is_chat else "prompt")
                    content.append(SpecialToken(part.text))
                    continue
                url, name = part.image_url.url, f"image {len(images) + 1}"
                if url[:5].lower() == "data:":
                    data = decode_data_url(url, name)
                else:
                    data = fetch_image(
                        url,
                        self.config.allowed_media_domains,
                        max_bytes=self.config.limits.max_body_bytes,
                        timeout_seconds=self.config.limits.image_timeout_seconds,
                    )
                image = self.decoder_pool.decode(data, name, mode)
                images.append(image)
                content.append(image)
            messages.append({"role": role, "content": content})
        self._check_content(images)
        if not prompt.is_chat:
            return EncodedPrompt(self.model.encode(messages[0]["content"]))
        token_ids = self.model.encode_chat(messages)
        if prompt.edit is None:
            return EncodedPrompt(token_ids)
        vocabulary, cell = self.model.vocabulary, self.model.image.config.downsampling
        grid = edited_grid(images[0], vocabulary, cell)
        if prompt.edit.mask is None:
            return EncodedPrompt(token_ids, image_grid=grid)
        mask = self.decoder_pool.decode(prompt.edit.mask, "the mask", "mask")
        require_same_size(mask.info["size"], images[0].info["size"])
        cells = masked_cells(mask, cell, prompt.edit.margin)
        return EncodedPrompt(token_ids, known_codes(token_ids, cells, vocabulary), grid)

    def _check_special_token(self, text: str, field: str) -> None:
        try:
            self.model.text.encode_special_token(text)
        except TokenizerError as error:
            raise APIError(400, f"a special_token part: {error}", "tokenizer", param=field) from error

    def _check_token_ids(self, token_ids: list[int]) -> list[int]:
        size = self.model.vocabulary.size
        for id_ in token_ids:
            if id_ >= size:
                raise APIError(
                    400,
                    f"the prompt has the token id {id_}; expected ids below {size}, the size of "
                    "this model's vocabulary. Use /tokenize.",
                    "invalid_value",
                    param="prompt",
                )
        if self.filters:
            self._check_content(self.model.decode(token_ids))
        return token_ids

    def _check_size(self, prompt: Prompt) -> None:
        num_images, max_images = prompt.num_images, self.config.limits.max_images
        if num_images > max_images:
            raise APIError(
                400,
                f"the prompt has {num_images} images; expected at most {max_images}. Remove some.",
                "too_many_images",
            )
        codes = self.model.image.config.codes_per_image
        image_tokens = num_images * image_length(self.model.vocabulary, codes, None)
        num_bytes = sum(len(text.encode()) for text in prompt.texts)
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
                if not (filter_.passes_text(part) if isinstance(part, str) else filter_.passes_image(part)):
                    raise APIError(
                        400,
                        "a content filter of this server blocks the prompt; expected another one. Rephrase it.",
                        "content_filter",
                    )


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
            f"{name}: its base64 is invalid; expected only letters, digits, +, / and =. Encode it again.",
            "invalid_image",
        ) from error
