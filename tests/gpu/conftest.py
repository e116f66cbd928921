"""The device of these tests: a GPU, or a CPU that does what a GPU would.

`scripts/gpu-check` runs each file in a process of its own, with `--dry` on a CPU too. They are marked
slow: most of the same is in the tests of each module.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.model.cpu_flash_attention import cpu_flash_kernels


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Return the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def dtype(device: torch.device) -> torch.dtype:
    """Return the dtype of flash attention: of its kernels, or of their stand-ins on a CPU."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


@pytest.fixture
def flash_kernels(device: torch.device) -> Iterator[None]:
    """Let a CPU run the operators of flash attention."""
    if device.type == "cuda":
        yield
        return
    with cpu_flash_kernels():
        yield
