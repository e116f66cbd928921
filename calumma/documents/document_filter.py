"""Filters of documents: each dropped document is recorded with its reason.

Every rule is off by default. A filter depends on one document alone; duplicates, which depend on
all others, are found by signatures (`calumma.shards.dedup`): two documents with the same signature
are duplicates.
"""

import hashlib
import heapq
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import PIL.Image

from calumma.documents.document import Document, Image, Text
from calumma.documents.error_policy import UNREADABLE, DroppedDocument, OnError
from calumma.documents.image_decoding import open_image
from calumma.documents.scorers import load_scorer, on_white
from calumma.errors import ConfigError, DocumentError, ImageError
from calumma.files import fingerprint

MIN_WORDS = 20
"""Texts with fewer words are not identified: on single captions the model guesses at random."""

MIN_PROBABILITY = 0.5
"""Texts with a less probable language (code, lists of names, tables) are not identified."""

_WORD = re.compile(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]|[^\W\d_]+")
"""A run of letters; in scripts written without spaces, one letter."""

_NO_LANGUAGE = "zxx"
"""Code of ISO 639 for texts without a language."""

Score = Callable[[Document, PIL.Image.Image], float]


@dataclass(frozen=True, kw_only=True)
class ScoreRule:
    """A range for the score of each image, or of the text, such as how unsafe it is."""

    name: str
    """The reason recorded with dropped documents."""

    function: str
    """nudity, sharpness, detail or colorfulness (see `scorers`), or your own function from an image
    or a text to a number, as `package.module:function`."""

    applies_to: Literal["images", "text"] = "images"
    """What the function is called with: each Pillow image, or the text as a string."""

    min: float = float("-inf")
    max: float = float("inf")


