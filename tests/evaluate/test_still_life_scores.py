"""Captions and edits are scored by what they name and what they change."""

import numpy as np

from calumma.corpora.still_life import StillLife, Thing, sample_still_life
from calumma.corpora.still_life_captions import make_caption
from calumma.corpora.still_life_edits import StillLifeEdit
from calumma.evaluate.still_life_scores import EditScore, score_caption, score_consistency, score_edit

RED, GREEN, BANANA, BUS = Thing("circle", "red"), Thing("circle", "green"), Thing("banana"), Thing("bus")
ROW = StillLife("blue", "row", (RED, BANANA))


def test_true_captions_get_everything_right() -> None:
    random = np.random.default_rng(0)
    for number in range(200):
        scene = sample_still_life(random)
        score = score_caption(scene, make_caption(scene, random, wordings="held-out" if number % 2 == 0 else "all"))
        assert all(score.things + score.colors + score.positions + score.counts)
        assert bool(score.counts) == scene.is_count


def test_errors_of_captions_by_hand() -> None:
    score = score_caption(ROW, "a green circle left of a bus on a red background")
    assert (score.things, score.colors, score.positions) == ([True, False], [False, False], [])
    score = score_caption(ROW, "A red circle right of a banana on a blue background.")
    assert (score.things, score.colors, score.positions) == ([True, True], [True, True], [False])
    three = StillLife("blue", "triple", (BUS,) * 3)
    assert score_caption(three, "four buses on a blue background").counts == [False]
    corners = StillLife("blue", "corners", (RED, BANANA, BUS, None))
    caption = "a red circle at the top left, a bus at the top right and a mushroom at the bottom left"
    score = score_caption(corners, caption)
    assert (score.things, score.positions) == ([True, False, True], [True, False])


def test_edits_by_hand() -> None:
    green = StillLife("blue", "row", (Thing("circle", "green"), BANANA))
    edit = StillLifeEdit("recolor", "make the circle green", ROW, green)
    assert score_edit(edit, edit.after) == EditScore(exact=True, changed=True, unchanged=1.0)
    assert score_edit(edit, edit.before) == EditScore(exact=False, changed=False, unchanged=1.0)
    both = StillLife("red", "row", (Thing("circle", "green"), BUS))
    assert score_edit(edit, both) == EditScore(exact=False, changed=True, unchanged=0.5)
    assert score_edit(edit, None) == EditScore(exact=False, changed=False, unchanged=0.0)


def test_consistency_compares_the_images_and_not_the_request() -> None:
    edit = StillLifeEdit("recolor", "make the circle green", ROW, StillLife("blue", "row", (GREEN, BANANA)))
    wrong = StillLife("red", "row", (BUS, BUS))
    assert score_consistency(edit, ROW, edit.after) == score_consistency(edit, wrong, wrong) == 1.0
    # Unchanged are the background, the layout, no size and the banana; background and banana differ.
    assert score_consistency(edit, ROW, wrong) == 0.5
    assert score_consistency(edit, None, wrong) == score_consistency(edit, wrong, None) == 0.0
