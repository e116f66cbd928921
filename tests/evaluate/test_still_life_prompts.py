"""Held-out prompts: their scenes are of the held-out splits, and a skill scores what it is named for."""

import pytest

from calumma.corpora.still_life import StillLife, Thing
from calumma.evaluate.still_life_prompts import (
    DRAWING_SKILLS,
    DrawingPrompt,
    sample_drawing_prompts,
    sample_held_out_edits,
    sample_held_out_scenes,
    sample_held_out_stories,
)

RED, GREEN, BANANA = Thing("circle", "red"), Thing("square", "green"), Thing("banana")


@pytest.mark.parametrize("skill", DRAWING_SKILLS)
def test_prompts_are_held_out_and_their_own_scenes_pass(skill: str) -> None:
    prompts = sample_drawing_prompts(skill, 12, seed=0)
    assert {prompt.scene.split for prompt in prompts} <= {"combinations", "counts"}
    assert all(prompt.score(prompt.scene) for prompt in prompts)
    assert prompts[:5] == sample_drawing_prompts(skill, 5, seed=0)
    new = sample_drawing_prompts(skill, 12, seed=0, new_wording=True)
    assert [prompt.scene for prompt in new] == [prompt.scene for prompt in prompts]
    assert not {prompt.caption for prompt in new} & {prompt.caption for prompt in prompts}


def score(skill: str, true: StillLife, read: StillLife) -> bool:
    return DrawingPrompt(skill, true, "").score(read)


def test_scores_by_hand() -> None:
    row = StillLife("blue", "row", (RED, GREEN))
    swapped = StillLife("blue", "row", (GREEN, RED))
    recolored = StillLife("white", "row", (Thing("circle", "green"), Thing("square", "red")))
    passes = {name: (score(name, row, swapped), score(name, row, recolored)) for name in DRAWING_SKILLS}
    assert passes["two_objects"] == (True, True)
    assert passes["position"] == (False, True)
    assert passes["color_of_each"] == (True, False)
    assert passes["one_object"] == (True, True)
    three, four = StillLife("blue", "triple", (BANANA,) * 3), StillLife("blue", "corners", (BANANA,) * 4)
    assert (score("counting", three, three), score("counting", three, four)) == (True, False)
    single = StillLife("blue", "single", (RED,), "small")
    assert not score("colors", single, StillLife("blue", "single", (Thing("circle", "green"),), "small"))


def test_scenes_and_edits_for_reading_are_held_out() -> None:
    scenes = sample_held_out_scenes(12, seed=0)
    assert "train" not in {scene.split for scene in scenes}
    assert {scene.layout for scene in scenes} >= {"single", "row", "column", "corners", "triple"}
    edits = sample_held_out_edits(12, seed=0)
    assert {edit.before.split for edit in edits} == {"combinations"}
    assert all(edit.after != edit.before for edit in edits)


def test_stories_begin_held_out_and_change_one_thing_at_a_time() -> None:
    stories = sample_held_out_stories(16, seed=0)
    assert stories == sample_held_out_stories(16, seed=0)
    assert {story.scene.split for story in stories} == {"combinations"}
    assert {len(story.scenes) for story in stories} == {3, 4, 5}
    for story in stories:
        assert [edit.before for edit in story.edits] == list(story.scenes[:-1])
