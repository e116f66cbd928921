"""Keys and values of the tokens already read, so that each is computed once."""

from __future__ import annotations

import torch
from torch import Tensor

from calumma.model.config import DecoderConfig


class Cache:
    """One slot a position, for every layer and row.

    Shapes: B rows, T new tokens, S slots, K key/value heads, D head_dim.
    """

    def __init__(
        self,
        config: DecoderConfig,
        num_rows: int,
        num_slots: int,
        like: Tensor,
    ) -> None:
        """Make room for `num_rows` x `num_slots` tokens in the dtype and device of `like`."""
        shape = (config.num_layers, num_rows, config.num_kv_heads, num_slots, config.head_dim)
        self.keys = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self.values = torch.zeros_like(self.keys)
        self.num_slots = num_slots

    def write(self, layer: int, keys: Tensor, values: Tensor, positions: Tensor) -> None:
        """Put new keys and values, both [B, K, T, D], at `positions`, [B, T] int64."""
        index = positions[:, None, :, None].expand_as(keys)
        self.keys[layer].scatter_(2, index, keys)
        self.values[layer].scatter_(2, index, values)

    def mask(self, positions: Tensor) -> Tensor:
        """Which slots each new token may see: its own and those before it.

        Args:
            positions: [B, T] int64.

        Returns:
            [B, 1, T, S] bool. Slots behind a row's last token hold stale values, never seen.
        """
        slots = torch.arange(self.num_slots, device=positions.device)
        return slots <= positions[:, None, :, None]

    def arrange(self, rows: Tensor) -> None:
        """Put rows in a new order: [R] int64 numbers of old rows, or -1 for a fresh, empty one."""
        fresh = rows < 0
        picked = rows.clamp(min=0)
        empty = self.keys.shape[1] == 0
        shape = (*self.keys.shape[:1], len(rows), *self.keys.shape[2:])
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_zeros(shape) if empty else old.index_select(1, picked)
            new[:, fresh] = 0
            setattr(self, name, new)

    def grow(self, num_slots: int) -> None:
        """Make room for more tokens; what is there stays."""
        if num_slots <= self.num_slots:
            return
        added = num_slots - self.num_slots
        self.keys = torch.nn.functional.pad(self.keys, (0, 0, 0, added))
        self.values = torch.nn.functional.pad(self.values, (0, 0, 0, added))
        self.num_slots = num_slots
