"""The studies of rewards: prompts that stay apart from the evaluation, and a table of best of n."""

import runpy
import sys
from pathlib import Path

import pytest

from calumma.documents.document import Image
from calumma.documents.readers import read_documents
from studies.rewards.still_life import PROMPT_KINDS, combination, curves, halves, interval, table

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
    words = ("prompts", str(tmp_path / "p.parquet"), "--count", "40", "--kinds", *PROMPT_KINDS)
    run(monkeypatch, "rewards/still_life.py", *words)
    documents = list(read_documents([tmp_path / "p.parquet"]))
    by_kind = {kind: [d for d in documents if d.attributes["kind"] == kind] for kind in (*PROMPT_KINDS, "training")}
    assert sum(map(len, by_kind.values())) == 40 and all(len(each) >= 2 for each in by_kind.values())
    assert all(len(document.messages) == 2 for document in documents)
    held_out = {scene.to_png() for kind in ("single", "count") for scene in halves(kind)[1]}
    assert all(image.read_bytes() not in held_out for document in documents for image in document.images)
    assert all(len(document.images) == 2 for document in by_kind["edits"])
    is_drawing = [isinstance(document.messages[1].parts[0], Image) for document in by_kind["questions"]]
    assert not all(is_drawing)  # a scene without a hard question is drawn
    assert all(" with " in document.text for document in by_kind["wordings"])


def test_an_interval_is_one_of_combinations() -> None:
    names = ["a"] * 50 + ["b"] * 50
    mean, low, high = interval(names, [False] * 100, [True] * 50 + [False] * 50)
    assert (mean, low, high) == (0.5, 0.0, 1.0)  # two combinations say little, however many prompts they have


def test_a_table_compares_models_and_curves_show_rewards(tmp_path: Path) -> None:
    old, new = (
        {"scores": {"edits": (["0", "1"], [False, hit])}, "caption_bits": bits} for hit, bits in ((0, 2), (1, 1))
    )
    lines = table({"old": old, "new": new}).splitlines()
    assert lines[2:] == [
        "| edits | new | 0.0% | 50.0% | +50.0% (+0.0% to +100.0%) |",
        "| captions, bits per token | new | 2.0000 | 1.0000 | -50.0% |",
    ]
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "reward": 0.5}\n{"event": "x"}\n{"step": 2, "reward": 0.75}\n'
    )
    assert curves([tmp_path]).count("<polyline") >= 1


def test_best_of_n_is_measured_on_the_shipped_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "rewards/best_of.py", "still-life", "--count", "1", "--best-of", "2", "--skill", "position")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| skill | one sample | logprob | likelihood | still_life | any of 2 passes |"
    assert lines[2].startswith("| position | ") and lines[-1].startswith("Seconds per prompt: generation ")
