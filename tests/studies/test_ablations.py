"""The study of ablations: the command of every run, a quick run that is not repeated, and the tables."""

import json
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from calumma.toml_config import load_config
from calumma.train.config import PretrainConfig

STUDY = Path(__file__).parents[2] / "studies" / "ablations"


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that loads a program of the study."""
    monkeypatch.syspath_prepend(str(STUDY))
    yield lambda name: runpy.run_path(str(STUDY / name))
    sys.modules.pop("study", None)


def test_the_commands_of_all_runs_are_valid_and_differ(
    programs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = programs("study.py")
    monkeypatch.setattr(sys, "argv", ["study.py", "--out", str(tmp_path), "--seeds", "3", "--dry"])
    study["main"]()
    commands = [shlex.split(line) for line in capsys.readouterr().out.splitlines() if not line.startswith("#")]
    configs = [load_config(PretrainConfig, Path(words[2]), words[5:]) for words in commands]
    assert [words[:2] for words in commands] == [["calumma", "pretrain"]] * len(commands)
    assert len({str(config) for config in configs}) == len(configs) == 28
    assert {config.data.seed for config in configs} == {config.seed for config in configs} == {3}
    assert not list(tmp_path.iterdir())


def test_a_quick_run_is_measured_in_the_formats_of_its_documents_and_not_repeated(
    programs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = programs("study.py")["Study"](tmp_path, num_prompts=2, max_scenes=6, quick=True)
    study.prepare()
    for name in ("captions only", "conversations late"):
        study.run(name, 0)
    path = study.folder("captions only", 0) / "result.json"
    captions, both = (
        json.loads(path.read_text()),
        json.loads((path.parents[1] / "conversations-late-0" / path.name).read_text()),
    )
    assert captions["steps"] == len(captions["curve_loss"]) * 4 == 4
    assert set(captions["chat"]) - {"colors_named_right"} == {"text_bits", "things_named_right"}
    assert "plain" not in captions
    assert set(both["chat"]) == set(both["plain"]) >= {"image_bits", "text_bits", "things_named_right"}
    assert 5 < captions["chat"]["text_bits"] < 12
    before = path.stat().st_mtime_ns
    study.run("captions only", 0)
    assert path.stat().st_mtime_ns == before

    report = programs("report.py")
    monkeypatch.setattr(sys, "argv", ["report.py", "--out", str(tmp_path)])
    capsys.readouterr()
    report["main"]()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("| captions", "| conv"))]
    assert [row.split(" | ")[:2] for row in rows] == [
        ["| captions only", "chat"], ["| conversations late", "plain"], ["| conversations late", "chat"]
    ]  # fmt: skip
    figures = {path.name: path.read_text() for path in tmp_path.glob("*.svg")}
    assert set(figures) == {"learning-fusion.svg"}
    assert "text, captions only" in figures["learning-fusion.svg"]


def test_tables_give_intervals_of_shares_and_values_of_all_seeds(programs: Any) -> None:
    report = programs("report.py")
    share = {"value": 0.5, "n": 100, "interval": [0.4, 0.6], "chance": 0.1}
    plain = {"image_bits": 0.12345, "text_bits": 1.5, "shapes_drawn_right": share, "objects_drawn_right": share}
    maxima = dict.fromkeys(("max_grad_norm", "max_output_norm", "max_attention_logit", "max_log_z"), 1234.5)
    result = {"parameters": 2_000, "tokens": 500, "loss": 2.25, "plain": plain, **maxima}
    name, stable = next(iter(report["GROUPS"]["scale"])), next(iter(report["GROUPS"]["stability"]))
    *_, row = report["scale_rows"]({name: [result, result]})
    assert row == (
        "| 2,000 | 500 | 0.25 | 0.123, 0.123 | 1.5, 1.5 | 50.0 (40 to 60), 50.0 (40 to 60) | "
        "50.0 (40 to 60), 50.0 (40 to 60) |"
    )
    *_, row = report["stability_rows"]({stable: [result]})
    assert row == f"| {stable} | 2.25 | 1,234 | 1,234 | 1,234 | 1,234 | 0.123 |"
