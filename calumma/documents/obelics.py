"""Records of web pages as two lists: those of OBELICS, and those of MMC4.

OBELICS has parallel lists, `texts` and `images`.

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
            parts.append({"type": "text", "text": text, "column": TEXTS})
        if image is not None:
            fields = _image_fields(image, f"{where}, position {position}")
            parts.append({"type": "image", **fields, "column": IMAGES})
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
    if not isinstance(image, str):
        raise DocumentError(
            f"{where}: found {type(image).__name__} in {IMAGES}; expected bytes, a struct of bytes, or a path. Fix "
            "it, or drop the document."
        )
    return {"path": image}


def mmc4_parts(texts: list[Any], infos: Any, where: str) -> list[dict[str, Any]]:
    """Merge the two lists of MMC4: an image comes before the text that it matches.

    Raises:
        DocumentError: an image has no name or no text.
    """
    by_index: dict[int, list[dict[str, Any]]] = {}
    for info in infos if isinstance(infos, list) else [infos]:
        index = info.get("matched_text_index") if isinstance(info, dict) else None
        image = info.get("image_name") if isinstance(info, dict) else None
        if not isinstance(index, int) or not 0 <= index < len(texts) or not isinstance(image, str | bytes):
            raise DocumentError(
                f"{where}, column 'image_info': found {str(info)[:60]!r}; expected the image_name of a file and a "
                f"matched_text_index below {len(texts)}. Fix it, or drop the document."
            )
        by_index.setdefault(index, []).append({"type": "image", **_image_fields(image, where), "column": "image_info"})
    parts: list[dict[str, Any]] = []
    for index, text in enumerate(texts):
        parts += by_index.get(index, [])
        parts.append({"type": "text", "text": text, "column": "text_list"})
    return parts
