"""Content filters: an optional check of prompts and completions.

`CONTENT_FILTERS` names the filters that come with packages. Any function from a text to a score
is a filter too, and any class with the two methods of `ContentFilter` can be added.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import PIL.Image

from calumma.documents.scorers import ImageScorer, TextScorer, load_scorer, nudity
from calumma.errors import ConfigError

_BLOCK_THRESHOLD = 0.8
"""Lowest score that is blocked: the authors of the classifiers call it certain."""


class ContentFilter(Protocol):
    """A check of texts and images. Several threads may call it at the same time."""

    def passes_text(self, text: str) -> bool:
        """Return whether a text is allowed."""

    def passes_image(self, image: PIL.Image.Image) -> bool:
        """Return whether an image is allowed."""


@dataclass(frozen=True)
class ClassifierFilter:
    """Blocks what a classifier scores high."""

    text_scorer: TextScorer | None = None
    image_scorer: ImageScorer | None = None

    def passes_text(self, text: str) -> bool:
        """Return whether a text scores below the threshold."""
        return self.text_scorer is None or self.text_scorer(text) < _BLOCK_THRESHOLD

    def passes_image(self, image: PIL.Image.Image) -> bool:
        """Return whether an image scores below the threshold."""
        return self.image_scorer is None or self.image_scorer(image) < _BLOCK_THRESHOLD


CONTENT_FILTERS: dict[str, Callable[[], ContentFilter]] = {"nudity": lambda: ClassifierFilter(image_scorer=nudity())}
"""Filters by the name that `calumma serve --content-filter` takes."""


def load_content_filters(names: Sequence[str]) -> list[ContentFilter]:
    """Load content filters.

    Args:
        names: keys of `CONTENT_FILTERS`, or `package.module:function` from a text to a score.

    Raises:
        ConfigError: a name is unknown, or its package is not installed.
    """
    return [_load_content_filter(name) for name in names]


def _load_content_filter(name: str) -> ContentFilter:
    if name in CONTENT_FILTERS:
        return CONTENT_FILTERS[name]()
    if ":" in name:
        return ClassifierFilter(text_scorer=load_scorer(name))
    raise ConfigError(
        f"there is no content filter {name!r}; expected {', '.join(CONTENT_FILTERS)}, or "
        "package.module:function from a text to a score. Choose one, or remove --content-filter."
    )


class ModerationBuffer:
    """Withholds streamed text until the sentence it belongs to has passed the filters."""

    _MAX_PENDING = 400
    """Number of characters after which an unfinished sentence is checked."""

    def __init__(self, filters: Sequence[ContentFilter]) -> None:
        self.filters = filters
        self.pending = ""
        self.is_blocked = False
        """Whether a sentence did not pass; no text is emitted after it."""

    def push(self, text: str) -> str:
        """Add text, and return what may be emitted now."""
        if not self.filters or self.is_blocked:
            return "" if self.is_blocked else text
        self.pending += text
        if len(self.pending) > self._MAX_PENDING:
            return self.flush()
        return self._check(max(self.pending.rfind(mark) + 1 for mark in (". ", "! ", "? ", "\n")))

    def flush(self) -> str:
        """Check the pending text and return it if it passes; called where a text ends."""
        return self._check(len(self.pending))

    def _check(self, end: int) -> str:
        checked, self.pending = self.pending[:end], self.pending[end:]
        if checked and not all(filter_.passes_text(checked) for filter_ in self.filters):
            self.is_blocked = True
        return "" if self.is_blocked else checked
