"""The conversion benchmark runs."""

import json
import subprocess
import sys


def test_memory_and_time_are_reported() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benches.convert", "--quick"], capture_output=True, text=True, check=True
    )
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["bench"] == "convert"
    assert set(result["ours"]) == {
        f"folder_to_folder_{measure}" for measure in ("seconds", "peak_memory_bytes", "peak_over_largest_file")
    }
