from __future__ import annotations

import numpy as np
import PIL.Image
import pytest

from calumma.corpora.synthetic_scenes import GROUNDS, Scene, draw_scene, shape_scenes
from calumma.evaluate.color import COLOR_NAMES, background_color, nearest_colors, object_color, to_lab


def test_lab_has_the_known_values_of_the_primaries() -> None:
    # Lindbloom's calculator, sRGB under D65.
    primaries = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [0, 0, 0]])
    expected = np.array([[53.24, 80.09, 67.20], [87.73, -86.18, 83.18], [32.30, 79.19, -107.86], [0, 0, 0]])
    assert to_lab(primaries) == pytest.approx(expected, abs=0.1)


def test_every_ground_is_nearest_to_itself() -> None:
    assert nearest_colors(np.array(list(GROUNDS.values()))).tolist() == list(range(8))
    assert tuple(GROUNDS) == COLOR_NAMES


@pytest.mark.parametrize("side", [32, 64])
def test_the_ruler_reads_every_composed_shape_right(side: int) -> None:
    for scene in list(shape_scenes())[::7]:
        image = draw_scene(scene, {}, side)
        assert (background_color(image), object_color(image)) == (scene.ground, scene.color), scene


def test_a_little_noise_changes_nothing() -> None:
    image = draw_scene(Scene("ring", "large", "orange", "purple"), {}, 64)
    noise = np.random.default_rng(0).normal(0, 12, (64, 64, 3))
    noisy = PIL.Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))
    assert (background_color(noisy), object_color(noisy)) == ("orange", "purple")


def test_an_empty_ground_has_nothing_on_it() -> None:
    assert object_color(PIL.Image.new("RGB", (32, 32), GROUNDS["blue"])) is None
