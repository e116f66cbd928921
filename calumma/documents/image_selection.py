"""Selection of images for image generation: the highest scores, then the sizes closest to a square.

Source: Chameleon (arXiv:2405.09818), alignment: images with an aesthetic score of at least 6, and
of them the 64,000 whose size and aspect ratio are closest to 512 x 512.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from calumma.documents.document import Document
from calumma.documents.scorers import load_scorer
from calumma.errors import DocumentError, ImageError


@dataclass(frozen=True, kw_only=True)
class ImageSelectionConfig:
    """Thresholds of the selection."""

    attribute: str = ""
    """Document attribute that holds the score; if empty, `scorer` computes it."""

    scorer: str = "colorfulness"
    """A scorer of `calumma.documents.scorers`, or package.module:function of a Pillow image."""

    min_score: float = float("-inf")
    """Minimum score (the paper's 6 is for LAION's aesthetic predictor)."""

    target_side: int = 512
    """Side in pixels of the square to which selected images should be close."""

    max_documents: int = 64_000
    """Maximum number of selected documents."""


def select_images(
    read: Callable[[], Iterable[Document]], config: ImageSelectionConfig, dropped: Counter[str]
) -> Iterator[Document]:
    """Yield the selected documents in order; they are read twice, and none stays in memory.

    Args:
        read: returns all documents, the same each time; those without exactly one image are
        dropped. config: the thresholds. dropped: counts the dropped documents by reason.

    Raises:
        DocumentError: a document lacks the attribute, or the attribute is no number.
        ConfigError: the scorer cannot be imported.
    """
    score = None if config.attribute else load_scorer(config.scorer)
    closest: list[tuple[float, int]] = []  # a heap; its first entry is the farthest from the square
    for number, document in enumerate(read()):
        if len(document.images) != 1:
            dropped["not one image"] += 1
            continue
        try:
            image = document.images[0].open()
        except ImageError:
            dropped["unreadable"] += 1
            continue
        if (score(image) if score else _attribute(document, config.attribute)) < config.min_score:
            dropped["score"] += 1
            continue
        distance = sum(abs(math.log(side / config.target_side)) for side in image.size)
        heapq.heappush(closest, (-distance, -number))
        if len(closest) > config.max_documents:
            heapq.heappop(closest)
            dropped["size"] += 1
    selected = {-number for _, number in closest}
    yield from (document for number, document in enumerate(read()) if number in selected)


def _attribute(document: Document, name: str) -> float:
    try:
        return float(document.attributes[name])
    except (KeyError, ValueError) as error:
        raise DocumentError(
            f"{document.id}: its attribute {name!r} is {document.attributes.get(name)!r}; expected "
            "a number. Write the score there, or use --scorer."
        ) from error
