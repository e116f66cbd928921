"""Output of one completion as the API sends it: moderated text, image files, token ids."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import PIL.Image

from calumma.generate.async_engine import RequestOutputStream
from calumma.generate.events import Event, ImageBegun, ImageCodes, ImageDone, ImageProgress, TextPiece
from calumma.serve.logprobs import TokenLogprobs
from calumma.serve.moderation import ContentFilter, ModerationBuffer
from calumma.serve.protocol import APIFinishReason
from calumma.serve.provenance.image_metadata import ImageMetadata, png_with_metadata
from calumma.serve.provenance.signing import ImageSigner

T = TypeVar("T")


@dataclass(frozen=True)
class NewTokens:
    """Tokens of the event that follows."""

    tokens: TokenLogprobs


@dataclass(frozen=True)
class EncodedImage:
    """A PNG file of an image, finished or partial."""

    png: bytes
    index: int
    """Number of images before it in the output."""

    partial_index: int | None = None
    """Number of partial images before it of the same image; None if it is finished."""


@dataclass(frozen=True)
class Finished:
    """The end of an output."""

    reason: APIFinishReason
    tokens: TokenLogprobs
    """Generated tokens, up to a stop string or a blocked part."""


@dataclass(frozen=True)
class KeepAlive:
    """Nothing new for a while: the client gets a comment, so that proxies keep the connection."""


OutputEvent = TextPiece | EncodedImage | NewTokens | KeepAlive | Finished


@dataclass(frozen=True)
class ImageFileEncoder:
    """Encodes generated images as PNG files with provenance metadata; signs finished ones."""

    model_name: str
    prompt: str | None = None
    """Text of the prompt to embed in image files, if any."""

    signer: ImageSigner | None = None

    def encode(self, image: PIL.Image.Image, *, is_partial: bool = False) -> bytes:
        """Encode one image. A partial image is not signed: it is soon replaced."""
        metadata = ImageMetadata.now(self.model_name, self.prompt)
        png = png_with_metadata(image, metadata)
        return png if is_partial or self.signer is None else self.signer.sign(png, metadata)


class OutputProcessor:
    """Turns the events of one output into those of the API.

    It runs on the event loop. Image decoding, PNG encoding, signing and content filters run in the
    executor, so an output needs no thread of its own.
    """

    def __init__(
        self,
        stream: RequestOutputStream,
        encoder: ImageFileEncoder,
        *,
        filters: Sequence[ContentFilter] = (),
        executor: Executor | None = None,
        return_tokens: bool = False,
    ) -> None:
        self._stream, self._encoder, self._filters = stream, encoder, filters
        self._executor, self._return_tokens = executor, return_tokens
        self._buffer = ModerationBuffer(filters)
        self.is_blocked = False
        """Whether a content filter has ended the output."""

        self._num_returned = 0
        self._num_images = self._num_partial = 0

    async def process(self, event: Event) -> list[OutputEvent]:
        """Return the API's events of an event of the engine.

        Raises:
            APIError: an image cannot be signed.
        """
        outputs: list[OutputEvent] = self._new_tokens()
        match event:
            case TextPiece():
                outputs += await self._text(event.text)
            case ImageBegun():
                self._num_partial = 0
                outputs += await self._text("", is_end=True)
            case ImageProgress():
                png = await self._run(partial(self._encoder.encode, event.image, is_partial=True))
                outputs.append(EncodedImage(png, self._num_images, self._num_partial))
                self._num_partial += 1
            case ImageDone():
                # Requests of images need an image decoder (`resolve_modality`).
                assert not isinstance(event.image, ImageCodes)
                outputs += await self._finished_image(event.image)
        return outputs

    async def finish(self) -> tuple[list[OutputEvent], Finished]:
        """Return the withheld events and the end of the output."""
        outputs: list[OutputEvent] = []
        if not self.is_blocked:
            outputs += [*self._new_tokens(), *await self._text("", is_end=True)]
        stream = self._stream
        reason: APIFinishReason = "stop" if stream.finish_reason == "stop" else "length"
        if self.is_blocked:
            reason = "content_filter"
        return outputs, Finished(reason, self._tokens())

    def _new_tokens(self) -> list[OutputEvent]:
        start, self._num_returned = self._num_returned, len(self._stream.token_ids)
        if not self._return_tokens or start == self._num_returned:
            return []
        return [NewTokens(self._tokens(start))]

    def _tokens(self, start: int = 0) -> TokenLogprobs:
        stream = self._stream
        ids, logprobs, top = stream.token_ids, stream.logprobs, stream.top_logprobs
        return TokenLogprobs(ids[start:], logprobs[start:], top[start:])

    async def _text(self, text: str, *, is_end: bool = False) -> list[OutputEvent]:
        def check() -> str:
            return self._buffer.push(text) + (self._buffer.flush() if is_end else "")

        passed = await self._run(check) if self._filters else check()
        self.is_blocked = self._buffer.is_blocked
        return [TextPiece(passed)] if passed else []

    async def _finished_image(self, image: PIL.Image.Image) -> list[OutputEvent]:
        def encode() -> bytes | None:
            passes = all(filter_.passes_image(image) for filter_ in self._filters)
            return self._encoder.encode(image) if passes else None

        png = await self._run(encode)
        if png is None:
            self.is_blocked = True
            return []
        self._num_images += 1
        return [EncodedImage(png, self._num_images - 1)]

    async def _run(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, function)
