"""The telemetry benchmark runs and reports the overhead."""

import json
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[2] / "benches" / "telemetry.py"


def test_overhead_and_data_wait_are_reported(shards: Path) -> None:
    done = subprocess.run(
        [sys.executable, BENCH, "--quick", "--length", "64", "--shards", shards],
        capture_output=True,
        text=True,
        check=True,
    )
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["bench"] == "telemetry"
    assert set(result["ours"]) == {
        "seconds_per_step",
        "overhead",
        "overhead_without_waiting",
        "cpu_overhead",
        "data_wait_fraction",
    }
    assert 0 <= result["ours"]["data_wait_fraction"] < 1
    assert result["ours"]["overhead"] > -1
    ratio = result["ours"]["seconds_per_step"] / result["peers"]["direct"]["seconds_per_step"]
    assert abs(result["ratio"]["direct"]["seconds_per_step"] - ratio) < 1e-3
