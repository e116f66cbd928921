"""Rules of sampling that are none."""

from __future__ import annotations

import pytest

from calumma.errors import GenerationError
from calumma.generate.config import ImageSampling, TextSampling


@pytest.mark.parametrize("kind", [TextSampling, ImageSampling])
@pytest.mark.parametrize(("temperature", "top_p"), [(-0.1, 0.9), (1.0, 0.0), (1.0, 1.1)])
def test_what_is_no_distribution_is_refused(
    kind: type[TextSampling] | type[ImageSampling], temperature: float, top_p: float
) -> None:
    with pytest.raises(GenerationError) as caught:
        kind(temperature=temperature, top_p=top_p)
    assert str(caught.value) == (
        f"temperature={temperature} and top_p={top_p}; wanted a temperature of at least 0 and a "
        "top_p above 0 and at most 1."
    )


def test_a_penalty_of_nothing_is_refused() -> None:
    with pytest.raises(GenerationError) as caught:
        TextSampling(repetition_penalty=0.0)
    assert str(caught.value) == "repetition_penalty=0.0; wanted above 0 (1 is none)."


def test_the_release_s_defaults() -> None:
    text, image = TextSampling(), ImageSampling()
    assert (text.temperature, text.top_p, text.repetition_penalty) == (0.7, 0.9, 1.2)
    assert (image.temperature, image.top_p) == (0.7, 0.9)
    assert (image.text_guidance, image.image_guidance) == (3.0, 1.2)
