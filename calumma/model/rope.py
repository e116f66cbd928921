"""Rotary positions, in the layout of Hugging Face: the first half of a head against the second."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_angles(positions: Tensor, head_dim: int, theta: float) -> Tensor:
    """Angles by which each pair of channels turns.

    Args:
        positions: [B, T] or [T] int64, from 0.
        head_dim: D, even.
        theta: base of the wavelengths.

    Returns:
        [..., T, D/2] float32 radians.
    """
    channels = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device)
    frequencies = theta ** (-channels / head_dim)
    return positions.float().unsqueeze(-1) * frequencies


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn the queries or keys of each position by its angles.

    Args:
        x: [B, T, H, D].
        cosine: [T, 1, D/2] or [B, T, 1, D/2] of the angles.
        sine: the same.

    Returns:
        [B, T, H, D], same dtype; lengths are kept.
    """
    cosine, sine = cosine.to(x.dtype), sine.to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
