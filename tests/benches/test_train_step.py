"""The training-step benchmark runs, and both sides have the same losses."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benches.train_step import flops_per_token
from calumma.model.presets import PRESETS

BENCH = Path(__file__).parents[2] / "benches" / "train_step.py"


def test_both_sides_have_the_same_losses() -> None:
    done = subprocess.run(
        [sys.executable, BENCH, "--quick", "--size", "tiny", "--seq-len", "128"],
        capture_output=True,
        text=True,
        check=True,
    )
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["bench"] == "train_step"
    assert set(result["ratio"]["transformers"]) == {
        *("tokens_per_second", "peak_memory_bytes", "mfu", "mfu_documents")
    }
    losses: dict[str, list[float]] = {}
    for side, loss in re.findall(r"([\w-]+) loss ([\d.]+)", done.stderr):
        losses.setdefault(side, []).append(float(loss))
    for name in result["peers"]:
        assert losses[name] == pytest.approx(losses["ours"], abs=2e-2), name
    assert losses["ours"] == pytest.approx(losses["transformers"], abs=2e-4)
    assert losses["ours"][-1] < losses["ours"][0]


def test_flops_per_token_of_the_7b_model() -> None:
    # 6 x (7.013 - 0.268) billion weights, and 12 x 32 layers x 4,096 channels x 4,096 tokens.
    assert flops_per_token(PRESETS["7B"], 4096) == pytest.approx(46.9e9, rel=1e-3)
