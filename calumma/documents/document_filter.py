"""Filters with an account: why a document is left out, as a pure function of the document.

Every rule is off until it is asked for. What only shows beside other documents, duplicates, is told
apart by signatures: two documents with the same signature are the same to that rule.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import PIL.Image

from calumma.documents.document import Document, Image, Text
from calumma.documents.error_policy import UNREADABLE, DroppedDocument
from calumma.documents.language_id import COMMON, language_of
from calumma.documents.scorers import PICTURE_SCORERS, TEXT_SCORERS, on_white
from calumma.errors import ConfigError, ImageError
from calumma.files import fingerprint_of


@dataclass(frozen=True, kw_only=True)
class ScoreRule:
    """A number that judges a picture or a text, such as how unsafe or how fine it is."""

    name: str
    """What the account calls it."""

    function: str
    """nudity, sharpness, detail, colourfulness or profanity (see `scorers`), or a function of any
    package, from a picture or a text to a number, as `package.module:function`."""

    applies_to: Literal["pictures", "text"] = "pictures"
    """What a package's function is given; profanity always judges text."""

    min: float = float("-inf")
    max: float = float("inf")

    @property
    def scores_text(self) -> bool:
        """Whether it is given the text of a document, instead of each of its pictures."""
        return self.applies_to == "text" or self.function in TEXT_SCORERS

    def violations(self, judged: Any) -> Iterator[tuple[str, str]]:
        """The fault of a picture or a text, if it has this one."""
        score = find_scorer(self)(judged)
        if not self.min <= score <= self.max:
            yield self.name, f"{score:.4g}; expected {self.min:g} to {self.max:g}"


