"""The data study: its checks on a tiny corpus."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from calumma.documents.document import Document
from calumma.documents.writers import write_parquet
from calumma.tokens.folder import Tokenizers
from studies.data import kill, rows
from tests.shard_building import build_shards


def test_packed_sequences_reproduce_the_documents(
    documents: list[Document],
    tokenizers: Tokenizers,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain = [document for document in documents if not document.messages]
    write_parquet(tmp_path / "d.parquet", plain)
    tokenizers.text.save(tmp_path / "tok")
    build_shards(plain, tokenizers, tmp_path / "shards")
    arguments = ["--shards", tmp_path / "shards", "--tokenizers", tmp_path / "tok", "--quick"]
    arguments += ["--seq-len", "64", tmp_path / "d.parquet"]
    monkeypatch.setattr(sys, "argv", ["rows.py", *map(str, arguments)])
    rows.main()
    results = json.loads(capsys.readouterr().out)
    assert results["documents_read"] == results["documents_recovered"] == len(plain)
    assert results["documents_with_a_partial_image"] == 0
    assert all(fraction > 0.8 for fraction in results["non_padding_fraction"].values())
    assert results["max_mixture_error"]["sequences"] < 0.02


def test_a_partial_image_is_detected(tokenizers: Tokenizers) -> None:
    v = tokenizers.text.vocabulary
    codes = list(v.codes)[:4]
    complete = [v.bos, v.begin_image, *codes, v.end_image, v.eos]
    assert rows.has_complete_images(np.array(complete), v, 4)
    assert not rows.has_complete_images(np.array(complete[:-3]), v, 4)
    assert not rows.has_complete_images(np.array([*complete, codes[0]]), v, 4)


def test_differing_files_are_detected_and_build_files_ignored(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name / ".build").mkdir(parents=True)
        (tmp_path / name / ".build" / name).touch()
        (tmp_path / name / "a").write_bytes(b"a")
        (tmp_path / name / "b").write_bytes(name.encode())
    assert kill.differing(tmp_path / "one", tmp_path / "other") == ["b"]
    (tmp_path / "other" / "a").unlink()
    assert kill.differing(tmp_path / "one", tmp_path / "other") == ["a", "b"]
