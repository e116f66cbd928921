"""Detection of faces and salient objects in the training images, once before the first step.

Nothing is downloaded: faces are found by the Haar cascade in OpenCV's package, salient objects by
a method without weights; both may also be given as attributes of the documents.
"""

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
_SALIENCY_FACTOR = 3.0
"""Multiple of the mean saliency from which a pixel is salient."""

_SAVE_INTERVAL = 500


def salient_object(image: PIL.Image.Image) -> list[FaceBox]:
    """Return the box of the salient pixels; no box if there are none.

    Source: the spectral residual (Hou and Zhang, 2007), the log spectrum minus its local mean,
    transformed back. A tenth of the salient mass may be outside the box on each side, or single
    pixels would stretch it.
    """
    shape = (_SALIENCY_SIDE, _SALIENCY_SIDE)
    gray = np.asarray(image.convert("L").resize(shape), np.float64) / 255.0
    if gray.max() - gray.min() < 1e-3:
        return []
    spectrum = np.fft.fft2(gray)
    log_spectrum = np.log(np.abs(spectrum) + 1e-9)
    residual = log_spectrum - _box_blur(log_spectrum, 1)
    saliency = np.abs(np.fft.ifft2(np.exp(residual + 1j * np.angle(spectrum)))) ** 2
    saliency = _box_blur(saliency, 3)
    mass = np.where(saliency > _SALIENCY_FACTOR * saliency.mean(), saliency, 0.0)
    if not mass.any():
        return []
    (left, right), (top, bottom) = _middle_mass(mass.sum(0)), _middle_mass(mass.sum(1))
    return [(left, top, right, bottom)]


def _box_blur(values: NDArray[np.float64], radius: int) -> NDArray[np.float64]:
    for axis in (0, 1):
        shifted = [np.roll(values, step, axis) for step in range(-radius, radius + 1)]
        values = np.mean(shifted, axis=0)
    return values


def _middle_mass(profile: NDArray[np.float64]) -> tuple[float, float]:
    """Return the start and end of the middle 80 % of the mass, in fractions of the length."""
    cumulative = np.cumsum(profile) / profile.sum()
    first, last = (int(np.searchsorted(cumulative, share)) for share in (0.1, 0.9))
    return first / len(profile), (last + 1) / len(profile)


def parse_boxes(text: str, where: str) -> list[FaceBox]:
    """Parse the boxes of a document's attribute.

    >>> parse_boxes("0.1 0.2 0.5 0.6; 0 0 1 1", "here")
    [(0.1, 0.2, 0.5, 0.6), (0.0, 0.0, 1.0, 1.0)]

    Raises:
        DocumentError: it is not a list of boxes.
    """
    boxes = []
    for part in filter(None, map(str.strip, text.split(";"))):
        try:
            left, top, right, bottom = map(float, part.split())
        except ValueError:
            left = right = top = bottom = 0.0
        if not (0.0 <= left < right <= 1.0 and 0.0 <= top < bottom <= 1.0):
            raise DocumentError(
                f"{where}: found the box {part!r}; expected left, top, right and bottom in fractions "
                'of width and height, such as "0.1 0.2 0.5 0.6; 0 0 1 1". Fix the attribute.'
            )
        boxes.append((left, top, right, bottom))
    return boxes


def detect_boxes(
    dataset: ImageDataset, detectors: Mapping[str, FaceDetector | None], path: Path
) -> dict[str, list[list[FaceBox]]]:
    """Return the boxes of every image, by kind.

    Args:
        dataset: the images.
        detectors: the detector of each kind; None reads the attribute of that name.
        path: file of the results, from which an interrupted search resumes.

    Raises:
        DocumentError: an attribute is not a list of boxes.
        ImageError: an image cannot be read.
    """
    results = _saved_results(path, dataset, list(detectors))
    found: dict[str, list[list[FaceBox]]] = results["boxes"]
    total = len(dataset.images)
    for index in range(len(found[next(iter(detectors))]), total):
        image = None
        for kind, detector in detectors.items():
            if detector is None:
                text = dataset.attributes[index].get(kind, "")
                boxes = parse_boxes(text, f"image {index}, attribute {kind}")
            else:
                image = image or to_rgb(dataset.images[index].open())
                boxes = detector(image)
            found[kind].append(boxes)
        if (index + 1) % _SAVE_INTERVAL == 0 or index + 1 == total:
            write_json(path, results)
    return found


def _saved_results(path: Path, dataset: ImageDataset, kinds: Sequence[str]) -> dict[str, Any]:
    """Return the results in the file if they are of these images and kinds, else empty ones."""
    empty = {"images": dataset.fingerprint, "boxes": {kind: [] for kind in kinds}}
    if not path.is_file():
        return empty
    saved: dict[str, Any] = read_json(path)
    matches = saved.get("images") == empty["images"] and list(saved["boxes"]) == list(kinds)
    return saved if matches else empty
