"""Rotary position embedding (RoPE) in the layout of Hugging Face: first half against second."""

import torch
from torch import Tensor


def rope_angles(position_ids: Tensor, head_dim: int, theta: float) -> Tensor:
    """Compute the angles by which each pair of channels is rotated.

    Args:
        position_ids: [B, T] or [T] int64, from 0.
        head_dim: D, even.
        theta: base of the wavelengths.

    Returns:
        [..., T, D/2] float32 radians.
    """
    channels = torch.arange(0, head_dim, 2, dtype=torch.float32, device=position_ids.device)
    frequencies = theta ** (-channels / head_dim)
    return position_ids.float().unsqueeze(-1) * frequencies


def apply_rotary_emb(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the queries or keys of each position by its angles.

    Args:
        x: [B, T, H, D].
        cos: [T, 1, D/2] or [B, T, 1, D/2] of the angles.
        sin: the same.

    Returns:
        [B, T, H, D], same dtype and norms.
    """
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
