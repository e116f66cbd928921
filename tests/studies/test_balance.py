"""The fine-tuning studies: quick runs on a tiny model, and their statistics."""

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
    """Folders: "demo" is like that of the demo, "out" is for the output of the studies."""
    folder = tmp_path_factory.mktemp("balance")
    demo = folder / "demo"
    save_model(demo / "runs" / "pretrain" / "model", model_parts)
    tokenizers.text.save(demo / "tokenizers")
    tokenizers.image.save(demo / "tokenizers")
    # An untrained model gives no pairs that differ by the rule, so they are written here.
    (folder / "out").mkdir()
    write_preferences(folder / "out" / "pairs.jsonl", PAIRS)
    (folder / "out" / "pairs.json").write_text('{"meaning": 5, "tell": 5}')
    return {"demo": demo, "out": folder / "out"}


def program(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Load a program of the study and return its names."""
    monkeypatch.syspath_prepend(str(STUDY))
    return runpy.run_path(str(STUDY / name))


def test_quick_runs_of_all_programs_write_their_results(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    demo, out = folders["demo"], folders["out"]
    for name in ("categories", "preference", "balance"):
        words = [f"{name}.py", "--demo", str(demo), "--out", str(out), "--quick"]
        monkeypatch.setattr(sys, "argv", words)
        program(f"{name}.py", monkeypatch)["main"]()
    results = json.loads((out / "categories.json").read_text())
    assert {result["name"] for result in results["fine-tuned"]} >= {
        "image requests with image", "text requests without image", "finished"
    }  # fmt: skip
    (first,) = json.loads((out / "balance.json").read_text())
    assert first["image_fraction"] == 0.0 and first["warning"].startswith("unbalanced: 0.0%")
    assert (out / "balance.svg").read_text().startswith("<svg")
    assert json.loads((out / "preference.json").read_text())["pairs"] == len(PAIRS)


def test_a_proportion_has_sample_size_and_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    prompting = program("prompting.py", monkeypatch)
    result = prompting["proportion"]("with image", [True] * 9 + [False])
    assert (result["value"], result["n"]) == (0.9, 10)
    assert prompting["table_row"](result) == "| with image | 90.0% | 59.6% to 98.2% | 10 |"
    assert prompting["table_row"](prompting["proportion"]("none", [])) == "| none | - | - | 0 |"


def test_the_increase_is_over_the_same_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    difference = program("preference.py", monkeypatch)["paired_difference"]
    increase = difference([False] * 5 + [True] * 5, [True] * 10)
    assert (increase["value"], increase["n"]) == (0.5, 10)
    assert 0.1 < increase["interval"][0] < 0.5 < increase["interval"][1] < 0.9


def test_the_requested_background_is_read_from_the_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    background = program("preference.py", monkeypatch)["requested_background"]
    turn = Turn("user", (Text("Draw a large red cat on an orange ground."),))
    assert background(Document(id="a", messages=(turn,))) == "orange"
