"""`calumma corpus choose`."""

from __future__ import annotations

from pathlib import Path

import pytest

from calumma.cli.main import main
from calumma.documents.readers import read_documents
from calumma.documents.writers import write_parquet
from tests.documents.test_image_selection import DOCUMENTS


def test_chosen_pictures_are_written_and_the_rest_is_accounted_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given, out = tmp_path / "all.parquet", tmp_path / "fine.parquet"
    write_parquet(given, DOCUMENTS[:4])
    words = ["--attribute", "aesthetic", "--least", "6", "--side", "32", "--most", "1"]
    assert main(["corpus", "choose", str(given), "--out", str(out), *words]) == 0
    assert [document.id for document in read_documents([out])] == ["square"]
    assert capsys.readouterr().out == f"{out}: 1 document chosen; left out: score 1, size 2\n"
