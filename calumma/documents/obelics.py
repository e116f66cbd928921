"""Documents kept as two lists side by side, `texts` and `images`, as OBELICS keeps web pages.

At each place of the page one list holds a text or an image, and the other nothing:

    {"texts": ["A bird.", null, "It flew."], "images": [null, IMAGE, null]}

IMAGE is the bytes of a file, a struct of `bytes` and `path`, or a path.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from calumma.errors import DocumentError

TEXTS, IMAGES = "texts", "images"


def is_obelics_record(record: Any) -> bool:
    """Whether a record holds its page as two lists of one length."""
    if not isinstance(record, dict):
        return False
    texts, images = record.get(TEXTS), record.get(IMAGES)
    return isinstance(texts, list) and isinstance(images, list) and len(texts) == len(images)


def interleave(texts: Sequence[Any], images: Sequence[Any], where: str) -> list[dict[str, Any]]:
    """The parts of a page, in reading order.

    Raises:
        DocumentError: a picture is only an address on the web.
    """
    parts: list[dict[str, Any]] = []
    for place, (text, image) in enumerate(zip(texts, images, strict=True)):
        if text:
            parts.append({"type": "text", "text": text})
        if image is not None:
            parts.append({"type": "image", **_image(image, f"{where}, place {place}")})
    return parts


def _image(image: Any, where: str) -> dict[str, Any]:
    if isinstance(image, dict):
        return image
    if isinstance(image, bytes):
        return {"bytes": image}
    if isinstance(image, str) and "://" in image:
        raise DocumentError(
            f"{where}: the picture is an address, {image[:60]!r}; expected its bytes, or a path "
            "beside the file. Fetch the pictures first."
        )
    return {"path": image}
