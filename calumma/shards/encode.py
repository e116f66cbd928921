"""Documents to sequences of ids; a picture that occurs again is encoded once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Literal

import PIL.Image

from calumma.documents.document import Document, Image
from calumma.errors import DocumentError
from calumma.shards.format import VERSION
from calumma.tokens.image import ImageTokenizer
from calumma.tokens.sequence import Sequence as TokenSequence
from calumma.tokens.sequence import encode_document
from calumma.tokens.text import TextTokenizer

Fit = Literal["crop", "pad"]
FITS: tuple[Fit, ...] = ("crop", "pad")
Picture = tuple[PIL.Image.Image, Fit]

BATCH = 32
"""Pictures encoded at a time, always: the codes of a picture then do not depend on how many
others happened to be encoded beside it, and a build that was killed ends in the same bytes."""

PREPARATION = "content cropped, prompts padded; white ground; Lanczos; 32 pictures at a time; 1"
"""How pictures and text are prepared; its number goes up when the ids of a document change."""

REMEMBERED = 200_000
"""Pictures whose codes are remembered; a few hundred megabytes at full size."""


@dataclass(frozen=True, kw_only=True)
class Tokenizers:
    """Both tokenizers, which must agree on the number of codes."""

    text: TextTokenizer
    image: ImageTokenizer

    def __post_init__(self) -> None:
        wanted, found = self.text.vocabulary.num_codes, self.image.config.num_codes
        if wanted != found:
            raise DocumentError(
                f"the image tokenizer has {found} codes, the text tokenizer's vocabulary "
                f"{wanted}; wanted the same number. Train the text tokenizer with "
                f"--num-codes {found}."
            )

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Twelve hex digits of each thing that decides the ids of a document."""
        text = hashlib.sha256(self.text.tokenizer.to_str(pretty=False).encode()).hexdigest()
        return {
            "text_tokenizer": text[:12],
            "image_tokenizer": self.image.fingerprint,
            "preparation": hashlib.sha256(PREPARATION.encode()).hexdigest()[:12],
        }

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits of all of them and of the shards' format."""
        text = f"{VERSION} {sorted(self.fingerprints.items())}"
        return hashlib.sha256(text.encode()).hexdigest()[:12]


class DocumentEncoder:
    """Encodes documents with both tokenizers."""

    def __init__(self, text: TextTokenizer, image: ImageTokenizer) -> None:
        self.text = text
        self.image = image
        self._known: dict[tuple[bytes, Fit], list[int]] = {}

    def encode(self, documents: Sequence[Document]) -> list[TokenSequence]:
        """The sequences of documents, their pictures encoded together.

        Raises:
            DocumentError, ImageError: one of them cannot be read.
        """
        pictures = [open_pictures(document) for document in documents]
        codes = iter(self._codes([picture for some in pictures for picture in some]))
        return [
            encode_document(document, self.text, list(islice(codes, len(some))))
            for document, some in zip(documents, pictures, strict=True)
        ]

    def _codes(self, pictures: Sequence[Picture]) -> list[list[int]]:
        keys = [(_digest(picture), fit) for picture, fit in pictures]
        if len(self._known) > REMEMBERED:
            self._known.clear()
        new: dict[tuple[bytes, Fit], PIL.Image.Image] = {
            key: picture
            for key, (picture, _) in zip(keys, pictures, strict=True)
            if key not in self._known
        }
        for fit in FITS:
            wanted = {key: picture for key, picture in new.items() if key[1] == fit}
            filled = list(wanted.values())
            filled += filled[-1:] * (-len(filled) % BATCH)
            for start in range(0, len(filled), BATCH):
                encoded = self.image.encode_images(filled[start : start + BATCH], mode=fit)
                known = list(wanted)[start : start + BATCH]
                self._known.update(zip(known, encoded, strict=False))
        return [self._known[key] for key in keys]


def _digest(picture: PIL.Image.Image) -> bytes:
    head = f"{picture.mode} {picture.size} {picture.info.get('transparency')!r}".encode()
    palette = bytes(picture.getpalette() or ()) if picture.mode == "P" else b""
    exif = picture.getexif().tobytes() if picture.getexif() else b""
    return hashlib.sha256(head + palette + exif + picture.tobytes()).digest()


def open_pictures(document: Document) -> list[Picture]:
    """A document's pictures, decoded, each with how it is fitted to a square.

    The paper crops pictures, but pads those of prompts, so that nothing asked about is lost.
    """
    pictures: list[Picture] = []
    for part in document.content:
        if isinstance(part, Image):
            pictures.append((part.open(), "crop"))
    for turn in document.messages:
        fit: Fit = "crop" if turn.role == "assistant" else "pad"
        pictures += [(part.open(), fit) for part in turn.parts if isinstance(part, Image)]
    return pictures
