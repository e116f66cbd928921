"""The image tokenizer benchmark runs and prints its result line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


def test_a_quick_run_ends_in_one_line_of_json() -> None:
    pytest.importorskip("transformers")
    words = ["--quick", "--images", "2", "--batch", "2", "--rounds", "1", "--threads", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "benches.encode_images", *words],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    line = json.loads(done.stdout.splitlines()[-1])
    assert line["bench"] == "encode_images" and line["codes_equal"] == 1.0
    assert set(line["peers"]) == {"transformers", "transformers-batched"}
    for measures in (line["ours"], *line["peers"].values()):
        assert measures["images_per_second"] > 0 and measures["fraction_of_limit"] > 0