@dataclass(frozen=True, kw_only=True)
class FilterConfig:
    """The rules of a filter; the default of each drops nothing."""

    min_image_side: int = 0
    """Minimum length of an image's shorter side, in pixels."""

    max_aspect_ratio: float = float("inf")
    """Maximum ratio of an image's longer side to its shorter side."""

    min_contrast: float = 0.0
    """Minimum standard deviation of an image's gray values (0 to 255); under 4 is near-blank."""

    min_chars: int = 0
    """Minimum number of characters of text."""

    max_chars: int = 1 << 62
    """Maximum number of characters of text."""

    max_dup_5gram_frac: float = 1.0
    """Maximum fraction of the text's word 5-grams that occurred earlier in it."""

    languages: tuple[str, ...] = ()
    """ISO 639 codes of the languages to keep; a text too short to identify is kept."""

    order: Literal["any", "text-first", "image-first"] = "any"
    """The kind of the first part of a document with both text and images."""

    licenses: tuple[str, ...] = ()
    """The licenses to keep, compared exactly."""

    exact_duplicates: bool = False
    """Whether to drop documents with the text and the image files of an earlier document."""

    near_duplicates: bool = False
    """Whether to drop documents whose images look like those of an earlier document: the same
    64-bit difference hash of each."""

    scores: tuple[ScoreRule, ...] = ()
    """Score ranges of images and text."""

    def __post_init__(self) -> None:
        unknown = sorted({*self.languages} - {*language_codes()}) if self.languages else []
        if unknown:
            raise ConfigError(
                f"languages names {unknown[0]!r}, which py3langid does not identify; expected ISO "
                "639 codes such as en, de or zh. Fix or remove it."
            )

    @property
    def needs_dedup(self) -> bool:
        """Whether documents have to be compared with each other."""
        return self.exact_duplicates or self.near_duplicates

    @property
    def decodes_images(self) -> bool:
        """Whether a rule needs decoded images, which costs as much as all other rules."""
        limits = (self.min_image_side, self.min_contrast, self.max_aspect_ratio < float("inf"))
        return any(limits) or any(rule.applies_to == "images" for rule in self.scores)

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits of all rules."""
        return fingerprint(repr(self))


class DocumentFilter:
    """Applies the rules of a `FilterConfig` to one document at a time."""

    def __init__(self, config: FilterConfig, on_error: OnError = "raise") -> None:
        self.config = config
        self.on_error = on_error

    def check(self, document: Document) -> DroppedDocument | None:
        """Return why a document is dropped; None to keep it.

        Raises:
            ImageError: an image is unreadable, under "raise".
            ConfigError: a score function cannot be imported.
        """
        for reason, detail in self._violations(document):
            return DroppedDocument(id=document.id, source=document.source, reason=reason, detail=detail)
        return None

    def _violations(self, document: Document) -> Iterator[tuple[str, str]]:
        """Yield reason and detail of each broken rule, cheap rules first."""
        yield from self._license_violations(document)
        yield from self._order_violations(document)
        yield from self._text_violations(document.text)
        if not self.config.decodes_images:
            return
        for number, image in enumerate(document.images):
            try:
                # Cached: the next stages hash and decode the same bytes without another read.
                decoded = open_image(image.cached_bytes, image.display_name)
            except ImageError as error:
                if self.on_error == "raise":
                    raise
                yield UNREADABLE, str(error)
                return
            for reason, detail in self._image_violations(decoded):
                yield reason, f"image {number}: {detail}"

    def _license_violations(self, document: Document) -> Iterator[tuple[str, str]]:
        licenses = self.config.licenses
        if licenses and document.license not in licenses:
            yield "license", f"{document.license or 'none'}; expected {', '.join(licenses)}"

    def _order_violations(self, document: Document) -> Iterator[tuple[str, str]]:
        kinds = [Image if isinstance(part, Image) else Text for part in document.parts()]
        if self.config.order == "any" or not {Text, Image} <= set(kinds):
            return
        found = "text-first" if kinds[0] is Text else "image-first"
        if found != self.config.order:
            yield "order", f"{found}; expected {self.config.order}"

    def _text_violations(self, text: str) -> Iterator[tuple[str, str]]:
        rules = self.config
        if len(text) < rules.min_chars:
            yield "text too short", f"{len(text)} characters; expected at least {rules.min_chars}"
        if len(text) > rules.max_chars:
            yield "text too long", f"{len(text)} characters; expected at most {rules.max_chars}"
        if rules.languages and (found := identify_language(text)) not in ("", *rules.languages):
            yield "language", f"{found}; expected {', '.join(rules.languages)}"
        limit = rules.max_dup_5gram_frac
        if limit < 1.0 and (fraction := duplicate_5gram_fraction(text)) > limit:
            yield "repetition", f"{fraction:.2f} of the 5-grams; expected at most {limit:g}"
        yield from self._score_violations("text", text)

    def _image_violations(self, image: PIL.Image.Image) -> Iterator[tuple[str, str]]:
        rules = self.config
        width, height = image.size
        size, shorter, longer = f"{width} x {height} pixels", min(width, height), max(width, height)
        if shorter < rules.min_image_side:
            yield "image too small", f"{size}; expected a side of at least {rules.min_image_side}"
        if longer > rules.max_aspect_ratio * shorter:
            yield "aspect ratio", f"{size}; expected sides at most {rules.max_aspect_ratio:g} to 1"
        if rules.min_contrast:
            contrast = float(np.asarray(to_gray(image), dtype=np.float64).std())
            if contrast < rules.min_contrast:
                yield "near-blank", f"contrast {contrast:.2f}; expected {rules.min_contrast:g}"
        yield from self._score_violations("images", image)

    def _score_violations(self, kind: str, value: Any) -> Iterator[tuple[str, str]]:
        for rule in self.config.scores:
            if rule.applies_to != kind:
                continue
            score = _cached_scorer(rule.function)(value)
            if not rule.min <= score <= rule.max:
                yield rule.name, f"{score:.4g}; expected {rule.min:g} to {rule.max:g}"


_cached_scorer = lru_cache(load_scorer)


def to_gray(image: PIL.Image.Image) -> PIL.Image.Image:
    """Convert an image to gray values, composited on white if it is transparent."""
    return on_white(image).convert("L")


def duplicate_5gram_fraction(text: str) -> float:
    """Return the fraction of a text's word 5-grams that occurred earlier in it.

    >>> duplicate_5gram_fraction("one two three four five")
    0.0
    >>> duplicate_5gram_fraction("a b c d e " * 3)
    0.5454545454545454
    """
    words = text.split()
    ngrams = [tuple(words[start : start + 5]) for start in range(len(words) - 4)]
    return 1.0 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def exact_signature(document: Document) -> int:
    """Return 64 bits of a hash of the document's text and image files.

    Raises:
        ImageError: an image file is missing.
    """
    digest = hashlib.sha256()
    for part in document.parts():
        data = part.text.encode() if isinstance(part, Text) else part.read_bytes()
        digest.update(len(data).to_bytes(8, "little") + data)
    return int.from_bytes(digest.digest()[:8], "little")


def near_signature(document: Document) -> int | None:
    """Return 64 bits of a hash of the images' difference hashes; None without images.

    Raises:
        ImageError: an image is unreadable.
    """
    if not document.images:
        return None
    hashes = b"".join(difference_hash(image.open()) for image in document.images)
    return int.from_bytes(hashlib.sha256(hashes).digest()[:8], "little")


def difference_hash(image: PIL.Image.Image) -> bytes:
    """Compute the 64-bit difference hash: whether each of 8 x 8 cells is darker than the next.

    Source: the "dHash" of N. Krawetz, "Kind of Like That" (2013).
    """
    small = to_gray(image).resize((9, 8), PIL.Image.Resampling.BOX)
    values = np.asarray(small, dtype=np.int16)
    return np.packbits(values[:, :-1] < values[:, 1:]).tobytes()


def identify_language(text: str) -> str:
    """Return the ISO 639 code of a text's language, such as "en"; "" if the text is too short.

    The model is that of py3langid.

    >>> identify_language("the cat is on the mat and it is not for the dog of the house " * 2)
    'en'
    """
    words = _WORD.finditer(text)
    if sum(1 for _ in zip(range(MIN_WORDS), words, strict=False)) < MIN_WORDS:
        return ""
    language, probability = _identifier().classify(text)
    return "" if language == _NO_LANGUAGE or probability < MIN_PROBABILITY else str(language)


def language_codes() -> list[str]:
    """Return the codes that `identify_language` may return, sorted."""
    return sorted({*map(str, _identifier().labels)} - {_NO_LANGUAGE})


@lru_cache(maxsize=1)
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def select_images(
    read: Callable[[], Iterable[Document]],
    score: Score,
    dropped: Counter[str],
    *,
    min_score: float = float("-inf"),
    target_side: int = 512,
    max_documents: int = 64_000,
) -> Iterator[Document]:
    """Yield the documents with the highest scores, and of them those closest to a square.

    The order is kept; documents are read twice, and none stays in memory.

    Source: Chameleon (arXiv:2405.09818), alignment: images with an aesthetic score of at least 6,
    and of them the 64,000 whose size and aspect ratio are closest to 512 x 512.

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
