"""What may come next: the one place that knows."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from calumma.vocabulary import Vocabulary


class Next(Enum):
    """The kinds of id that may come next."""

    TEXT = "text"
    """A text id or end of sequence."""

    TEXT_OR_IMAGE = "text or image"
    """The same, or begin-of-image."""

    BEGIN = "begin"
    """Begin-of-image, and nothing else."""

    CODE = "code"
    """An image code."""

    END = "end"
    """End-of-image, and nothing else."""


@dataclass
class Grammar:
    """An image, once begun, is exactly `codes_per_image` codes and end-of-image.

    Outside an image no code may stand; an image is not begun where it does not fit. The rule is
    kept here and not left to the model: one stray code shifts every later code by one cell, and
    the image cannot be decoded.

    >>> grammar = Grammar(Vocabulary(num_codes=4, num_text=256), codes_per_image=1, room=4)
    >>> grammar.expected
    <Next.TEXT_OR_IMAGE: 'text or image'>
    >>> grammar.advance(grammar.vocabulary.begin_image); grammar.expected
    <Next.CODE: 'code'>
    >>> grammar.advance(4); grammar.expected
    <Next.END: 'end'>
    """

    vocabulary: Vocabulary
    codes_per_image: int

    room: int
    """Ids that may still be added."""

    max_images: int = 1_000_000
    image_first: bool = False

    codes_owed: int | None = None
    """Codes the open image still needs; None while no image is open."""

    @property
    def expected(self) -> Next:
        """The kind of id that comes next."""
        if self.codes_owed is not None:
            return Next.CODE if self.codes_owed else Next.END
        if self.image_first and self._image_fits:
            return Next.BEGIN
        return Next.TEXT_OR_IMAGE if self._image_fits else Next.TEXT

    @property
    def _image_fits(self) -> bool:
        return self.max_images > 0 and self.room >= self.codes_per_image + 2

    def allows(self, id_: int) -> bool:
        """Whether this id may come next."""
        vocabulary, expected = self.vocabulary, self.expected
        if expected is Next.CODE:
            return id_ in vocabulary.codes
        if expected is Next.END:
            return id_ == vocabulary.end_image
        if expected is Next.BEGIN:
            return id_ == vocabulary.begin_image
        if id_ == vocabulary.begin_image:
            return expected is Next.TEXT_OR_IMAGE
        return id_ == vocabulary.eos or id_ in vocabulary.text

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
