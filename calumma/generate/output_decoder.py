"""Ids to events, as they are chosen."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator, Sequence

import PIL.Image

from calumma.generate.events import Event, ImageBegun, ImageDone, ImageProgress, TextPiece
from calumma.vocabulary import Vocabulary

ImageDecodeFn = Callable[[Sequence[int]], PIL.Image.Image]
"""Makes a picture of an image's codes, as many as there are."""


class OutputDecoder:
    """Turns the ids of one answer into events.

    A text piece holds whole characters: the bytes of a character that is spelt by several ids
    are kept until its last one is there.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        bytes_of: Callable[[int], bytes],
        draw: ImageDecodeFn,
        codes_between: int,
        codes: Sequence[int] = (),
    ) -> None:
        """Begin an answer.

        Args:
            vocabulary: of the model.
            bytes_of: the bytes of a text id.
            draw: makes pictures.
            codes_between: codes from one partial picture to the next.
            codes: those of an image that the prompt left open.
        """
        self._vocabulary, self._bytes_of, self._draw = vocabulary, bytes_of, draw
        self._codes_between = codes_between
        self._codes = list(codes)
        self._text = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.images: list[PIL.Image.Image] = []
        """Those that are finished, in order."""

    def push(self, id_: int) -> Iterator[Event]:
        """The events that one more id makes."""
        vocabulary = self._vocabulary
        if id_ == vocabulary.begin_image:
            yield from self.flush()
            self._codes = []
            yield ImageBegun()
        elif id_ in vocabulary.codes:
            self._codes.append(vocabulary.code_of_id(id_))
            if len(self._codes) % self._codes_between == 0:
                yield ImageProgress(self._draw(self._codes), len(self._codes))
        elif id_ == vocabulary.end_image:
            self.images.append(self._draw(self._codes))
            yield ImageDone(self.images[-1])
        elif id_ in vocabulary.text and (text := self._text.decode(self._bytes_of(id_))):
            yield TextPiece(text)

    def flush(self) -> Iterator[Event]:
        """What is left of a text that ends here: a character without its last byte."""
        if text := self._text.decode(b"", final=True):
            yield TextPiece(text)
        self._text.reset()
