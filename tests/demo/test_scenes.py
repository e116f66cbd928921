"""The demo's documents: what is held out never occurs in training."""

from __future__ import annotations

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
def whole() -> SceneSplits:
    return load_scenes()


def test_held_out_captions_never_occur_in_training(whole: SceneSplits) -> None:
    trained = {scene.caption for scene in whole.train}
    held_out = {scene.caption for scene in whole.held_out}
    assert len(held_out) >= 200
    assert not trained & held_out
    assert all(map(is_held_out, whole.held_out))
    assert not any(map(is_held_out, whole.train))


def test_every_word_that_is_asked_for_was_trained_on(whole: SceneSplits) -> None:
    trained = {word for scene in whole.train for word in scene.caption.split()}
    assert {word for scene in whole.held_out for word in scene.caption.split()} <= trained


def test_new_objects_occur_in_no_training_caption(whole: SceneSplits) -> None:
    trained = {word for scene in whole.train for word in scene.caption.split()}
    known = {scene.caption for scene in whole.train} | {s.caption for s in whole.held_out}
    assert whole.new_objects
    for scene in whole.new_objects:
        assert scene.caption not in known
        assert not set(scene.caption.split()) <= trained


def test_a_limit_takes_evenly_and_nought_takes_all(whole: SceneSplits) -> None:
    few = limit_scenes(whole, 10)
    assert (len(few.train), len(few.held_out)) == (10, 10)
    assert few.train[0] == whole.train[0]
    assert limit_scenes(whole, 0) == whole


@pytest.fixture(scope="module")
def few(whole: SceneSplits) -> SceneSplits:
    return limit_scenes(whole, 24)


def test_a_scene_is_drawn_once_and_always_the_same(few: SceneSplits) -> None:
    painter = SceneRenderer(few.objects)
    scene = few.train[0]
    assert painter.image(scene) is painter.image(scene)
    assert SceneRenderer(few.objects).image(scene).read_bytes() == painter.image(scene).read_bytes()
    pair = painter.pair(scene)
    assert pair.text == scene.caption
    assert pair.source in ("objects", "shapes")


def test_turns_and_pages_are_of_training_scenes_and_decided_by_the_seed(few: SceneSplits) -> None:
    painter = SceneRenderer(few.objects)
    held = {scene.caption for scene in few.held_out}

    def texts(seed: int) -> list[str]:
        made = [*conversations(few, painter, seed), *pretraining_documents(few, painter, seed)]
        assert {d.source for d in made} >= {"draw", "describe", "show", "pages", "glosses"}
        assert len({document.id for document in made}) == len(made)
        return [document.text for document in made]

    first = texts(0)
    assert first == texts(0) != texts(1)
    assert not any(caption in text.splitlines() for text in first for caption in held)


def test_a_slice_without_new_objects_is_a_slice(few: SceneSplits) -> None:
    assert limit_scenes(replace(few, new_objects=[]), 5).new_objects == []
