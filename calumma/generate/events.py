"""Results of generation: the finished sample, and the events of a stream."""

from dataclasses import dataclass, field
from typing import Literal

import PIL.Image

from calumma.vocabulary import TokenCounts

FinishReason = Literal["stop", "length", "abort"]
"""stop: the model or a stop string ended the output; length: a token limit was reached; abort: the
request was aborted."""


@dataclass(frozen=True)
class TokenUsage:
    """Tokens of one or more requests, by modality."""

    prompt: TokenCounts = field(default_factory=TokenCounts)
    completion: TokenCounts = field(default_factory=TokenCounts)


@dataclass(frozen=True)
class ImageCodes:
    """A generated image of a model without an image decoder."""

    codes: tuple[int, ...]
    """Codes row by row, not token ids."""


OutputPart = str | PIL.Image.Image | ImageCodes


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A finished output."""

    parts: list[OutputPart]
    """Texts and images in reading order; text ends before the stop string."""

    prompt_token_ids: list[int]

    token_ids: list[int]
    """Generated tokens, with the end-of-sequence token or the stop string that ended them."""

    logprobs: list[float]
    """Natural log of the probability of each generated token among the allowed ones, after
    guidance, before temperature and truncation; 0 for tokens that the grammar forced."""

    finish_reason: FinishReason

    top_logprobs: list[dict[int, float]] = field(default_factory=list)
    """The most likely allowed tokens at each generated token, `num_logprobs` of them, with the
    natural log of their probability."""

    usage: TokenUsage = TokenUsage()

    reward: float | None = None
    """Reward by which the sample was chosen of several; None if it was not."""

    timings: dict[str, float] = field(default_factory=dict)
    """Seconds since the request arrived: "time_to_first_token" and "latency"."""

    @property
    def decoded_parts(self) -> list[str | PIL.Image.Image]:
        """Parts of a model that has an image decoder."""
        parts = [part for part in self.parts if not isinstance(part, ImageCodes)]
        assert len(parts) == len(self.parts), "an image was not decoded"
        return parts


@dataclass(frozen=True)
class TextPiece:
    """More text, of complete characters."""

    text: str


@dataclass(frozen=True)
class ImageBegun:
    """The model has begun an image."""


@dataclass(frozen=True)
class ImageProgress:
    """A partial image; cells still missing repeat its first code."""

    image: PIL.Image.Image
    num_codes: int


@dataclass(frozen=True)
class ImageDone:
    """A finished image."""

    image: PIL.Image.Image | ImageCodes


@dataclass(frozen=True)
class End:
    """The end of the output."""

    sample: Sample


Event = TextPiece | ImageBegun | ImageProgress | ImageDone | End
