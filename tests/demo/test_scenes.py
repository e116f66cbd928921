"""Held-out captions and objects of the demo never occur in training."""

from dataclasses import replace

import pytest

from calumma.demo.scenes import (
    SceneRenderer,
    SceneSplits,
    conversations,
    is_held_out,
    limit_scenes,
    load_scenes,
    pretraining_documents,
)


@pytest.fixture(scope="module")
def splits() -> SceneSplits:
    return load_scenes()


def test_held_out_captions_never_occur_in_training(splits: SceneSplits) -> None:
    trained = {scene.caption for scene in splits.train}
    held_out = {scene.caption for scene in splits.held_out}
    assert len(held_out) >= 200
    assert not trained & held_out
    assert all(map(is_held_out, splits.held_out))
    assert not any(map(is_held_out, splits.train))


def test_every_word_of_a_held_out_caption_was_trained_on(splits: SceneSplits) -> None:
    trained = {word for scene in splits.train for word in scene.caption.split()}
    assert {word for scene in splits.held_out for word in scene.caption.split()} <= trained


def test_new_objects_occur_in_no_training_caption(splits: SceneSplits) -> None:
    trained = {word for scene in splits.train for word in scene.caption.split()}
    known = {scene.caption for scene in splits.train} | {s.caption for s in splits.held_out}
    assert splits.new_objects
    for scene in splits.new_objects:
        assert scene.caption not in known
        assert not set(scene.caption.split()) <= trained


def test_a_limit_selects_evenly_and_zero_selects_all(splits: SceneSplits) -> None:
    few = limit_scenes(splits, 10)
    assert (len(few.train), len(few.held_out)) == (10, 10)
    assert few.train[0] == splits.train[0]
    assert limit_scenes(splits, 0) == splits


@pytest.fixture(scope="module")
def few(splits: SceneSplits) -> SceneSplits:
    return limit_scenes(splits, 24)


def test_a_scene_is_rendered_once_and_deterministically(few: SceneSplits) -> None:
    renderer = SceneRenderer(few.objects)
    scene = few.train[0]
    assert renderer.image(scene) is renderer.image(scene)
    assert SceneRenderer(few.objects).image(scene).read_bytes() == renderer.image(scene).read_bytes()
    pair = renderer.pair(scene)
    assert pair.text == scene.caption
    assert pair.source in ("objects", "shapes")


def test_conversations_and_pages_have_training_scenes_and_depend_on_the_seed(few: SceneSplits) -> None:
    renderer = SceneRenderer(few.objects)
    held = {scene.caption for scene in few.held_out}

    def texts(seed: int) -> list[str]:
        documents = [*conversations(few, renderer, seed), *pretraining_documents(few, renderer, seed)]
        assert {d.source for d in documents} >= {"draw", "describe", "show", "pages", "glosses"}
        assert len({document.id for document in documents}) == len(documents)
        return [document.text for document in documents]

    first = texts(0)
    assert first == texts(0) != texts(1)
    assert not any(caption in text.splitlines() for text in first for caption in held)


def test_splits_may_have_no_new_objects(few: SceneSplits) -> None:
    assert limit_scenes(replace(few, new_objects=[]), 5).new_objects == []
