"""The stability study: quick runs of its programs, and its summary of known losses."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

STUDY = Path(__file__).parents[2] / "studies" / "stability"


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that loads a program of the study."""
    monkeypatch.syspath_prepend(str(STUDY))
    yield lambda name: runpy.run_path(str(STUDY / name))
    sys.modules.pop("study", None)


def call(main: Any, monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["program", *map(str, words)])
    main()


def test_a_quick_run_is_logged_and_not_repeated(
    programs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = programs("study.py")
    call(study["main"], monkeypatch, "--out", tmp_path, "--quick")
    (first, second) = sorted((tmp_path / "runs").iterdir())
    assert (first.name, second.name) == ("7B-recipe-0.03-0.jsonl", "no-QK-norm-0.03-0.jsonl")
    lines = [json.loads(line) for line in first.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert 0 < lines[-1]["max_attention_logit"] < 100
    before = first.stat().st_mtime_ns
    capsys.readouterr()
    call(study["main"], monkeypatch, "--out", tmp_path, "--quick")
    assert (first.stat().st_mtime_ns, capsys.readouterr().out) == (before, "")


def test_the_image_loss_can_be_masked(programs: Any, reader: Any) -> None:
    study = programs("study.py")
    loader = study["PackedLoader"](reader, study["DataConfig"](seq_len=32, global_batch_size=4))
    loader.set_mixture({"pairs": 1.0})
    batch = loader.next()
    codes = loader.vocabulary.codes
    is_code = (batch.labels >= codes.start) & (batch.labels < codes.stop)
    assert (batch.loss_mask & is_code).any()
    masked = study["mask_image_loss"](batch, loader.vocabulary)
    assert not (masked.loss_mask & is_code).any()
    assert (masked.loss_mask[~is_code] == batch.loss_mask[~is_code]).all()


def test_a_run_that_ends_above_its_minimum_diverges(
    programs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = programs("report.py")
    names = ("loss_text", "loss_image", "output_norm", "max_attention_logit", "log_z")

    def steps(losses: list[float]) -> list[dict[str, Any]]:
        return [{"loss": loss, "step_skipped": 0, **dict.fromkeys(names, 2.0)} for loss in losses]

    stable = report["summarize"](steps([3.0] * 30 + [2.0] * 30))
    assert (stable["loss"], stable["best"], "diverges_at" in stable) == (2.0, 2.0, False)
    diverged = report["summarize"](steps([3.0] * 30 + [2.0] * 30 + [4.0] * 30))
    # One loss of 4 among 25 raises their mean by 0.08, two by 0.16.
    assert (diverged["loss"], diverged["best"], diverged["diverges_at"]) == (4.0, 2.0, 62)
    run = report["StudyRun"]("7B recipe", 0.03, 1)
    run.path(tmp_path).parent.mkdir()
    run.path(tmp_path).write_text("\n".join(map(json.dumps, steps([3.0] * 30))))
    call(report["main"], monkeypatch, "--out", tmp_path, "--to", tmp_path)
    assert json.loads((tmp_path / "results.json").read_text())[0]["variant"] == "7B recipe"
    assert (tmp_path / "curves.svg").read_text().count("<polyline") == 3
