"""Interleaved timing, peak memory of a child process, and the format of the result line."""

import json
import sys
from itertools import count

import pytest

from benches.measure import (
    OURS,
    child_peak_memory_bytes,
    describe_machine,
    format_result,
    median_seconds,
    time_interleaved,
)


def test_sides_are_interleaved_and_warmups_are_not_timed() -> None:
    calls: list[str] = []
    ticks = count()
    sides = {"ours": lambda: calls.append("ours"), "peer": lambda: calls.append("peer")}
    seconds = time_interleaved(sides, num_rounds=2, num_warmups=1, clock=lambda: float(next(ticks)))
    assert calls == ["ours", "peer"] * 3
    assert {name: len(values) for name, values in seconds.items()} == {"ours": 2, "peer": 2}
    assert median_seconds({"ours": [3.0, 1.0, 2.0]}) == {"ours": 2.0}


def test_the_peak_memory_is_that_of_the_child() -> None:
    small = child_peak_memory_bytes([sys.executable, "-c", "pass"])
    large = child_peak_memory_bytes([sys.executable, "-c", "b = bytearray(100_000_000)"])
    assert 90_000_000 < large - small < 130_000_000


def test_a_failed_child_raises() -> None:
    with pytest.raises(RuntimeError, match="ended with 3"):
        child_peak_memory_bytes([sys.executable, "-c", "raise SystemExit(3)"])


def test_the_result_line_has_the_ratio_to_each_peer() -> None:
    sides = {OURS: {"images_per_second": 3.0, "only_ours": 1.0}, "peer": {"images_per_second": 2.0}}
    line = json.loads(format_result("encode", sides, describe_machine(threads=2), size=64))
    assert list(line) == ["bench", "ours", "peers", "ratio", "machine", "size"]
    assert line["bench"] == "encode" and line["size"] == 64
    assert line["ours"] == sides[OURS]
    assert line["ratio"] == {"peer": {"images_per_second": 1.5}}
    assert "cores of" in line["machine"] and "2 threads" in line["machine"]
