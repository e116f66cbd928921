"""The studies of rewards: prompts that stay apart from the evaluation, and a table of best of n."""

import runpy
import sys
from pathlib import Path

import pytest

from calumma.documents.readers import read_documents
from studies.rewards.still_life import combination, halves, interval

STUDIES = Path(__file__).parents[2] / "studies"


def run(monkeypatch: pytest.MonkeyPatch, script: str, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", [script, *words])
    runpy.run_path(str(STUDIES / script), run_name="__main__")


@pytest.mark.parametrize("kind", ["single", "count"])
def test_prompts_and_held_out_scenes_share_no_combination(kind: str) -> None:
    prompts, others = halves(kind)
    assert {combination(scene) for scene in prompts}.isdisjoint(map(combination, others))
    assert abs(len(prompts) - len(others)) < 10 and len(others) >= 10
    assert all(scene.split != "train" for scene in [*prompts, *others])


def test_prompts_are_requests_with_a_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, "rewards/still_life.py", "prompts", str(tmp_path / "p.parquet"), "--count", "40")
    documents = list(read_documents([tmp_path / "p.parquet"]))
    assert len(documents) == 40
    assert all(len(document.messages) == 2 and len(document.images) == 1 for document in documents)
    held_out = {scene.to_png() for kind in ("single", "count") for scene in halves(kind)[1]}
    assert all(document.images[0].read_bytes() not in held_out for document in documents)


def test_an_interval_is_one_of_combinations() -> None:
    names = ["a"] * 50 + ["b"] * 50
    mean, low, high = interval(names, [False] * 100, [True] * 50 + [False] * 50)
    assert (mean, low, high) == (0.5, 0.0, 1.0)  # two combinations say little, however many prompts they have


def test_best_of_n_is_measured_on_the_shipped_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "rewards/best_of.py", "still-life", "--count", "1", "--best-of", "2", "--skill", "position")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| skill | one sample | logprob | likelihood | still_life | any of 2 passes |"
    assert lines[2].startswith("| position | ") and lines[-1].startswith("Seconds per prompt: generation ")
