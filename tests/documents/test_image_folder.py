"""A folder that holds nothing but images."""

import csv
from pathlib import Path

import pytest

from calumma.documents.image_folder import read_metadata_csv
from calumma.documents.readers import read_documents
from calumma.documents.writers import write_jsonl
from calumma.errors import DocumentError
from tests.documents.dropped import separate
from tests.images import png


def test_each_image_is_a_document(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("b/2.PNG", "b/1.png", "a.jpg", ".hidden.png", "notes.txt"):
        (tmp_path / name).write_bytes(png(1))
    found = list(read_documents([tmp_path]))
    assert [document.id for document in found] == ["a.jpg", "b/1.png", "b/2.PNG"]
    assert {document.source for document in found} == {tmp_path.name}
    assert found[1].images[0].open().size == (16, 16)


def test_a_folder_with_documents_is_not_an_image_folder(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(png(1))
    write_jsonl(tmp_path / "docs.jsonl", list(read_documents([tmp_path])))
    (tmp_path / "2.png").write_bytes(png(2))
    assert [document.id for document in read_documents([tmp_path])] == ["1.png"]


def test_a_table_that_is_not_csv_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "metadata.csv"
    path.write_text(f"file_name,text\n1.png,{'a' * (csv.field_size_limit() + 1)}\n")
    with pytest.raises(DocumentError) as caught:
        list(read_metadata_csv(path))
    assert str(caught.value) == (
        f"{path}: not CSV (field larger than field limit ({csv.field_size_limit()})); expected a "
        "header and rows. Write the file again."
    )


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_an_image_that_the_metadata_does_not_list_is_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "own").mkdir()
    for name in ("1.png", "2.png", "own/3.png"):
        (tmp_path / name).write_bytes(png(1))
    (tmp_path / "own" / "metadata.csv").write_text("file_name,text\n3.png,c\n")
    listed = "file_name,text\n1.png,a\n" if kind == "csv" else '{"file_name": "1.png", "text": "a"}\n'
    (tmp_path / f"metadata.{kind}").write_text(listed)
    documents, details = separate(read_documents([tmp_path], "drop"))
    assert [document.text for document in documents] == ["a", "c"]
    assert details == [
        f"{tmp_path}: the image 2.png is not listed in metadata.{kind}; expected a line for every image. "
        "Add the line, or move the image away."
    ]
    (tmp_path / "2.png").unlink()
    assert len(list(read_documents([tmp_path]))) == 2
