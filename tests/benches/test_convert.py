"""The bench of conversions runs."""

from __future__ import annotations

import json
import subprocess
import sys


def test_it_runs_and_tells_memory_and_time() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benches.convert", "--quick"],
        capture_output=True,
        text=True,
        check=True,
    )
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["bench"] == "convert"
    assert set(told["ours"]) == {
        f"folder_to_folder_{what}"
        for what in ("seconds", "peak_memory_bytes", "peak_over_largest_file")
    }
