"""How a codebook is kept alive while it is trained: first values, running means, revival.

Shapes: N vectors of one batch, K codes, D code_dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from calumma.errors import ConfigError
from calumma.tokens.vq.quantizer import Quantizer, nearest, on_sphere, squared_distances

_SEED_ROUNDS = 16
_LLOYD_ROUNDS = 10
_SHARE_DECAY = 0.99
"""How slowly the running shares of the codes forget; 0.99 looks back about a hundred steps."""


@dataclass(frozen=True, kw_only=True)
class CodebookConfig:
    """How the codebook learns."""

    lookup: Literal["nearest", "normalised", "ibq"] = "nearest"
    """Which row a latent is given: the nearest, as the release does; the nearest in direction,
    all rows being of one length (arXiv:2110.04627); or the one of the largest inner product, with
    a gradient for every row (index backpropagation, arXiv:2412.02692). What is kept after
    training is always a codebook whose nearest rows are the codes; see `plain_network`."""

    update: Literal["gradient", "ema"] = "gradient"
    """By the optimizer, as the release does, or as running means of the vectors of each code."""

    decay: float = 0.99
    """How slowly the running means forget; "ema" only."""

    beta: float = 0.25
    """Weight of one of the two quantisation losses; see `legacy_beta`."""

    legacy_beta: bool = True
    """True: beta weighs the codebook's loss and the encoder's (commitment) counts 1, as in the
    release. False: the other way round, as in the VQ-VAE paper."""

    revive_after_steps: int = 0
    """A code unused for so many steps is moved onto a vector of the batch; 0 never moves one."""

    entropy_weight: float = 0.0
    """Weight of the penalty on unsure choices and uneven use of codes; "ibq" only."""

    entropy_temperature: float = 1.0
    """Inner products are divided by it in that penalty; smaller ones see surer choices."""

    def __post_init__(self) -> None:
        if self.update not in ("gradient", "ema"):
            raise ConfigError(
                f'codebook.update={self.update!r} is not known; expected "gradient" or "ema".'
            )
        if not 0.0 < self.decay < 1.0:
            raise ConfigError(
                f"codebook.decay={self.decay}; expected between 0 and 1, such as 0.99."
            )
        if self.beta < 0.0:
            raise ConfigError(f"codebook.beta={self.beta}; expected 0 or more, such as 0.25.")
        self._require_lookup()
        if self.revive_after_steps < 0:
            raise ConfigError(
                f"codebook.revive_after_steps={self.revive_after_steps}; "
                "expected a number of steps, or 0 for never."
            )

    def _require_lookup(self) -> None:
        if self.lookup not in ("nearest", "normalised", "ibq"):
            raise ConfigError(
                f'codebook.lookup={self.lookup!r} is not known; expected "nearest", "normalised" '
                'or "ibq".'
            )
        if self.lookup == "ibq" and self.update != "gradient":
            raise ConfigError(
                f'codebook.update={self.update!r} with codebook.lookup="ibq", which is a way of '
                'gradients; expected codebook.update="gradient".'
            )
        if self.entropy_weight < 0.0 or self.entropy_temperature <= 0.0:
            raise ConfigError(
                f"codebook.entropy_weight={self.entropy_weight} and codebook.entropy_temperature="
                f"{self.entropy_temperature}; expected a weight of 0 or more, and a temperature "
                "above 0."
            )
        if self.entropy_weight and self.lookup != "ibq":
            raise ConfigError(
                f"codebook.entropy_weight={self.entropy_weight} with codebook.lookup="
                f'{self.lookup!r}, which has no such penalty; expected lookup="ibq", or a weight '
                "of 0."
            )

    @property
    def loss_weights(self) -> tuple[float, float]:
        """Weights of the encoder's (commitment) and of the codebook's loss."""
        commitment, codebook = (1.0, self.beta) if self.legacy_beta else (self.beta, 1.0)
        return commitment, codebook if self.update == "gradient" else 0.0


class Ranks(Protocol):
    """The processes that train one codebook together; see `calumma.train.world`."""

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over ranks."""
        ...

    def gather(self, tensor: Tensor) -> Tensor:
        """[n, ...] of each rank -> [n * ranks, ...]."""
        ...


