"""Logits to ids, many rows at once, each by its own rules.

Shapes: R rows, C columns that may be chosen. The order of operations is the release's: guidance on
raw logits, then the mask, repetition penalty, temperature, top-p, and one draw; top-k and min-p
stand before top-p. A row's result does not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from calumma.generate.params import SamplingParams
from calumma.generate.step_output import to_device_async

EPSILON = 1e-6
"""What is less is taken for the limit that it comes near to."""


@dataclass(frozen=True)
class SamplingTensors:
    """The rules of each row, [R] each."""

    temperature: Tensor
    top_k: Tensor
    min_p: Tensor
    top_p: Tensor

    any_truncation: bool
    """Whether any row has a rule that leaves ids out."""

    @classmethod
    def build(cls, rules: Sequence[SamplingParams], device: torch.device) -> SamplingTensors:
        """The rules of some rows, in order."""
        table = torch.tensor(
            [
                # So near to 0 that logits over it would be infinite, it is 0; and no top-p is so
                # small that it is 0 in 32 bits.
                (
                    rule.temperature if rule.temperature >= EPSILON else 0.0,
                    rule.top_k,
                    rule.min_p,
                    max(rule.top_p, EPSILON),
                )
                for rule in rules
            ]
        )
        temperature, top_k, min_p, top_p = to_device_async(table, device).unbind(1)
        cuts = any(rule.top_k or rule.min_p or rule.top_p < 1 for rule in rules)
        return cls(temperature, top_k, min_p, top_p, cuts)


def apply_cfg(full: Tensor, images: Tensor, none: Tensor, scales: Tensor) -> Tensor:
    """Three-way guidance on raw logits.

    Args:
        full: [R, C] logits behind the whole prompt.
        images: [R, C] behind the prompt's images alone.
        none: [R, C] behind nothing.
        scales: [R, 2] of text and of images.

    Returns:
        none + image_scale * (images - none) + text_scale * (full - images), [R, C]. Masks come
        after: on masked logits the differences would be of infinities.

    Source: InstructPix2Pix (arXiv:2211.09800), as the Chameleon release uses it.
    """
    text_scale, image_scale = scales.to(full.dtype).unsqueeze(-1).unbind(1)
    return none + image_scale * (images - none) + text_scale * (full - images)


def apply_repetition_penalty(logits: Tensor, seen: Tensor, penalty: Tensor) -> Tensor:
    """Make ids seen before less likely.

    Args:
        logits: [R, C].
        seen: [R, C] bool, prompt included.
        penalty: [R], above 1 to discourage.
    """
    by = penalty.unsqueeze(-1)
    return torch.where(seen, torch.where(logits > 0, logits / by, logits * by), logits)


def sample_tokens(logits: Tensor, limits: SamplingTensors, chance: Tensor) -> Tensor:
    """Draw one id a row.

    Args:
        logits: [R, C] float32, -inf where an id is not allowed.
        limits: of each row; a temperature of 0 takes the likeliest id, the first of equals.
        chance: [R] uniform in [0, 1), which runs through the ids that are left in their order: the
            only randomness, so a row's draw does not depend on its neighbours.

    Returns:
        [R] int64 columns.
    """
    greedy = limits.temperature == 0
    shares = truncated_probs(logits, limits)
    line = shares.cumsum(dim=-1)
    total = line[:, -1:].contiguous()
    wanted = chance.to(line.dtype).unsqueeze(-1) * total
    # The first place whose running sum passes the chance; rounding never leads past a kept id.
    found = torch.searchsorted(line, wanted, right=True)
    last = torch.searchsorted(line, total)
    drawn = torch.minimum(found, last).squeeze(-1)
    return torch.where(greedy, logits.argmax(dim=-1), drawn)


def truncated_probs(logits: Tensor, limits: SamplingTensors) -> Tensor:
    """What may be drawn: [R, C] probabilities after temperature, 0 where a rule leaves an id out.

    They are not divided by their sum. Ids as likely as the least likely one that is kept are kept
    too. A temperature of 0 counts as 1 here.
    """
    heat = torch.where(limits.temperature == 0, 1.0, limits.temperature)
    shares = (logits / heat.unsqueeze(-1)).softmax(dim=-1)
    if not limits.any_truncation:
        return shares
    ranked = _sort_descending(shares)
    least = torch.where(limits.top_k > 0, _value_at_rank(ranked, limits.top_k), 0.0)
    least = torch.maximum(least, limits.min_p * ranked[:, 0])
    left = ranked.masked_fill(ranked < least.unsqueeze(-1), 0.0)
    sums = left.cumsum(dim=-1)
    enough = (sums - left < (limits.top_p * sums[:, -1]).unsqueeze(-1)).sum(dim=-1)
    least = torch.where(
        limits.top_p < 1, torch.maximum(least, _value_at_rank(ranked, enough)), least
    )
    return shares.masked_fill(shares < least.unsqueeze(-1), 0.0)


def _value_at_rank(ranked: Tensor, number: Tensor) -> Tensor:
    """The value of each row's `number`-th id: the last where there are fewer."""
    place = (number.long() - 1).clamp(0, ranked.shape[-1] - 1)
    return ranked.gather(1, place.unsqueeze(-1)).squeeze(-1)


def _sort_descending(shares: Tensor) -> Tensor:
    """Each row's values, the greatest first."""
    if shares.device.type != "cpu":
        return shares.sort(dim=-1, descending=True).values
    # numpy sorts values without their places, 20 to 30 times as quick (dev/log.md).
    ranked = shares.numpy().copy()
    ranked.sort(axis=-1)
    return torch.from_numpy(ranked).flip(-1)


def uniform_from_seed(seeds: Tensor, places: Tensor) -> Tensor:
    """The chance of each draw: a function of the request's seed and the new id's place alone.

    So an id does not depend on which other requests run, in which order, or on how often its own
    had to wait. The generator is SplitMix64 (Steele, Lea and Flood, 2014), jumped to a place.

    Args:
        seeds: [R] int64.
        places: [R] int64, how many new ids stand before.

    Returns:
        [R] float32, uniform in [0, 1).
    """
    mixed = _splitmix64(_splitmix64(seeds) + places)
    return _logical_right_shift(mixed, 40).float() * 2.0**-24


def _splitmix64(x: Tensor) -> Tensor:
    """SplitMix64's step and finish; int64 wraps around as the unsigned numbers would."""
    x = x - 0x61C8864680B583EB
    x = (x ^ _logical_right_shift(x, 30)) * -0x40A7B892E31B1A47
    x = (x ^ _logical_right_shift(x, 27)) * -0x6B2FB644ECCEEE15
    return x ^ _logical_right_shift(x, 31)


def _logical_right_shift(x: Tensor, by: int) -> Tensor:
    """To the right, zeros coming in from the left."""
    return (x >> by) & ((1 << (64 - by)) - 1)
