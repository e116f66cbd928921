"""What may come next: the one place that knows."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import cache

from calumma.vocabulary import Vocabulary


class Next(IntEnum):
    """The kinds of id that may come next; those from BEGIN on leave no choice."""

    TEXT = 0
    """A text id or end of sequence."""

    TEXT_OR_IMAGE = 1
    """The same, or begin-of-image."""

    IMAGE_OR_STOP = 2
    """Begin-of-image or end of sequence."""

    CODE = 3
    """An image code."""

    BEGIN = 4
    """Begin-of-image, and nothing else."""

    END = 5
    """End-of-image, and nothing else."""

    STOP = 6
    """End of sequence, and nothing else."""


@cache
def ids_of(kind: Next, vocabulary: Vocabulary) -> tuple[range, ...]:
    """The ids that each kind allows.

    Controls besides these, such as end-of-turn or the placeholder, are never chosen.
    """
    eos, begin, end = (
        range(id_, id_ + 1)
        for id_ in (vocabulary.eos, vocabulary.begin_image, vocabulary.end_image)
    )
    return {
        Next.TEXT: (eos, vocabulary.text),
        Next.TEXT_OR_IMAGE: (eos, begin, vocabulary.text),
        Next.IMAGE_OR_STOP: (eos, begin),
        Next.CODE: (vocabulary.codes,),
        Next.BEGIN: (begin,),
        Next.END: (end,),
        Next.STOP: (eos,),
    }[kind]


@dataclass
class Grammar:
    """An image, once begun, is exactly `codes_per_image` codes and end-of-image.

    Outside an image no code may stand; an image is not begun where it does not fit. The rule is
    kept here and not left to the model: one stray code shifts every later code by one cell, and
    the image cannot be decoded.

    >>> grammar = Grammar(Vocabulary(num_codes=4, num_text=256), codes_per_image=1, room=4)
    >>> grammar.expected.name
    'TEXT_OR_IMAGE'
    >>> grammar.advance(grammar.vocabulary.begin_image); grammar.expected.name
    'CODE'
    >>> grammar.advance(4); grammar.expected.name, grammar.forced
    ('END', 8)
    """

    vocabulary: Vocabulary
    codes_per_image: int

    room: int
    """Ids that may still be added."""

    max_images: int = 1_000_000
    image_first: bool = False

    images_only: bool = False
    """Whether no text may stand between and after the images."""

    codes_owed: int | None = None
    """Codes the open image still needs; None while no image is open."""

    @property
    def expected(self) -> Next:
        """The kind of id that comes next."""
        if self.codes_owed is not None:
            return Next.CODE if self.codes_owed else Next.END
        return self._outside(self.room)

    @property
    def foreseen(self) -> Next | None:
        """The kind that comes behind the next id, where that is a code or, as is likely, text.

        None where a choice may not follow: behind the last code of an image, behind the last id
        that there is room for, and where images alone may stand. Begin-of-image or end of sequence
        instead of text belies it.
        """
        if self.codes_owed is not None:
            return Next.CODE if self.codes_owed > 1 else None
        return None if self.images_only or self.room < 2 else self._outside(self.room - 1)

    def _outside(self, room: int) -> Next:
        """The kind of id that comes next outside an image, with room for so many."""
        fits = self.max_images > 0 and room >= self.codes_per_image + 2
        if self.images_only and not fits:
            return Next.STOP
        if self.image_first and fits:
            return Next.BEGIN
        if self.images_only:
            return Next.IMAGE_OR_STOP
        return Next.TEXT_OR_IMAGE if fits else Next.TEXT

    @property
    def forced(self) -> int | None:
        """The one id that may come next, where there is only one: it needs no model."""
        expected = self.expected
        if expected < Next.BEGIN:
            return None
        ((only,),) = ids_of(expected, self.vocabulary)
        return only

    def allows(self, id_: int) -> bool:
        """Whether this id may come next."""
        return any(id_ in ids for ids in ids_of(self.expected, self.vocabulary))

    def advance(self, id_: int) -> None:
        """Take in the id that was chosen."""
        assert self.allows(id_), f"id {id_} was not allowed here"
        self.read(id_)

    def read(self, id_: int) -> None:
        """Take in an id of the prompt, or one that `allows` let through."""
        self.room -= 1
        if id_ == self.vocabulary.begin_image:
            self.codes_owed = self.codes_per_image
            self.max_images -= 1
            self.image_first = False
        elif id_ == self.vocabulary.end_image:
            self.codes_owed = None
        elif self.codes_owed is not None:
            self.codes_owed -= 1
