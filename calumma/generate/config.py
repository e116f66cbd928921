"""How ids are chosen: one config a modality, with the release's defaults."""

from __future__ import annotations

from dataclasses import dataclass

from calumma.errors import GenerationError


@dataclass(frozen=True, kw_only=True)
class TextSampling:
    """Choosing text. Source: the defaults of the Chameleon release."""

    temperature: float = 0.7
    """Logits are divided by it; 0 takes the likeliest id."""

    top_p: float = 0.9
    """The smallest set of ids with at least this probability is drawn from."""

    repetition_penalty: float = 1.2
    """Positive logits of ids seen before are divided by it, negative ones multiplied."""

    def __post_init__(self) -> None:
        _require_distribution(self.temperature, self.top_p)
        if self.repetition_penalty <= 0:
            raise GenerationError(
                f"repetition_penalty={self.repetition_penalty}; wanted above 0 (1 is none)."
            )


@dataclass(frozen=True, kw_only=True)
class ImageSampling:
    """Choosing image codes. Source: the defaults of the Chameleon release."""

    temperature: float = 0.7
    top_p: float = 0.9

    text_guidance: float = 3.0
    """How far to go from what the images alone suggest to what all of the prompt does; 1 is
    no guidance."""

    image_guidance: float = 1.2
    """How far to go from no prompt at all to what the prompt's images suggest."""

    def __post_init__(self) -> None:
        _require_distribution(self.temperature, self.top_p)


def _require_distribution(temperature: float, top_p: float) -> None:
    if temperature < 0 or not 0 < top_p <= 1:
        raise GenerationError(
            f"temperature={temperature} and top_p={top_p}; wanted a temperature of at least 0 and "
            "a top_p above 0 and at most 1."
        )


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt in ids, and how to go on from it."""

    ids: tuple[int, ...]
    max_new_tokens: int = 256
    seed: int = 0
    text: TextSampling = TextSampling()
    image: ImageSampling = ImageSampling()

    max_images: int = 8
    """Images that may be begun; 0 is text only."""

    image_first: bool = False
    """Whether the answer must begin with an image."""
