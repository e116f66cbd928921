"""The study of speculative decoding: a quick run on an untrained model."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from calumma.checkpoints.model_folder import ModelComponents, save_model

STUDY = Path(__file__).parents[2] / "studies" / "speculative" / "study.py"


def test_a_quick_run_counts_steps_and_finds_equal_images(
    model_parts: ModelComponents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tmp_path / "model", model_parts)
    words = [str(tmp_path / "model"), "--quick", "--out", str(tmp_path / "found.json")]
    monkeypatch.setattr(sys, "argv", ["study.py", *words])
    runpy.run_path(str(STUDY), run_name="__main__")
    found = json.loads((tmp_path / "found.json").read_text())
    assert [row["num_speculative_tokens"] for row in found] == [0, 4, 8, 16, 32]
    assert {row["sampling"] for row in found} == {"the release's"}
    assert all(row["equal"] == row["images"] == 1 for row in found)
    assert found[0]["steps"] == 4 and all(row["steps"] <= 4 for row in found)
    table = capsys.readouterr().out.splitlines()
    assert table[2].startswith("| the release's | none | 4.0 | 1.00 |")
    assert len(table) == 2 + 5
