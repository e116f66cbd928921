"""The benchmark of a busy machine trains each side with each load."""

import json
import subprocess
import sys
from pathlib import Path

from benches.busy_machine import LOADS

BENCH = Path(__file__).parents[2] / "benches" / "busy_machine.py"
SIDES = ["ours", "one-thread"]


def test_a_quick_run_measures_each_side_under_each_load() -> None:
    words = [sys.executable, BENCH, "--rounds", "1", "--seconds", "0.2", "--sides", *SIDES]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["bench"] == "busy_machine"
    sides = {"ours": result["ours"], **result["peers"]}
    assert list(sides) == SIDES
    for measures in sides.values():
        names = {f"{load}_{what}" for load in LOADS for what in ("tokens_per_second", "threads")}
        assert set(measures) == names | {"niced_share", "plain_share"}
        assert all(value > 0 for value in measures.values())
    assert [sides["one-thread"][f"{load}_threads"] for load in LOADS] == [1, 1, 1]
    assert sides["ours"]["plain_threads"] <= sides["ours"]["quiet_threads"]
    assert len(done.stderr.splitlines()) == len(SIDES) * len(LOADS)
