"""The study of images of three aspects: a quick run."""

import json
import runpy
import sys
from pathlib import Path

import pytest

STUDY = Path(__file__).parents[2] / "studies" / "image_sizes" / "study.py"


@pytest.mark.slow
def test_a_quick_run_draws_images_of_three_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [str(tmp_path), "--documents", "60", "--steps", "3", "--prompts", "6"]
    monkeypatch.setattr(sys, "argv", ["study.py", *words])
    runpy.run_path(str(STUDY), run_name="__main__")
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["size given"]["aspects"][:2] == [6, 6]
    assert found["size chosen by the model"]["images"][:2] == [6, 6]
