"""Tests of `calumma report`."""

from pathlib import Path

import pytest

from calumma.cli.main import main
from tests.train.test_run_report import write_run


def test_runs_are_compared_on_the_terminal_and_on_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(write_run(tmp_path / name, [2.0, loss], 1e-3)) for name, loss in (("one", 1.0), ("two", 1.5))]
    page = tmp_path / "comparison.html"
    assert main(["report", *folders, "--html", str(page)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[:3] == [["one", "two"], ["steps", "2", "2"], ["loss", "1", "1.5"]]
    assert "<figcaption>loss</figcaption>" in page.read_text()


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "expected the folder of a training run" in capsys.readouterr().err
