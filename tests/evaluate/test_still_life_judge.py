"""The judge reads what was drawn, and counts its own errors."""

import numpy as np
import PIL.Image
import PIL.ImageFilter

from calumma.corpora.still_life import COLORS, StillLife, Thing, sample_still_life
from calumma.evaluate.still_life_judge import background_color_name, measure_judge, read_still_life

RED, BANANA = Thing("circle", "red"), Thing("banana")


def scenes(count: int) -> list[StillLife]:
    random = np.random.default_rng(1)
    return [sample_still_life(random) for _ in range(count)]


def test_true_images_are_read_without_error() -> None:
    errors = measure_judge((scene, scene.render()) for scene in scenes(60))
    assert (errors.num_scenes, errors.wrong_scenes, errors.thing_error) == (60, 0, 0.0)
    assert read_still_life(scenes(1)[0].render()).rmse < 0.5


def test_blurred_and_noisy_images_are_read() -> None:
    random = np.random.default_rng(0)
    blurred = []
    for scene in scenes(40):
        image = scene.render().filter(PIL.ImageFilter.GaussianBlur(1))
        noisy = np.asarray(image, dtype=float) + random.normal(0, 12, (64, 64, 3))
        blurred.append((scene, PIL.Image.fromarray(noisy.clip(0, 255).astype(np.uint8))))
    assert measure_judge(blurred).scene_error <= 0.05


def test_images_of_another_size_are_read() -> None:
    scene = StillLife("blue", "row", (RED, BANANA))
    assert read_still_life(scene.render(128)).scene == scene


def test_backgrounds_are_read_around_the_largest_thing() -> None:
    for color in COLORS:
        scene = StillLife(color, "single", (BANANA,), "large")
        assert background_color_name(np.asarray(scene.render(), dtype=np.float32)) == color


def test_confusions_are_counted_by_kind() -> None:
    row = StillLife("blue", "row", (RED, BANANA))
    other = StillLife("green", "row", (RED, Thing("bus")))
    column = StillLife("blue", "column", (RED, BANANA))
    errors = measure_judge([(row, other.render()), (row, column.render()), (row, row.render())])
    assert errors.wrong_scenes == 2
    assert errors.backgrounds == {("blue", "green"): 1}
    assert errors.layouts == {("row", "column"): 1}
    assert errors.things == {("banana", "bus"): 1, ("red circle", "nothing"): 1, ("banana", "nothing"): 1}
    assert errors.thing_error == 3 / 6
    assert errors.to_markdown().splitlines()[0] == "3 scenes, 2 read wrong (66.67%); 6 things, 3 read wrong (50.00%)."
    assert "| thing | banana | bus | 1 |" in errors.to_markdown()
