"""What Apple's GPUs (MPS) refuse or get wrong, recorded on a CPU."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

import calumma
from calumma import runtime

PACKAGE = Path(calumma.__file__).parent


class _Recorder(TorchFunctionMode):
    """Records functions of the package that make a float64 tensor, or a copy that is not waited for.

    MPS has no float64, and its `non_blocking` copies can have wrong values (pytorch#139550, #189690).
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        faults = [" float64"] if _is_float64(result) and not any(map(_is_float64, args)) else []
        faults += [" non_blocking"] if kwargs.get("non_blocking") else []
        caller = sys._getframe(1).f_code
        path = Path(caller.co_filename)
        if path.is_relative_to(PACKAGE):  # torch's own code takes care of MPS itself
            self.found.update(f"{path.relative_to(PACKAGE)}:{caller.co_name}{fault}" for fault in faults)
        return result


def _is_float64(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.float64


@contextmanager
def apple_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """Let the CPU have no float64, and yield the functions that do what MPS cannot."""
    monkeypatch.setattr(runtime, "DEVICES_WITHOUT_FLOAT64", ("cpu",))
    recorder = _Recorder()
    with recorder:
        yield recorder.found
