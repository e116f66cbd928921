"""Words for people: counts with their nouns, and the name that was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def counted(number: int, thing: str) -> str:
    """A count with its noun, whose plural ends in s.

    >>> counted(1, "document"), counted(0, "image"), counted(2500, "letter")
    ('1 document', '0 images', '2,500 letters')
    """
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Of the known names the one that was perhaps meant; None where none is near.

    >>> nearest("prtrain", ["generate", "pretrain"]), nearest("zzz", ["generate", "pretrain"])
    ('pretrain', None)
    """
    return next(iter(difflib.get_close_matches(name, list(known), n=1)), None)
