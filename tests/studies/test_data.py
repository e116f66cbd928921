"""The study of the larger corpus: its checks see what they are to see, on a tiny one."""

from __future__ import annotations

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


def test_rows_give_back_the_documents_they_were_made_of(
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
    arguments += ["--row-length", "64", tmp_path / "d.parquet"]
    monkeypatch.setattr(sys, "argv", ["rows.py", *map(str, arguments)])
    rows.main()
    seen = json.loads(capsys.readouterr().out)
    assert seen["documents_read"] == seen["documents_given_back"] == len(plain)
    assert seen["owners_with_part_of_an_image"] == 0
    assert all(share > 0.8 for share in seen["fill"].values())
    assert seen["worst_share_error"]["sequences"] < 0.02


def test_a_part_of_an_image_is_seen(tokenizers: Tokenizers) -> None:
    v = tokenizers.text.vocabulary
    codes = list(v.codes)[:4]
    whole = [v.bos, v.begin_image, *codes, v.end_image, v.eos]
    assert rows.holds_whole_images(np.array(whole), v, 4)
    assert not rows.holds_whole_images(np.array(whole[:-3]), v, 4)
    assert not rows.holds_whole_images(np.array([*whole, codes[0]]), v, 4)


def test_a_byte_that_differs_is_seen_and_what_only_the_build_needs_is_not(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name / ".build").mkdir(parents=True)
        (tmp_path / name / ".build" / name).touch()
        (tmp_path / name / "a").write_bytes(b"a")
        (tmp_path / name / "b").write_bytes(name.encode())
    assert kill.differing(tmp_path / "one", tmp_path / "other") == ["b"]
    (tmp_path / "other" / "a").unlink()
    assert kill.differing(tmp_path / "one", tmp_path / "other") == ["a", "b"]
