"""What must not go in, and what must not come out: filters that an operator switches on.

A filter looks at a text or at a picture and says whether it may pass. Those named here come from
packages; another is a class with the same two methods, entered in `FILTERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import PIL.Image

from calumma.documents.scorers import ImageScorer, TextScorer, nudity, profanity
from calumma.errors import ConfigError

_FROM = 0.8
"""Scores from here on do not pass: the bound that the makers of both classifiers name as sure."""


class ContentFilter(Protocol):
    """Says what may pass. Several threads ask at once."""

    def passes_text(self, text: str) -> bool:
        """Whether a text may pass."""

    def passes_image(self, picture: PIL.Image.Image) -> bool:
        """Whether a picture may pass."""


@dataclass(frozen=True)
class ClassifierFilter:
    """Lets pass what a classifier scores low."""

    text_scorer: TextScorer | None = None
    image_scorer: ImageScorer | None = None

    def passes_text(self, text: str) -> bool:
        """Whether no line of it is taken for unsafe."""
        return self.text_scorer is None or self.text_scorer(text) < _FROM

    def passes_image(self, picture: PIL.Image.Image) -> bool:
        """Whether it is taken for safe."""
        return self.image_scorer is None or self.image_scorer(picture) < _FROM


CONTENT_FILTERS: dict[str, Callable[[], ContentFilter]] = {
    "profanity": lambda: ClassifierFilter(text_scorer=profanity()),
    "nudity": lambda: ClassifierFilter(image_scorer=nudity()),
}
"""By the name under which `calumma serve --filter NAME` switches them on."""


def load_content_filters(names: Sequence[str]) -> list[ContentFilter]:
    """The filters of these names.

    Raises:
        ConfigError: a name is not known, or its package is not installed.
    """
    for name in names:
        if name not in CONTENT_FILTERS:
            raise ConfigError(
                f"there is no filter {name!r}; expected one of {', '.join(CONTENT_FILTERS)}. Choose one, or "
                "leave --filter out."
            )
    return [CONTENT_FILTERS[name]() for name in names]


class ModerationBuffer:
    """Holds a growing text back until it has been looked at, sentence by sentence."""

    _LONGEST = 400
    """Characters that are held back at most; then a sentence is looked at in pieces."""

    def __init__(self, filters: Sequence[ContentFilter]) -> None:
        self.filters = filters
        self.pending = ""
        self.is_blocked = False
        """Whether something did not pass: from then on nothing does."""

    def push(self, text: str) -> str:
        """More text; what of it, and of what was kept, may be told."""
        if not self.filters or self.is_blocked:
            return "" if self.is_blocked else text
        self.pending += text
        if len(self.pending) > self._LONGEST:
            return self.flush()
        return self._look(max(self.pending.rfind(mark) + 1 for mark in (". ", "! ", "? ", "\n")))

    def flush(self) -> str:
        """The text ends here: the rest is looked at."""
        return self._look(len(self.pending))

    def _look(self, end: int) -> str:
        told, self.pending = self.pending[:end], self.pending[end:]
        if told and not all(filter_.passes_text(told) for filter_ in self.filters):
            self.is_blocked = True
        return "" if self.is_blocked else told
