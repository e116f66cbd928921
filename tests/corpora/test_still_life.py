"""Still lifes: what is drawn is what is said."""

from __future__ import annotations

import io

import numpy as np
import PIL.Image
import pytest

from calumma.corpora.still_life import GROUND_PATTERNS, LAYOUTS, Ground, StillLife, Thing, object_pool
from calumma.corpora.synthetic_scenes import GROUNDS, SHAPES
from tests.documents.image_files import png

SIDE = 96


def shape(name: str) -> Thing:
    return Thing(name, name.split()[0])


def nearest(pixel: np.ndarray) -> str:
    """Return the color word whose ground is closest to a pixel."""
    return min(GROUNDS, key=lambda word: float(np.abs(np.array(GROUNDS[word]) - pixel).sum()))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_things_are_at_their_named_positions(layout: str) -> None:
    colors = ("red", "green", "blue", "yellow")
    things = tuple(shape(f"{color} square") for color in colors[: len(LAYOUTS[layout])])
    scene = StillLife(Ground("plain", "white"), layout, things)
    drawn = np.asarray(PIL.Image.open(io.BytesIO(scene.to_jpeg(SIDE))).convert("RGB"), dtype=float)
    for (_, across, down), (_, thing) in zip(LAYOUTS[layout], scene.positions, strict=True):
        assert nearest(drawn[round(down * SIDE), round(across * SIDE)]) == thing.color
    assert nearest(drawn[1, 1]) == "white"


@pytest.mark.parametrize("pattern", GROUND_PATTERNS)
def test_grounds_have_their_colors(pattern: str) -> None:
    ground = Ground(pattern, "red", "" if pattern == "plain" else "blue")
    values = np.asarray(ground.render(SIDE), dtype=float)
    corners = {nearest(values[row, column]) for row in (0, 95) for column in (0, 13, 95)}
    assert corners == ground.colors
    assert ground.description == f"{pattern} {'red' if pattern == 'plain' else 'red and blue'} ground"


def test_an_image_keeps_its_shape_in_its_box() -> None:
    wide = Thing("plank", data=png("black", (40, 10)))
    assert wide.render(32).size == (32, 8)
    assert shape("red ring").render(32).size == (32, 32)


def test_objects_are_named_in_plain_words_and_some_are_held_out() -> None:
    things = object_pool().objects
    assert len(things) > 2500
    assert {thing.split for thing in things} == {"train", "held-out"}
    assert {thing.license for thing in things} == {"MIT", "Apache-2.0", "public domain"}
    assert all(1 <= len(thing.name.replace("-", " ").split()) <= 4 for thing in things)
    assert len(object_pool().shapes) == len(SHAPES) * len(GROUNDS)


def test_things_are_visible_and_different() -> None:
    random = np.random.default_rng(0)
    scenes = [object_pool().sample_still_life(random) for _ in range(300)]
    for scene in scenes:
        names = [thing.name for thing in scene.things]
        assert len(set(names)) == len(names)
        assert not {thing.color for thing in scene.things} & scene.ground.colors
    assert {scene.layout for scene in scenes} == set(LAYOUTS)
    assert {len(scene.things) for scene in scenes} == {1, 2, 3, 4}
    held_out = [any(t.split == "held-out" for t in scene.things) for scene in scenes]
    assert [scene.split == "held-out" for scene in scenes] == held_out
