"""`calumma pretrain`; the road's tests train a model with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from calumma.cli.main import main
from tests.road.test_verbs import PRETRAIN


def test_shards_that_are_not_there_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.toml").write_text(PRETRAIN)
    assert main(["pretrain", "run.toml", "--out", "run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(("error: tok", "error: shards"))


def test_a_stage_that_is_missing_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.toml"
    path.write_text(PRETRAIN.replace("stage_two.weights", "stage_too.weights"))
    assert main(["pretrain", str(path), "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err == (
        f"error: {path}: there is no field stage_too; wanted perhaps stage_two.\n"
    )
