"""Requests as vLLM's extra arguments, and back."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from calumma.generate.model import Model
from calumma.generate.params import ImageSampling, TextSampling
from calumma.serve.vllm.extra_args import (
    decode_logprobs,
    guidance_sequences,
    is_guided,
    num_blocks_of,
    request_of,
    request_state_of,
    vllm_extra_args,
)
from tests.images import noise


def test_a_request_arrives_as_it_was_sent(model: Model) -> None:
    request = model.request(
        ["a"],
        seed=3,
        text=TextSampling(temperature=0.3, top_k=4, min_p=0.1, top_p=0.8, repetition_penalty=1.1),
        image=ImageSampling(guidance_scale=2.0),
        max_images=2,
        max_new_tokens=30,
        min_tokens=4,
        stop_token_ids=(5,),
    )
    params = SimpleNamespace(max_tokens=request.max_new_tokens, extra_args=vllm_extra_args(request), logprobs=2)
    found, is_sampled = request_of(params, request.prompt_token_ids)
    assert is_sampled and found.num_logprobs == 2
    for name in ("prompt_token_ids", "seed", "text", "modality", "max_images", "max_new_tokens", "min_tokens"):
        assert getattr(found, name) == getattr(request, name)
    assert (found.image, found.stop_token_ids) == (request.image, request.stop_token_ids)
    edit = replace(request, modality="image", min_tokens=0, max_leading_text_tokens=7)
    found, _ = request_of(SimpleNamespace(max_tokens=30, extra_args=vllm_extra_args(edit)), request.prompt_token_ids)
    assert found.max_leading_text_tokens == 7
    plain, is_sampled = request_of(SimpleNamespace(max_tokens=None), (1,))
    assert not is_sampled and not is_guided(plain)


def test_a_guided_image_takes_blocks_of_three_sequences(model: Model) -> None:
    image = ImageSampling(guidance_scale=3.0, image_guidance_scale=1.2)
    request = model.request([noise(1), "a"], image=image, modality="image", max_images=1, max_new_tokens=6)
    params = SimpleNamespace(max_tokens=6, extra_args=vllm_extra_args(request))
    state, _ = request_state_of(params, request.prompt_token_ids, model.vocabulary, 4)
    assert state is not None and is_guided(state.request)
    assert num_blocks_of(state, 4) > num_blocks_of(state, 8) >= 3
    assert guidance_sequences(state) == {}
    state.append_token(model.vocabulary.begin_image, 0.0)
    assert list(guidance_sequences(state)) == ["image_cond", "uncond"]
    invalid = SimpleNamespace(max_tokens=6, extra_args={"calumma_modality": "film"})
    assert request_state_of(invalid, (0,), model.vocabulary, 4) == (None, False)


def test_log_probabilities_are_read_from_the_logits_of_the_processor() -> None:
    logprob, top = decode_logprobs({7: 3.0, 1: -0.1, 2: -2.5}, 7, 2)
    assert (logprob, top) == (-3.0, {1: -0.1, 2: -2.5})
    assert decode_logprobs({7: 0.5, 1: -2.0}, 7, 2) == (-0.5, {7: -0.5, 1: -2.0})
    assert decode_logprobs({7: 0.0}, 7, 0) == (pytest.approx(0.0), {})
