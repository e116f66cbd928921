"""Still lifes: slots, things, splits and pixels."""

import numpy as np
import pytest

from calumma.corpora.still_life import (
    COLORS,
    LAYOUTS,
    OBJECTS,
    SIDE,
    THINGS,
    StillLife,
    Thing,
    layout_boxes,
    sample_still_life,
    thing_image,
)
from calumma.corpora.synthetic_scenes import GROUNDS, SHAPES


def nearest(pixel: np.ndarray) -> str:
    """Return the color word whose ground is closest to a pixel."""
    return min(GROUNDS, key=lambda word: float(np.abs(np.array(GROUNDS[word]) - pixel).sum()))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("side", [SIDE, 128])
def test_things_are_at_their_named_places(layout: str, side: int) -> None:
    colors = ("red", "green", "blue", "yellow")
    things = tuple(Thing("square", color) for color in colors[: len(LAYOUTS[layout])])
    scene = StillLife("white", layout, things, "large" if layout == "single" else "")
    drawn = np.asarray(scene.render(side), dtype=float)
    for (_, across, down), (_, thing) in zip(LAYOUTS[layout], scene.positions, strict=True):
        assert nearest(drawn[round(down * side), round(across * side)]) == thing.color
    assert nearest(drawn[1, 1]) == "white"


def test_boxes_are_inside_the_image_and_do_not_overlap() -> None:
    for layout in LAYOUTS:
        covered = np.zeros((SIDE, SIDE), dtype=int)
        for left, top, box in layout_boxes(layout, "large"):
            assert min(left, top) >= 0 and max(left, top) + box <= SIDE
            covered[top : top + box, left : left + box] += 1
        assert covered.max() == 1


def test_every_object_is_in_the_embedded_corpus_and_square() -> None:
    assert len(THINGS) == len(SHAPES) * len(COLORS) + len(OBJECTS) == 72
    for name in OBJECTS:
        image = thing_image(Thing(name), 32)
        assert image.size == (32, 32)
        assert image.getextrema()[3] == (0, 255)


def test_an_empty_corner_shows_the_background() -> None:
    red = Thing("circle", "red")
    scene = StillLife("white", "corners", (red, None, Thing("banana"), red))
    assert scene.things == (red, Thing("banana"), red)
    assert [slot for slot, _ in scene.positions] == ["at the top left", "at the bottom left", "at the bottom right"]
    assert nearest(np.asarray(scene.render(), dtype=float)[16, 48]) == "white"


def test_sampled_scenes_are_of_the_split_and_their_things_visible() -> None:
    random = np.random.default_rng(0)
    for split in ("train", "combinations", "counts"):
        for number in range(60):
            kind = "count" if split == "counts" else list(LAYOUTS)[number % 5]
            scene = sample_still_life(random, kind, split)
            assert scene.split == split
            assert scene.background not in {thing.color for thing in scene.things}
            assert scene.is_count == (kind == "count")
            assert scene.is_count or len(set(scene.things)) == len(scene.things)


def test_about_a_twentieth_of_the_combinations_and_an_eighth_of_the_counts_are_held_out() -> None:
    single = [StillLife(c, "single", (t,), "small") for c in COLORS for t in THINGS if t.color != c]
    counts = [StillLife("white", layout, (t,) * n) for t in THINGS for n, layout in ((2, "row"), (3, "triple"))]
    assert 0.02 < np.mean([scene.split == "combinations" for scene in single]) < 0.08
    assert 0.06 < np.mean([scene.split == "counts" for scene in counts]) < 0.2
    # The size is no part of the key: a held-out combination is unseen in both sizes.
    for scene in single:
        assert scene.split == StillLife(scene.background, "single", scene.slots, "large").split
