"""The GPU check runs with tiny shapes, and writes its table."""

import json
import subprocess
import sys
from pathlib import Path

from benches.gpu_check import BENCHMARKS, CHECKS, markdown_table

SCRIPT = Path(__file__).parents[2] / "benches" / "gpu_check.py"


def test_the_dry_run_writes_both_files(tmp_path: Path) -> None:
    words = ["--dry", "--out", str(tmp_path), "--only", "loss", "resume"]
    done = subprocess.run([sys.executable, SCRIPT, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    written = json.loads((tmp_path / "gpu-check.json").read_text())
    assert [(record["check"], record["ok"]) for record in written["checks"]] == [("loss", True), ("resume", True)]
    assert written["checks"][1]["numbers"] == {"loss_difference": 0.0}
    assert "| resume | loss_difference 0 |" in (tmp_path / "gpu-check.md").read_text()


def test_a_check_that_fails_is_named_in_the_table() -> None:
    records = [{"check": "loss", "ok": False, "seconds": 1.5, "numbers": {}, "error": "a loss of nan"}]
    assert markdown_table(records, "a GPU").splitlines()[-1] == "| loss | **failed**: a loss of nan | 1.5 |"
    assert {
        "train_step",
        "resume",
        "host_waits",
        "generation",
        "encoder",
        "float8",
    } < CHECKS.keys() | BENCHMARKS.keys()
