"""The vector quantizer and its codebook in training: k-means init, EMA, dead-code restarts.

Shapes: B images, h and w cells, N vectors of a batch, K codes, D code_dim.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calumma.errors import ConfigError

_SEED_ROUNDS = 16
_LLOYD_ROUNDS = 10
_USAGE_DECAY = 0.99
"""Decay of the EMA of code frequencies; 0.99 averages about a hundred steps."""


@dataclass(frozen=True, kw_only=True)
class CodebookConfig:
    """How the codebook is trained."""

    quantizer: Literal["nearest", "cosine", "ibq"] = "nearest"
    """How a latent is assigned to a row: the nearest row, as in the release; by cosine similarity
    with L2-normalized rows (arXiv:2110.04627); or by the largest inner product, with a gradient
    for every row (index backpropagation, arXiv:2412.02692). The exported codebook always uses
    the nearest row; see `export_network`."""

    update: Literal["gradient", "ema"] = "gradient"
    """By the optimizer, as in the release, or as an EMA of the vectors of each code."""

    decay: float = 0.99
    """Decay of the EMA; "ema" only."""

    beta: float = 0.25
    """Weight of one of the two quantization losses; see `legacy`."""

    legacy: bool = True
    """True: beta weights the codebook loss and the commitment loss has weight 1, as in the release.
    False: the opposite, as in the VQ-VAE paper."""

    dead_code_restart_steps: int = 0
    """Number of steps after which an unused code is restarted at a vector of the batch; 0 for
    never."""

    entropy_weight: float = 0.0
    """Weight of the entropy loss, against uncertain assignments and unused codes; "ibq" only."""

    entropy_temperature: float = 1.0
    """Temperature of the inner products in the entropy loss; "ibq" only."""

    def __post_init__(self) -> None:
        if self.update not in ("gradient", "ema"):
            raise ConfigError(f'codebook.update={self.update!r} is unknown; expected "gradient" or "ema".')
        if not 0.0 < self.decay < 1.0:
            raise ConfigError(f"codebook.decay={self.decay}; expected between 0 and 1, such as 0.99.")
        if self.beta < 0.0:
            raise ConfigError(f"codebook.beta={self.beta}; expected 0 or more, such as 0.25.")
        self._require_quantizer()
        if self.dead_code_restart_steps < 0:
            raise ConfigError(
                f"codebook.dead_code_restart_steps={self.dead_code_restart_steps}; "
                "expected a number of steps, or 0 for never."
            )

    def _require_quantizer(self) -> None:
        if self.quantizer not in ("nearest", "cosine", "ibq"):
            raise ConfigError(
                f'codebook.quantizer={self.quantizer!r} is unknown; expected "nearest", "cosine" or "ibq".'
            )
        if self.quantizer == "ibq" and self.update != "gradient":
            raise ConfigError(
                f'codebook.update={self.update!r} with codebook.quantizer="ibq"; expected codebook.update="gradient".'
            )
        if self.entropy_weight < 0.0 or self.entropy_temperature <= 0.0:
            raise ConfigError(
                f"codebook.entropy_weight={self.entropy_weight} and codebook.entropy_temperature="
                f"{self.entropy_temperature}; expected a weight of 0 or more, and a temperature "
                "above 0."
            )
        if self.entropy_weight and self.quantizer != "ibq":
            raise ConfigError(
                f"codebook.entropy_weight={self.entropy_weight} with codebook.quantizer="
                f'{self.quantizer!r}; expected codebook.quantizer="ibq", or a weight of 0.'
            )

    @property
    def loss_weights(self) -> tuple[float, float]:
        """Weights of the commitment loss and of the codebook loss."""
        commitment, codebook = (1.0, self.beta) if self.legacy else (self.beta, 1.0)
        return commitment, codebook if self.update == "gradient" else 0.0


class CodebookCollectives(Protocol):
    """Collectives of the ranks that train one codebook; see `calumma.train.distributed`."""

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over ranks."""
        ...

    def gather(self, tensor: Tensor) -> Tensor:
        """Concatenate [n, ...] of each rank to [n * ranks, ...]."""
        ...


