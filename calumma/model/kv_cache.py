"""KV cache: keys and values of the tokens computed so far, so that each is computed once.

Shapes: N new tokens, S slots, K key/value heads, D head_dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from calumma.model.config import DecoderConfig
from calumma.model.rope import rope_angles


@dataclass(frozen=True)
class SequenceChunk:
    """New tokens of one sequence in a forward call. A sequence has consecutive cache slots."""

    start_slot: int
    """Cache slot of the sequence's first token."""

    num_computed_tokens: int
    """Tokens of the sequence that are in the cache before the call."""

    num_new_tokens: int
    """Tokens of the sequence that the call computes; they take the next slots."""

    position_ids: tuple[int, ...] | None = None
    """Positions of the new tokens; None for those of their slots."""

    @property
    def seq_len(self) -> int:
        """Tokens of the sequence that are in the cache after the call."""
        return self.num_computed_tokens + self.num_new_tokens


@dataclass(frozen=True)
class LayerKV:
    """Keys and values of one layer, [K, S, D] each: views of a `KVCache`."""

    keys: Tensor
    values: Tensor

    def update(self, keys: Tensor, values: Tensor, slot_mapping: Tensor) -> tuple[Tensor, Tensor]:
        """Write new keys and values, both [N, K, D], to their slots, [N] int64.

        Returns:
            All keys and values of the layer, [K, S, D].
        """
        self.keys.index_copy_(1, slot_mapping, keys.transpose(0, 1))
        self.values.index_copy_(1, slot_mapping, values.transpose(0, 1))
        return self.keys, self.values


class KVCache:
    """Preallocated keys and values, one slot per token in every layer.

    The caller allocates the slots (`calumma.generate.scheduler.KVAllocator`).
    """

    def __init__(
        self,
        config: DecoderConfig,
        num_slots: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        tp_size: int = 1,
    ) -> None:
        """Allocate `num_slots` slots for the key/value heads of one of `tp_size` ranks.

        On a CPU, pages that are never written take no memory.
        """
        shape = (config.num_layers, config.num_kv_heads // tp_size, num_slots, config.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros_like(self.keys)
        self.max_seq_len = config.max_seq_len
        positions = torch.arange(config.max_seq_len, device=device)
        angles = rope_angles(positions, config.head_dim, config.rope_theta)
        self.cos, self.sin = angles.cos(), angles.sin()
        """[max_seq_len, D/2] float32, of the rotary angles of every position."""

    @property
    def num_slots(self) -> int:
        """Capacity in tokens."""
        return self.keys.shape[2]

    def layer(self, index: int) -> LayerKV:
        """Return the keys and values of one layer."""
        return LayerKV(self.keys[index], self.values[index])

    def copy_prefix(self, source: int, target: int, *, count: int) -> None:
        """Copy `count` slots from slot `source` to slot `target` in every layer."""
        for tensor in (self.keys, self.values):
            tensor[:, :, target : target + count] = tensor[:, :, source : source + count]


def positions_and_slots(chunks: Sequence[SequenceChunk], device: torch.device) -> tuple[Tensor, Tensor]:
    """Compute position ids and slot mapping of the new tokens, sequence after sequence.

    Returns:
        Positions, from 0 in each sequence, and cache slots; both [N] int64.

    >>> positions_and_slots([SequenceChunk(10, 2, 1), SequenceChunk(20, 0, 2)], torch.device("cpu"))
    (tensor([2, 0, 1]), tensor([12, 20, 21]))
    """
    slots = [c.start_slot + p for c in chunks for p in range(c.num_computed_tokens, c.seq_len)]
    positions = [p for c in chunks for p in c.position_ids or range(c.num_computed_tokens, c.seq_len)]
    both = torch.tensor([positions, slots])
    on_device = to_device_async(both, device)
    return on_device[0], on_device[1]


def to_device_async(values: Tensor, device: torch.device) -> Tensor:
    """Copy host values to a device for what is launched from now on, without waiting."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
