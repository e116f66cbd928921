"""The images of documents as training batches: reshuffled every epoch, with random crops.

Every random choice depends only on the seed and the index of the draw, so a resumed run, or one on
other ranks, gets the same pixels. Shapes: B images, R resolution.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from torch import Tensor

from calumma.batches.sampler import shuffled_index
from calumma.documents.document import Document, Image
from calumma.documents.error_policy import UNREADABLE, DroppedDocument
from calumma.errors import DocumentError, ImageError
from calumma.files import fingerprint
from calumma.tokens.face_detection import FaceBox
from calumma.tokens.image import normalize_pixels
from calumma.tokens.image_preprocessing import named_errors, to_rgb, to_square
from calumma.train.config_image_tokenizer import AugmentConfig
from calumma.train.distributed import SINGLE_PROCESS, DistContext

CACHE_BYTES = 2 << 30
"""Memory for decoded images; those beyond it are decoded each time."""


@dataclass(frozen=True)
class Crop:
    """A square crop of an image, in fractions of the image's width and height."""

    left: float
    top: float
    width: float
    height: float
    flipped: bool

    def project_box(self, box: FaceBox) -> FaceBox | None:
        """Map a box of the image to the crop; None if less than half of it is inside."""
        left, right = ((x - self.left) / self.width for x in (box[0], box[2]))
        top, bottom = ((y - self.top) / self.height for y in (box[1], box[3]))
        if self.flipped:
            left, right = 1.0 - right, 1.0 - left
        inside = (max(0.0, left), max(0.0, top), min(1.0, right), min(1.0, bottom))
        area = (right - left) * (bottom - top)
        visible = max(0.0, inside[2] - inside[0]) * max(0.0, inside[3] - inside[1])
        return inside if visible >= 0.5 * area > 0.0 else None


@dataclass(frozen=True)
class ImageBatch:
    """The images of one step."""

    pixels: Tensor
    """[B, 3, R, R] float32 in [-1, 1]."""

    image_indices: list[int]
    """[B] indices in the dataset."""

    crops: list[Crop]
    """[B] the crop of each image."""


def drop_unreadable(
    records: Iterable[Document | DroppedDocument], resolution: int, dropped: list[DroppedDocument]
) -> Iterator[Document]:
    """Yield the documents whose images can all be decoded to squares; append the others to `dropped`.

    Every image is decoded once more than in training.
    """
    for record in records:
        if isinstance(record, DroppedDocument):
            dropped.append(record)
            continue
        try:
            for image in record.images:
                opened = image.open()
                with named_errors(image.display_name):
                    to_square(to_rgb(opened), resolution)
        except ImageError as error:
            drop = {"reason": UNREADABLE, "detail": str(error)}
            dropped.append(DroppedDocument(id=record.id, source=record.source, **drop))
            continue
        yield record


