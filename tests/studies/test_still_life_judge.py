"""The study of the judge, on the image tokenizer of the package."""

import calumma
from calumma.hub import SHIPPED_MODEL
from studies.still_life_judge.study import measure_reconstructed, sample_scenes


def test_few_reconstructions_are_read_wrong() -> None:
    errors = measure_reconstructed(sample_scenes(60, 0), calumma.load(SHIPPED_MODEL, device="cpu").image)
    assert errors.num_scenes == 60
    assert errors.num_things > 60
    assert errors.scene_error < 0.1
