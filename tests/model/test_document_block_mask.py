"""The block mask that is made on the CPU is torch's own."""

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

from calumma.model.document_block_mask import document_block_mask

TABLES = [
    side + name for side in ("", "full_") for name in ("kv_num_blocks", "kv_indices", "q_num_blocks", "q_indices")
]


@pytest.mark.parametrize("length", [128, 200, 1024, 1500])
def test_it_has_the_blocks_of_create_block_mask(length: int) -> None:
    generator = torch.Generator().manual_seed(length)
    is_start = torch.rand(3, length, generator=generator) < torch.tensor([[0.0], [0.004], [0.05]])
    ids = is_start.cumsum(1)
    ids[1, -length // 4 :] = -1  # padding

    def mask(row: torch.Tensor, head: torch.Tensor, q: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
        return (q >= kv) & (ids[row, q] == ids[row, kv])

    expected = create_block_mask(mask, 3, None, length, length, device="cpu")
    made = document_block_mask(ids, ids)
    assert (made.seq_lengths, made.shape) == (expected.seq_lengths, expected.shape)
    for name in TABLES:
        assert torch.equal(getattr(made, name), getattr(expected, name)), name
