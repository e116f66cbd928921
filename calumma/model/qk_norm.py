"""Query and key norms: per head, tied within a group of heads.

Shapes: B rows, T tokens, H heads, D head_dim, G groups of heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from calumma.model.config import DecoderConfig

LAYER_EPSILON = 1e-5
"""The release leaves torch's default here; the config's `norm_epsilon` is the RMSNorms'."""


def head_norm(config: DecoderConfig) -> nn.Module:
    """What queries, or keys, pass before they are rotated: [B, T, H, D] to the same."""
    return nn.Identity() if config.qk_norm == "none" else HeadNorm(config)


class HeadNorm(nn.Module):
    """A norm over head_dim; heads of one group share its parameters.

    "layer" is the paper's: a true LayerNorm, the mean removed, with weight and bias. "rms" is
    Qwen3's RMSNorm. Statistics are per head; one group is the rule, and releases trained on N
    unsynchronised shards need N. Source: Chameleon (arXiv:2405.09818), the section on stability.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.qk_norm_groups, config.head_dim))
        self.bias: nn.Parameter | None = None
        self.epsilon = config.norm_epsilon
        if config.qk_norm == "layer":
            # On the meta device `zeros_like` would import sympy: seconds in every command.
            self.bias = nn.Parameter(torch.zeros(self.weight.shape))
            self.epsilon = LAYER_EPSILON

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each head.

        Args:
            x: [B, T, H, D] float, H a multiple of the groups.

        Returns:
            [B, T, H, D], same dtype.
        """
        groups, head_dim = self.weight.shape
        if groups == 1:
            weight = self.weight[0]
            bias = None if self.bias is None else self.bias[0]
            return self._normed(x, head_dim, weight, bias)
        normed = self._normed(x, head_dim, None, None)
        grouped = normed.unflatten(2, (groups, -1)) * self.weight[:, None]  # [B, T, G, H/G, D]
        if self.bias is not None:
            grouped = grouped + self.bias[:, None]
        return grouped.flatten(2, 3)

    def _normed(
        self, x: Tensor, head_dim: int, weight: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        if self.bias is None:
            return F.rms_norm(x, (head_dim,), weight, self.epsilon)
        return F.layer_norm(x, (head_dim,), weight, bias, self.epsilon)
