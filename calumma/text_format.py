"""Words for people: counts with their nouns, times, and the name that was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def counted(number: int, thing: str) -> str:
    """A count with its noun, whose plural ends in s.

    >>> counted(1, "document"), counted(0, "image"), counted(2500, "letter")
    ('1 document', '0 images', '2,500 letters')
    """
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


def duration(seconds: float) -> str:
    """Seconds in the largest unit of which there are at least two.

    >>> duration(1.5), duration(7100), duration(7200), duration(2e7)
    ('1.5 seconds', '118 minutes', '2 hours', '231 days')
    """
    for unit, length in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} seconds"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Of the known names the one that was perhaps meant; None where none is near.

    >>> nearest("prtrain", ["generate", "pretrain"]), nearest("zzz", ["generate", "pretrain"])
    ('pretrain', None)
    """
    return next(iter(difflib.get_close_matches(name, list(known), n=1)), None)
