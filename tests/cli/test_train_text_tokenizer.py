"""`calumma train-text-tokenizer`."""

from __future__ import annotations

from pathlib import Path

import pytest

from calumma.cli.main import main
from calumma.documents.document import Document
from calumma.documents.writers import write_parquet
from calumma.tokens.folder import Tokenizers
from calumma.tokens.text import TextTokenizer


@pytest.fixture
def docs(documents: list[Document], tmp_path: Path) -> str:
    write_parquet(tmp_path / "d.parquet", documents)
    return str(tmp_path / "d.parquet")


def train(*words: str) -> int:
    return main(["train-text-tokenizer", *words, "--num-text", "280"])


def test_the_codes_are_as_many_as_the_image_tokenizer_has(
    docs: str, tokenizers: Tokenizers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizers.image.save(tmp_path / "vq")
    assert train(docs, "--out", str(tmp_path / "t"), "--image-tokenizer", str(tmp_path / "vq")) == 0
    vocabulary = TextTokenizer.load(tmp_path / "t").vocabulary
    assert (vocabulary.num_text, vocabulary.num_codes) == (280, 16)
    assert capsys.readouterr().out == (
        f"{tmp_path / 't'}/tokenizer.json: {vocabulary.size} tokens, 280 of text and 16 image "
        f"codes; fingerprint {vocabulary.fingerprint}\n"
    )


def test_the_number_of_codes_is_given_once(docs: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(docs, "--out", str(tmp_path), "--num-codes", "4", "--image-tokenizer", "x") == 2
    assert train(docs, "--out", str(tmp_path)) == 2
    both, neither = capsys.readouterr().err.splitlines()
    assert both.startswith("error: argument --image-tokenizer: not allowed with argument --num-c")
    assert neither.startswith("error: one of the arguments --num-codes --image-tokenizer is requi")


def test_the_vocabulary_takes_what_the_text_gives(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "d.jsonl").write_text('{"text": "ab ab"}\n')
    words = [str(tmp_path / "d.jsonl"), "--out", str(tmp_path / "t"), "--num-codes", "4"]
    assert main(["train-text-tokenizer", *words]) == 0
    num_text = TextTokenizer.load(tmp_path / "t").vocabulary.num_text
    assert 256 < num_text < 4096
    assert f"the texts give {num_text} text tokens, not 4096; more text" in caplog.text


def test_the_image_tokenizer_is_copied_into_the_folder(docs: str, tokenizers: Tokenizers, tmp_path: Path) -> None:
    tokenizers.image.save(tmp_path / "vq")
    assert train(docs, "--out", str(tmp_path / "t"), "--image-tokenizer", str(tmp_path / "vq")) == 0
    assert Tokenizers.load(tmp_path / "t").image.fingerprint == tokenizers.image.fingerprint
    for file in (tmp_path / "vq").iterdir():
        assert (tmp_path / "t" / file.name).read_bytes() == file.read_bytes()


def test_an_error_leaves_no_folder(tmp_path: Path) -> None:
    assert train("nothing.jsonl", "--out", str(tmp_path / "t"), "--num-codes", "4") == 2
    assert not (tmp_path / "t").exists()
