"""Selection of images for image generation: the highest scores, then the sizes closest to a square.

Source: Chameleon (arXiv:2405.09818), alignment: images with an aesthetic score of at least 6, and
of them the 64,000 whose size and aspect ratio are closest to 512 x 512.
"""

import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import PIL.Image

from calumma.documents.document import Document
from calumma.errors import DocumentError, ImageError

Score = Callable[[Document, PIL.Image.Image], float]


def select_images(
    read: Callable[[], Iterable[Document]],
    score: Score,
    dropped: Counter[str],
    *,
    min_score: float = float("-inf"),
    target_side: int = 512,
    max_documents: int = 64_000,
) -> Iterator[Document]:
    """Yield the selected documents in order; they are read twice, and none stays in memory.

    Args:
        read: returns all documents, the same each time; only those with one image are selected.
        score: returns the score of a document with its decoded image.
        dropped: counts the dropped documents by reason.
        min_score: minimum score (the paper's 6 is for LAION's aesthetic predictor).
        target_side: side in pixels of the square to which sizes are compared.
        max_documents: maximum number of selected documents.
    """
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
        if score(document, image) < min_score:
            dropped["score"] += 1
            continue
        distance = sum(abs(math.log(side / target_side)) for side in image.size)
        heapq.heappush(closest, (-distance, -number))
        if len(closest) > max_documents:
            heapq.heappop(closest)
            dropped["size"] += 1
    selected = {-number for _, number in closest}
    yield from (document for number, document in enumerate(read()) if number in selected)


def attribute_score(name: str) -> Score:
    """Return a score function that reads a document attribute.

    It raises a `DocumentError` if a document lacks the attribute, or the attribute is no number.
    """

    def score(document: Document, image: PIL.Image.Image) -> float:
        try:
            return float(document.attributes[name])
        except (KeyError, ValueError) as error:
            raise DocumentError(
                f"{document.id}: its attribute {name!r} is {document.attributes.get(name)!r}; "
                "expected a number. Write the score there, or use --scorer."
            ) from error

    return score
