"""Texts at which an answer ends, found while it grows."""

from __future__ import annotations

from collections.abc import Sequence


class StopWords:
    """Lets text through up to the first of some words; a possible beginning of one is kept back.

    >>> watch = StopWords(["END"])
    >>> watch.hear("the E"), watch.hear("N"), watch.hear("T EN"), watch.hear("D.")
    ('the ', '', 'ENT ', '')
    >>> watch.found
    True
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = [word for word in words if word]
        self.kept = ""
        self.found = False

    def hear(self, text: str) -> str:
        """More text; what of it, and of what was kept, may be told."""
        if self.found:
            return ""
        text = self.kept + text
        places = [place for word in self.words if (place := text.find(word)) >= 0]
        if places:
            self.found, self.kept = True, ""
            return text[: min(places)]
        keep = max((_beginning(text, word) for word in self.words), default=0)
        told, self.kept = text[: len(text) - keep], text[len(text) - keep :]
        return told

    def flush(self) -> str:
        """The text ends here: what was kept is told."""
        told, self.kept = self.kept, ""
        return told


def _beginning(text: str, word: str) -> int:
    """How many last characters of `text` are the first of `word`."""
    longest = min(len(text), len(word) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(word[:n])), 0)
