"""The benchmark of a busy machine runs every setting with every load."""

import json
import subprocess
import sys
from pathlib import Path

from benches.busy_machine import LOADS, SETTINGS

BENCH = Path(__file__).parents[2] / "benches" / "busy_machine.py"


def test_a_quick_run_measures_each_side_under_each_load() -> None:
    words = [sys.executable, BENCH, "--rounds", "1", "--seconds", "0.2"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["bench"] == "busy_machine"
    sides = {"ours": result["ours"], **result["peers"]}
    assert list(sides) == list(SETTINGS)
    for measures in sides.values():
        assert set(measures) == {f"{load}_tokens_per_second" for load in LOADS} | {"niced_share", "plain_share"}
        assert all(value > 0 for value in measures.values())
    assert len(done.stderr.splitlines()) == len(SETTINGS) * len(LOADS)
