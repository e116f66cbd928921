from typing import Any

import numpy as np
import PIL.Image
import pytest

from calumma.corpora.still_life import StillLife, Thing
from calumma.corpora.synthetic_scenes import GROUNDS
from calumma.documents.document import Document
from calumma.errors import EvaluationError
from calumma.evaluate import color_accuracy as module
from calumma.evaluate.color_accuracy import (
    COLOR_NAMES,
    RequestedColors,
    background_color,
    color_accuracy,
    color_metrics,
    generate_images,
    nearest_colors,
    object_color,
    to_lab,
)
from calumma.evaluate.context import EvalConfig, EvalContext
from calumma.evaluate.metric import wilson_interval
from calumma.generate.model import Model
from tests.evaluate.oracle import oracle_context, shape_scenes


def _pixels(images: list[PIL.Image.Image]) -> list[bytes]:
    return [image.tobytes() for image in images]


def test_an_image_is_compared_with_the_requested_colors() -> None:
    image = PIL.Image.new("RGB", (32, 32), GROUNDS["green"])
    image.paste(GROUNDS["red"], (8, 8, 24, 24))
    assert RequestedColors("green", "red").matches(image) == {"ground": True, "thing": True}
    assert RequestedColors("red", "green").matches(image) == {"ground": False, "thing": False}
    assert RequestedColors("green", None).matches(image) == {"ground": True}


def test_shares_are_of_all_colors_and_of_each_kind() -> None:
    drawn = [{"ground": True, "thing": False}, {"ground": True}, {"ground": False, "thing": False}]
    ruler = [{"ground": True, "thing": True}, {"ground": True}, {"ground": True, "thing": False}]
    both, ground, thing = color_metrics(drawn, ruler)
    assert (both.name, both.value, both.n) == ("colour_asked_colour_drawn", 2 / 5, 3)
    assert both.baseline == 1 / 8
    assert both.interval == pytest.approx(wilson_interval(1.2, 3))
    assert both.note == ("5 colors requested of 3 generated images, by pixels; the documents' own images get 0.800")
    assert (ground.name, ground.value) == ("colour_asked_colour_drawn_ground", 2 / 3)
    assert (thing.name, thing.value, thing.n) == ("colour_asked_colour_drawn_thing", 0.0, 2)


def test_a_model_that_copies_the_documents_gets_everything_right(
    model: Model, scenes: list[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {document.text: document.images[0].open() for document in scenes}

    def copies(model: Model, captions: list[str], config: EvalConfig) -> list[PIL.Image.Image]:
        return [own[caption] for caption in captions]

    monkeypatch.setattr(module, "generate_images", copies)
    context = EvalContext(model, scenes)
    metrics = color_accuracy(context, EvalConfig(max_prompts=5, log_samples=1, chat_template=True))
    [shown] = context.logged_samples
    assert str(shown.prompt[0]).startswith("draw ")
    assert shown.answer == shown.target
    assert [(metric.value, metric.n) for metric in metrics] == [(1.0, 5)] * 3


def test_a_drawing_depends_on_its_seed_alone(model: Model) -> None:
    captions = ["a small red circle", "a ring", "a small red circle"]
    first = _pixels(generate_images(model, captions, EvalConfig(seed=1)))
    assert first == _pixels(generate_images(model, captions, EvalConfig(seed=1)))
    assert first[1:] == _pixels(generate_images(model, captions[1:], EvalConfig(seed=2)))
    assert first[0] != first[2]


def test_prompts_are_phrased_as_asked(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, bool]] = []
    real = model.generate_batch

    def listening(prompts: Any, *, add_generation_prompt: bool, **config: Any) -> Any:
        calls.append((prompts, add_generation_prompt))
        return real(prompts, add_generation_prompt=add_generation_prompt, **config)

    monkeypatch.setattr(model, "generate_batch", listening)
    generate_images(model, ["a ring"], EvalConfig())
    generate_images(model, ["a ring"], EvalConfig(chat_template=True))
    generate_images(model, ["a ring"], EvalConfig(chat_template=True, format_prompt=lambda text: ["show", text]))
    assert calls == [
        ([["a ring"]], False), ([["draw a ring"]], True), ([["show", "a ring"]], True),
    ]  # fmt: skip


def test_documents_without_known_colors_are_refused() -> None:
    with pytest.raises(EvaluationError) as caught:
        color_accuracy(oracle_context("ab", 0.0), EvalConfig())
    assert str(caught.value) == (
        "color_accuracy: found no color of ground or thing among 2 pairs; expected attributes "
        '"ground" or "colour" among red, orange, yellow, green, blue, purple, black, white. Give '
        "composed scenes such as the embedded corpus has (--documents), or leave this task out."
    )


def test_a_prompt_without_space_for_an_image_is_refused(model: Model) -> None:
    with pytest.raises(EvaluationError) as caught:
        generate_images(model, ["?" * 125], EvalConfig())
    assert str(caught.value) == (
        "color_accuracy: a prompt leaves no tokens for an image; expected the prompt and the "
        "image's codes within the model's max_seq_len. Use shorter prompts, or leave this task out."
    )


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
        image = scene.render(side)
        assert (background_color(image), object_color(image)) == (scene.background, scene.things[0].color), scene


def test_a_little_noise_changes_nothing() -> None:
    image = StillLife("orange", "single", (Thing("ring", "purple"),), "large").render()
    noise = np.random.default_rng(0).normal(0, 12, (64, 64, 3))
    noisy = PIL.Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))
    assert (background_color(noisy), object_color(noisy)) == ("orange", "purple")


def test_an_empty_ground_has_nothing_on_it() -> None:
    assert object_color(PIL.Image.new("RGB", (32, 32), GROUNDS["blue"])) is None
