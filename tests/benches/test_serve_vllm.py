"""The benchmark of vLLM: both backends generate the same tokens."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.vllm.in_process import SETTINGS

pytest.importorskip("vllm", reason="vllm is not installed; scripts/test-vllm installs it")

BENCH = Path(__file__).parents[2] / "benches" / "serve_vllm.py"


def test_both_backends_are_measured() -> None:
    settings = {**os.environ, **SETTINGS, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    done = subprocess.run([sys.executable, BENCH, "--quick"], capture_output=True, text=True, check=True, env=settings)
    result = json.loads(done.stdout.splitlines()[-1])
    for side in (result["ours"], result["peers"]["vllm"]):
        assert set(side) == {"text_2_seconds", "image_2_seconds"}
        assert min(side.values()) > 0
