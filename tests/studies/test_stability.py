"""The study of stability: quick runs of its programs, and its figures by hand."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

STUDY = Path(__file__).parents[2] / "studies" / "stability"


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Gives what a program of the study defines."""
    monkeypatch.syspath_prepend(str(STUDY))
    yield lambda name: runpy.run_path(str(STUDY / name))
    sys.modules.pop("study", None)


def call(main: Any, monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["program", *map(str, words)])
    main()


def test_a_quick_run_is_told_and_not_run_again(
    programs: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    study = programs("study.py")
    call(study["main"], monkeypatch, "--out", tmp_path, "--quick")
    (first, second) = sorted((tmp_path / "runs").iterdir())
    assert (first.name, second.name) == ("7B-recipe-0.03-0.jsonl", "no-QK-norm-0.03-0.jsonl")
    lines = [json.loads(line) for line in first.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert 0 < lines[-1]["attention_logit"] < 100
    before = first.stat().st_mtime_ns
    capsys.readouterr()
    call(study["main"], monkeypatch, "--out", tmp_path, "--quick")
    assert (first.stat().st_mtime_ns, capsys.readouterr().out) == (before, "")


def test_codes_that_are_not_learned_count_no_more(programs: Any, reader: Any) -> None:
    study = programs("study.py")
    stream = study["Stream"](reader, study["StreamConfig"](row_length=32, num_rows=4))
    stream.mix({"pairs": 1.0})
    batch = stream.next()
    codes = stream.vocabulary.codes
    is_code = (batch.targets >= codes.start) & (batch.targets < codes.stop)
    assert (batch.counted & is_code).any()
    bare = study["without_codes"](batch, stream)
    assert not (bare.counted & is_code).any()
    assert (bare.counted[~is_code] == batch.counted[~is_code]).all()


def test_a_run_that_ends_above_its_best_diverges_from_where_it_left_it(
    programs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = programs("report.py")
    names = ("loss_text", "loss_image", "output_norm", "attention_logit", "z")

    def steps(losses: list[float]) -> list[dict[str, Any]]:
        return [{"loss": loss, "skipped": 0, **dict.fromkeys(names, 2.0)} for loss in losses]

    calm = report["figures"](steps([3.0] * 30 + [2.0] * 30))
    assert (calm["loss"], calm["best"], "diverges_at" in calm) == (2.0, 2.0, False)
    lost = report["figures"](steps([3.0] * 30 + [2.0] * 30 + [4.0] * 30))
    # One step of 4 among 25 lifts their mean by 0.08, two by 0.16.
    assert (lost["loss"], lost["best"], lost["diverges_at"]) == (4.0, 2.0, 62)
    run = report["Run"]("7B recipe", 0.03, 1)
    run.file(tmp_path).parent.mkdir()
    run.file(tmp_path).write_text("\n".join(map(json.dumps, steps([3.0] * 30))))
    call(report["main"], monkeypatch, "--out", tmp_path, "--to", tmp_path)
    assert json.loads((tmp_path / "results.json").read_text())[0]["variant"] == "7B recipe"
    assert (tmp_path / "curves.svg").read_text().count("<polyline") == 3
