"""The one door: files, folders, globs, and paths that hold nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from calumma.documents.document import Document, Text
from calumma.documents.readers import find_files, read_documents
from calumma.documents.writers import write_jsonl, write_parquet
from calumma.errors import DocumentError
from tests.documents.dropped import separate
from tests.documents.image_files import RED
from tests.documents.test_parquet import pairs, save
from tests.documents.test_webdataset import tar

EXPECTED = ".jsonl, .jsonl.gz, .jsonl.zst, .parquet, .tar, .html or a folder written by save_to_disk"


def document(name: str) -> Document:
    """Return a document of one text."""
    return Document(id=name, content=(Text(name),))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One document in each kind of file, and things that hold none."""
    write_parquet(tmp_path / "c.parquet", [document("parquet")])
    write_jsonl(tmp_path / "a" / "z.jsonl", [document("plain")])
    write_jsonl(tmp_path / "a" / "b.jsonl.gz", [document("gzip")])
    write_jsonl(tmp_path / "a" / "c.jsonl.zst", [document("zstd")])
    tar(tmp_path / "b.tar", {"tar.txt": b"tar"})
    save(tmp_path / "d", pairs())
    (tmp_path / "README.txt").write_text("no documents")
    (tmp_path / "1.png").write_bytes(RED)
    (tmp_path / ".hidden").mkdir()
    write_jsonl(tmp_path / ".hidden" / "x.jsonl", [document("hidden")])
    return tmp_path


def test_a_folder_stands_for_all_its_files_in_the_order_of_their_names(folder: Path) -> None:
    texts = [document.text for document in read_documents([folder])]
    assert texts == ["gzip", "zstd", "plain", "tar", "parquet", "a red square", "a blue square"]


def test_a_glob_stands_for_the_files_it_matches(folder: Path) -> None:
    texts = [document.text for document in read_documents([f"{folder}/**/*.jsonl*"])]
    assert texts == ["gzip", "zstd", "plain"]
    everything = [document.text for document in read_documents([f"{folder}/*"])]
    assert len(everything) == 7


def test_paths_are_read_in_the_order_given(folder: Path) -> None:
    paths = [folder / "c.parquet", str(folder / "b.tar")]
    assert [document.text for document in read_documents(paths)] == ["parquet", "tar"]


def test_one_document_at_a_time_is_read(folder: Path) -> None:
    write_jsonl(folder / "long.jsonl", (document(str(n)) for n in range(5)))
    with (folder / "long.jsonl").open("a") as file:
        file.write("nonsense\n")
    assert next(iter(read_documents([folder / "long.jsonl"]))).id == "0"


def test_a_folder_without_documents_is_refused(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("hello")
    with pytest.raises(DocumentError) as caught:
        list(read_documents([tmp_path]))
    assert str(caught.value) == (
        f"{tmp_path}: no documents in this folder; expected {EXPECTED}. Name the folder that holds the documents."
    )


def test_an_unknown_ending_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "docs.csv"
    path.write_text("a,b")
    with pytest.raises(DocumentError) as caught:
        list(read_documents([path]))
    assert str(caught.value) == (
        f"{path}: no reader for this file extension; expected {EXPECTED}. Convert or rename the file."
    )


@pytest.mark.parametrize("name", ["no.jsonl", "*.jsonl"])
def test_a_path_where_nothing_is_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DocumentError) as caught:
        find_files(tmp_path / name)
    assert str(caught.value) == (
        f"{tmp_path / name}: nothing found; expected {EXPECTED}. Fix the path, and put a glob in quotes."
    )


def test_a_glob_that_matches_no_documents_is_refused(tmp_path: Path) -> None:
    for name in ("1.txt", "2.txt"):
        (tmp_path / name).touch()
    with pytest.raises(DocumentError) as caught:
        find_files(f"{tmp_path}/*.txt")
    assert str(caught.value) == (
        f"{tmp_path}/*.txt: 2 matches, none with documents; expected {EXPECTED}. "
        "Fix the path, and put a glob in quotes."
    )


@pytest.mark.parametrize("name", ["e.jsonl", "e.jsonl.gz", "e.parquet", "e.tar"])
def test_a_file_without_a_single_document_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "e.parquet":
        write_parquet(path, [])
    elif name == "e.tar":
        tar(path, {})
    else:
        write_jsonl(path, [])
    with pytest.raises(DocumentError) as caught:
        list(read_documents([path]))
    assert str(caught.value) == (
        f"{path}: no document found; expected at least one. Name another path, or remove this one."
    )


def test_faults_are_left_out_and_counted_over_all_files(folder: Path) -> None:
    (folder / "a" / "bad.jsonl").write_text("nonsense\n")
    (folder / "bad.parquet").write_bytes(b"PAR1")
    documents, details = separate(read_documents([folder], "drop"))
    assert (len(documents), len(details)) == (7, 2)


def test_a_path_that_climbs_out_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "docs.jsonl"
    path.write_text(json.dumps({"content": [{"type": "image", "path": "../../1.png"}]}))
    with pytest.raises(DocumentError) as caught:
        list(read_documents([path]))
    assert str(caught.value) == (
        f"{path}:1, part 0: image path '../../1.png' leads out of {tmp_path}; expected a path "
        "inside the folder of the document's file. Copy the image there."
    )


def test_reading_needs_no_torch() -> None:
    code = "import sys, calumma.documents.readers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_folder_without_permission_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> list[Path]:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(DocumentError) as caught:
        find_files(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: cannot be opened (Permission denied); expected document files. Fix the path or its permissions."
    )
