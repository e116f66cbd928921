"""`calumma finetune`; the road's tests tune a model with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from calumma.cli.main import main
from tests.road.test_verbs import FINETUNE


def test_a_model_that_is_not_there_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("turns.toml").write_text(FINETUNE)
    assert main(["finetune", "turns.toml", "--out", "tuned"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: run/model")


def test_a_config_without_a_model_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "turns.toml"
    path.write_text(FINETUNE.replace('model = "run/model"\n', ""))
    assert main(["finetune", str(path), "--out", str(tmp_path / "tuned")]) == 2
    assert capsys.readouterr().err == (
        f"error: {path}: model is missing; wanted a value. Write it there or give --model VALUE.\n"
    )
