"""Keys and values of the tokens already read, so that each is computed once.

Shapes: N new tokens, S slots, K key/value heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from calumma.model.config import DecoderConfig
from calumma.model.rope import rotary_angles


@dataclass(frozen=True)
class SequenceChunk:
    """Some new tokens of one row, whose slots lie side by side."""

    start_slot: int
    """The slot of the row's first token."""

    num_computed_tokens: int
    """Tokens of the row that are in the cache before."""

    num_new_tokens: int
    """New tokens; they go to the slots behind."""

    @property
    def seq_len(self) -> int:
        """Tokens of the row that are in the cache after."""
        return self.num_computed_tokens + self.num_new_tokens


@dataclass(frozen=True)
class LayerKV:
    """Keys and values of one layer, [K, S, D] each: a part of a `Cache`, not a copy."""

    keys: Tensor
    values: Tensor

    def update(self, keys: Tensor, values: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Put new keys and values, both [N, K, D], into their slots, [N] int64.

        Returns:
            All keys and values of the layer, [K, S, D].
        """
        self.keys.index_copy_(1, slots, keys.transpose(0, 1))
        self.values.index_copy_(1, slots, values.transpose(0, 1))
        return self.keys, self.values


class KVCache:
    """One slot a token, for every layer. Who has which slots is its owner's business."""

    def __init__(
        self, config: DecoderConfig, num_slots: int, like: Tensor, *, tp_size: int = 1
    ) -> None:
        """Make room for `num_slots` tokens in the dtype and device of `like`.

        Memory that is never written to is, on a CPU, never taken from the machine.

        Args:
            config: of the decoder.
            num_slots: how many tokens it holds.
            like: any of the decoder's weights.
            ranks: that share the heads of keys evenly.
        """
        shape = (config.num_layers, config.num_kv_heads // tp_size, num_slots, config.head_dim)
        self.keys = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self.values = torch.zeros_like(self.keys)
        places = torch.arange(config.max_seq_len, device=like.device)
        angles = rotary_angles(places, config.head_dim, config.rope_theta)
        self.cos, self.sin = angles.cos(), angles.sin()
        """[max_tokens, D/2] float32, of every position's rotary angles."""

    @property
    def num_slots(self) -> int:
        """How many tokens it holds."""
        return self.keys.shape[2]

    def layer(self, layer: int) -> LayerKV:
        """What one layer keeps."""
        return LayerKV(self.keys[layer], self.values[layer])

    def copy_prefix(self, source: int, target: int, *, count: int) -> None:
        """Give a row what another has read already: `count` slots from `source` to `target`."""
        for tensor in (self.keys, self.values):
            tensor[:, :, target : target + count] = tensor[:, :, source : source + count]


def positions_and_slots(
    pieces: Sequence[SequenceChunk], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Where the new tokens of some rows stand, row after row.

    Returns:
        Their positions, from 0 in each row, and their slots; both [N] int64.

    >>> places([Piece(10, 2, 1), Piece(20, 0, 2)], torch.device("cpu"))
    (tensor([2, 0, 1]), tensor([12, 20, 21]))
    """
    positions = [
        place for piece in pieces for place in range(piece.num_computed_tokens, piece.seq_len)
    ]
    slots = [
        piece.start_slot + n
        for piece in pieces
        for n in range(piece.num_computed_tokens, piece.seq_len)
    ]
    both = torch.tensor([positions, slots])
    if device.type == "cuda":
        both = both.pin_memory().to(device, non_blocking=True)
    return both[0], both[1]
