"""`calumma generate`, on a model that knows nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from calumma.checkpoints.model_folder import ModelParts, save_model
from calumma.cli.main import main


@pytest.fixture(scope="module")
def model(model_parts: ModelParts, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("generate") / "model"
    save_model(folder, model_parts)
    return str(folder)


def made(out: Path, *words: str) -> dict[str, object]:
    given = ["generate", *words, "--out", str(out), "--device", "cpu", "--max-new-tokens", "20"]
    assert main(given) == 0
    written: dict[str, object] = json.loads((out / "document.json").read_text())
    return written


def test_the_same_seed_makes_the_same_document_and_another_another(
    model: str, tmp_path: Path
) -> None:
    asked = (model, "--prompt", "a red circle", "--max-images", "1")
    first, again, other = (
        made(tmp_path / name, *asked, "--seed", seed)
        for name, seed in (("a", "1"), ("b", "1"), ("c", "2"))
    )
    assert first["content"] == again["content"]
    assert first["content"] != other["content"]


def test_no_images_are_drawn_where_none_are_wanted(model: str, tmp_path: Path) -> None:
    written = made(tmp_path, model, "--prompt", "a", "--max-images", "0", "--continue")
    assert {part["type"] for part in written["content"]} <= {"text"}  # type: ignore[attr-defined]
    assert list((tmp_path / "images").iterdir()) == []


def test_a_folder_without_a_model_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", str(tmp_path), "--prompt", "x", "--out", str(tmp_path / "o")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path}")


def test_an_image_that_is_not_there_is_refused(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "no.png"
    assert main(["generate", model, "--image", str(missing), "--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {missing}")
