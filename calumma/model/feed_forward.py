"""Gated feed-forward branch (SwiGLU)."""

from torch import Tensor, nn
from torch.nn import functional as F

from calumma.model.config import DecoderConfig


class FeedForward(nn.Module):
    """down(silu(gate(x)) * up(x)), without biases.

    Source: GLU variants (arXiv:2002.05202), as in Llama-2 and Chameleon.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.model_dim, config.feed_forward_dim, bias=False)
        self.up = nn.Linear(config.model_dim, config.feed_forward_dim, bias=False)
        self.down = nn.Linear(config.feed_forward_dim, config.model_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token: [B, T, M] to [B, T, M]."""
        return self.down(F.silu(self.gate(x)) * self.up(x))
