"""`calumma inspect` of things the session's fixtures make; the road's tests show it the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from calumma.checkpoints.model_folder import ModelParts, save_model
from calumma.cli.main import main
from calumma.documents.document import Document
from calumma.documents.writers import write_parquet
from calumma.shards.build import Tokenizers


def told(path: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert main(["inspect", str(path)]) == 0
    return capsys.readouterr().out.splitlines()


def test_documents(
    documents: list[Document], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "d.parquet"
    write_parquet(path, documents)
    letters = sum(len(document.text) for document in documents)
    assert told(path, capsys) == [
        f"{path}: documents",
        f"40 documents (8 conversations), 24 images, {letters} letters of text",
        "sources: pairs 16, text 16, chat 8",
    ]


def test_shards(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, counts, dropped, head, *sources, vocabulary = told(shards, capsys)
    assert first == f"{shards}: shards, whole"
    assert counts.startswith("40 sequences, ")
    assert counts.endswith(" 24 images of 4 codes")
    assert dropped == "0 documents left out"
    assert head.split()[:3] == ["source", "sequences", "ids"]
    assert [line.split()[:2] for line in sources] == [
        ["pairs", "16"],
        ["text", "16"],
        ["chat", "8"],
    ]
    assert vocabulary.startswith("vocabulary: 300 text ids, 16 image codes, fingerprint ")


def test_a_model(
    model_parts: ModelParts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tmp_path / "model", model_parts)
    lines = told(tmp_path / "model", capsys)
    assert lines[0] == f"{tmp_path / 'model'}: a model folder, whole"
    assert "2 layers of 32, 4 heads, norms pre, rows of at most 128 ids" in lines[1]
    assert lines[3] == ("image tokenizer: 16 pixels to a side, 4 codes a picture, draws")


def test_a_folder_of_one_tokenizer(
    tokenizers: Tokenizers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizers.image.save(tmp_path)
    assert told(tmp_path, capsys) == [
        f"{tmp_path}: tokenizers",
        "image tokenizer: 16 codes, 16 pixels to a side, 4 codes a picture",
    ]


def test_a_run_that_has_saved_nothing_yet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "checkpoints").mkdir()
    assert told(tmp_path, capsys) == [
        f"{tmp_path}: a training run",
        "checkpoints at steps none yet; metrics of 0 steps",
        "the command that began it goes on from the newest",
    ]


def test_nothing_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path / "no")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path / 'no'}")


def test_what_calumma_does_not_know(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.bin").write_bytes(b"\0\1\2")
    assert main(["inspect", str(tmp_path / "a.bin")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path / 'a.bin'}")
