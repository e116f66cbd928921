"""The bench of weights runs, and eight bits take a quarter of float32's memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[2] / "benches" / "weights.py"


def test_sides_run_and_eight_bits_are_a_quarter() -> None:
    command = [sys.executable, BENCH, "--quick", "--size", "tiny"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout.splitlines()[-1])
    assert set(told["peers"]) == {"float32", "bfloat16", "torchao", "torchao-dynamic"}
    assert 0.25 < told["ratio"]["float32"]["weight_bytes"] < 0.29
    assert 0 < told["ours"]["off"] < 0.05
    assert told["ours"]["step_of_24_rows_seconds"] > 0
