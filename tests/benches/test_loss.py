"""The loss benchmark runs, and both sides agree."""

import json
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[2] / "benches" / "loss.py"


def test_both_sides_agree() -> None:
    command = [sys.executable, BENCH, "--quick", "--targets", "256"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["ratio"]["direct"]["peak_memory_bytes"] < 1
    assert max(result["relative_difference"].values()) < 1e-5
