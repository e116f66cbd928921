"""OBELICS pages from Parquet files and JSON lines."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from calumma.documents.document import Document, Image, Text
from calumma.documents.obelics import interleave, is_obelics_record
from calumma.documents.readers import read_documents
from calumma.errors import DocumentError
from tests.images import png

TEXTS = ["A bird.", None, "It flew.", None]


def shape(document: Document) -> list[str]:
    return [part.text if isinstance(part, Text) else "image" for part in document.content]


@pytest.mark.parametrize("kind", ["bytes", "struct"])
def test_a_row_is_a_page_in_reading_order(tmp_path: Path, kind: str) -> None:
    data = [png(0), png(1)]
    given: list[Any] = data if kind == "bytes" else [{"bytes": d, "path": None} for d in data]
    row = {"texts": TEXTS, "images": [None, given[0], None, given[1]], "general": "of the page"}
    pq.write_table(pa.Table.from_pylist([row, row]), tmp_path / "a.parquet")
    first, second = read_documents([tmp_path])
    assert shape(first) == shape(second) == ["A bird.", "image", "It flew.", "image"]
    assert [image.data for image in first.images] == data
    assert first.attributes == {"general": "of the page"}


def test_image_paths_of_a_line_are_relative_to_its_file(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(png(0))
    record = {"id": "x", "source": "web", "texts": TEXTS, "images": [None, "1.png", None, None]}
    (tmp_path / "a.jsonl").write_text(json.dumps(record))
    [document] = read_documents([tmp_path / "a.jsonl"])
    assert (document.id, document.source) == ("x", "web")
    assert shape(document) == ["A bird.", "image", "It flew."]
    assert document.images == [Image(path=tmp_path / "1.png")]


def test_an_image_that_is_only_a_web_address_raises() -> None:
    with pytest.raises(DocumentError) as caught:
        interleave(TEXTS, [None, "https://example.org/1.png", None, None], "a.parquet, row 3")
    assert str(caught.value) == (
        "a.parquet, row 3, position 1: the image is a web address, 'https://example.org/1.png'; "
        "expected its bytes, or a path next to the file. Download the images first."
    )


@pytest.mark.parametrize("record", [[], {"texts": ["a"]}, {"texts": ["a"], "images": []}, {}])
def test_other_records_are_no_obelics_pages(record: Any) -> None:
    assert not is_obelics_record(record)
