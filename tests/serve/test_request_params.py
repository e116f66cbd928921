"""Fields of a request as rules of sampling."""

from __future__ import annotations

from dataclasses import replace

import pytest

from calumma.checkpoints.model_folder import ModelComponents
from calumma.generate.model import Model
from calumma.generate.params import ImageSampling, TextSampling
from calumma.serve.api_errors import APIError
from calumma.serve.config import ServeLimits
from calumma.serve.protocol import SamplingFields
from calumma.serve.request_params import (
    first_seed,
    images_of,
    modality_of,
    requests_of,
    room_for,
    sampling_of,
)
from tests.checkpoints.random_models import without_image_decoder


def test_without_values_the_model_s_defaults_hold() -> None:
    assert sampling_of(SamplingFields()) == {"text": TextSampling(), "image": ImageSampling()}


def test_a_temperature_holds_for_both_and_guidance_for_images() -> None:
    body = SamplingFields(
        temperature=0.0, top_p=0.5, top_k=3, min_p=0.1, guidance_scale=2.0, repetition_penalty=1.1
    )
    made = sampling_of(body)
    both = {"temperature": 0.0, "top_p": 0.5, "top_k": 3, "min_p": 0.1}
    assert made["text"] == TextSampling(**both, repetition_penalty=1.1)  # type: ignore[arg-type]
    assert made["image"] == ImageSampling(**both, guidance_scale=2.0)  # type: ignore[arg-type]
    apart = sampling_of(
        SamplingFields(temperature=0.0, image_temperature=0.9, image_guidance_scale=1.5)
    )
    assert apart["image"] == ImageSampling(temperature=0.9, image_guidance_scale=1.5)


def test_seeds_are_whole_numbers_that_the_engine_takes() -> None:
    assert first_seed(SamplingFields(seed=5)) == 5
    assert first_seed(SamplingFields(seed=-1)) == 2**63 - 1
    drawn = {first_seed(SamplingFields()) for _ in range(20)}
    assert len(drawn) > 10
    assert all(0 <= seed < 2**32 for seed in drawn)


@pytest.mark.parametrize(
    ("expected", "kind"),
    [
        (None, "any"),
        (["text"], "text"),
        (["image"], "image"),
        (["image", "text"], "any"),
        (["text", "text"], "text"),
    ],
)
def test_modalities_say_what_an_answer_may_hold(
    model: Model, expected: list[str] | None, kind: str
) -> None:
    assert modality_of(expected, model) == kind


def test_a_model_that_draws_nothing_answers_in_text(model_parts: ModelComponents) -> None:
    blind = Model(replace(model_parts, tokenizers=without_image_decoder(model_parts.tokenizers)))
    assert modality_of(None, blind) == modality_of(["text"], blind) == "text"
    with pytest.raises(APIError) as caught:
        modality_of(["text", "image"], blind)
    assert str(caught.value) == (
        'this model draws no images; expected modalities ["text"]. Ask for text alone.'
    )


def test_room_is_bounded_by_the_model_and_the_operator(model: Model) -> None:
    assert room_for(7, model, ServeLimits()) == 7
    assert room_for(10**6, model, ServeLimits()) == 128
    assert room_for(10**6, model, ServeLimits(max_new_tokens=50)) == 50
    assert room_for(None, model, ServeLimits()) == 128


def test_images_are_counted() -> None:
    assert [images_of(None, kind) for kind in ("any", "text", "image")] == [8, 0, 1]
    assert images_of(3, "any") == 3
    assert images_of(3, "text") == 0


def test_each_seed_is_a_request() -> None:
    one, two = requests_of([1, 2], [5, 6], {"max_new_tokens": 3})
    assert (one.prompt_token_ids, one.seed, two.seed, two.max_new_tokens) == ((1, 2), 5, 6, 3)
