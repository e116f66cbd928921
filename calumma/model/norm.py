"""Query and key norms: a true LayerNorm with bias, per head, tied within a group of heads."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class HeadNorm(nn.Module):
    """LayerNorm over head_dim; heads of one group share weight and bias.

    Source: Chameleon (arXiv:2405.09818), the section on stability: the mean is removed and there
    is a bias, so this is no RMSNorm. Statistics are per head; one group is the rule, and releases
    trained on N unsynchronised shards need N.
    """

    def __init__(self, head_dim: int, groups: int, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(groups, head_dim))
        self.bias = nn.Parameter(torch.zeros(groups, head_dim))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each head.

        Args:
            x: [B, T, H, D] float, H a multiple of the groups.

        Returns:
            [B, T, H, D], same dtype.
        """
        groups, head_dim = self.weight.shape
        if groups == 1:
            return F.layer_norm(x, (head_dim,), self.weight[0], self.bias[0], self.epsilon)
        normed = F.layer_norm(x, (head_dim,), eps=self.epsilon)
        grouped = normed.unflatten(2, (groups, -1))  # [B, T, G, H/G, D]
        return (grouped * self.weight[:, None] + self.bias[:, None]).flatten(2, 3)
