"""Generation parameters of a request body, with the server's defaults and limits."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from calumma.generate.model import Model
from calumma.generate.params import ImageSampling, Modality, Request, TextSampling
from calumma.serve.api_errors import APIError
from calumma.serve.config import ServeLimits
from calumma.serve.protocol import (
    ChatCompletionRequest,
    CompletionRequest,
    ImageGenerationRequest,
    SamplingFields,
)

_MAX_IMAGES = 8
"""Images of a response with text, unless the request gives another number."""


@dataclass(frozen=True, kw_only=True)
class GenerationParams:
    """Parameters of a request, except for its prompts."""

    model: str | None = None
    """Model name of the request; None is the served model."""

    n: int
    """Choices per prompt."""

    seed: int
    """Seed of the first choice; choice i has seed + i."""

    text: TextSampling
    image: ImageSampling
    modality: Modality
    max_images: int
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    partial_image_interval: int | None = 0
    """Codes from one partial image to the next; 0 is none, None one row of the image's grid."""

    return_token_ids: bool = False
    embed_prompt_metadata: bool = False

    @property
    def seeds(self) -> list[int]:
        """Seeds of the choices of one prompt."""
        return [(self.seed + index) % 2**63 for index in range(self.n)]

    def to_requests(self, token_ids: Sequence[int]) -> list[Request]:
        """Build the engine's requests for one prompt, one per choice."""
        return [
            Request(
                prompt_token_ids=tuple(token_ids),
                max_new_tokens=self.max_new_tokens,
                seed=seed,
                text=self.text,
                image=self.image,
                modality=self.modality,
                max_images=self.max_images,
                stop=self.stop,
            )
            for seed in self.seeds
        ]


def completion_params(
    body: ChatCompletionRequest | CompletionRequest, model: Model, limits: ServeLimits
) -> GenerationParams:
    """Build the parameters of a chat completion or a completion.

    Raises:
        APIError: images are requested from a model that cannot generate them.
    """
    modality = resolve_modality(body.modalities, model)
    max_tokens = body.max_tokens
    shows_partial_images = False
    if isinstance(body, ChatCompletionRequest):
        max_tokens = body.max_completion_tokens or max_tokens
        options = body.stream_options
        shows_partial_images = bool(body.stream) and (
            options is None or options.include_partial_images is not False
        )
    text, image = sampling_params(body)
    return GenerationParams(
        model=body.model,
        n=body.n or 1,
        seed=_first_seed(body),
        text=text,
        image=image,
        modality=modality,
        max_images=_max_images(body.max_images, modality),
        max_new_tokens=_max_new_tokens(max_tokens, model, limits),
        stop=tuple(body.stop or ()),
        partial_image_interval=None if shows_partial_images else 0,
        return_token_ids=bool(body.return_token_ids),
        embed_prompt_metadata=bool(body.embed_prompt_metadata),
    )


def image_generation_params(body: ImageGenerationRequest, model: Model) -> GenerationParams:
    """Build the parameters of an image generation: exactly one image per choice.

    Raises:
        APIError: the model cannot generate images.
    """
    codes = model.image.config.codes_per_image
    text, image = sampling_params(body)
    shows_partial_images = bool(body.stream and body.partial_images)
    return GenerationParams(
        model=body.model,
        n=body.n or 1,
        seed=_first_seed(body),
        text=text,
        image=image,
        modality=resolve_modality(["image"], model),
        max_images=1,
        max_new_tokens=codes + 2,
        # As evenly spaced as the number of partial images allows.
        partial_image_interval=(
            max(1, codes // (1 + (body.partial_images or 0))) if shows_partial_images else 0
        ),
        embed_prompt_metadata=bool(body.embed_prompt_metadata),
    )


def resolve_modality(modalities: Sequence[str] | None, model: Model) -> Modality:
    """Return the modality of the output, by default all that the model can generate.

    Raises:
        APIError: images are requested from a model that cannot generate them.
    """
    can_generate_images = model.components.tokenizers.has_image_decoder
    if modalities is None:
        return "any" if can_generate_images else "text"
    if "image" in modalities and not can_generate_images:
        message = 'this model generates no images; expected modalities ["text"]. Request text only.'
        raise APIError(400, message, "unsupported_modality", param="modalities")
    kinds = set(modalities)
    return "any" if len(kinds) == 2 else "text" if kinds == {"text"} else "image"


def sampling_params(body: SamplingFields) -> tuple[TextSampling, ImageSampling]:
    """Build the sampling parameters of text and of images."""
    common = {
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
        "min_p": body.min_p,
    }
    image_only = {
        "guidance_scale": body.guidance_scale,
        "image_guidance_scale": body.image_guidance_scale,
        "num_speculative_tokens": body.num_speculative_tokens,
    }
    if body.image_temperature is not None:
        image_only["temperature"] = body.image_temperature
    return (
        TextSampling(**_given(common | {"repetition_penalty": body.repetition_penalty})),
        ImageSampling(**_given(common | image_only)),
    )


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _first_seed(body: SamplingFields) -> int:
    """Return the requested seed, or a random one of 32 bits, which JavaScript can represent."""
    return secrets.randbits(32) if body.seed is None else body.seed % 2**63


def _max_new_tokens(max_tokens: int | None, model: Model, limits: ServeLimits) -> int:
    """Return the requested length, by default that of two images and some text, within limits."""
    default = 2 * (model.image.config.codes_per_image + 2) + 256
    max_seq_len = model.decoder.config.max_seq_len
    requested = default if max_tokens is None else max_tokens
    return min(requested, limits.max_new_tokens, max_seq_len)


def _max_images(requested: int | None, modality: Modality) -> int:
    if modality == "text":
        return 0
    if requested is not None:
        return requested
    return 1 if modality == "image" else _MAX_IMAGES
