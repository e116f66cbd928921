"""Edits change what they say and nothing else."""

import numpy as np
import pytest

from calumma.corpora.still_life import StillLife, Thing, sample_still_life
from calumma.corpora.still_life_edits import EDIT_KINDS, StillLifeEdit, sample_edit

RED, BANANA, BUS, BELL = Thing("circle", "red"), Thing("banana"), Thing("bus"), Thing("bell")
ROW = StillLife("white", "row", (RED, BANANA))
FOUR = StillLife("white", "corners", (RED, BANANA, BUS, BELL))
THREE = StillLife("white", "corners", (RED, None, BUS, BELL))
SINGLE = StillLife("blue", "single", (RED,), "small")


def edits(scene: StillLife, kind: str) -> dict[str, StillLife]:
    """Return the instructions of many draws with the scenes after them."""
    found = [sample_edit(scene, np.random.default_rng(seed), kind) for seed in range(200)]
    return {edit.instruction: edit.after for edit in found if edit}


def test_edits_by_hand() -> None:
    assert edits(ROW, "background")["make the background green"] == StillLife("green", "row", (RED, BANANA))
    blue = StillLife("white", "row", (Thing("circle", "blue"), BANANA))
    assert edits(ROW, "recolor")["turn the circle blue"] == edits(ROW, "recolor")["make the red circle blue"] == blue
    assert edits(ROW, "swap")["swap the red circle and the banana"] == StillLife("white", "row", (BANANA, RED))
    assert edits(FOUR, "remove")["remove the banana"] == THREE
    assert edits(THREE, "move")["move the bus to the top right"] == StillLife(
        "white", "corners", (RED, BUS, None, BELL)
    )
    assert edits(THREE, "add")["add a banana at the top right"] == FOUR
    assert edits(SINGLE, "resize")["make the red circle larger"] == StillLife("blue", "single", (RED,), "large")
    assert edits(SINGLE, "replace")["replace the red circle with a bus"] == StillLife(
        "blue", "single", (BUS,), "small"
    )


@pytest.mark.parametrize(
    ("scene", "kind"),
    [(ROW, "remove"), (ROW, "resize"), (FOUR, "add"), (FOUR, "move"), (THREE, "remove"), (THREE, "swap")],
)
def test_a_scene_that_does_not_allow_a_kind_has_no_edit_of_it(scene: StillLife, kind: str) -> None:
    assert sample_edit(scene, np.random.default_rng(0), kind) is None


def test_all_kinds_occur_and_lead_to_training_scenes_only() -> None:
    random = np.random.default_rng(0)
    found: list[StillLifeEdit] = []
    for _ in range(400):
        edit = sample_edit(sample_still_life(random), random)
        found += [edit] if edit else []
    assert {edit.kind for edit in found} == set(EDIT_KINDS)
    assert {edit.after.split for edit in found} == {"train"}
    assert all(edit.before != edit.after for edit in found)


def test_a_count_can_only_change_its_background() -> None:
    scene = StillLife("white", "triple", (BUS,) * 3)
    kinds = {edit.kind for seed in range(20) if (edit := sample_edit(scene, np.random.default_rng(seed)))}
    assert kinds == {"background"}