class CodebookKeeper(nn.Module):
    """The counts behind a codebook in training; nothing of it is needed afterwards."""

    unused_steps: Tensor
    shares: Tensor
    sizes: Tensor
    sums: Tensor

    def __init__(self, config: CodebookConfig, quantizer: Quantizer, ranks: Ranks) -> None:
        super().__init__()
        self.config = config
        self.ranks = ranks
        num_codes, code_dim = quantizer.codebook.shape
        quantizer.codebook.requires_grad_(config.update == "gradient")
        self.register_buffer("unused_steps", torch.zeros(num_codes, dtype=torch.int64))
        self.register_buffer("shares", torch.full((num_codes,), 1.0 / num_codes))
        self.register_buffer("sizes", torch.ones(num_codes))
        self.register_buffer("sums", torch.zeros(num_codes, code_dim))
        self._restart_means(quantizer.codebook, torch.ones(num_codes, dtype=torch.bool))

    @torch.no_grad()
    def initialise(self, quantizer: Quantizer, vectors: Tensor, generator: torch.Generator) -> None:
        """Set the codebook to the centres of k-means over `vectors` [N, D]."""
        codebook = quantizer.codebook
        codebook.copy_(k_means(self.ranks.gather(vectors), codebook.shape[0], generator))
        self._even_lengths(quantizer)
        self.unused_steps.zero_()
        self._restart_means(codebook, torch.ones_like(self.sizes, dtype=torch.bool))

    @torch.no_grad()
    def update(
        self, quantizer: Quantizer, vectors: Tensor, codes: Tensor, generator: torch.Generator
    ) -> int:
        """Learn from one batch, [N, D] and [N], after its optimizer step.

        Returns:
            How many codes were revived.
        """
        counts = self.ranks.sum(torch.bincount(codes, minlength=self.sizes.numel()))
        self.shares.lerp_(counts / int(counts.sum()), 1.0 - _SHARE_DECAY)
        if self.config.update == "ema":
            self._update_means(quantizer, vectors, codes, counts)
        self.unused_steps += 1
        self.unused_steps[counts > 0] = 0
        revived = 0
        if self.config.revive_after_steps:
            revived = self._revive(quantizer, vectors, generator)
        self._even_lengths(quantizer)
        return revived

    def _even_lengths(self, quantizer: Quantizer) -> None:
        """Put rows that are compared by direction back on their sphere."""
        if self.config.lookup == "normalised":
            quantizer.codebook.copy_(on_sphere(quantizer.codebook, 1))

    def _update_means(
        self, quantizer: Quantizer, vectors: Tensor, codes: Tensor, counts: Tensor
    ) -> None:
        fresh = 1.0 - self.config.decay
        self.sizes.lerp_(counts.to(self.sizes.dtype), fresh)
        sums = torch.zeros_like(self.sums).index_add_(0, codes, vectors)
        self.sums.lerp_(self.ranks.sum(sums), fresh)
        # A code that has not been seen for long keeps its place: both shrink by the same factor.
        seen = self.sizes > 1e-5
        quantizer.codebook[seen] = self.sums[seen] / self.sizes[seen, None]

    def _revive(self, quantizer: Quantizer, vectors: Tensor, generator: torch.Generator) -> int:
        dead = self.unused_steps >= self.config.revive_after_steps
        num_dead = int(dead.sum())
        if num_dead == 0:
            return 0
        codebook = quantizer.codebook
        vectors = self.ranks.gather(vectors)
        codebook[dead] = far_vectors(vectors, codebook[~dead], num_dead, generator)
        self.unused_steps[dead] = 0
        self._restart_means(codebook, dead)
        return num_dead

    def _restart_means(self, codebook: Tensor, which: Tensor) -> None:
        self.sizes[which] = 1.0
        self.sums[which] = codebook.detach()[which]

    @property
    def used(self) -> float:
        """Share of codes used in about the last hundred steps."""
        floor = 0.1 * (1.0 - _SHARE_DECAY) / self.shares.numel()
        return float((self.shares > floor).float().mean())

    @property
    def perplexity(self) -> float:
        """How many evenly used codes would be as hard to guess, over about a hundred steps."""
        return perplexity(self.shares)


def perplexity(weights: Tensor) -> float:
    """The exponential of the entropy of weights [K] that need not sum to 1.

    >>> round(perplexity(torch.tensor([2.0, 2.0, 0.0])), 6)
    2.0
    """
    shares = weights / weights.sum()
    return float(torch.special.entr(shares).sum().exp())


def k_means(vectors: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Centres of clusters of `vectors`: [N, D] -> [count, D]; N may be less than `count`."""
    first = vectors[torch.randint(len(vectors), (1,), generator=generator)]
    centres = first
    per_round = max(1, -(-(count - 1) // _SEED_ROUNDS))
    while len(centres) < count:
        number = min(per_round, count - len(centres))
        centres = torch.cat([centres, far_vectors(vectors, centres, number, generator)])
    for _ in range(_LLOYD_ROUNDS):
        codes = nearest(vectors, centres)
        counts = torch.bincount(codes, minlength=count)
        sums = torch.zeros_like(centres).index_add_(0, codes, vectors)
        filled = counts > 0
        centres[filled] = sums[filled] / counts[filled, None]
    return centres


def far_vectors(vectors: Tensor, centres: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw `count` of `vectors` [N, D], likelier the farther they lie from all `centres` [M, D].

    The probability is the squared distance, as in k-means++ (Arthur and Vassilvitskii, 2007).
    """
    weights = torch.ones(len(vectors), device=vectors.device)
    if len(centres):
        weights = squared_distances(vectors, centres).amin(1).clamp(min=0.0)
    weights = weights + weights.mean() * 1e-3 + 1e-12
    enough = len(vectors) >= count
    drawn = torch.multinomial(weights.cpu(), count, replacement=not enough, generator=generator)
    return vectors[drawn.to(vectors.device)]
