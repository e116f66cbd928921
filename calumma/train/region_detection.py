"""Where the faces and the salient things of pictures are: looked for once, before training.

Nothing is downloaded: faces are found by the cascade that OpenCV's package ships, salient things
by a method that needs no weights, and both may be given with the documents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from calumma.errors import DocumentError
from calumma.files import read_json, write_json
from calumma.tokens.face_detection import FaceBox, FaceDetector
from calumma.tokens.image_preprocessing import to_rgb
from calumma.train.image_dataset import ImageDataset

_SALIENCY_SIDE = 64
_SALIENT = 3.0
"""So many times the mean a place's saliency must be."""

_SAVED_EVERY = 500


def salient_object(picture: PIL.Image.Image) -> list[FaceBox]:
    """The box around most of what stands out; none where nothing does.

    Source: the spectral residual (Hou and Zhang, 2007): what an image's log spectrum has beyond
    its own local mean, turned back into places. A tenth of the salient mass may lie outside the
    box on each side of it, or single spots would stretch it.
    """
    shape = (_SALIENCY_SIDE, _SALIENCY_SIDE)
    grey = np.asarray(picture.convert("L").resize(shape), np.float64) / 255.0
    if grey.max() - grey.min() < 1e-3:
        return []
    spectrum = np.fft.fft2(grey)
    logs = np.log(np.abs(spectrum) + 1e-9)
    residual = logs - _blurred(logs, 1)
    places = np.abs(np.fft.ifft2(np.exp(residual + 1j * np.angle(spectrum)))) ** 2
    places = _blurred(places, 3)
    mass = np.where(places > _SALIENT * places.mean(), places, 0.0)
    if not mass.any():
        return []
    (left, right), (top, bottom) = _middle_mass(mass.sum(0)), _middle_mass(mass.sum(1))
    return [(left, top, right, bottom)]


def _blurred(values: NDArray[np.float64], reach: int) -> NDArray[np.float64]:
    """Each value's mean with its neighbours up to `reach` away, around the edges."""
    for axis in (0, 1):
        moved = [np.roll(values, step, axis) for step in range(-reach, reach + 1)]
        values = np.mean(moved, axis=0)
    return values


def _middle_mass(line: NDArray[np.float64]) -> tuple[float, float]:
    """Where, as shares of the line, the middle eight tenths of its mass begin and end."""
    grown = np.cumsum(line) / line.sum()
    first, last = int(np.searchsorted(grown, 0.1)), int(np.searchsorted(grown, 0.9))
    return first / len(line), (last + 1) / len(line)


def parse_boxes(text: str, where: str) -> list[FaceBox]:
    """Boxes as a document's attribute tells them.

    >>> given_boxes("0.1 0.2 0.5 0.6; 0 0 1 1", "here")
    [(0.1, 0.2, 0.5, 0.6), (0.0, 0.0, 1.0, 1.0)]

    Raises:
        DocumentError: it is no list of boxes.
    """
    boxes = []
    for part in filter(None, map(str.strip, text.split(";"))):
        try:
            left, top, right, bottom = map(float, part.split())
        except ValueError:
            left = right = top = bottom = 0.0
        if not (0.0 <= left < right <= 1.0 and 0.0 <= top < bottom <= 1.0):
            raise DocumentError(
                f"{where}: found the box {part!r}; expected left, top, right and bottom as shares "
                'of width and height, such as "0.1 0.2 0.5 0.6; 0 0 1 1". Fix the attribute.'
            )
        boxes.append((left, top, right, bottom))
    return boxes


def detect_boxes(
    pictures: ImageDataset, finders: Mapping[str, FaceDetector | None], kept: Path
) -> dict[str, list[list[FaceBox]]]:
    """The boxes of every picture, by kind.

    Args:
        pictures: all of them.
        finders: who looks for each kind; None takes the attribute of that name.
        kept: the file in which what is found is kept, and from which a stopped search goes on.

    Raises:
        DocumentError: an attribute is no list of boxes.
        ImageError: a picture cannot be read.
    """
    known = _known(kept, pictures, list(finders))
    found: dict[str, list[list[FaceBox]]] = known["boxes"]
    total = len(pictures.images)
    for number in range(len(found[next(iter(finders))]), total):
        picture = None
        for kind, finder in finders.items():
            if finder is None:
                text = pictures.attributes[number].get(kind, "")
                boxes = parse_boxes(text, f"picture {number}, attribute {kind}")
            else:
                picture = picture or to_rgb(pictures.images[number].open())
                boxes = finder(picture)
            found[kind].append(boxes)
        if (number + 1) % _SAVED_EVERY == 0 or number + 1 == total:
            write_json(kept, known)
    return found


def _known(kept: Path, pictures: ImageDataset, kinds: Sequence[str]) -> dict[str, Any]:
    """What the file holds, if it is of these pictures and kinds; else nothing found yet."""
    fresh = {"pictures": pictures.fingerprint, "boxes": {kind: [] for kind in kinds}}
    if not kept.is_file():
        return fresh
    known: dict[str, Any] = read_json(kept)
    same = known["pictures"] == fresh["pictures"] and list(known["boxes"]) == list(kinds)
    return known if same else fresh
