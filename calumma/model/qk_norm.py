"""QK-norm: normalization of queries and keys per head, with parameters shared by groups of heads.

Shapes: B rows, T tokens, H heads, D head_dim, G groups of heads.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from calumma.model.config import DecoderConfig

LAYER_NORM_EPSILON = 1e-5
"""Epsilon of the LayerNorm variant, torch's default as in the release; `norm_epsilon` of the
config is for RMSNorms."""


def build_qk_norm(config: DecoderConfig) -> nn.Module:
    """Build the norm of queries or keys, [B, T, H, D] to the same, applied before RoPE."""
    return nn.Identity() if config.qk_norm == "none" else QKNorm(config)


class QKNorm(nn.Module):
    """LayerNorm or RMSNorm over head_dim, whose parameters the heads of a group share.

    "layer" is the paper's LayerNorm with weight and bias, "rms" the RMSNorm of Qwen3. New models
    have one group; releases trained on N shards that never synchronized these norms have N.
    Source: Chameleon (arXiv:2405.09818), the section on stability.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.qk_norm_groups, config.head_dim))
        self.bias: nn.Parameter | None = None
        self.epsilon = config.norm_epsilon
        if config.qk_norm == "layer":
            # On the meta device `zeros_like` would import sympy: seconds in every command.
            self.bias = nn.Parameter(torch.zeros(self.weight.shape))
            self.epsilon = LAYER_NORM_EPSILON

    def forward(self, x: Tensor) -> Tensor:
        """Normalize each head.

        Args:
            x: [B, T, H, D] float, H a multiple of the groups.

        Returns:
            [B, T, H, D], same dtype.
        """
        groups, head_dim = self.weight.shape
        if groups == 1:
            weight = self.weight[0]
            bias = None if self.bias is None else self.bias[0]
            return self._normalize(x, head_dim, weight, bias)
        normalized = self._normalize(x, head_dim, None, None)
        grouped = normalized.unflatten(2, (groups, -1)) * self.weight[:, None]  # [B, T, G, H/G, D]
        if self.bias is not None:
            grouped = grouped + self.bias[:, None]
        return grouped.flatten(2, 3)

    def _normalize(self, x: Tensor, head_dim: int, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        if self.bias is None:
            return F.rms_norm(x, (head_dim,), weight, self.epsilon)
        return F.layer_norm(x, (head_dim,), weight, bias, self.epsilon)
