"""The progress lines of `calumma demo`; tests/end_to_end runs it."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from calumma.cli import progress
from calumma.cli.demo import _TerminalProgress
from calumma.cli.main import main
from calumma.demo.evening import EveningPipeline, load_evening_config
from calumma.runtime import num_busy_cpus


def test_each_step_is_announced_and_its_bar_closed_before_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    output = io.StringIO()
    monkeypatch.setattr(progress, "CONSOLE", Console(file=output, width=120, highlight=False))
    terminal = _TerminalProgress(3)
    terminal.skip(1, "documents")
    terminal.begin(2, "shards")
    terminal.counting("shards", 8, "documents")(8)
    terminal.begin(3, "pre-training")
    callbacks = terminal.training("pre-training", 2)
    assert callbacks.on_step is not None and callbacks.num_busy_cpus is num_busy_cpus
    callbacks.on_step(2, {"loss_text": 1.0})
    terminal.close()
    lines = [line.split(" (")[0] for line in output.getvalue().splitlines()]
    assert lines == [
        "[1/3] documents: done before",
        "[2/3] shards",
        "shards: 8 of 8",
        "[3/3] pre-training",
        "pre-training: 2 of 2",
    ]


def test_a_missing_config_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "no.toml"
    assert main(["demo", "--config", str(missing), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == (
        f"error: {missing}: cannot be read (No such file or directory); expected a TOML file. Fix the path.\n"
    )
    assert not (tmp_path / "out").exists()


def test_the_size_chooses_the_pipeline_its_config_and_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run: list[EveningPipeline] = []
    monkeypatch.setattr(EveningPipeline, "run", lambda self, progress: run.append(self))
    assert main(["demo", "--size", "evening", "--seed", "3"]) == 0
    assert (run[0].out, run[0].config) == (Path("out/evening"), load_evening_config(None, {"seed": 3}))
    assert capsys.readouterr().out == "out/evening/report.html\n"
