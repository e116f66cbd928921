"""The benchmark of saving runs, and measures all steps."""

import json
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[2] / "benches" / "save_checkpoint.py"


def test_a_small_run() -> None:
    done = subprocess.run([sys.executable, BENCH, "--steps", "6"], capture_output=True, text=True, check=True)
    ours = json.loads(done.stdout.splitlines()[-1])["ours"]
    assert ours["slowest_step_seconds"] > 0 and ours["seconds_per_step"] > 0
    # Weights and two moments in float32, of a decoder of some hundred thousand parameters.
    assert ours["checkpoint_bytes"] > 1e5
