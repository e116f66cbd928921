"""Sides take turns, medians are told, and the last line is what the contract says."""

from __future__ import annotations

import json
import sys
from itertools import count

import pytest

from benches.measure import OURS, interleaved, machine, medians, peak_memory_bytes, result_line


def test_sides_take_turns_and_warmups_are_not_timed() -> None:
    calls: list[str] = []
    ticks = count()
    sides = {"ours": lambda: calls.append("ours"), "peer": lambda: calls.append("peer")}
    seconds = interleaved(sides, rounds=2, warmups=1, clock=lambda: float(next(ticks)))
    assert calls == ["ours", "peer"] * 3
    assert {name: len(values) for name, values in seconds.items()} == {"ours": 2, "peer": 2}
    assert medians({"ours": [3.0, 1.0, 2.0]}) == {"ours": 2.0}


def test_the_memory_of_a_child_is_its_own_peak() -> None:
    little = peak_memory_bytes([sys.executable, "-c", "pass"])
    much = peak_memory_bytes([sys.executable, "-c", "b = bytearray(100_000_000)"])
    assert 90_000_000 < much - little < 130_000_000


def test_a_child_that_fails_is_no_measurement() -> None:
    with pytest.raises(RuntimeError, match="ended with 3"):
        peak_memory_bytes([sys.executable, "-c", "raise SystemExit(3)"])


def test_the_last_line_has_the_ratio_of_ours_to_each_peer() -> None:
    sides = {OURS: {"images_per_second": 3.0, "left_out": 1.0}, "peer": {"images_per_second": 2.0}}
    line = json.loads(result_line("encode", sides, machine(threads=2), size=64))
    assert line["bench"] == "encode" and line["size"] == 64
    assert line["ours"] == sides[OURS]
    assert line["ratio"] == {"peer": {"images_per_second": 1.5}}
    assert "cores of" in line["machine"] and "2 threads" in line["machine"]
