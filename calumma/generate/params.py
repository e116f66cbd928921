"""What may be asked of the engine: rules of sampling, one request, and what the engine may hold."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from calumma.errors import GenerationError

Modality = Literal["any", "text", "image"]

MAX_SCALE = 1000
"""Of penalties and guidance: with more, logits of 32 bits could pass all bounds."""


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """What choosing text and choosing image codes have in common.

    The rules work one after another: temperature, top-k, min-p, top-p; each sees only the ids
    that those before it have left.
    """

    temperature: float = 0.7
    """Logits are divided by it; 0 takes the likeliest id."""

    top_k: int = 0
    """As many of the likeliest ids are drawn from; 0 is all of them."""

    min_p: float = 0.0
    """Ids with less than this share of the likeliest id's probability are left out."""

    top_p: float = 0.9
    """The smallest set of ids with at least this probability is drawn from."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf or not 0 < self.top_p <= 1:
            raise GenerationError(
                f"temperature={self.temperature} and top_p={self.top_p}; expected a temperature of "
                "at least 0 and a top_p above 0 and at most 1."
            )
        if self.top_k < 0 or not 0 <= self.min_p <= 1:
            raise GenerationError(
                f"top_k={self.top_k} and min_p={self.min_p}; expected a top_k of at least 0 (0 is no "
                "limit) and a min_p from 0 to 1."
            )


@dataclass(frozen=True, kw_only=True)
class TextSampling(SamplingParams):
    """Choosing text. Source: the defaults of the Chameleon release."""

    repetition_penalty: float = 1.2
    """Positive logits of ids seen before are divided by it, negative ones multiplied."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 / MAX_SCALE <= self.repetition_penalty <= MAX_SCALE:
            raise GenerationError(
                f"repetition_penalty={self.repetition_penalty}; expected from {1 / MAX_SCALE} to "
                f"{MAX_SCALE} (1 is none)."
            )


@dataclass(frozen=True, kw_only=True)
class ImageSampling(SamplingParams):
    """Choosing image codes. Source: the defaults of the Chameleon release."""

    guidance_scale: float = 3.0
    """How far to go from what the images alone suggest to what all of the prompt does; 1 is
    no guidance."""

    image_guidance_scale: float = 1.2
    """How far to go from no prompt at all to what the prompt's images suggest."""

    num_speculative_tokens: int = 0
    """Codes that are guessed ahead and read in the step of the newest one; 0 is none. The ids stay
    the same; a picture takes fewer steps, each of which reads more."""

    def __post_init__(self) -> None:
        super().__post_init__()
        scales = self.guidance_scale, self.image_guidance_scale
        if not all(abs(scale) <= MAX_SCALE for scale in scales):
            raise GenerationError(
                f"text_guidance={self.guidance_scale} and image_guidance={self.image_guidance_scale}; "
                f"expected from {-MAX_SCALE} to {MAX_SCALE} (1 is none)."
            )
        if self.num_speculative_tokens < 0:
            raise GenerationError(
                f"speculate={self.num_speculative_tokens}; expected at least 0, the codes to guess ahead."
            )


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How both kinds of id are chosen."""

    text: TextSampling = TextSampling()
    image: ImageSampling = ImageSampling()


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt in ids, and how to go on from it."""

    prompt_token_ids: tuple[int, ...]
    max_new_tokens: int = 256
    seed: int = 0
    text: TextSampling = TextSampling()
    image: ImageSampling = ImageSampling()

    modality: Modality = "any"
    """What the answer may hold: both, text alone, or images alone (an image, then another or the
    end)."""

    max_images: int = 8
    """Images that may be begun; 0 is text only."""

    image_first: bool = False
    """Whether the answer must begin with an image."""

    def __post_init__(self) -> None:
        if self.modality not in ("any", "text", "image"):
            raise GenerationError(
                f"modality={self.modality!r} is not known; expected any, text or image."
            )
        if self.modality == "image" and self.max_images < 1:
            raise GenerationError(
                f"modality='image' with max_images={self.max_images} leaves nothing to make; "
                "expected at least one image."
            )
        if not -(2**63) <= self.seed < 2**63:
            raise GenerationError(
                f"seed={self.seed} is too long a number; expected one of 64 bits, its sign included."
            )
        if self.max_new_tokens < 0 or self.max_images < 0:
            raise GenerationError(
                f"max_new_tokens={self.max_new_tokens} and max_images={self.max_images}; expected "
                "at least 0 of both."
            )


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How much an engine holds and reads at a time."""

    max_cached_tokens: int = 16_384
    """Ids whose keys and values the cache holds, over all rows. A request waits until the most it
    can ever need, guidance included, is free."""

    max_num_seqs: int = 64
    """Contexts that are read side by side; a guided image counts up to three."""

    prefill_chunk_size: int = 512
    """Ids of prompts that are read in one step: a long prompt takes several, between which the
    other requests go on."""

    enable_prefix_caching: bool = True
    """Whether what a request has read stays in the cache when it ends, until its slots are expected
    or as many others have ended as there are rows: the next turn of a conversation, and whatever
    begins alike, is then not read from its start."""

    cuda_graphs: bool = False
    """On a GPU: steps in which each row reads one id are captured as CUDA graphs, one for each
    number of rows and width of what they look back at, and replayed."""

    async_scheduling: bool | None = None
    """Whether a step is launched before the host knows what the one before it has drawn: ids come
    a step later, and the device does not wait for the host. None does so on a GPU alone."""

    def __post_init__(self) -> None:
        if min(self.max_cached_tokens, self.max_num_seqs, self.prefill_chunk_size) < 1:
            raise GenerationError(
                f"slots={self.max_cached_tokens}, rows={self.max_num_seqs} and chunk={self.prefill_chunk_size} make no budget; "
                "expected at least 1 of each."
            )


@dataclass(frozen=True, kw_only=True)
class EngineStats:
    """What an engine has to do and what of its budget is taken."""

    num_running: int
    """Requests that hold rows."""

    num_waiting: int
    """Requests that wait for room."""

    num_sequences: int
    """Rows taken, the guidance of images to come included."""

    num_reserved_tokens: int
    """Slots that running requests have reserved."""

    max_cached_tokens: int
