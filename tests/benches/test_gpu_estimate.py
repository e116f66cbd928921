"""Estimates for GPUs: counted by hand where that is short, and in order."""

import pytest

from benches.gpu_estimate import CODES, cache_bytes_per_token, decode_seconds, estimates
from calumma.gpu_specs import GPU_SPECS
from calumma.model.presets import PRESETS

H200 = GPU_SPECS["h200-141gb"]


def test_a_step_reads_all_weights_and_the_cache() -> None:
    shape = PRESETS["7B"]
    assert cache_bytes_per_token(shape) == 2 * 2 * 32 * 4096
    one, two = (decode_seconds(shape, H200, [100] * count) for count in (1, 2))
    # The second sequence costs its keys and values alone.
    assert two - one == pytest.approx(CODES * (100 + CODES / 2) * 2**19 / (0.6 * 4.8e12))


def test_figures_follow_from_each_other() -> None:
    found = estimates(H200)
    alone, eight, edits = (value for name, value in found.items() if "seconds" in name)
    assert 0 < eight < edits < alone
    assert all(0.3 < value < 0.65 for name, value in found.items() if name.endswith("MFU at best"))
    assert found["7B on h100-80gb, such requests at once"] >= 8
