"""Logits to ids, many rows at once, each by its own rules.

Shapes: R rows, V vocabulary size. The order of operations is the release's: guidance on raw
logits, then the mask, repetition penalty, temperature, top-p, and one draw.
"""

from __future__ import annotations

import torch
from torch import Tensor

from calumma.generate.grammar import Next
from calumma.vocabulary import Vocabulary


def guided(full: Tensor, image: Tensor, none: Tensor, scales: tuple[float, float]) -> Tensor:
    """Three-way guidance on raw logits.

    Args:
        full: [V] logits behind the whole prompt.
        image: [V] behind the prompt's images alone.
        none: [V] behind nothing.
        scales: of text and of image.

    Returns:
        none + image_scale * (image - none) + text_scale * (full - image), [V]. Masks come after:
        on masked logits the differences would be of infinities.

    Source: InstructPix2Pix (arXiv:2211.09800), as the Chameleon release uses it.
    """
    text_scale, image_scale = scales
    return none + image_scale * (image - none) + text_scale * (full - image)


def masks(vocabulary: Vocabulary, device: torch.device) -> dict[Next, Tensor]:
    """For each kind of next id, [V] bool: True where an id is allowed."""
    made = {kind: torch.zeros(vocabulary.size, dtype=torch.bool, device=device) for kind in Next}
    for kind in (Next.TEXT, Next.TEXT_OR_IMAGE):
        made[kind][vocabulary.text.start : vocabulary.text.stop] = True
    for kind in (Next.TEXT, Next.TEXT_OR_IMAGE, Next.IMAGE_OR_STOP, Next.STOP):
        made[kind][vocabulary.eos] = True
    for kind in (Next.TEXT_OR_IMAGE, Next.IMAGE_OR_STOP, Next.BEGIN):
        made[kind][vocabulary.begin_image] = True
    made[Next.CODE][vocabulary.codes.start : vocabulary.codes.stop] = True
    made[Next.END][vocabulary.end_image] = True
    return made


def chances(seeds: Tensor, places: Tensor) -> Tensor:
    """The chance of each draw: a function of the request's seed and the new id's place alone.

    So an id does not depend on which other requests run, in which order, or on how often its own
    had to wait. The generator is SplitMix64 (Steele, Lea and Flood, 2014), jumped to a place.

    Args:
        seeds: [R] int64.
        places: [R] int64, how many new ids stand before.

    Returns:
        [R] float32, uniform in [0, 1).
    """
    mixed = _mix(_mix(seeds) + places)
    return _shift(mixed, 40).float() * 2.0**-24


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's step and finish; int64 wraps around as the unsigned numbers would."""
    x = x - 0x61C8864680B583EB
    x = (x ^ _shift(x, 30)) * -0x40A7B892E31B1A47
    x = (x ^ _shift(x, 27)) * -0x6B2FB644ECCEEE15
    return x ^ _shift(x, 31)


def _shift(x: Tensor, by: int) -> Tensor:
    """To the right, zeros coming in from the left."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def penalise(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make ids seen before less likely.

    Args:
        logits: [V].
        seen: [N] int64 ids, prompt included.
        penalty: above 1 to discourage.
    """
    if penalty == 1.0:
        return logits
    scores = logits[seen]
    return logits.index_put((seen,), torch.where(scores > 0, scores / penalty, scores * penalty))


def draw(logits: Tensor, temperature: Tensor, top_p: Tensor, chance: Tensor) -> Tensor:
    """Draw one id a row.

    Args:
        logits: [R, V] float32, -inf where an id is not allowed.
        temperature: [R]; 0 takes the likeliest.
        top_p: [R] in (0, 1].
        chance: [R] uniform in [0, 1): the only randomness, so a row's draw does not depend on
            its neighbours.

    Returns:
        [R] int64 ids.
    """
    greedy = temperature == 0
    heat = torch.where(greedy, torch.ones_like(temperature), temperature)
    shares, ids = (
        (logits / heat[:, None]).softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    )
    before = shares.cumsum(dim=-1) - shares
    kept = shares.masked_fill(before >= top_p[:, None], 0.0)
    kept[greedy, 1:] = 0.0
    line = kept.cumsum(dim=-1)
    wanted = chance.to(line.dtype)[:, None] * line[:, -1:]
    # The first place whose running sum passes the chance; rounding never leads past a kept id.
    place = (line <= wanted).sum(dim=-1, keepdim=True)
    last = (kept > 0).sum(dim=-1, keepdim=True) - 1
    return ids.gather(1, torch.minimum(place, last)).squeeze(1)
