"""Sampling parameters by modality, and the defaults that a model folder brings.

They are two tables of `generation_config.json`, which transformers reads and keeps as they are:

    {"bos_token_id": 0, ...,
     "text_sampling": {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.2, ...},
     "image_sampling": {"temperature": 0.7, "top_p": 0.9, "guidance_scale": 3.0, ...}}

A field that is missing has the release's value.
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from calumma.errors import CheckpointError, ConfigError, GenerationError
from calumma.files import read_json
from calumma.hub import find_model_folder
from calumma.toml_config import build_config

GENERATION_CONFIG_FILE = "generation_config.json"
_TEXT_TABLE, _IMAGE_TABLE = "text_sampling", "image_sampling"

MAX_SCALE = 1000
"""Largest penalty and guidance scale: beyond it logits of 32 bits could overflow."""


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Sampling parameters of text tokens and image tokens.

    They are applied in the order temperature, top-k, min-p, top-p; each sees only the tokens that
    the previous ones kept.
    """

    temperature: float = 0.7
    """Divisor of the logits; 0 is greedy decoding."""

    top_k: int = 0
    """Number of most likely tokens to sample from; 0 is no limit."""

    min_p: float = 0.0
    """Smallest probability of a token, as a fraction of the most likely token's."""

    top_p: float = 0.9
    """Probability mass of the smallest set of tokens to sample from (nucleus sampling)."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf or not 0 < self.top_p <= 1:
            raise GenerationError(
                f"temperature={self.temperature} and top_p={self.top_p}; expected a temperature of "
                "at least 0 and a top_p above 0 and at most 1."
            )
        if self.top_k < 0 or not 0 <= self.min_p <= 1:
            raise GenerationError(
                f"top_k={self.top_k} and min_p={self.min_p}; expected a top_k of at least 0 (0 is "
                "no limit) and a min_p from 0 to 1."
            )


@dataclass(frozen=True, kw_only=True)
class TextSampling(SamplingParams):
    """Sampling parameters of text. Source: the defaults of the Chameleon release."""

    repetition_penalty: float = 1.2
    """Divisor of the positive logits of tokens seen before; negative logits are multiplied."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 / MAX_SCALE <= self.repetition_penalty <= MAX_SCALE:
            raise GenerationError(
                f"repetition_penalty={self.repetition_penalty}; expected from {1 / MAX_SCALE} to "
                f"{MAX_SCALE} (1 is none)."
            )


@dataclass(frozen=True, kw_only=True)
class ImageSampling(SamplingParams):
    """Sampling parameters of image tokens. Source: the defaults of the Chameleon release."""

    guidance_scale: float = 3.0
    """Classifier-free guidance from the logits given the prompt's images to those given all of it;
    1 is no guidance."""

    image_guidance_scale: float = 1.2
    """Classifier-free guidance from unconditional logits to those given the prompt's images."""

    num_speculative_tokens: int = 0
    """Speculative decoding: image tokens drafted per step; 0 is none. The tokens stay the same; an
    image takes fewer steps, each of which computes more."""

    max_edit_text_tokens: int = 0
    """Text tokens with which the answer to an edit may begin, for models that say what they draw."""

    def __post_init__(self) -> None:
        super().__post_init__()
        scales = self.guidance_scale, self.image_guidance_scale
        if not all(abs(scale) <= MAX_SCALE for scale in scales):
            raise GenerationError(
                f"guidance_scale={scales[0]} and image_guidance_scale={scales[1]}; expected from "
                f"{-MAX_SCALE} to {MAX_SCALE} (1 is none)."
            )
        if self.num_speculative_tokens < 0:
            raise GenerationError(
                f"num_speculative_tokens={self.num_speculative_tokens}; expected at least 0, the "
                "image tokens to draft per step."
            )
        if self.max_edit_text_tokens < 0:
            raise GenerationError(
                f"max_edit_text_tokens={self.max_edit_text_tokens}; expected at least 0, the text "
                "tokens before an edited image."
            )


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """Sampling parameters of both modalities; the defaults are those of the Chameleon release."""

    text: TextSampling = TextSampling()
    image: ImageSampling = ImageSampling()

    def to_json(self) -> dict[str, dict[str, Any]]:
        """Return the tables of `generation_config.json`."""
        return {_TEXT_TABLE: asdict(self.text), _IMAGE_TABLE: asdict(self.image)}


def read_sampling_options(folder: str | Path) -> SamplingOptions:
    """Read the sampling defaults of a model folder; the release's if it has none.

    Raises:
        CheckpointError: a field is unknown or out of range.
    """
    path = find_model_folder(folder) / GENERATION_CONFIG_FILE
    if not path.is_file():
        return SamplingOptions()
    record = read_json(path)
    try:
        if not isinstance(record, dict):
            raise ConfigError(f"Found {type(record).__name__}; expected a JSON object.")
        tree = {"text": record.get(_TEXT_TABLE, {}), "image": record.get(_IMAGE_TABLE, {})}
        return build_config(SamplingOptions, tree, str(path))
    except (ConfigError, GenerationError) as error:
        raise CheckpointError(
            f"{path}: its sampling parameters cannot be read. {error} Fix the file, or remove "
            f"{_TEXT_TABLE} and {_IMAGE_TABLE}."
        ) from error