class CodebookUpdater(nn.Module):
    """Statistics of a codebook in training; not part of the trained tokenizer."""

    unused_steps: Tensor
    shares: Tensor
    sizes: Tensor
    sums: Tensor

    def __init__(self, config: CodebookConfig, quantizer: "VectorQuantizer", ranks: CodebookCollectives) -> None:
        super().__init__()
        self.config = config
        self.ranks = ranks
        num_codes, code_dim = quantizer.codebook.shape
        quantizer.codebook.requires_grad_(config.update == "gradient")
        self.register_buffer("unused_steps", torch.zeros(num_codes, dtype=torch.int64))
        self.register_buffer("shares", torch.full((num_codes,), 1.0 / num_codes))
        self.register_buffer("sizes", torch.ones(num_codes))
        self.register_buffer("sums", torch.zeros(num_codes, code_dim))
        self._reset_ema(quantizer.codebook, torch.ones(num_codes, dtype=torch.bool))

    @torch.no_grad()
    def init_with_kmeans(self, quantizer: "VectorQuantizer", vectors: Tensor, generator: torch.Generator) -> None:
        """Initialize the codebook with the centers of k-means over `vectors` [N, D]."""
        codebook = quantizer.codebook
        codebook.copy_(k_means(self.ranks.gather(vectors), codebook.shape[0], generator))
        self._renormalize(quantizer)
        self.unused_steps.zero_()
        self._reset_ema(codebook, torch.ones_like(self.sizes, dtype=torch.bool))

    @torch.no_grad()
    def update(self, quantizer: "VectorQuantizer", vectors: Tensor, codes: Tensor, generator: torch.Generator) -> int:
        """Update the codebook from one batch, [N, D] and [N], after its optimizer step.

        Returns:
            Number of codes that were restarted.
        """
        counts = self.ranks.sum(torch.bincount(codes, minlength=self.sizes.numel()))
        self.shares.lerp_(counts / int(counts.sum()), 1.0 - _USAGE_DECAY)
        if self.config.update == "ema":
            self._update_ema(quantizer, vectors, codes, counts)
        self.unused_steps += 1
        self.unused_steps[counts > 0] = 0
        num_restarted = 0
        if self.config.dead_code_restart_steps:
            num_restarted = self._restart_dead_codes(quantizer, vectors, generator)
        self._renormalize(quantizer)
        return num_restarted

    def _renormalize(self, quantizer: "VectorQuantizer") -> None:
        """L2-normalize the rows again if they are compared by cosine similarity."""
        if self.config.quantizer == "cosine":
            quantizer.codebook.copy_(l2_normalize(quantizer.codebook, 1))

    def _update_ema(self, quantizer: "VectorQuantizer", vectors: Tensor, codes: Tensor, counts: Tensor) -> None:
        fresh = 1.0 - self.config.decay
        self.sizes.lerp_(counts.to(self.sizes.dtype), fresh)
        sums = torch.zeros_like(self.sums).index_add_(0, codes, vectors)
        self.sums.lerp_(self.ranks.sum(sums), fresh)
        # A code that is not used keeps its value: size and sum shrink by the same factor.
        seen = self.sizes > 1e-5
        quantizer.codebook[seen] = self.sums[seen] / self.sizes[seen, None]

    def _restart_dead_codes(self, quantizer: "VectorQuantizer", vectors: Tensor, generator: torch.Generator) -> int:
        dead = self.unused_steps >= self.config.dead_code_restart_steps
        num_dead = int(dead.sum())
        if num_dead == 0:
            return 0
        codebook = quantizer.codebook
        vectors = self.ranks.gather(vectors)
        codebook[dead] = sample_far_vectors(vectors, codebook[~dead], num_dead, generator)
        self.unused_steps[dead] = 0
        self._reset_ema(codebook, dead)
        return num_dead

    def _reset_ema(self, codebook: Tensor, which: Tensor) -> None:
        self.sizes[which] = 1.0
        self.sums[which] = codebook.detach()[which]

    @property
    def usage(self) -> float:
        """Fraction of the codes used in about the last hundred steps."""
        floor = 0.1 * (1.0 - _USAGE_DECAY) / self.shares.numel()
        return float((self.shares > floor).float().mean())

    @property
    def perplexity(self) -> float:
        """Perplexity of the codes over about the last hundred steps."""
        return perplexity(self.shares)


