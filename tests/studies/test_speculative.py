"""The study of speculative decoding: a quick run on an untrained model."""

import json
import runpy
import sys
from pathlib import Path

import pytest

import calumma
from calumma.checkpoints.model_folder import ModelComponents, save_model
from calumma.model.downward_head import DownwardHead
from studies.speculative.grid import drawing_documents

STUDY = Path(__file__).parents[2] / "studies" / "speculative" / "study.py"


def test_documents_of_a_larger_grid_are_simple() -> None:
    documents = list(drawing_documents(20, seed=0))
    assert all(document.images[0].open().size == (128, 128) for document in documents)
    words = " ".join(document.text for document in documents)
    assert " small " in words and not {"large", "purple", "banana"} & set(words.split())
    assert list(drawing_documents(2, seed=0)) == documents[:2]


def test_bits_of_both_orders_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(STUDY.parent)
    functions = runpy.run_path(str(STUDY.parent / "diagonal.py"))
    model = calumma.load("still-life", device="cpu")
    model.decoder.downward_head = DownwardHead(model.decoder.config.model_dim).requires_grad_(False)
    prompts = functions["sample_prompts"]("position", 1, simple=False)
    raster, diagonal = functions["code_bits"](model, prompts)
    assert 0 < raster < 1 < diagonal < 30  # the head is not trained


def test_ways_to_fewer_steps_are_compared(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(STUDY.parent)
    words = [
        "still-life",
        "--count",
        "1",
        "--skill",
        "position",
        "--way",
        "one code per step",
        "32 speculative tokens",
    ]
    monkeypatch.setattr(sys, "argv", ["diagonal.py", *words])
    runpy.run_path(str(STUDY.parent / "diagonal.py"), run_name="__main__")
    table = capsys.readouterr().out.splitlines()
    assert table[2].startswith("| one code per step | 64.0 | ") and "| 1 of 1 | " in table[2]
    assert table[3].startswith("| 32 speculative tokens | ") and "| 1 of 1 | " in table[3]


def test_a_quick_run_counts_steps_and_finds_equal_images(
    model_parts: ModelComponents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tmp_path / "model", model_parts)
    words = [str(tmp_path / "model"), "--quick", "--out", str(tmp_path / "found.json")]
    words += ["--chart", str(tmp_path / "chart.svg")]
    monkeypatch.setattr(sys, "argv", ["study.py", *words])
    runpy.run_path(str(STUDY), run_name="__main__")
    found = json.loads((tmp_path / "found.json").read_text())
    assert [row["num_speculative_tokens"] for row in found] == [0, 4, 8, 16, 32]
    assert {row["sampling"] for row in found} == {"the release's"}
    assert all(row["equal"] == row["images"] == 1 for row in found)
    assert found[0]["steps"] == 4 and all(row["steps"] <= 4 for row in found)
    table = capsys.readouterr().out.splitlines()
    assert table[2].startswith("| 2 x 2 | the release's | none | 4.0 | 1.00 |")
    assert len(table) == 2 + 5
    assert (tmp_path / "chart.svg").read_text().count("<polyline") == 1
