"""The bench of the data's road runs, and says what the contract wants of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_a_quick_run_ends_in_one_line_of_json() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benches.data", "--quick", "--rounds", "1"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
        timeout=200,
    )
    line = json.loads(done.stdout.splitlines()[-1])
    assert line["bench"] == "data"
    ours = line["ours"]
    assert ours["fill"] > 0.9 and ours["tokens_per_second"] > 0
    assert 0 < ours["share_writing_and_hashing"] < ours["share_of_bare_encoder"] < 2
    for what in ("build_peak_bytes", "loader_peak_bytes", "pieces_loader_peak_bytes"):
        assert 0.8 < ours[f"{what}_large_to_small"] < 1.3
