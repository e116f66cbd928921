"""Vectors -> codes -> vectors, by the nearest row of the codebook.

Shapes: B images, h and w cells, D code_dim, N vectors, K codes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def squared_distances(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Squared Euclidean distances: [N, D], [K, D] -> [N, K]."""
    norms = vectors.square().sum(1, keepdim=True) + codebook.square().sum(1)
    return torch.addmm(norms, vectors, codebook.t(), alpha=-2.0)


def nearest(vectors: Tensor, codebook: Tensor) -> Tensor:
    """The code of each vector, ties to the lower code: [N, D], [K, D] -> [N] int64."""
    return squared_distances(vectors, codebook).argmin(1)


def straight_through(latents: Tensor, quantized: Tensor) -> Tensor:
    """`quantized` in value; in gradient, as if nothing had been done to `latents`."""
    return latents + (quantized - latents).detach()


def on_sphere(vectors: Tensor, dim: int) -> Tensor:
    """Vectors along `dim` at the length at which their coordinates have a mean square of 1.

    >>> on_sphere(torch.tensor([[3.0, 4.0]]), 1).square().sum().item()
    2.0
    """
    return F.normalize(vectors, dim=dim) * vectors.shape[dim] ** 0.5


def vectors_of(latents: Tensor) -> Tensor:
    """[B, D, h, w] -> [B * h * w, D]."""
    return latents.permute(0, 2, 3, 1).flatten(0, 2)


class Quantizer(nn.Module):
    """The codebook, and how to look things up in it.

    Source: VQ-VAE (arXiv:1711.00937), section 3; initial values as in the Chameleon release,
    uniform in +-1/K.
    """

    def __init__(self, num_codes: int, code_dim: int) -> None:
        super().__init__()
        self.codebook = nn.Parameter(torch.empty(num_codes, code_dim))
        nn.init.uniform_(self.codebook, -1.0 / num_codes, 1.0 / num_codes)

    def codes(self, latents: Tensor) -> Tensor:
        """[B, D, h, w] -> [B, h, w] int64 codes in [0, K), of the nearest rows."""
        codes = nearest(vectors_of(latents), self.codebook)
        return codes.view(len(latents), *latents.shape[2:])

    def vectors(self, codes: Tensor) -> Tensor:
        """[B, h, w] int64 -> [B, D, h, w], the codebook's rows."""
        return F.embedding(codes, self.codebook).permute(0, 3, 1, 2)
