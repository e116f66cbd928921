"""Records in the format of OBELICS: a web page as two parallel lists, `texts` and `images`.

At each position one list holds a text or an image, and the other null:

    {"texts": ["A bird.", null, "It flew."], "images": [null, IMAGE, null]}

IMAGE is the bytes of a file, a struct of `bytes` and `path`, or a path.
"""

from collections.abc import Sequence
from typing import Any

from calumma.errors import DocumentError

TEXTS, IMAGES = "texts", "images"


def is_obelics_record(record: Any) -> bool:
    """Return whether a record holds `texts` and `images` as lists of one length."""
    if not isinstance(record, dict):
        return False
    texts, images = record.get(TEXTS), record.get(IMAGES)
    return isinstance(texts, list) and isinstance(images, list) and len(texts) == len(images)


def interleave(texts: Sequence[Any], images: Sequence[Any], where: str) -> list[dict[str, Any]]:
    """Merge the two lists into document parts, in reading order.

    Raises:
        DocumentError: an image is only a web address.
    """
    parts: list[dict[str, Any]] = []
    for position, (text, image) in enumerate(zip(texts, images, strict=True)):
        if text:
            parts.append({"type": "text", "text": text})
        if image is not None:
            parts.append({"type": "image", **_image_fields(image, f"{where}, position {position}")})
    return parts


def _image_fields(image: Any, where: str) -> dict[str, Any]:
    if isinstance(image, dict):
        return image
    if isinstance(image, bytes):
        return {"bytes": image}
    if isinstance(image, str) and "://" in image:
        raise DocumentError(
            f"{where}: the image is a web address, {image[:60]!r}; expected its bytes, or a path "
            "next to the file. Download the images first."
        )
    return {"path": image}
