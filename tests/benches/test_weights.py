"""The benchmark of quantized weights: int8 takes a quarter of the memory of float32."""

import json
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[2] / "benches" / "weights.py"


def test_int8_weights_take_a_quarter() -> None:
    command = [sys.executable, BENCH, "--quick", "--size", "tiny"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *table, last = done.stdout.splitlines()
    result = json.loads(last)
    assert [row.split(" | ")[0] for row in table[2:]] == ["| int8", *(f"| {name}" for name in result["peers"])]
    assert table[2].split(" | ")[2] == f"{1 / result['ours']['decode_batch_1_seconds']:,.0f}"
    assert set(result["peers"]) == {"float32", "bfloat16", "int4", "int4-bfloat16", "torchao", "torchao-dynamic"}
    assert 0.25 < result["ratio"]["float32"]["weight_bytes"] < 0.29
    assert 0 < result["ours"]["relative_error"] < 0.05
    assert result["ours"]["decode_batch_24_seconds"] > 0
