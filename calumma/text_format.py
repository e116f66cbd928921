"""Format counts, numbers and durations for people, and suggest the name that was meant."""

import difflib
import json
from collections.abc import Iterable


def pluralize(number: int, noun: str) -> str:
    """Format a count with its noun, whose plural ends in s.

    >>> pluralize(1, "document"), pluralize(0, "image"), pluralize(2500, "letter")
    ('1 document', '0 images', '2,500 letters')
    """
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def format_number(value: float | None) -> str:
    """Format a number with four significant digits, or as an integer from 1,000; None is "-".

    >>> format_number(3.14159), format_number(0.1), format_number(12500), format_number(None)
    ('3.142', '0.1', '12,500', '-')
    """
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def format_duration(seconds: float) -> str:
    """Format seconds with at most two units.

    >>> format_duration(0.07), format_duration(8.34), format_duration(75), format_duration(3725)
    ('0.07 s', '8.3 s', '1 min 15 s', '1 h 2 min')
    >>> format_duration(200_000), format_duration(2e7)
    ('2 d 7 h', '231 d 11 h')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


def quote(name: str) -> str:
    """Quote a name as in TOML, so that it can be copied into a config.

    >>> print(quote("my-images"), quote(""))
    "my-images" ""
    """
    return json.dumps(name, ensure_ascii=False)


def closest_match(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is most similar to a mistyped one, or None.

    >>> closest_match("prtrain", ["generate", "pretrain"])
    'pretrain'
    >>> closest_match("zzz", ["generate", "pretrain"])
    """
    return next(iter(difflib.get_close_matches(name, list(known), n=1)), None)
