"""Rotary position embedding by hand, and its invariants."""

import math

import torch
from torch import Tensor

from calumma.model import rope
from calumma.model.rope import rope_angles


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate by angles, [T, D/2] or [B, T, D/2]."""
    return rope.apply_rotary_emb(x, angles.cos().unsqueeze(-2), angles.sin().unsqueeze(-2))


def test_angles_by_hand() -> None:
    angles = rope_angles(torch.tensor([0, 1, 5]), head_dim=4, theta=100.0)
    assert torch.allclose(angles, torch.tensor([[0.0, 0.0], [1.0, 0.1], [5.0, 0.5]]))


def test_a_quarter_turn_by_hand() -> None:
    x = torch.tensor([[[[1.0, 2.0, 3.0, 4.0]]]])
    rotated = rotate(x, torch.tensor([[math.pi / 2, 0.0]]))
    # Channel 0 rotates with channel 2, channel 1 with channel 3.
    assert torch.allclose(rotated, torch.tensor([[[[-3.0, 2.0, 1.0, 4.0]]]]), atol=1e-6)


def test_norms_are_kept() -> None:
    x = torch.randn(2, 7, 3, 8)
    rotated = rotate(x, rope_angles(torch.arange(7), 8, 10_000.0))
    assert torch.allclose(rotated.norm(dim=-1), x.norm(dim=-1), atol=1e-5)


def test_only_distances_matter_to_products() -> None:
    q, k = torch.randn(2, 1, 1, 1, 8)

    def product(q_position: int, k_position: int) -> float:
        positions = (q_position, k_position)
        angles = [rope_angles(torch.tensor([position]), 8, 100.0) for position in positions]
        return float((rotate(q, angles[0]) * rotate(k, angles[1])).sum())

    assert math.isclose(product(3, 1), product(40, 38), abs_tol=1e-4)


def test_rows_may_have_their_own_positions() -> None:
    x = torch.randn(2, 3, 1, 4)
    positions = torch.tensor([[0, 1, 2], [5, 6, 9]])
    rotated = rotate(x, rope_angles(positions, 4, 100.0))
    for row in range(2):
        alone = rotate(x[row : row + 1], rope_angles(positions[row], 4, 100.0))
        assert torch.equal(rotated[row : row + 1], alone)
