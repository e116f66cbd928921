"""What generation gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import PIL.Image

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, kw_only=True)
class TokenUsage:
    """How many ids of which kind were read and made; an image's frame counts as image."""

    num_prompt_text_tokens: int = 0
    num_prompt_image_tokens: int = 0
    num_text_tokens: int = 0
    num_image_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One answer: its parts in reading order, and the ids they were read from."""

    parts: list[str | PIL.Image.Image]
    prompt_token_ids: list[int]
    token_ids: list[int]
    """The new ids, end of sequence included where it was chosen."""

    logprobs: list[float]
    """Natural log of each new id's probability among the allowed ids, guidance included,
    before temperature and top-p; 0 for forced ids."""

    finish_reason: FinishReason
    """stop: the model ended the answer; length: it ran out of room; cancelled: it was told to
    end."""

    usage: TokenUsage = TokenUsage()

    timings: dict[str, float] = field(default_factory=dict)
    """Seconds since the request was handed in: "first_token" and "total"."""


@dataclass(frozen=True)
class TextPiece:
    """Some more text, whole characters only."""

    text: str


@dataclass(frozen=True)
class ImageBegun:
    """The model has begun to draw."""


@dataclass(frozen=True)
class ImageProgress:
    """A picture in the making; cells not yet drawn repeat its first code."""

    image: PIL.Image.Image
    num_codes: int


@dataclass(frozen=True)
class ImageDone:
    """A finished picture."""

    image: PIL.Image.Image


@dataclass(frozen=True)
class End:
    """The answer is whole."""

    sample: Sample


Event = TextPiece | ImageBegun | ImageProgress | ImageDone | End
