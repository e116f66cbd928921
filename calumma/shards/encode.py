"""Documents to sequences of ids; a picture that occurs again is encoded once."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence

from calumma.documents.document import Document, Image
from calumma.errors import DocumentError, ImageError
from calumma.files import fingerprint
from calumma.shards.format import VERSION
from calumma.tokens.folder import Tokenizers
from calumma.tokens.image import ImageTokenizer
from calumma.tokens.image_preprocessing import ResizeMode
from calumma.tokens.sequence import TokenSequence, encode_document, image_resize_mode
from calumma.tokens.text import TextTokenizer

Codes = Sequence[int] | ImageError
"""The codes of a picture, or why it has none."""

ENCODE_BATCH = 32
"""Pictures encoded at a time, always: the codes of a picture then do not depend on how many
others happened to be encoded beside it, and a build that was killed ends in the same bytes."""

CODE_CACHE_BYTES = 16 << 20
"""Bytes of pictures' codes that are remembered before all are forgotten: some 7,000 pictures of
1,024 codes, and no more of small ones than fit."""

_BYTES_BESIDE = 350
"""What a picture takes beside its codes: its hash, a list's head, a place in a dictionary."""


def encoding_fingerprint(tokenizers: Tokenizers) -> str:
    """Return twelve hex digits of the tokenizers and of the shards' format."""
    return fingerprint(f"{VERSION} {sorted(tokenizers.fingerprints.items())}")


class DocumentEncoder:
    """Encodes documents with both tokenizers."""

    def __init__(
        self, text: TextTokenizer, image: ImageTokenizer, *, decode_threads: int | None = None
    ) -> None:
        """Encode with these.

        Args:
            text: for the text.
            image: for the pictures.
            decoders: threads that open pictures (default: one a processor, at most 16).
        """
        self.text = text
        self.image = image
        self.decode_threads = decode_threads
        self._cache: dict[tuple[bytes, ResizeMode], Codes] = {}
        self._failed: list[tuple[bytes, ResizeMode]] = []

    def encode(self, documents: Sequence[Document]) -> list[TokenSequence]:
        """The sequences of documents, their pictures encoded together.

        Raises:
            DocumentError, ImageError: one of them cannot be read; the first is told.
        """
        made = []
        for sequence in self.encode_each(documents):
            if isinstance(sequence, Exception):
                raise sequence
            made.append(sequence)
        return made

    def encode_each(
        self, documents: Sequence[Document]
    ) -> Iterator[TokenSequence | DocumentError | ImageError]:
        """The sequence of each document, or why it has none, in the order given.

        Pictures are opened ahead of the network by a few threads, and only a few are in memory.
        """
        keys = [[_key(image, fit) for image, fit in images_with_resize_mode(d)] for d in documents]
        self._encode_new_images(documents, keys)
        for document, wanted in zip(documents, keys, strict=True):
            found = [key if isinstance(key, ImageError) else self._cache[key] for key in wanted]
            bad = next((codes for codes in found if isinstance(codes, ImageError)), None)
            if bad is not None:
                yield bad
                continue
            try:
                codes = [one for one in found if not isinstance(one, ImageError)]
                yield encode_document(document, self.text, codes)
            except DocumentError as error:
                yield error

    def _encode_new_images(
        self, documents: Sequence[Document], keys: Sequence[Sequence[_Key | ImageError]]
    ) -> None:
        """Encode the pictures that are not known yet, each once."""
        bytes_each = _BYTES_BESIDE + 4 * self.image.config.codes_per_image
        if len(self._cache) * bytes_each > CODE_CACHE_BYTES:
            self._cache.clear()
        # What is wrong with a picture names the document that it came with: remembered longer, it
        # would stand in the quarantine of others, depending on who encoded what before.
        while self._failed:
            self._cache.pop(self._failed.pop(), None)
        new: dict[_Key, tuple[Image, ResizeMode]] = {}
        for document, wanted in zip(documents, keys, strict=True):
            for picture, key in zip(images_with_resize_mode(document), wanted, strict=True):
                if not isinstance(key, ImageError) and key not in self._cache:
                    new.setdefault(key, picture)
        stream = self.image.encode_stream(
            new.values(), num_threads=self.decode_threads, batch_size=ENCODE_BATCH
        )
        for key, codes in zip(new, stream, strict=True):
            if isinstance(codes, ImageError):
                self._failed.append(key)
            self._cache[key] = codes if isinstance(codes, ImageError) else array("i", codes)


_Key = tuple[bytes, ResizeMode]


def _key(image: Image, fit: ResizeMode) -> _Key | ImageError:
    try:
        return hashlib.sha256(image.read_bytes()).digest(), fit
    except ImageError as error:
        return error


def images_with_resize_mode(document: Document) -> list[tuple[Image, ResizeMode]]:
    """A document's pictures, each with how it is fitted to a square.

    The paper crops pictures, but pads those of prompts, so that nothing asked about is lost.
    """
    pictures: list[tuple[Image, ResizeMode]] = []
    for part in document.content:
        if isinstance(part, Image):
            pictures.append((part, "crop"))
    for turn in document.messages:
        fit = image_resize_mode(turn.role)
        pictures += [(part, fit) for part in turn.parts if isinstance(part, Image)]
    return pictures
