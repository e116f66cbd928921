"""What must not go in, and what must not come out: filters that an operator switches on.

A filter looks at a text or at a picture and says whether it may pass. Those named here come from
packages; another is a class with the same two methods, entered in `FILTERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import PIL.Image

from calumma.documents.scorers import PictureScorer, TextScorer, nudity, profanity
from calumma.errors import ConfigError

_FROM = 0.8
"""Scores from here on do not pass: the bound that the makers of both classifiers name as sure."""


class Filter(Protocol):
    """Says what may pass. Several threads ask at once."""

    def passes_text(self, text: str) -> bool:
        """Whether a text may pass."""

    def passes_picture(self, picture: PIL.Image.Image) -> bool:
        """Whether a picture may pass."""


@dataclass(frozen=True)
class Classified:
    """Lets pass what a classifier scores low."""

    text: TextScorer | None = None
    picture: PictureScorer | None = None

    def passes_text(self, text: str) -> bool:
        """Whether no line of it is taken for unsafe."""
        return self.text is None or self.text(text) < _FROM

    def passes_picture(self, picture: PIL.Image.Image) -> bool:
        """Whether it is taken for safe."""
        return self.picture is None or self.picture(picture) < _FROM


FILTERS: dict[str, Callable[[], Filter]] = {
    "profanity": lambda: Classified(text=profanity()),
    "nudity": lambda: Classified(picture=nudity()),
}
"""By the name under which `calumma serve --filter NAME` switches them on."""


def load_filters(names: Sequence[str]) -> list[Filter]:
    """The filters of these names.

    Raises:
        ConfigError: a name is not known, or its package is not installed.
    """
    for name in names:
        if name not in FILTERS:
            raise ConfigError(
                f"there is no filter {name!r}; expected one of {', '.join(FILTERS)}. Choose one, or "
                "leave --filter out."
            )
    return [FILTERS[name]() for name in names]


class Sieve:
    """Holds a growing text back until it has been looked at, sentence by sentence."""

    _LONGEST = 400
    """Characters that are held back at most; then a sentence is looked at in pieces."""

    def __init__(self, filters: Sequence[Filter]) -> None:
        self.filters = filters
        self.kept = ""
        self.is_blocked = False
        """Whether something did not pass: from then on nothing does."""

    def hear(self, text: str) -> str:
        """More text; what of it, and of what was kept, may be told."""
        if not self.filters or self.is_blocked:
            return "" if self.is_blocked else text
        self.kept += text
        if len(self.kept) > self._LONGEST:
            return self.flush()
        return self._look(max(self.kept.rfind(mark) + 1 for mark in (". ", "! ", "? ", "\n")))

    def flush(self) -> str:
        """The text ends here: the rest is looked at."""
        return self._look(len(self.kept))

    def _look(self, end: int) -> str:
        told, self.kept = self.kept[:end], self.kept[end:]
        if told and not all(filter_.passes_text(told) for filter_ in self.filters):
            self.is_blocked = True
        return "" if self.is_blocked else told
