"""The benchmark of the time to a score, on a run of seconds."""

import subprocess
import sys
from pathlib import Path

from tests.demo.test_evening import TINY

BENCH = Path(__file__).parents[2] / "benches" / "time_to_score.py"


def test_the_row_has_the_minutes_of_the_first_model_that_is_good_enough(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TINY)
    given = [BENCH, "--out", tmp_path / "out", "--config", tmp_path / "tiny.toml", "--every", "2"]
    lines = []
    for target in ("0", "1.1"):
        command = [sys.executable, *given, "--num-prompts", "1", "--target", target, "--change", "nothing"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        lines.append(done.stdout.splitlines())
    reached, not_reached = lines
    assert reached[0] == "[1] documents"
    assert next(line for line in reached if line.startswith("step ")).startswith("step 2: score 0.")
    assert reached[-1].split(" | ")[3].isdigit()
    assert [line.split(":")[0] for line in not_reached[:2]] == ["step 2", "step 4"]
    assert not_reached[-1].endswith(" | not reached | nothing |")
    assert reached[-1].split(" | ")[2] == not_reached[-1].split(" | ")[2]