class ImageDataset:
    """The images of documents, decoded on demand."""

    def __init__(self, documents: Iterable[Document], resolution: int, augment: AugmentConfig | None = None) -> None:
        """Collect the images without decoding them.

        Raises:
            DocumentError: the documents have none.
        """
        self.images: list[Image] = []
        self.attributes: list[dict[str, str]] = []
        """Attributes of each image's document, if it is the only image there."""
        for document in documents:
            found = document.images
            self.images += found
            alone = dict(document.attributes) if len(found) == 1 else {}
            self.attributes += [alone] * len(found)
        if not self.images:
            raise DocumentError(
                "the documents have no images; expected at least one to train an image tokenizer. "
                "Name files whose documents have image parts."
            )
        self.resolution = resolution
        self.augment = augment or AugmentConfig()
        self._epoch = list(range(len(self.images)))
        """Indices of one epoch, before shuffling."""

        self._cache_space = CACHE_BYTES
        self._cache: dict[int, _CachedImage] = {}

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits of the bytes of all images."""
        return fingerprint(hashlib.sha256(i.read_bytes()).digest() for i in self.images)

    def oversample(self, indices: Sequence[int], times: int) -> None:
        """Let these images occur `times` per epoch, not once."""
        self._epoch = sorted([*range(len(self.images)), *list(indices) * (times - 1)])

    def batch(self, step: int, size: int, seed: int, dist: DistContext = SINGLE_PROCESS) -> ImageBatch:
        """Return this rank's `size` / ranks images of a step, counted from 0."""
        count = size // dist.size
        first = step * size + dist.rank * count
        draws = range(first, first + count)
        indices = [self._epoch[shuffled_index(i, len(self._epoch), seed)] for i in draws]
        crops = [
            self._random_crop(index, np.random.default_rng([seed, draw, 1]))
            for index, draw in zip(indices, draws, strict=True)
        ]
        return ImageBatch(torch.stack([pixels for pixels, _ in crops]), indices, [c for _, c in crops])

    def _random_crop(self, index: int, rng: np.random.Generator) -> tuple[Tensor, Crop]:
        flipped = self.augment.horizontal_flip and bool(rng.random() < 0.5)
        image = self._cache.get(index) or self._decode(index)
        if self.augment.min_crop_scale == 1.0:
            crop, values = _center_crop(image.size, flipped), image.values
        else:
            crop = _sample_crop(image.size, self.augment.min_crop_scale, flipped, rng)
            values = _resized_crop(image.values, crop, self.resolution)
        pixels = normalize_pixels(torch.from_numpy(values).permute(2, 0, 1))
        return (pixels.flip(2) if flipped else pixels), crop

    def _decode(self, index: int) -> "_CachedImage":
        """Decode an image, and cache it if there is space."""
        opened, name = self.images[index].open(), self.images[index].display_name
        with named_errors(name):
            image = to_rgb(opened)
        if self.augment.min_crop_scale == 1.0:
            with named_errors(name):
                square = to_square(image, self.resolution, "crop")
            decoded = _CachedImage(np.array(square), image.size)
        else:
            # More pixels than the smallest crop needs would only cost memory.
            needed = math.ceil(self.resolution / self.augment.min_crop_scale)
            if min(image.size) > needed:
                scale = needed / min(image.size)
                width, height = (round(side * scale) for side in image.size)
                image = image.resize((width, height), PIL.Image.Resampling.LANCZOS)
            decoded = _CachedImage(np.array(image), image.size)
        if decoded.values.nbytes <= self._cache_space:
            self._cache_space -= decoded.values.nbytes
            self._cache[index] = decoded
        return decoded


@dataclass(frozen=True)
class _CachedImage:
    values: NDArray[np.uint8]
    """[height, width, 3], of the center crop or, with random crops, of the full image."""

    size: tuple[int, int]
    """Width and height of the full image."""


def _center_crop(size: tuple[int, int], flipped: bool) -> Crop:
    width, height = (min(size) / side for side in size)
    return Crop((1 - width) / 2, (1 - height) / 2, width, height, flipped)


def _sample_crop(size: tuple[int, int], min_scale: float, flipped: bool, rng: np.random.Generator) -> Crop:
    side = rng.uniform(min_scale, 1.0) * min(size)
    width, height = (side / full for full in size)
    left, top = rng.uniform(0.0, 1.0 - width), rng.uniform(0.0, 1.0 - height)
    return Crop(left, top, width, height, flipped)


def _resized_crop(values: NDArray[np.uint8], crop: Crop, resolution: int) -> NDArray[np.uint8]:
    """Cut a crop out of [H, W, 3] and resize it to [R, R, 3], without flipping."""
    height, width = values.shape[:2]
    left, top = crop.left * width, crop.top * height
    box = (left, top, left + crop.width * width, top + crop.height * height)
    size = (resolution, resolution)
    return np.array(PIL.Image.fromarray(values).resize(size, PIL.Image.Resampling.LANCZOS, box=box))
