"""Bytes that live tensors hold, looked at behind every operation; see test_plan_memory.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Weak = Any  # a storage that is looked at and not kept


class LiveBytes(TorchDispatchMode):
    """Counts the tensors that operations under it make, and those it is shown."""

    def __init__(self, shown: Sequence[torch.Tensor] = ()) -> None:
        super().__init__()
        self._weak: dict[int, Weak] = {}
        self.most = 0
        """Most bytes that were held at once."""

        self.then: list[int] = []
        """The sizes that were held then."""

        for tensor in shown:
            self._look_at(tensor)

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Do the operation, then count."""
        out = operation(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._look_at(leaf)
        now = self.sizes()
        if sum(now) > self.most:
            self.most, self.then = sum(now), now
        return out

    def sizes(self) -> list[int]:
        """Bytes of each storage that is held now."""
        sizes = []
        for key, weak in list(self._weak.items()):
            storage = torch.UntypedStorage._new_with_weak_ptr(weak)
            if storage is None:
                torch.UntypedStorage._free_weak_ref(weak)
                del self._weak[key]
            else:
                sizes.append(storage.nbytes())
        return sizes

    def _look_at(self, tensor: torch.Tensor) -> None:
        # What wraps a tensor has a storage of its own, which tells bytes that nobody holds.
        tensor = getattr(tensor, "_local_tensor", tensor)
        storage = getattr(tensor, "elem", tensor).untyped_storage()
        if storage._cdata not in self._weak:
            self._weak[storage._cdata] = storage._weak_ref()
