"""`calumma train-image-tokenizer`; the road's tests train one."""

from __future__ import annotations

from pathlib import Path

import pytest

from calumma.cli.main import main
from calumma.documents.document import Document, Text
from calumma.documents.writers import write_jsonl
from tests.road.test_verbs import VQ


def test_documents_without_pictures_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(Path("docs.jsonl"), [Document(id="a", content=(Text("words"),))])
    Path("vq.toml").write_text(VQ)
    assert main(["train-image-tokenizer", "vq.toml", "--out", "vq"]) == 2
    assert capsys.readouterr().err == (
        "error: the documents hold no picture; wanted at least one to train an image tokenizer "
        "on. Name files whose documents have image parts.\n"
    )
    assert not Path("vq/config.json").exists()


def test_a_config_that_its_class_refuses_names_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "vq.toml").write_text(VQ)
    words = ["train-image-tokenizer", str(tmp_path / "vq.toml"), "--out", str(tmp_path / "vq")]
    assert main([*words, "--training.steps", "0"]) == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path / 'vq.toml'}: steps=0 and batch_size=2; wanted at least 1 of each.\n"
    )
