"""KV-cached token sequences: the full context of a request, and those for guidance of its open image."""

from collections.abc import Sequence
from dataclasses import dataclass

from calumma.generate.params import ImageSampling
from calumma.vocabulary import Vocabulary


@dataclass(eq=False)
class SequenceState:
    """A token sequence with its part of the KV cache."""

    token_ids: list[int]
    """All tokens, computed and not; below 0, `~batch_slot`, a placeholder for the token that the
    device is sampling in that batch slot."""

    num_computed_tokens: int = 0
    """Tokens whose keys and values are in the cache."""

    start_slot: int = -1
    """Cache slot of the first token; -1 before allocation."""

    adapter: str = ""
    """Name of the adapter that computes the sequence; empty for none."""

    num_shareable: int | None = None
    """Tokens whose keys and values another sequence may take over; None for all."""

    order_start: int = 0
    order: Sequence[int] = ()
    """Positions of the tokens from index `order_start` on, counted from there; all others have
    their index as the position."""

    num_accepted: int = 0
    """Accepted drafts, or a correct placeholder: tokens to be appended next that are computed."""

    @property
    def num_uncomputed_tokens(self) -> int:
        """Tokens still to be computed."""
        return len(self.token_ids) - self.num_computed_tokens

    def append(self, id_: int) -> None:
        """Append a token."""
        self.token_ids.append(id_)
        if self.num_accepted:
            self.num_accepted -= 1
            self.num_computed_tokens += 1

    def truncate(self, length: int) -> None:
        """Drop all tokens after the first `length`, computed or not."""
        del self.token_ids[length:]
        self.num_computed_tokens = min(self.num_computed_tokens, length)

    @property
    def shareable_token_ids(self) -> list[int]:
        """Tokens whose keys and values another sequence may take over."""
        return self.token_ids[: self.num_shareable]

    def position_ids(self, start: int, count: int) -> tuple[int, ...]:
        """Return the positions of `count` tokens from index `start` on."""
        first, order = self.order_start, self.order
        return tuple(
            first + order[index - first] if 0 <= index - first < len(order) else index
            for index in range(start, start + count)
        )


@dataclass(eq=False)
class Guidance:
    """Sequences for classifier-free guidance of the open image, besides the full context."""

    has_earlier_image: bool
    """Whether the context has an image before the open one."""

    image_cond: SequenceState | None = None
    """The images of the context alone; None if the guidance scales cancel its logits, or there is
    no earlier image."""

    uncond: SequenceState | None = None
    """The open image alone; None if the guidance scales cancel its logits."""

    @classmethod
    def build(
        cls, token_ids: Sequence[int], vocabulary: Vocabulary, sampling: ImageSampling, adapter: str = ""
    ) -> "Guidance":
        """Build the sequences for the image that is open at the end of a context."""
        images = [t for t in token_ids if t == vocabulary.bos or vocabulary.is_image_token(t)]
        begin = len(images) - 1 - images[::-1].index(vocabulary.begin_image)
        has_earlier_image = vocabulary.end_image in images
        image_cond = uncond = None
        scales = sampling.guidance_scale, sampling.image_guidance_scale
        if has_earlier_image and scales[0] != scales[1]:
            image_cond = SequenceState(images, adapter=adapter)
        if scales[has_earlier_image] != 1.0:
            uncond = SequenceState([vocabulary.bos, *images[begin:]], adapter=adapter)
        return cls(has_earlier_image, image_cond, uncond)
