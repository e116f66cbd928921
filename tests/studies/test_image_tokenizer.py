"""The image tokenizer study: a quick run, and its table of known results."""

import io
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from calumma.documents.document import Document, Image
from calumma.documents.writers import write_parquet
from calumma.tokens.image import ImageTokenizer
from tests.images import noise

STUDY = Path(__file__).parents[2] / "studies" / "image_tokenizer"


def program(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Load a program of the study and return its names."""
    monkeypatch.syspath_prepend(str(STUDY))
    return runpy.run_path(str(STUDY / name))


def test_a_quick_run_writes_a_tokenizer_and_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = []
    for number in range(4):
        file = io.BytesIO()
        noise(number, 64, 64).save(file, "PNG")
        documents.append(Document(id=str(number), content=(Image(data=file.getvalue()),)))
    write_parquet(tmp_path / "train.parquet", documents)
    words = ["--images", tmp_path, "--out", tmp_path / "out", "--only", "ibq", "--seed", "1"]
    monkeypatch.setattr(sys, "argv", ["study.py", *map(str, words), "--quick"])
    study = program("study.py", monkeypatch)
    study["main"]()
    folder = tmp_path / "out" / "ibq-seed-1"
    assert ImageTokenizer.load(folder).config.num_codes == 512
    before = (folder / "image_tokenizer.json").stat().st_mtime_ns
    study["main"]()
    assert (folder / "image_tokenizer.json").stat().st_mtime_ns == before


def test_the_table_has_the_middle_and_half_range_of_the_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    measure = program("measure.py", monkeypatch)
    columns = dict.fromkeys(measure["COLUMNS"], 0.5)
    results = [
        {"variant": "shipped", "seed": seed, **columns, "psnr_db": value} for seed, value in ((0, 21.0), (1, 22.0))
    ]
    last = measure["markdown_table"](results).splitlines()[-1]
    assert last.startswith("| shipped | 21.50 ± 0.50 | 0.50 ± 0.00 |")
    assert last.endswith("| 2 |")
