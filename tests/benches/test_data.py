"""The data pipeline benchmark runs and prints its result line."""

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
    assert ours["non_padding_fraction"] > 0.9 and ours["tokens_per_second"] > 0
    assert 0 < ours["write_and_hash_fraction"] < ours["fraction_of_network_speed"] < 2
    for measure in ("build_peak_bytes", "loader_peak_bytes", "many_shards_loader_peak_bytes"):
        assert 0.8 < ours[f"{measure}_ratio"] < 1.3
