"""Generation parameters of a request body, with the server's defaults and limits."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from calumma.errors import GenerationError
from calumma.generate.grammar import image_grid_of, image_length
from calumma.generate.model import Model
from calumma.generate.params import ImageDecoding, ImageSampling, Modality, Request, TextSampling
from calumma.serve.api_errors import APIError
from calumma.serve.config import ServeLimits
from calumma.serve.protocol import (
    ChatCompletionRequest,
    CompletionRequest,
    GenerationRequest,
    ImageGenerationRequest,
    SamplingFields,
    StreamOptions,
)
from calumma.vocabulary import Grid

_MAX_IMAGES = 8
"""Images of a response with text, unless the request gives another number."""


@dataclass(frozen=True, kw_only=True)
class GenerationParams:
    """Parameters of a request, except for its prompts."""

    model: str | None = None
    """Model name of the request; None is the served model."""

    adapter: str = ""
    """Adapter that the model name selects; empty for the model itself."""

    known_codes: tuple[int | None, ...] = ()
    """Codes of the first image that an edit keeps."""

    max_leading_text_tokens: int = 0
    """Text tokens that may precede an edited image."""

    image_grid: Grid | None = None
    """Rows and columns of generated images; None is the model's own square, or the size it chooses."""

    n: int
    """Choices per prompt."""

    best_of: int | None = None
    """Choices per prompt that are generated, of which the `n` with the highest reward are returned;
    None is `n`."""

    reward: str = "logprob"
    """Name of the reward."""

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

    stop_token_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    ignore_eos: bool = False
    image_decoding: ImageDecoding = "raster"
    num_logprobs: int = 0
    return_tokens: bool = False
    """Whether a stream has the token ids or their log probabilities."""

    embed_prompt_metadata: bool = False

    @property
    def num_choices(self) -> int:
        """Number of choices that are generated for one prompt."""
        return self.best_of or self.n

    @property
    def seeds(self) -> list[int]:
        """Seeds of the generated choices of one prompt."""
        return [(self.seed + index) % 2**63 for index in range(self.num_choices)]

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
                stop_token_ids=self.stop_token_ids,
                min_tokens=self.min_tokens,
                ignore_eos=self.ignore_eos,
                adapter=self.adapter,
                known_codes=self.known_codes,
                max_leading_text_tokens=self.max_leading_text_tokens,
                image_grid=self.image_grid,
                image_decoding=self.image_decoding,
                num_logprobs=self.num_logprobs,
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
    max_images = body.max_images
    if max_images is None:
        max_images = 1 if modality == "image" else _MAX_IMAGES
    # By default two images and some text.
    max_tokens = body.max_tokens
    if max_tokens is None:
        max_tokens = 2 * image_length(model.vocabulary, model.image.config.codes_per_image, None) + 256
    partial_image_interval: int | None = 0
    num_logprobs = body.logprobs
    if isinstance(body, ChatCompletionRequest):
        num_logprobs = (body.top_logprobs or 0) if body.logprobs else None
        max_tokens = body.max_completion_tokens or max_tokens
        options = body.stream_options or StreamOptions()
        if body.stream and options.include_partial_images is not False:
            partial_image_interval = None
    return GenerationParams(
        **_common_params(body, model),
        image_grid=_image_grid(body, model),
        modality=modality,
        max_images=0 if modality == "text" else max_images,
        max_new_tokens=min(max_tokens, limits.max_new_tokens, model.decoder.config.max_seq_len),
        stop=tuple(body.stop or ()),
        partial_image_interval=partial_image_interval,
        stop_token_ids=tuple(body.stop_token_ids or ()),
        min_tokens=body.min_tokens or 0,
        ignore_eos=bool(body.ignore_eos),
        num_logprobs=num_logprobs or 0,
        return_tokens=bool(body.return_token_ids) or num_logprobs is not None,
    )


def image_generation_params(body: ImageGenerationRequest, model: Model) -> GenerationParams:
    """Build the parameters of an image generation: exactly one image per choice.

    Raises:
        APIError: the model cannot generate images, or none of that size.
    """
    config, sizes = model.image.config, model.vocabulary.image_sizes
    grid = _image_grid(body, model)
    codes = config.codes_per_image if sizes is None else sizes.max_cells
    if grid is not None:
        codes = grid[0] * grid[1]
    # As evenly spaced as the number of partial images allows.
    interval = max(1, codes // (1 + body.partial_images)) if body.partial_images else 0
    return GenerationParams(
        **_common_params(body, model),
        modality=resolve_modality(["image"], model),
        max_images=1,
        max_new_tokens=image_length(model.vocabulary, config.codes_per_image, grid),
        image_grid=grid,
        partial_image_interval=interval if body.stream else 0,
    )


def _image_grid(body: SamplingFields, model: Model) -> Grid | None:
    try:
        return image_grid_of(body.size or "auto", model.vocabulary, model.image.config)
    except GenerationError as error:
        raise APIError(400, str(error), "invalid_size", param="size") from error


def _common_params(body: GenerationRequest | ImageGenerationRequest, model: Model) -> dict[str, Any]:
    text, image = sampling_params(body, model)
    if body.image_decoding == "diagonal" and model.decoder.downward_head is None:
        message = "this model has no downward head; expected image_decoding 'raster'. Leave it out."
        raise APIError(400, message, "invalid_value", param="image_decoding")
    return {
        "model": body.model,
        "n": body.n or 1,
        "best_of": body.best_of,
        "reward": body.reward or "logprob",
        "image_decoding": body.image_decoding or "raster",
        # A random seed has 32 bits, which JavaScript can represent.
        "seed": secrets.randbits(32) if body.seed is None else body.seed % 2**63,
        "text": text,
        "image": image,
        "embed_prompt_metadata": bool(body.embed_prompt_metadata),
    }


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
    return "any" if len(set(modalities)) == 2 else "image" if "image" in modalities else "text"


def sampling_params(body: SamplingFields, model: Model) -> tuple[TextSampling, ImageSampling]:
    """Build the sampling parameters of text and of images: the model's, with given fields."""
    common = {"temperature": body.temperature, "top_p": body.top_p, "top_k": body.top_k, "min_p": body.min_p}
    image_only = {
        "guidance_scale": body.guidance_scale,
        "image_guidance_scale": body.image_guidance_scale,
        "num_speculative_tokens": body.num_speculative_tokens,
    }
    if body.image_temperature is not None:
        image_only["temperature"] = body.image_temperature
    text_only = {"repetition_penalty": body.repetition_penalty}
    return (
        replace(model.default_text_sampling, **_given(common | text_only)),
        replace(model.default_image_sampling, **_given(common | image_only)),
    )


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
