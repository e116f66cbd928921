"""Encoding documents to token sequences; each distinct image is read, hashed and encoded once."""

import hashlib
from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from calumma.documents.document import Document, Image
from calumma.errors import DocumentError, ImageError
from calumma.tokens.folder import Tokenizers
from calumma.tokens.image_prefetch import ImageInput
from calumma.tokens.image_preprocessing import ResizeMode
from calumma.tokens.sequence import CodeGrid, TokenSequence, encode_document, grid_of, image_resize_mode
from calumma.vocabulary import Grid

EncodedCodes = Sequence[int] | ImageError
"""The codes of an image, or the error that prevented encoding it."""

CODE_CACHE_BYTES = 16 << 20
"""Size at which the cache of codes is cleared: some 7,000 images of 1,024 codes."""

_CACHE_ENTRY_OVERHEAD = 350
"""Bytes of a cache entry besides the codes: the hash, the array object, the dictionary slot."""

_ImageKey = tuple[bytes, ResizeMode]
_CachedCodes = tuple["array[int]", Grid] | ImageError


class EncodedDocument(NamedTuple):
    """The result of encoding one document."""

    sequence: TokenSequence | DocumentError | ImageError
    """The token sequence, or the error that prevented encoding."""

    image_digests: list[bytes | None]
    """SHA-256 of each image in reading order; None for one that cannot be read."""


class DocumentEncoder:
    """Encodes documents with both tokenizers."""

    def __init__(self, tokenizers: Tokenizers, *, decode_threads: int | None = None) -> None:
        """Create an encoder.

        Args:
            tokenizers: text and image.
            decode_threads: threads that decode images (default: one per processor, at most 16).
        """
        self.tokenizers = tokenizers
        self.decode_threads = decode_threads
        self._sizes = tokenizers.text.vocabulary.image_sizes
        self._cache: dict[_ImageKey, _CachedCodes] = {}
        self._failed: list[_ImageKey] = []

    def encode(self, documents: Sequence[Document]) -> list[TokenSequence]:
        """Encode documents, with their images in common batches.

        Raises:
            DocumentError, ImageError: a document cannot be encoded; the first error is raised.
        """
        sequences = []
        for sequence, _ in self.encode_each(documents):
            if isinstance(sequence, Exception):
                raise sequence
            sequences.append(sequence)
        return sequences

    def encode_each(self, documents: Sequence[Document]) -> Iterator[EncodedDocument]:
        """Encode documents and yield the result of each, in order.

        Images are decoded by threads ahead of the network; only a few batches are in memory.
        """
        all_keys = self._encode_new_images(documents)
        for document, keys in zip(documents, all_keys, strict=True):
            found = [key if isinstance(key, ImageError) else self._cached_codes(key) for key in keys]
            digests = [None if isinstance(key, ImageError) else key[0] for key in keys]
            codes = [each for each in found if not isinstance(each, ImageError)]
            sequence: TokenSequence | DocumentError | ImageError
            try:
                for each in found:
                    if isinstance(each, ImageError):
                        raise each
                sequence = encode_document(document, self.tokenizers.text, codes)
            except (DocumentError, ImageError) as error:
                sequence = error
            yield EncodedDocument(sequence, digests)

    def _encode_new_images(self, documents: Sequence[Document]) -> list[list[_ImageKey | ImageError]]:
        """Encode all images that are not in the cache; return the key of each image."""
        self._trim_cache()
        all_keys: list[list[_ImageKey | ImageError]] = []
        queue: deque[_ImageKey] = deque()
        seen = set(self._cache)

        def new_images() -> Iterator[ImageInput]:
            for document in documents:
                keys: list[_ImageKey | ImageError] = []
                all_keys.append(keys)
                for image, mode in images_with_resize_mode(document):
                    try:
                        data = image.read_bytes()
                    except ImageError as error:
                        keys.append(error)
                        continue
                    key = hashlib.sha256(data).digest(), mode if self._sizes is None else "crop"
                    keys.append(key)
                    if key not in seen:
                        seen.add(key)
                        queue.append(key)
                        yield Image(data=data, name=image.display_name), mode

        image_tokenizer = self.tokenizers.image
        grids = () if self._sizes is None else self._sizes.grids
        for codes in image_tokenizer.encode_stream(new_images(), grids=grids, num_threads=self.decode_threads):
            key = queue.popleft()
            if isinstance(codes, ImageError):
                self._failed.append(key)
                self._cache[key] = codes
            else:
                self._cache[key] = array("i", codes), grid_of(codes)
        return all_keys

    def _cached_codes(self, key: _ImageKey) -> EncodedCodes:
        cached = self._cache[key]
        if isinstance(cached, ImageError):
            return cached
        codes, grid = cached
        return codes if self._sizes is None else CodeGrid(codes, *grid)

    def _trim_cache(self) -> None:
        codes_per_image = self.tokenizers.image.config.codes_per_image
        if self._sizes is not None:
            codes_per_image = self._sizes.max_cells
        if len(self._cache) * (_CACHE_ENTRY_OVERHEAD + 4 * codes_per_image) > CODE_CACHE_BYTES:
            self._cache.clear()
        # An error names the document of the image: kept longer, it would appear in the quarantine
        # of another document with the same image, depending on what a worker encoded before.
        while self._failed:
            self._cache.pop(self._failed.pop(), None)


def image_digests(document: Document) -> list[bytes | None]:
    """Return the SHA-256 of each image in reading order; None for one that cannot be read."""
    digests: list[bytes | None] = []
    for image, _ in images_with_resize_mode(document):
        try:
            digests.append(hashlib.sha256(image.read_bytes()).digest())
        except ImageError:
            digests.append(None)
    return digests


def images_with_resize_mode(document: Document) -> list[tuple[Image, ResizeMode]]:
    """Return a document's images with the way each becomes square.

    As in the paper: images are cropped, but those of prompts are padded, so that nothing that is
    asked about is lost.
    """
    images: list[tuple[Image, ResizeMode]] = []
    for part in document.content:
        if isinstance(part, Image):
            images.append((part, "crop"))
    for turn in document.messages:
        mode = image_resize_mode(turn.role)
        images += [(part, mode) for part in turn.parts if isinstance(part, Image)]
    return images
