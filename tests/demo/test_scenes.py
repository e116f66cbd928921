"""Held-out captions of the demo never occur in training."""

import pytest

from calumma.demo.scenes import (
    SceneRenderer,
    SceneSplits,
    conversations,
    is_in_demo,
    limit_scenes,
    load_scenes,
    pretraining_documents,
    scene_caption,
)
from calumma.evaluate.still_life_judge import read_still_life
from calumma.evaluate.still_life_scores import score_caption


@pytest.fixture(scope="module")
def splits() -> SceneSplits:
    return load_scenes()


def test_held_out_captions_never_occur_in_training(splits: SceneSplits) -> None:
    trained, held_out = (set(map(scene_caption, scenes)) for scenes in (splits.train, splits.held_out))
    assert len(held_out) >= 200
    assert not trained & held_out
    assert {scene.split for scene in splits.held_out} == {"combinations"}
    assert all(map(is_in_demo, [*splits.train, *splits.held_out]))


def test_every_word_of_a_held_out_caption_was_trained_on(splits: SceneSplits) -> None:
    trained = {word for scene in splits.train for word in scene_caption(scene).split()}
    assert {word for scene in splits.held_out for word in scene_caption(scene).split()} <= trained


def test_new_objects_occur_in_no_training_caption(splits: SceneSplits) -> None:
    trained = {word for scene in splits.train for word in scene_caption(scene).split()}
    assert len(splits.new_objects) == 48
    for scene in splits.new_objects:
        assert scene.things[0].kind not in trained


def test_a_limit_selects_evenly_and_zero_selects_all(splits: SceneSplits) -> None:
    few = limit_scenes(splits, 10)
    assert (len(few.train), len(few.held_out)) == (10, 10)
    assert few.train[0] == splits.train[0]
    assert limit_scenes(splits, 0) == splits


@pytest.fixture(scope="module")
def few(splits: SceneSplits) -> SceneSplits:
    return limit_scenes(splits, 24)


def test_a_scene_is_rendered_once_and_deterministically(few: SceneSplits) -> None:
    renderer = SceneRenderer(32)
    scene = few.train[0]
    assert renderer.image(scene) is renderer.image(scene)
    assert SceneRenderer(32).image(scene).read_bytes() == renderer.image(scene).read_bytes()
    pair = renderer.pair(scene)
    assert pair.text == scene_caption(scene)
    assert pair.source in ("objects", "shapes")


def test_the_judge_reads_what_a_caption_says(few: SceneSplits) -> None:
    for scene in few.train:
        read = read_still_life(SceneRenderer().image(scene).open()).scene
        assert read == scene
        score = score_caption(scene, scene_caption(scene))
        assert all([*score.things, *score.colors, *score.positions])


def test_conversations_and_pages_have_training_scenes_and_depend_on_the_seed(few: SceneSplits) -> None:
    renderer = SceneRenderer(32)
    held = {scene_caption(scene) for scene in few.held_out}

    def texts(seed: int) -> list[str]:
        documents = [*conversations(few, renderer, seed), *pretraining_documents(few, renderer, seed)]
        assert {d.source for d in documents} >= {"draw", "describe", "show", "pages", "glosses"}
        assert len({document.id for document in documents}) == len(documents)
        return [document.text for document in documents]

    first = texts(0)
    assert first == texts(0) != texts(1)
    assert not any(caption in text.splitlines() for text in first for caption in held)