@dataclass(frozen=True, kw_only=True)
class FilterConfig:
    """Which documents are left out; a rule that is not named leaves out none."""

    min_image_side: int = 0
    """Pixels of a picture's shorter side, at least."""

    max_aspect_ratio: float = float("inf")
    """Longer side by shorter side of a picture, at most."""

    min_contrast: float = 0.0
    """Standard deviation of a picture's grey values (0 to 255), at least; near-blank is under 4."""

    min_chars: int = 0
    """Letters of text, at least."""

    max_chars: int = 1 << 62
    """Letters of text, at most."""

    max_dup_5gram_frac: float = 1.0
    """Share of a text's runs of five words that occurred in it before, at most."""

    languages: tuple[str, ...] = ()
    """Languages that are kept (en, de, fr, es, it, pt, nl); a text too short to tell is kept."""

    order: Literal["any", "text-first", "image-first"] = "any"
    """Which part a document with both begins with."""

    licenses: tuple[str, ...] = ()
    """Licences that are kept, to the letter."""

    exact_duplicates: bool = False
    """Whether a document is left out that has the text and the picture files of an earlier one."""

    near_duplicates: bool = False
    """Whether a document is left out whose pictures look like those of an earlier one: the same
    64-bit difference hash of each."""

    scores: tuple[ScoreRule, ...] = ()
    """Rules of other packages' making."""

    def __post_init__(self) -> None:
        unknown = sorted({*self.languages} - {*COMMON, "other"})
        if unknown:
            raise ConfigError(
                f"languages names {unknown[0]!r}, which is not told apart; expected some of "
                f"{', '.join(COMMON)}, other. Leave it out."
            )

    @property
    def image_scores(self) -> tuple[ScoreRule, ...]:
        """The rules that judge pictures."""
        return tuple(rule for rule in self.scores if not rule.scores_text)

    @property
    def needs_dedup(self) -> bool:
        """Whether documents have to be compared with each other."""
        return self.exact_duplicates or self.near_duplicates

    @property
    def reads_images(self) -> bool:
        """Whether a rule needs pictures to be opened, which costs as much as all the others."""
        limits = (self.min_image_side, self.min_contrast, self.max_aspect_ratio < float("inf"))
        return any(limits) or bool(self.image_scores)

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits of all rules."""
        return fingerprint_of(repr(self))

    def judge(self, document: Document) -> DroppedDocument | None:
        """Why this document is left out, or None where it is kept."""
        for reason, detail in self._faults(document):
            return DroppedDocument(
                id=document.id, source=document.source, reason=reason, detail=detail
            )
        return None

    def _faults(self, document: Document) -> Iterator[tuple[str, str]]:
        """Each rule that the document breaks, cheap ones first."""
        yield from self._of_licence(document)
        yield from self._of_order(document)
        yield from self._of_text(document)
        if not self.reads_images:
            return
        for number, image in enumerate(document.images):
            try:
                picture = image.open()
            except ImageError as error:
                yield UNREADABLE, str(error)
                return
            for reason, detail in self._of_picture(picture):
                yield reason, f"image {number}: {detail}"

    def _of_licence(self, document: Document) -> Iterator[tuple[str, str]]:
        if self.licenses and document.licence not in self.licenses:
            yield "licence", f"{document.licence or 'none'}; expected {', '.join(self.licenses)}"

    def _of_order(self, document: Document) -> Iterator[tuple[str, str]]:
        kinds = [type(part) for part in document.parts()]
        if self.order == "any" or not {Text, Image} <= set(kinds):
            return
        found = "text-first" if kinds[0] is Text else "image-first"
        if found != self.order:
            yield "order", f"{found}; expected {self.order}"

    def _of_text(self, document: Document) -> Iterator[tuple[str, str]]:
        text = document.text
        if len(text) < self.min_chars:
            yield "text too short", f"{len(text)} letters; expected at least {self.min_chars}"
        if len(text) > self.max_chars:
            yield "text too long", f"{len(text)} letters; expected at most {self.max_chars}"
        if self.languages and (found := language_of(text)) not in ("", *self.languages):
            yield "language", f"{found}; expected {', '.join(self.languages)}"
        if (
            self.max_dup_5gram_frac < 1.0
            and (share := duplicate_5gram_fraction(text)) > self.max_dup_5gram_frac
        ):
            yield "repetition", f"{share:.2f} of it; expected at most {self.max_dup_5gram_frac:g}"
        for rule in self.scores:
            if rule.scores_text:
                yield from rule.violations(text)

    def _of_picture(self, picture: PIL.Image.Image) -> Iterator[tuple[str, str]]:
        width, height = picture.size
        size, shorter, longer = f"{width} x {height} pixels", min(width, height), max(width, height)
        if shorter < self.min_image_side:
            yield "image too small", f"{size}; expected a side of at least {self.min_image_side}"
        if longer > self.max_aspect_ratio * shorter:
            yield "aspect ratio", f"{size}; expected sides at most {self.max_aspect_ratio:g} to 1"
        if self.min_contrast:
            contrast = float(np.asarray(to_gray(picture), dtype=np.float64).std())
            if contrast < self.min_contrast:
                yield "near-blank", f"contrast {contrast:.2f}; expected {self.min_contrast:g}"
        for rule in self.image_scores:
            yield from rule.violations(picture)


@lru_cache
def find_scorer(rule: ScoreRule) -> Callable[[Any], float]:
    """The function that a rule names.

    Raises:
        ConfigError: it cannot be imported, or the package behind it is not installed.
    """
    if rule.function in PICTURE_SCORERS:
        return PICTURE_SCORERS[rule.function]()
    if rule.function in TEXT_SCORERS:
        return TEXT_SCORERS[rule.function]()
    module, _, name = rule.function.partition(":")
    try:
        found: Callable[[Any], float] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"the score {rule.name!r} is given by {rule.function!r}, which cannot be imported "
            f"({error}); expected {', '.join([*PICTURE_SCORERS, *TEXT_SCORERS])} or "
            "package.module:function. Install the package, or fix the name."
        ) from error
    return found


def to_gray(picture: PIL.Image.Image) -> PIL.Image.Image:
    """Its grey values, with white behind what is transparent."""
    return on_white(picture).convert("L")


def duplicate_5gram_fraction(text: str) -> float:
    """The share of a text's runs of five words that occurred in it before.

    >>> repetition("one two three four five"), repetition("a b c d e " * 3)
    (0.0, 0.5454545454545454)
    """
    words = text.split()
    runs = [tuple(words[start : start + 5]) for start in range(len(words) - 4)]
    return 1.0 - len(set(runs)) / len(runs) if runs else 0.0


def exact_signature(document: Document) -> int:
    """64 bits of the document's text and picture files.

    Raises:
        ImageError: a picture's file is not there.
    """
    digest = hashlib.sha256()
    for part in document.parts():
        data = part.text.encode() if isinstance(part, Text) else part.read_bytes()
        digest.update(len(data).to_bytes(8, "little") + data)
    return int.from_bytes(digest.digest()[:8], "little")


def near_signature(document: Document) -> int | None:
    """64 bits of what the document's pictures look like; None where there is none.

    Raises:
        ImageError: a picture cannot be read.
    """
    if not document.images:
        return None
    hashes = b"".join(difference_hash(image.open()) for image in document.images)
    return int.from_bytes(hashlib.sha256(hashes).digest()[:8], "little")


def difference_hash(picture: PIL.Image.Image) -> bytes:
    """8 bytes: whether each of 8 x 8 places is darker than the one to its right.

    Source: the "dHash" of N. Krawetz, "Kind of Like That" (2013).
    """
    small = to_gray(picture).resize((9, 8), PIL.Image.Resampling.BOX)
    values = np.asarray(small, dtype=np.int16)
    return np.packbits(values[:, :-1] < values[:, 1:]).tobytes()