def perplexity(weights: Tensor) -> float:
    """Return the exponential of the entropy of weights [K] that need not sum to 1.

    >>> round(perplexity(torch.tensor([2.0, 2.0, 0.0])), 6)
    2.0
    """
    shares = weights / weights.sum()
    return float(torch.special.entr(shares).sum().exp())


def k_means(vectors: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return the cluster centers of `vectors`: [N, D] -> [count, D]; N may be less than `count`."""
    first = vectors[torch.randint(len(vectors), (1,), generator=generator)]
    centers = first
    per_round = max(1, -(-(count - 1) // _SEED_ROUNDS))
    while len(centers) < count:
        number = min(per_round, count - len(centers))
        centers = torch.cat([centers, sample_far_vectors(vectors, centers, number, generator)])
    for _ in range(_LLOYD_ROUNDS):
        codes = nearest_codes(vectors, centers)
        counts = torch.bincount(codes, minlength=count)
        sums = torch.zeros_like(centers).index_add_(0, codes, vectors)
        filled = counts > 0
        centers[filled] = sums[filled] / counts[filled, None]
    return centers


def sample_far_vectors(vectors: Tensor, centers: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Sample `count` of `vectors` [N, D], preferring those far from all `centers` [M, D].

    The probability is the squared distance, as in k-means++ (Arthur and Vassilvitskii, 2007).
    """
    weights = torch.ones(len(vectors), device=vectors.device)
    if len(centers):
        weights = squared_distances(vectors, centers).amin(1).clamp(min=0.0)
    weights = weights + weights.mean() * 1e-3 + 1e-12
    enough = len(vectors) >= count
    drawn = torch.multinomial(weights.cpu(), count, replacement=not enough, generator=generator)
    return vectors[drawn.to(vectors.device)]


def squared_distances(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Return squared Euclidean distances: [N, D], [K, D] -> [N, K]."""
    norms = vectors.square().sum(1, keepdim=True) + codebook.square().sum(1)
    return torch.addmm(norms, vectors, codebook.t(), alpha=-2.0)


def nearest_codes(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Return the code of the nearest row of each vector: [N, D], [K, D] -> [N] int64.

    Ties go to the lower code.
    """
    return squared_distances(vectors, codebook).argmin(1)


def straight_through(latents: Tensor, quantized: Tensor) -> Tensor:
    """Return `quantized` with the gradient passed straight through to `latents`."""
    return latents + (quantized - latents).detach()


def l2_normalize(vectors: Tensor, dim: int) -> Tensor:
    """Scale vectors along `dim` to a mean square of 1 per coordinate.

    >>> l2_normalize(torch.tensor([[3.0, 4.0]]), 1).square().sum().item()
    2.0
    """
    return F.normalize(vectors, dim=dim) * vectors.shape[dim] ** 0.5


def flatten_latents(latents: Tensor) -> Tensor:
    """Reshape [B, D, h, w] -> [B * h * w, D]."""
    return latents.permute(0, 2, 3, 1).flatten(0, 2)


class VectorQuantizer(nn.Module):
    """A codebook and nearest-row quantization.

    Source: VQ-VAE (arXiv:1711.00937), section 3; initial values as in the Chameleon release,
    uniform in +-1/K.
    """

    def __init__(self, num_codes: int, code_dim: int) -> None:
        super().__init__()
        self.codebook = nn.Parameter(torch.empty(num_codes, code_dim))
        nn.init.uniform_(self.codebook, -1.0 / num_codes, 1.0 / num_codes)

    def quantize(self, latents: Tensor) -> Tensor:
        """Quantize latents [B, D, h, w] to int64 codes [B, h, w] in [0, K), of the nearest rows."""
        codes = nearest_codes(flatten_latents(latents), self.codebook)
        return codes.view(len(latents), *latents.shape[2:])

    def embed(self, codes: Tensor) -> Tensor:
        """Look up codes: [B, h, w] int64 -> [B, D, h, w]."""
        return F.embedding(codes, self.codebook).permute(0, 3, 1, 2)
