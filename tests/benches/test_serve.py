"""The benchmark of the server runs and prints one line of JSON."""

import json
import subprocess
import sys
from pathlib import Path


def test_a_quick_run_ends_in_one_line_of_json() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benches.serve", "--quick"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
        timeout=200,
    )
    line = json.loads(done.stdout.splitlines()[-1])
    assert line["bench"] == "serve"
    assert line["ratio"]["one_at_a_time"]["requests_per_second"] > 0
    assert 0.5 < line["ours"]["resident_growth"] < 1.5
