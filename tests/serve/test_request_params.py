"""Generation parameters of request bodies."""

import copy
from dataclasses import replace
from typing import Any

import pytest
from starlette.testclient import TestClient

from calumma.checkpoints.model_folder import ModelComponents
from calumma.generate.model import Model
from calumma.generate.params import ImageSampling, SamplingOptions, TextSampling
from calumma.model.downward_head import DownwardHead
from calumma.serve.api_errors import APIError
from calumma.serve.config import ServeLimits
from calumma.serve.protocol import ChatCompletionRequest, CompletionRequest, ImageGenerationRequest, SamplingFields
from calumma.serve.request_params import (
    GenerationParams,
    completion_params,
    image_generation_params,
    resolve_modality,
    sampling_params,
)
from tests.checkpoints.random_models import without_image_decoder


def chat_params(model: Model, limits: ServeLimits | None = None, **body: Any) -> GenerationParams:
    messages = [{"role": "user", "content": "a"}]
    request = ChatCompletionRequest.model_validate({"messages": messages, **body})
    return completion_params(request, model, limits or ServeLimits())


def test_without_values_the_defaults_of_the_model_apply(model: Model) -> None:
    assert sampling_params(SamplingFields(), model) == (TextSampling(), ImageSampling())
    params = chat_params(model)
    assert (params.n, params.max_images, params.modality) == (1, 8, "any")
    assert (params.stop, params.partial_image_interval) == ((), 0)


def test_temperature_applies_to_both_modalities_and_guidance_to_images(model: Model) -> None:
    body = SamplingFields(
        temperature=0.0,
        top_p=0.5,
        top_k=3,
        min_p=0.1,
        guidance_scale=2.0,
        num_speculative_tokens=4,
        repetition_penalty=1.1,
    )
    text, image = sampling_params(body, model)
    common: dict[str, Any] = {"temperature": 0.0, "top_p": 0.5, "top_k": 3, "min_p": 0.1}
    assert text == TextSampling(**common, repetition_penalty=1.1)
    assert image == ImageSampling(**common, guidance_scale=2.0, num_speculative_tokens=4)
    separate = SamplingFields(temperature=0.0, image_temperature=0.9, image_guidance_scale=1.5)
    assert sampling_params(separate, model)[1] == ImageSampling(temperature=0.9, image_guidance_scale=1.5)


def test_seeds_are_unsigned_and_of_32_bits_if_random(model: Model) -> None:
    assert chat_params(model, seed=5, n=3).seeds == [5, 6, 7]
    assert chat_params(model, seed=-1, n=2).seeds == [2**63 - 1, 0]
    random_seeds = {chat_params(model).seed for _ in range(20)}
    assert len(random_seeds) > 10
    assert all(0 <= seed < 2**32 for seed in random_seeds)


@pytest.mark.parametrize(
    ("modalities", "expected"),
    [(None, "any"), (["text"], "text"), (["image"], "image"), (["image", "text"], "any"), (["text", "text"], "text")],
)
def test_modalities_say_what_is_generated(model: Model, modalities: list[str] | None, expected: str) -> None:
    assert resolve_modality(modalities, model) == expected


def test_a_model_without_image_decoder_generates_text(model_parts: ModelComponents) -> None:
    tokenizers = without_image_decoder(model_parts.tokenizers)
    text_only = Model(replace(model_parts, tokenizers=tokenizers))
    assert resolve_modality(None, text_only) == resolve_modality(["text"], text_only) == "text"
    with pytest.raises(APIError) as caught:
        resolve_modality(["text", "image"], text_only)
    assert str(caught.value) == ('this model generates no images; expected modalities ["text"]. Request text only.')


def test_the_length_is_limited_by_the_model_and_the_operator(model: Model) -> None:
    assert chat_params(model, max_tokens=7).max_new_tokens == 7
    assert chat_params(model, max_tokens=7, max_completion_tokens=8).max_new_tokens == 8
    assert chat_params(model, max_tokens=10**6).max_new_tokens == 128
    limits = ServeLimits(max_new_tokens=50)
    assert chat_params(model, limits, max_tokens=10**6).max_new_tokens == 50
    assert chat_params(model).max_new_tokens == 128


def test_the_number_of_images_depends_on_the_modality(model: Model) -> None:
    assert chat_params(model, modalities=["text"], max_images=3).max_images == 0
    assert chat_params(model, modalities=["image"]).max_images == 1
    assert chat_params(model, max_images=3).max_images == 3


def test_partial_images_are_decoded_only_where_they_are_sent(model: Model) -> None:
    assert chat_params(model, stream=True).partial_image_interval is None
    hidden = {"include_partial_images": False}
    assert chat_params(model, stream=True, stream_options=hidden).partial_image_interval == 0
    completion = CompletionRequest(prompt="a", stream=True)
    assert completion_params(completion, model, ServeLimits()).partial_image_interval == 0
    image = ImageGenerationRequest(prompt="a", partial_images=1)
    assert image_generation_params(image, model).partial_image_interval == 0
    streamed = ImageGenerationRequest(prompt="a", partial_images=1, stream=True)
    assert image_generation_params(streamed, model).partial_image_interval == 2
    assert image_generation_params(streamed, model).max_new_tokens == 6


def test_each_seed_is_a_request(model: Model) -> None:
    first, second = chat_params(model, seed=5, n=2, stop=["x"]).to_requests([1, 2])
    assert (first.prompt_token_ids, first.seed, second.seed) == ((1, 2), 5, 6)
    assert second.stop == ("x",)


def test_a_request_starts_from_the_rules_of_its_model_and_replaces_single_fields(model: Model) -> None:
    rule = ImageSampling(guidance_scale=2.0, image_guidance_scale=1.0)
    sampling = SamplingOptions(text=TextSampling(temperature=0.3), image=rule)
    own = Model(replace(model.components, sampling=sampling))
    params = chat_params(own)
    assert (params.text, params.image) == (sampling.text, rule)
    assert chat_params(own, guidance_scale=1.5).image == replace(rule, guidance_scale=1.5)
    body = ImageGenerationRequest(prompt="a red circle")
    assert image_generation_params(body, own).image == rule


def test_diagonal_decoding_needs_a_downward_head(client: TestClient, model: Model) -> None:
    body = {"prompt": "a red circle", "image_decoding": "diagonal"}
    response = client.post("/v1/images/generations", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["message"] == (
        "this model has no downward head; expected image_decoding 'raster'. Leave it out."
    )
    headed = copy.copy(model)
    headed.decoder = copy.deepcopy(model.decoder)
    headed.decoder.downward_head = DownwardHead(model.decoder.config.model_dim)
    params = image_generation_params(ImageGenerationRequest.model_validate(body), headed)
    assert params.to_requests([0])[0].image_decoding == "diagonal"
