"""Fields of a request -> rules of sampling, with our own defaults where it says nothing."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from calumma.generate.model import Model
from calumma.generate.params import ImageSampling, Modality, Request, TextSampling
from calumma.serve.api_errors import APIError
from calumma.serve.config import ServeLimits
from calumma.serve.protocol import SamplingFields

_MOST_IMAGES = 8


def first_seed(body: SamplingFields) -> int:
    """The seed of the first answer: the one asked for, or a random one of 32 bits.

    Thirty-two, so that a page's numbers, which are floats, hold it whole.
    """
    return secrets.randbits(32) if body.seed is None else body.seed % 2**63


def modality_of(wanted: Sequence[str] | None, model: Model) -> Modality:
    """What an answer may hold.

    Raises:
        Refusal: pictures are expected of a model that draws none.
    """
    if wanted is None:
        return "any" if model.components.tokenizers.has_image_decoder else "text"
    if "image" in wanted and not model.components.tokenizers.has_image_decoder:
        message = 'this model draws no pictures; expected modalities ["text"]. Ask for text alone.'
        raise APIError(400, message, "unsupported_modality", param="modalities")
    kinds = set(wanted)
    return "any" if len(kinds) == 2 else "text" if kinds == {"text"} else "image"


def sampling_of(body: SamplingFields) -> dict[str, Any]:
    """The rules for text and for images that a request asks for."""
    both = {
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
        "min_p": body.min_p,
    }
    heat = body.temperature if body.image_temperature is None else body.image_temperature
    image = {**both, "temperature": heat}
    guidance = {"text_guidance": body.guidance_scale, "image_guidance": body.image_guidance_scale}
    return {
        "text": TextSampling(**_given(both | {"repetition_penalty": body.repetition_penalty})),
        "image": ImageSampling(**_given(image | guidance)),
    }


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def requests_of(ids: Sequence[int], seeds: Sequence[int], options: dict[str, Any]) -> list[Request]:
    """One request for each seed."""
    return [Request(prompt_token_ids=tuple(ids), seed=seed, **options) for seed in seeds]


def room_for(wanted: int | None, model: Model, limits: ServeLimits) -> int:
    """How many ids an answer may have: as asked, or two pictures and some text; within bounds."""
    usual = 2 * (model.image.config.codes_per_image + 2) + 256
    longest = model.decoder.config.max_seq_len
    return min(usual if wanted is None else wanted, limits.max_new_tokens, longest)


def images_of(wanted: int | None, modality: Modality) -> int:
    """How many pictures an answer may hold."""
    if modality == "text":
        return 0
    usual = 1 if modality == "image" else _MOST_IMAGES
    return usual if wanted is None else wanted
