"""Bytes of live tensors, counted after every operation; used by test_memory_estimate.py."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the storages of given tensors and of tensors that operations create."""

    def __init__(self, tensors: Sequence[torch.Tensor] = ()) -> None:
        super().__init__()
        self._weak_refs: dict[int, Any] = {}
        self.peak = 0
        """Most bytes that were live at once."""

        for tensor in tensors:
            self._track(tensor)

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operation, then count."""
        out = operation(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._track(leaf)
        self.peak = max(self.peak, self.live_bytes())
        return out

    def live_bytes(self) -> int:
        """Return the bytes of all live storages."""
        total = 0
        for key, weak in list(self._weak_refs.items()):
            storage = torch.UntypedStorage._new_with_weak_ptr(weak)
            if storage is None:
                torch.UntypedStorage._free_weak_ref(weak)
                del self._weak_refs[key]
            else:
                total += storage.nbytes()
        return total

    def _track(self, tensor: torch.Tensor) -> None:
        # Tensor subclasses have a storage of their own without memory.
        tensor = getattr(tensor, "_local_tensor", tensor)
        storage = getattr(tensor, "elem", tensor).untyped_storage()
        if storage._cdata not in self._weak_refs:
            self._weak_refs[storage._cdata] = storage._weak_ref()
