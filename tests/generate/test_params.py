"""Invalid sampling parameters, requests and engine configurations."""

import math
from typing import Any

import pytest

from calumma.errors import GenerationError
from calumma.generate.params import EngineConfig, ImageSampling, Request, TextSampling


@pytest.mark.parametrize("kind", [TextSampling, ImageSampling])
@pytest.mark.parametrize(("temperature", "top_p"), [(-0.1, 0.9), (1.0, 0.0), (1.0, 1.1)])
def test_invalid_temperature_and_top_p_are_refused(
    kind: type[TextSampling] | type[ImageSampling], temperature: float, top_p: float
) -> None:
    with pytest.raises(GenerationError) as caught:
        kind(temperature=temperature, top_p=top_p)
    assert str(caught.value) == (
        f"temperature={temperature} and top_p={top_p}; expected a temperature of at least 0 and a "
        "top_p above 0 and at most 1."
    )


def test_a_repetition_penalty_of_zero_is_refused() -> None:
    with pytest.raises(GenerationError) as caught:
        TextSampling(repetition_penalty=0.0)
    assert str(caught.value) == "repetition_penalty=0.0; expected from 0.001 to 1000 (1 is none)."


@pytest.mark.parametrize("scale", [math.inf, math.nan, -1001.0])
def test_extreme_guidance_scales_are_refused(scale: float) -> None:
    with pytest.raises(GenerationError) as caught:
        ImageSampling(guidance_scale=scale)
    assert str(caught.value) == (
        f"guidance_scale={scale} and image_guidance_scale=1.2; expected from -1000 to 1000 (1 is none)."
    )


@pytest.mark.parametrize("number", [math.inf, math.nan])
def test_infinite_and_undefined_parameters_are_refused(number: float) -> None:
    names = ("temperature", "top_p", "min_p", "guidance_scale", "image_guidance_scale")
    for rule in ({name: number} for name in names):
        with pytest.raises(GenerationError):
            ImageSampling(**rule)
    with pytest.raises(GenerationError):
        TextSampling(repetition_penalty=number)


def test_the_release_s_defaults() -> None:
    text, image = TextSampling(), ImageSampling()
    assert (text.temperature, text.top_p, text.repetition_penalty) == (0.7, 0.9, 1.2)
    assert (image.temperature, image.top_p) == (0.7, 0.9)
    assert (image.guidance_scale, image.image_guidance_scale) == (3.0, 1.2)


@pytest.mark.parametrize(("top_k", "min_p"), [(-1, 0.0), (0, -0.1), (0, 1.1)])
def test_invalid_top_k_and_min_p_are_refused(top_k: int, min_p: float) -> None:
    with pytest.raises(GenerationError) as caught:
        ImageSampling(top_k=top_k, min_p=min_p)
    assert str(caught.value) == (
        f"top_k={top_k} and min_p={min_p}; expected a top_k of at least 0 (0 is no limit) and a min_p from 0 to 1."
    )


def test_a_negative_number_of_text_tokens_before_an_edit_is_refused() -> None:
    with pytest.raises(GenerationError) as caught:
        ImageSampling(max_edit_text_tokens=-1)
    assert str(caught.value) == (
        "max_edit_text_tokens=-1; expected at least 0, the text tokens before an edited image."
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modality": "sound"}, "modality='sound' is not known; expected any, text or image."),
        (
            {"modality": "image", "max_images": 0},
            "modality='image' with max_images=0 leaves nothing to generate; expected at least one image.",
        ),
        ({"max_new_tokens": -1}, "max_new_tokens=-1 and max_images=8; expected at least 0 of both."),
        ({"seed": 2**63}, f"seed={2**63} is too long a number; expected one of 64 bits, its sign included."),
        (
            {"modality": "image", "min_tokens": 1},
            "min_tokens and ignore_eos prolong text, but modality='image' generates none; expected "
            "another modality. Leave them out.",
        ),
        (
            {"max_leading_text_tokens": 3},
            "max_leading_text_tokens=3 with modality='any'; expected 0, or more with modality='image'.",
        ),
    ],
)
def test_invalid_requests_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(GenerationError) as caught:
        Request(prompt_token_ids=(0,), **options)
    assert str(caught.value) == message


@pytest.mark.parametrize("fraction", [0.0, 1.5])
def test_a_memory_utilization_out_of_range_is_refused(fraction: float) -> None:
    with pytest.raises(GenerationError) as caught:
        EngineConfig(gpu_memory_utilization=fraction)
    assert str(caught.value) == (f"gpu_memory_utilization={fraction}; expected above 0 and at most 1.")


def test_an_engine_without_capacity_is_refused() -> None:
    with pytest.raises(GenerationError) as caught:
        EngineConfig(max_num_seqs=0)
    assert str(caught.value) == (
        "max_cached_tokens=None, max_num_seqs=0 and prefill_chunk_size=512; expected at least 1 of each."
    )
