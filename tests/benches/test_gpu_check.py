"""The GPU check runs with tiny shapes, writes its table, and survives what a check does."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benches.gpu_check import BENCHMARKS, CHECKS, TESTS, Check, markdown_table, missed_goals, run_check

SCRIPT = Path(__file__).parents[2] / "benches" / "gpu_check.py"


def test_the_dry_run_writes_both_files(tmp_path: Path) -> None:
    words = ["--dry", "--out", str(tmp_path), "--only", "generation_on_gpu", "train_step", "generation"]
    done = subprocess.run([sys.executable, SCRIPT, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    written = json.loads((tmp_path / "gpu-check.json").read_text())
    assert [(record["check"], record["ok"]) for record in written["checks"]] == [(name, True) for name in words[4:]]
    tests, train_step, generation = (record["numbers"] for record in written["checks"])
    assert tests["passed"] >= 5 and tests["failed"] == 0
    assert train_step["tokens_per_second"] > 0
    assert {"seconds_per_image", "images_seconds_per_image", "edits_seconds_per_image"} < generation.keys()
    assert "| generation_on_gpu | passed " in (tmp_path / "gpu-check.md").read_text()


def test_checks_and_goals() -> None:
    assert TESTS.keys() == {"attention_on_gpu", "generation_on_gpu", "training_on_gpu"}
    assert BENCHMARKS.keys() == {
        *(
            "train_step",
            "generation",
            "encoder",
            "encoder_bfloat16",
            "save_checkpoint",
            "train_step_float8",
            "generation_fp8",
        )
    }
    assert missed_goals(CHECKS["train_step"], {"mfu": 0.44, "host_waits": 0.0}) == ["mfu >= 0.45"]
    assert missed_goals(CHECKS["generation"], {"seconds_per_image": 8.1, "images_seconds_per_image": 1.5}) == [
        "seconds_per_image <= 8"
    ]
    assert missed_goals(CHECKS["encoder"], {"images_per_second": 1.0}) == []


def test_a_check_that_fails_is_named_in_the_table() -> None:
    record = {
        "check": "encoder",
        "ok": False,
        "seconds": 1.5,
        "numbers": {},
        "goals_missed": [],
        "error": "RuntimeError: no kernel",
    }
    last = markdown_table([record], "a GPU").splitlines()[-1]
    assert last == "| encoder | **failed**: RuntimeError: no kernel | none | 1.5 |"


def test_a_check_that_hangs_or_fails_ends_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hangs, fails = tmp_path / "hangs.py", tmp_path / "fails.py"
    hangs.write_text("import time\ntime.sleep(60)\n")
    fails.write_text("raise ValueError('a wrong number')\n")
    for name, path, limit in (("hangs", hangs, 2), ("fails", fails, 60)):
        monkeypatch.setitem(CHECKS, name, Check(str(path), limit_seconds=limit))
    deadline = time.monotonic() + 60
    assert run_check("fails", True, deadline)["error"] == "ValueError: a wrong number"
    hung = run_check("hangs", True, deadline)
    assert (hung["ok"], hung["error"]) == (False, "took more than 2 s")
    late = run_check("fails", True, time.monotonic() - 1)
    assert late["error"] == "not run: the 10 minutes are over"
