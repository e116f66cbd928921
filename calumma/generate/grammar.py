"""What may come next: the one place that knows."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import cache

from calumma.vocabulary import Vocabulary


class TokenKind(IntEnum):
    """The kinds of id that may come next; those from BEGIN on leave no choice."""

    TEXT = 0
    """A text id or end of sequence."""

    TEXT_OR_IMAGE = 1
    """The same, or begin-of-image."""

    IMAGE_OR_EOS = 2
    """Begin-of-image or end of sequence."""

    IMAGE_CODE = 3
    """An image code."""

    BEGIN_IMAGE = 4
    """Begin-of-image, and nothing else."""

    END_IMAGE = 5
    """End-of-image, and nothing else."""

    EOS = 6
    """End of sequence, and nothing else."""


@cache
def allowed_ids(kind: TokenKind, vocabulary: Vocabulary) -> tuple[range, ...]:
    """The ids that each kind allows.

    Controls besides these, such as end-of-turn or the placeholder, are never chosen.
    """
    eos, begin, end = (
        range(id_, id_ + 1)
        for id_ in (vocabulary.eos, vocabulary.begin_image, vocabulary.end_image)
    )
    return {
        TokenKind.TEXT: (eos, vocabulary.text),
        TokenKind.TEXT_OR_IMAGE: (eos, begin, vocabulary.text),
        TokenKind.IMAGE_OR_EOS: (eos, begin),
        TokenKind.IMAGE_CODE: (vocabulary.codes,),
        TokenKind.BEGIN_IMAGE: (begin,),
        TokenKind.END_IMAGE: (end,),
        TokenKind.EOS: (eos,),
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

    max_remaining_tokens: int
    """Ids that may still be added."""

    max_images: int = 1_000_000
    image_first: bool = False

    images_only: bool = False
    """Whether no text may stand between and after the images."""

    num_codes_remaining: int | None = None
    """Codes the open image still needs; None while no image is open."""

    @property
    def next_kind(self) -> TokenKind:
        """The kind of id that comes next."""
        if self.num_codes_remaining is not None:
            return TokenKind.IMAGE_CODE if self.num_codes_remaining else TokenKind.END_IMAGE
        return self._kind_outside_image(self.max_remaining_tokens)

    @property
    def kind_after_next(self) -> TokenKind | None:
        """The kind that comes behind the next id, where that is a code or, as is likely, text.

        None where a choice may not follow: behind the last code of an image, behind the last id
        that there is room for, and where images alone may stand. Begin-of-image or end of sequence
        instead of text belies it.
        """
        if self.num_codes_remaining is not None:
            return TokenKind.IMAGE_CODE if self.num_codes_remaining > 1 else None
        return (
            None
            if self.images_only or self.max_remaining_tokens < 2
            else self._kind_outside_image(self.max_remaining_tokens - 1)
        )

    def _kind_outside_image(self, room: int) -> TokenKind:
        """The kind of id that comes next outside an image, with room for so many."""
        fits = self.max_images > 0 and room >= self.codes_per_image + 2
        if self.images_only and not fits:
            return TokenKind.EOS
        if self.image_first and fits:
            return TokenKind.BEGIN_IMAGE
        if self.images_only:
            return TokenKind.IMAGE_OR_EOS
        return TokenKind.TEXT_OR_IMAGE if fits else TokenKind.TEXT

    @property
    def forced_token(self) -> int | None:
        """The one id that may come next, where there is only one: it needs no model."""
        expected = self.next_kind
        if expected < TokenKind.BEGIN_IMAGE:
            return None
        ((only,),) = allowed_ids(expected, self.vocabulary)
        return only

    def allows(self, id_: int) -> bool:
        """Whether this id may come next."""
        return any(id_ in ids for ids in allowed_ids(self.next_kind, self.vocabulary))

    def accept_token(self, id_: int) -> None:
        """Take in the id that was chosen."""
        assert self.allows(id_), f"id {id_} was not allowed here"
        self.consume(id_)

    def consume(self, id_: int) -> None:
        """Take in an id of the prompt, or one that `allows` let through."""
        self.max_remaining_tokens -= 1
        if id_ == self.vocabulary.begin_image:
            self.num_codes_remaining = self.codes_per_image
            self.max_images -= 1
            self.image_first = False
        elif id_ == self.vocabulary.end_image:
            self.num_codes_remaining = None
        elif self.num_codes_remaining is not None:
            self.num_codes_remaining -= 1
