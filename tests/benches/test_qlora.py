"""The benchmark of QLoRA: quantized weights take less memory and reach nearly the same loss."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "benches" / "qlora.py"


def test_quantized_weights_are_smaller_and_the_loss_falls_alike() -> None:
    done = subprocess.run([sys.executable, BENCH, "--quick"], capture_output=True, text=True, check=True)
    sides = json.loads(done.stdout.splitlines()[-1])["sides"]
    assert sides["int4"]["weight_bytes"] < sides["int8"]["weight_bytes"] < sides["float32"]["weight_bytes"]
    for side in sides.values():
        assert side["last_loss"] < side["first_loss"]
        assert side["last_loss"] == pytest.approx(sides["float32"]["last_loss"], rel=0.01)
