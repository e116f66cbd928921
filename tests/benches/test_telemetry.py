"""The bench of telemetry runs, and both sides take the same steps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[2] / "benches" / "telemetry.py"


def test_the_overhead_and_the_wait_for_data_are_told(shards: Path) -> None:
    done = subprocess.run(
        [sys.executable, BENCH, "--quick", "--length", "64", "--shards", shards],
        capture_output=True,
        text=True,
        check=True,
    )
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["bench"] == "telemetry"
    assert set(told["ours"]) == {
        "seconds_per_step",
        "overhead",
        "overhead_without_waiting",
        "overhead_processor",
        "data_wait",
    }
    assert 0 <= told["ours"]["data_wait"] < 1
    assert told["ours"]["overhead"] > -1
    ratio = told["ours"]["seconds_per_step"] / told["peers"]["direct"]["seconds_per_step"]
    assert abs(told["ratio"]["direct"]["seconds_per_step"] - ratio) < 1e-3
