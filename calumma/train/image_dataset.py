"""The pictures of documents, as batches of pixels: in an order of each epoch, cut anew each time.

Shapes: B pictures, R resolution. Everything drawn is drawn from the seed and the number of the
draw, so a run that goes on, or one on other ranks, sees the same pixels.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from torch import Tensor

from calumma.documents.document import Document, Image
from calumma.errors import DocumentError
from calumma.files import fingerprint
from calumma.tokens.face_detection import FaceBox
from calumma.tokens.image_preprocessing import to_rgb, to_square
from calumma.tokens.pixels import normalize_pixels
from calumma.train.config_image_tokenizer import AugmentConfig
from calumma.train.distributed import SINGLE_PROCESS, DistContext
from calumma.train.epochs import drawn

CACHE_BYTES = 2 << 30
"""Decoded pictures are kept up to this much memory; beyond it they are decoded each time."""


@dataclass(frozen=True)
class Crop:
    """The square that is cut out of a picture, as shares of its width and height."""

    left: float
    top: float
    width: float
    height: float
    flipped: bool

    def project_box(self, box: FaceBox) -> FaceBox | None:
        """A box of the picture as a box of the view; None where too little of it is inside."""
        left, right = ((x - self.left) / self.width for x in (box[0], box[2]))
        top, bottom = ((y - self.top) / self.height for y in (box[1], box[3]))
        if self.flipped:
            left, right = 1.0 - right, 1.0 - left
        inside = (max(0.0, left), max(0.0, top), min(1.0, right), min(1.0, bottom))
        whole = (right - left) * (bottom - top)
        part = max(0.0, inside[2] - inside[0]) * max(0.0, inside[3] - inside[1])
        return inside if part >= 0.5 * whole > 0.0 else None


@dataclass(frozen=True)
class ImageBatch:
    """The pictures of one step."""

    pixels: Tensor
    """[B, 3, R, R] float32 in [-1, 1]."""

    image_indices: list[int]
    """The number of each picture."""

    crops: list[Crop]
    """What is seen of each."""


class ImageDataset:
    """The pictures of documents, as pixels when asked for."""

    def __init__(
        self,
        documents: Iterable[Document],
        resolution: int,
        augment: AugmentConfig | None = None,
    ) -> None:
        """Gather the pictures, undecoded.

        Raises:
            DocumentError: the documents hold none.
        """
        self.images: list[Image] = []
        self.attributes: list[dict[str, str]] = []
        """Of the document of each picture, where it is its only one."""
        for document in documents:
            found = document.images
            self.images += found
            alone = dict(document.attributes) if len(found) == 1 else {}
            self.attributes += [alone] * len(found)
        if not self.images:
            raise DocumentError(
                "the documents hold no picture; expected at least one to train an image tokenizer "
                "on. Name files whose documents have image parts."
            )
        self.resolution = resolution
        self.augment = augment or AugmentConfig()
        self._draws = list(range(len(self.images)))
        self._room = CACHE_BYTES
        self._kept: dict[int, _Kept] = {}

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits of all pictures' bytes."""
        return fingerprint(hashlib.sha256(one.read_bytes()).digest() for one in self.images)

    def oversample(self, numbers: Sequence[int], times: int) -> None:
        """Let these pictures come `times` an epoch, not once."""
        self._draws = sorted([*range(len(self.images)), *list(numbers) * (times - 1)])

    def batch(
        self, step: int, size: int, seed: int, dist: DistContext = SINGLE_PROCESS
    ) -> ImageBatch:
        """This rank's share of the pictures of step `step`: `size` / ranks of them.

        Every picture comes once an epoch (see `repeat`), in an order that the seed and the epoch
        decide.
        """
        own = size // dist.size
        first = step * size + dist.rank * own
        draws = range(first, first + own)
        numbers = [self._draws[drawn(draw, len(self._draws), seed)] for draw in draws]
        made = [
            self._pixels(number, np.random.default_rng([seed, draw, 1]))
            for number, draw in zip(numbers, draws, strict=True)
        ]
        return ImageBatch(
            torch.stack([pixels for pixels, _ in made]), numbers, [v for _, v in made]
        )

    def _pixels(self, number: int, drawing: np.random.Generator) -> tuple[Tensor, Crop]:
        mirrored = self.augment.horizontal_flip and bool(drawing.random() < 0.5)
        kept = self._kept.get(number) or self._keep(number)
        if self.augment.min_crop_scale == 1.0:
            view, values = _middle(kept.size, mirrored), kept.values
        else:
            view = _somewhere(kept.size, self.augment.min_crop_scale, mirrored, drawing)
            values = _cut(kept.values, view, self.resolution)
        pixels = normalize_pixels(torch.from_numpy(values).permute(2, 0, 1))
        return (pixels.flip(2) if mirrored else pixels), view

    def _keep(self, number: int) -> _Kept:
        picture = to_rgb(self.images[number].open())
        if self.augment.min_crop_scale == 1.0:
            square = to_square(picture, self.resolution, "crop")
            kept = _Kept(np.array(square), picture.size)
        else:
            # More pixels than the smallest cut needs would only cost memory.
            most = math.ceil(self.resolution / self.augment.min_crop_scale)
            if min(picture.size) > most:
                share = most / min(picture.size)
                width, height = (round(side * share) for side in picture.size)
                picture = picture.resize((width, height), PIL.Image.Resampling.LANCZOS)
            kept = _Kept(np.array(picture), picture.size)
        if kept.values.nbytes <= self._room:
            self._room -= kept.values.nbytes
            self._kept[number] = kept
        return kept


@dataclass(frozen=True)
class _Kept:
    values: NDArray[np.uint8]
    """[height, width, 3], of the square in the middle or, where cuts are drawn, of the whole."""

    size: tuple[int, int]
    """Width and height of the whole."""


def _middle(size: tuple[int, int], mirrored: bool) -> Crop:
    width, height = (min(size) / side for side in size)
    return Crop((1 - width) / 2, (1 - height) / 2, width, height, mirrored)


def _somewhere(
    size: tuple[int, int], smallest: float, mirrored: bool, drawing: np.random.Generator
) -> Crop:
    """A square with a side from `smallest` to 1 of the shorter side, anywhere."""
    side = drawing.uniform(smallest, 1.0) * min(size)
    width, height = (side / whole for whole in size)
    left, top = drawing.uniform(0.0, 1.0 - width), drawing.uniform(0.0, 1.0 - height)
    return Crop(left, top, width, height, mirrored)


def _cut(values: NDArray[np.uint8], view: Crop, resolution: int) -> NDArray[np.uint8]:
    """[H, W, 3] -> [R, R, 3], what the view sees, unmirrored."""
    height, width = values.shape[:2]
    left, top = view.left * width, view.top * height
    box = (left, top, left + view.width * width, top + view.height * height)
    side = (resolution, resolution)
    picture = PIL.Image.fromarray(values)
    return np.array(picture.resize(side, PIL.Image.Resampling.LANCZOS, box=box))
