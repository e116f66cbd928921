"""Logits to token ids: pure tensor functions over batch rows, each with its own parameters.

Shapes: R batch rows, C columns that may be sampled. The order of operations is the release's:
classifier-free guidance on raw logits, then the grammar's mask, repetition penalty, temperature,
top-p, and one sample; top-k and min-p come before top-p. A row's result does not depend on the
rest of the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from calumma.generate.params import SamplingParams
from calumma.model.kv_cache import to_device_async

EPSILON = 1e-6
"""A temperature below it is greedy decoding; a top_p below it is raised to it."""


@dataclass(frozen=True)
class SamplingTensors:
    """Sampling parameters of each batch row, [R] each."""

    temperature: Tensor
    top_k: Tensor
    min_p: Tensor
    top_p: Tensor

    any_truncation: bool
    """Whether top-k, min-p or top-p excludes tokens in any row."""

    @classmethod
    def build(cls, params: Sequence[SamplingParams], device: torch.device) -> "SamplingTensors":
        """Collect the parameters of the rows, in order."""
        table = torch.tensor(
            [
                (row.temperature if row.temperature >= EPSILON else 0.0, row.top_k, row.min_p, max(row.top_p, EPSILON))
                for row in params
            ]
        )
        temperature, top_k, min_p, top_p = to_device_async(table, device).unbind(1)
        any_truncation = any(row.top_k or row.min_p or row.top_p < 1 for row in params)
        return cls(temperature, top_k, min_p, top_p, any_truncation)


def apply_cfg(cond: Tensor, image_cond: Tensor, uncond: Tensor, scales: Tensor) -> Tensor:
    """Apply classifier-free guidance with two scales to raw logits.

    Args:
        cond: [R, C] logits given the full prompt.
        image_cond: [R, C] logits given the images of the prompt alone.
        uncond: [R, C] logits given nothing.
        scales: [R, 2] guidance scale and image guidance scale.

    Returns:
        uncond + image_scale * (image_cond - uncond) + scale * (cond - image_cond), [R, C]. Masks
        come after: on masked logits the differences would be of infinities.

    Source: InstructPix2Pix (arXiv:2211.09800), as the Chameleon release uses it.
    """
    scale, image_scale = scales.to(cond.dtype).unsqueeze(-1).unbind(1)
    return uncond + image_scale * (image_cond - uncond) + scale * (cond - image_cond)


def apply_repetition_penalty(logits: Tensor, seen: Tensor, penalty: Tensor) -> Tensor:
    """Make tokens seen before less likely.

    Args:
        logits: [R, C].
        seen: [R, C] bool, prompt included.
        penalty: [R], above 1 to discourage.
    """
    penalty = penalty.unsqueeze(-1)
    penalized = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(seen, penalized, logits)


def sample_tokens(logits: Tensor, params: SamplingTensors, uniform: Tensor) -> Tensor:
    """Sample one token per row by inverting the cumulative distribution.

    Args:
        logits: [R, C] float32, -inf where the grammar does not allow a token.
        params: of each row; temperature 0 takes the most likely token, the first of equals.
        uniform: [R] in [0, 1): the only randomness, so a row's sample does not depend on the rest
            of the batch.

    Returns:
        [R] int64 columns.
    """
    greedy = params.temperature == 0
    cumulative = truncated_probs(logits, params).cumsum(dim=-1)
    total = cumulative[:, -1:].contiguous()
    target = uniform.to(cumulative.dtype).unsqueeze(-1) * total
    # The first column whose running sum passes the target; rounding never leads past a kept one.
    found = torch.searchsorted(cumulative, target, right=True)
    last = torch.searchsorted(cumulative, total)
    sampled = torch.minimum(found, last).squeeze(-1)
    return torch.where(greedy, logits.argmax(dim=-1), sampled)


def truncated_probs(logits: Tensor, params: SamplingTensors) -> Tensor:
    """Compute [R, C] probabilities after temperature, 0 where top-k, min-p or top-p excludes one.

    They are not renormalized. Tokens as likely as the least likely one kept are kept too. A
    temperature of 0 counts as 1 here.
    """
    temperature = torch.where(params.temperature == 0, 1.0, params.temperature)
    probs = (logits / temperature.unsqueeze(-1)).softmax(dim=-1)
    if not params.any_truncation:
        return probs
    ranked = _sort_descending(probs)
    threshold = torch.where(params.top_k > 0, _value_at_rank(ranked, params.top_k), 0.0)
    threshold = torch.maximum(threshold, params.min_p * ranked[:, 0])
    left = ranked.masked_fill(ranked < threshold.unsqueeze(-1), 0.0)
    sums = left.cumsum(dim=-1)
    num_kept = (sums - left < (params.top_p * sums[:, -1]).unsqueeze(-1)).sum(dim=-1)
    nucleus = torch.maximum(threshold, _value_at_rank(ranked, num_kept))
    threshold = torch.where(params.top_p < 1, nucleus, threshold)
    return probs.masked_fill(probs < threshold.unsqueeze(-1), 0.0)


def _value_at_rank(ranked: Tensor, rank: Tensor) -> Tensor:
    """Return each row's value at a rank from 1, or its last value if it has fewer."""
    index = (rank.long() - 1).clamp(0, ranked.shape[-1] - 1)
    return ranked.gather(1, index.unsqueeze(-1)).squeeze(-1)


def _sort_descending(probs: Tensor) -> Tensor:
    """Sort the values of each row, the greatest first."""
    if probs.device.type != "cpu":
        return probs.sort(dim=-1, descending=True).values
    # numpy sorts values without indices, 20 to 30 times as fast (dev/log.md).
    ranked = probs.numpy().copy()
    ranked.sort(axis=-1)
    return torch.from_numpy(ranked).flip(-1)


def uniform_from_seed(seeds: Tensor, positions: Tensor) -> Tensor:
    """Generate the random number of each sample from the request's seed and the token's position.

    So a token does not depend on which other requests run, in which order, or how long its own
    request waited. The generator is the counter-based SplitMix64 (Steele, Lea and Flood, 2014).

    Args:
        seeds: [R] int64.
        positions: [R] int64, number of tokens generated before.

    Returns:
        [R] float32, uniform in [0, 1).
    """
    mixed = _splitmix64(_splitmix64(seeds) + positions)
    return _logical_right_shift(mixed, 40).float() * 2.0**-24


def _splitmix64(x: Tensor) -> Tensor:
    """Apply SplitMix64's step and finalizer; int64 wraps around as unsigned numbers would."""
    x = x - 0x61C8864680B583EB
    x = (x ^ _logical_right_shift(x, 30)) * -0x40A7B892E31B1A47
    x = (x ^ _logical_right_shift(x, 27)) * -0x6B2FB644ECCEEE15
    return x ^ _logical_right_shift(x, 31)


def _logical_right_shift(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)
