"""The studies of fine-tuning: quick runs on a tiny model, and their arithmetic."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from calumma.checkpoints.model_folder import ModelComponents, save_model
from calumma.documents.document import Document, Text, Turn
from calumma.documents.preferences import write_preferences
from calumma.tokens.folder import Tokenizers
from tests.train.test_dpo import PAIRS

STUDY = Path(__file__).parents[2] / "studies" / "balance"


@pytest.fixture(scope="module")
def folders(
    model_parts: ModelComponents, tokenizers: Tokenizers, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A folder like the demo's, and one for what the studies make."""
    made = tmp_path_factory.mktemp("balance")
    demo = made / "demo"
    save_model(demo / "runs" / "pretrain" / "model", model_parts)
    tokenizers.text.save(demo / "tokenizers")
    tokenizers.image.save(demo / "tokenizers")
    # A tiny model draws nothing that could be compared: the pairs are given.
    (made / "out").mkdir()
    write_preferences(made / "out" / "pairs.jsonl", PAIRS)
    (made / "out" / "pairs.json").write_text('{"meaning": 5, "tell": 5}')
    return {"demo": demo, "out": made / "out"}


def program(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a program of the study defines."""
    monkeypatch.syspath_prepend(str(STUDY))
    return runpy.run_path(str(STUDY / name))


def test_quick_runs_of_all_programs_leave_their_figures(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    demo, out = folders["demo"], folders["out"]
    for name in ("categories", "preference", "balance"):
        words = [f"{name}.py", "--demo", str(demo), "--out", str(out), "--quick"]
        monkeypatch.setattr(sys, "argv", words)
        program(f"{name}.py", monkeypatch)["main"]()
    told = json.loads((out / "categories.json").read_text())
    assert {figure["name"] for figure in told["fine-tuned"]} >= {
        "asked for a picture, draws one", "asked for words, draws none", "ends by itself"
    }  # fmt: skip
    (first,) = json.loads((out / "balance.json").read_text())
    assert first["drawn"] == 0.0 and first["warning"].startswith("unbalanced: 0.0%")
    assert (out / "balance.svg").read_text().startswith("<svg")
    assert json.loads((out / "preference.json").read_text())["pairs"] == len(PAIRS)


def test_a_share_has_its_size_and_interval_and_becomes_a_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asking = program("asking.py", monkeypatch)
    figure = asking["share"]("draws", [True] * 9 + [False])
    assert (figure["value"], figure["n"]) == (0.9, 10)
    assert asking["line"](figure) == "| draws | 90.0% | 59.6% to 98.2% | 10 |"
    assert asking["line"](asking["share"]("none", [])) == "| none | - | - | 0 |"


def test_the_rise_of_a_share_is_that_of_the_same_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    difference = program("preference.py", monkeypatch)["difference"]
    rise = difference([False] * 5 + [True] * 5, [True] * 10)
    assert (rise["value"], rise["n"]) == (0.5, 10)
    assert 0.1 < rise["interval"][0] < 0.5 < rise["interval"][1] < 0.9


def test_the_ground_that_is_asked_for_stands_in_the_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    asked_ground = program("preference.py", monkeypatch)["asked_ground"]
    turn = Turn("user", (Text("Draw a large red cat on an orange ground."),))
    assert asked_ground(Document(id="a", messages=(turn,))) == "orange"
