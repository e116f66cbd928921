"""What one answer gives, as pieces that can be sent: text, pictures as files, ids, the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import PIL.Image

from calumma.generate.async_engine import RequestOutputStream
from calumma.generate.events import (
    Event,
    ImageBegun,
    ImageDone,
    ImageProgress,
    Sample,
    TextPiece,
)
from calumma.serve.moderation import ContentFilter, ModerationBuffer
from calumma.serve.stops import StopWords

Reason = Literal["stop", "length", "content_filter", "cancelled"]


@dataclass(frozen=True)
class Said:
    """More text."""

    text: str


@dataclass(frozen=True)
class Chosen:
    """The ids behind the piece that comes next."""

    ids: tuple[int, ...]


@dataclass(frozen=True)
class Begun:
    """A picture is begun."""

    number: int
    """Pictures of this answer before it."""


@dataclass(frozen=True)
class Growing:
    """A picture so far."""

    png: bytes
    number: int

    index: int
    """Partial pictures of the same picture before it."""


@dataclass(frozen=True)
class Drawn:
    """A picture that is whole."""

    png: bytes
    number: int


@dataclass(frozen=True)
class Ended:
    """The answer is whole."""

    reason: Reason
    sample: Sample

    num_ids: int
    """Ids that count: up to a stop word, not as far as the engine had come by then."""


@dataclass(frozen=True)
class Quiet:
    """Nothing new for a while: a sign of life is due."""


Piece = Quiet | Said | Chosen | Begun | Growing | Drawn | Ended


class Narrator:
    """Follows one answer to its end, in a thread of its own."""

    def __init__(
        self,
        answer: RequestOutputStream,
        to_png: Callable[[PIL.Image.Image], bytes],
        stops: Sequence[str] = (),
        filters: Sequence[ContentFilter] = (),
        finish: Callable[[PIL.Image.Image], bytes] | None = None,
    ) -> None:
        """Begin to follow.

        Args:
            answer: of the engine.
            to_png: makes the file of a picture, with what it says of its origin.
            stops: texts at which the answer ends.
            filters: what they are against ends the answer.
            finish: makes the file of a picture that is whole, where that is another one.
        """
        self.answer, self.to_png, self.filters = answer, to_png, filters
        self.finish = finish or to_png
        self.stops, self.sieve = StopWords(stops), ModerationBuffer(filters)
        self.reason: Reason | None = None
        self.num_ids = 0
        self.number, self.index = 0, 0

    def pieces(self) -> Iterator[Piece]:
        """All pieces, each as soon as it is there; the last is `Ended`.

        Raises:
            BaseException: what stopped the engine.
        """
        for event in self.answer:
            if self.reason is None:
                yield from self._news()
                yield from self._hear(event)
                if self.reason is not None:
                    self.answer.cancel()
        yield from self._end(self.answer.sample())

    def _news(self) -> Iterator[Piece]:
        if new := tuple(self.answer.token_ids[self.num_ids :]):
            self.num_ids += len(new)
            yield Chosen(new)

    def _hear(self, event: Event) -> Iterator[Piece]:
        if isinstance(event, TextPiece):
            yield from self._say(self.stops.hear(event.text))
            if self.stops.found:
                yield from self._say("", last=True)
                self.reason = self.reason or "stop"
        elif isinstance(event, ImageBegun):
            yield from self._say(self.stops.flush(), last=True)
            self.index = 0
            yield Begun(self.number)
        elif isinstance(event, ImageProgress):
            # A picture that only a look at the whole can judge is not shown before.
            if not self.filters:
                yield Growing(self.to_png(event.image), self.number, self.index)
                self.index += 1
        elif isinstance(event, ImageDone):
            if all(filter_.passes_image(event.image) for filter_ in self.filters):
                yield Drawn(self.finish(event.image), self.number)
                self.number += 1
            else:
                self.reason = "content_filter"

    def _say(self, text: str, *, last: bool = False) -> Iterator[Piece]:
        told = self.sieve.push(text) + (self.sieve.flush() if last else "")
        if told:
            yield Said(told)
        if self.sieve.is_blocked:
            self.reason = "content_filter"

    def _end(self, sample: Sample) -> Iterator[Piece]:
        if self.reason is None:
            self.num_ids = len(sample.token_ids)
            yield from self._say(self.stops.flush(), last=True)
        yield Ended(self.reason or sample.finish_reason, sample, self.num_ids)
