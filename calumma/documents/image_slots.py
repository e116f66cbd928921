"""Slots of images: `<image>` marks in texts, and image parts without an image."""

import re
from collections.abc import Iterator
from typing import Any

from calumma.documents.record_columns import JsonPart
from calumma.errors import DocumentError

_MARK = re.compile(r"\n?<image>\n?")
_IMAGE_KEYS = ("path", "base64", "url", "image", "bytes", "image_url")


def fill_slots(value: Any, images: list[JsonPart], where: str) -> Any:
    """Put images into the slots of parts or turns, in reading order.

    Raises:
        DocumentError: there are more or fewer images than slots.
    """
    num_slots = count_slots(value)
    if num_slots != len(images):
        raise DocumentError(
            f"{where}: {len(images)} images for {num_slots} slots (<image> marks and image parts without an image); "
            "expected as many slots as images. Fix the row, or drop the document."
        )
    return _fill(value, iter(images)) if images else value


def count_slots(value: Any) -> int:
    """Count the slots of parts or turns."""
    if isinstance(value, str):
        return len(_MARK.findall(value))
    if isinstance(value, list):
        return sum(map(count_slots, value))
    if not isinstance(value, dict):
        return 0
    return int(_is_slot(value)) or sum(count_slots(value.get(key)) for key in ("content", "text"))


def _is_slot(value: Any) -> bool:
    """Return whether a part is an image part without an image."""
    if not isinstance(value, dict) or value.get("type") not in ("image", "image_url"):
        return False
    return all(value.get(key) is None or value[key] == "" for key in _IMAGE_KEYS)


def _fill(value: Any, images: Iterator[JsonPart]) -> Any:
    if isinstance(value, str):
        return _split_marks(value, images) if _MARK.search(value) else value
    if isinstance(value, list):
        filled: list[Any] = []
        for item in value:
            new = _fill(item, images)
            # A text with marks becomes several parts.
            filled.extend(new) if isinstance(new, list) else filled.append(new)
        return filled
    if not isinstance(value, dict):
        return value
    if _is_slot(value):
        return next(images)
    if isinstance(value.get("text"), str) and _MARK.search(value["text"]):
        return _split_marks(value["text"], images)
    if "content" in value:
        return value | {"content": _fill(value["content"], images)}
    return value


def _split_marks(text: str, images: Iterator[JsonPart]) -> list[JsonPart]:
    """Split a text at its marks; one line break on each side belongs to the mark."""
    chunks = _MARK.split(text)
    parts: list[JsonPart] = []
    for number, chunk in enumerate(chunks):
        parts += [next(images)] if number else []
        parts += [{"type": "text", "text": chunk}] if chunk else []
    return parts
