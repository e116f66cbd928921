"""Which pictures a model learns to draw from: the finest, and of those the nearest to a square.

Source: Chameleon (arXiv:2405.09818), alignment: pictures that an aesthetic classifier gives 6 or
more, and of them the 64,000 whose size and aspect ratio are closest to 512 x 512.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from calumma.documents.document import Document
from calumma.documents.document_filter import ScoreRule, find_scorer
from calumma.errors import DocumentError, ImageError


@dataclass(frozen=True, kw_only=True)
class ImageSelectionConfig:
    """How pictures are chosen."""

    attribute: str = ""
    """Name of the attribute in which documents carry a score of their picture, such as that of
    an aesthetic predictor; where there is none, `measure` gives the score."""

    scorer: str = "colourfulness"
    """A score of `calumma build-shards --clean`, or package.module:function, for pictures."""

    min_score: float = float("-inf")
    """Score of a picture, at least (the paper's 6 is of the predictor of LAION)."""

    target_side: int = 512
    """Pixels of the square that the kept pictures are to be close to."""

    max_documents: int = 64_000
    """Documents that are kept, at most."""


@dataclass
class ImageSelection:
    """Chooses, and counts why documents are left out."""

    config: ImageSelectionConfig
    dropped: Counter[str] = field(default_factory=Counter)

    def select(self, read: Callable[[], Iterable[Document]]) -> Iterator[Document]:
        """The chosen documents, in their order; they are read twice, and none stays in memory.

        Args:
            read: gives all documents, the same ones each time; those without exactly one picture
                are left out.

        Raises:
            DocumentError: a document lacks the attribute, or holds no number there.
            ConfigError: the measure is not known.
        """
        # The nearest of the farthest leaves first: kept are the `most` with the least distance.
        nearest: list[tuple[float, int]] = []
        for number, document in enumerate(read()):
            distance = self._distance(document)
            if distance is None:
                continue
            entry = (-distance, -number)
            if len(nearest) < self.config.max_documents:
                heapq.heappush(nearest, entry)
                continue
            heapq.heappushpop(nearest, entry)
            self.dropped["size"] += 1
        chosen = {-number for _, number in nearest}
        for number, document in enumerate(read()):
            if number in chosen:
                yield document

    def _distance(self, document: Document) -> float | None:
        """How far a picture's size is from the square; None where it is left out."""
        images = document.images
        if len(images) != 1:
            self.dropped["not one picture"] += 1
            return None
        try:
            picture = images[0].open()
        except ImageError:
            self.dropped["unreadable"] += 1
            return None
        if self.config.attribute:
            score = self._told(document)
        else:
            rule = ScoreRule(name="measure", function=self.config.scorer)
            score = float(find_scorer(rule)(picture))
        if score < self.config.min_score:
            self.dropped["score"] += 1
            return None
        return sum(abs(math.log(side / self.config.target_side)) for side in picture.size)

    def _told(self, document: Document) -> float:
        name = self.config.attribute
        try:
            return float(document.attributes[name])
        except (KeyError, ValueError) as error:
            found = document.attributes.get(name)
            raise DocumentError(
                f"{document.id}: its attribute {name!r} is {found!r}; expected a number. Write the "
                "score there, or choose by --measure."
            ) from error
