"""JSON lines: plain, gzip and Zstandard, whole and broken."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from calumma.documents.jsonl import read_jsonl
from calumma.errors import DocumentError
from tests.documents.dropped import separate

LINES = [{"id": f"{n}", "content": [{"type": "text", "text": f"text {n * 7919}"}]} for n in range(50)]
CODECS = {".jsonl": None, ".jsonl.gz": "gzip", ".jsonl.zst": "zstd"}


def write(path: Path, data: bytes, codec: str | None) -> Path:
    """Write bytes to a file, compressed."""
    with pa.output_stream(str(path), compression=codec) as out:
        out.write(data)
    return path


@pytest.mark.parametrize("suffix", CODECS)
def test_one_document_a_line_whatever_the_codec(tmp_path: Path, suffix: str) -> None:
    data = "".join(json.dumps(line) + "\n" for line in LINES).encode()
    path = write(tmp_path / f"docs{suffix}", data, CODECS[suffix])
    documents = list(read_jsonl(path))
    assert [document.id for document in documents] == [line["id"] for line in LINES]
    assert documents[3].text == "text 23757"


def test_empty_lines_are_passed_over_and_the_last_needs_no_end(tmp_path: Path) -> None:
    path = write(tmp_path / "docs.jsonl", b'\n{"content": "a"}\n  \r\n{"content": "b"}', None)
    assert [(d.id, d.text) for d in read_jsonl(path)] == [("docs.jsonl:2", "a"), ("docs.jsonl:4", "b")]


def test_an_image_path_starts_at_the_folder_of_the_file(tmp_path: Path) -> None:
    record = {"content": [{"type": "image", "path": "images/1.png"}]}
    path = write(tmp_path / "docs.jsonl", json.dumps(record).encode(), None)
    (document,) = read_jsonl(path)
    assert document.images[0].path == tmp_path.resolve() / "images" / "1.png"


def test_a_broken_line_is_named_by_file_and_number(tmp_path: Path) -> None:
    path = write(tmp_path / "docs.jsonl", b'{"content": "a"}\n{"content": "b"\n', None)
    with pytest.raises(DocumentError) as caught:
        list(read_jsonl(path))
    assert str(caught.value) == (
        f"{path}:2: not JSON (Expecting ',' delimiter at column 1); expected one document per "
        "line. Fix the line, or remove it."
    )


def test_a_line_nested_without_end_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "docs.jsonl", b"[" * 200_000, None)
    with pytest.raises(DocumentError) as caught:
        list(read_jsonl(path))
    assert str(caught.value) == (
        f"{path}:1: not JSON (nested too deeply); expected one document per line. Fix the line, or remove it."
    )


def test_a_key_that_comes_twice_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "docs.jsonl", b'{"content": "a", "content": "b"}', None)
    with pytest.raises(DocumentError) as caught:
        list(read_jsonl(path))
    assert str(caught.value) == (
        f"{path}:1: not JSON (the key 'content' comes twice); expected one document per line. "
        "Fix the line, or remove it."
    )


@pytest.mark.parametrize("depth", [200, 400, 900])
def test_a_deep_record_is_read_or_refused(tmp_path: Path, depth: int) -> None:
    record = b'{"text": "a", "other": ' + b"[" * depth + b"1" + b"]" * depth + b"}"
    path = write(tmp_path / "docs.jsonl", record, None)
    documents, details = separate(read_jsonl(path, "drop"))
    reasons = (
        f"{path}:1: nested too deeply; expected a document of a few levels. Fix the record, or drop the document.",
        f"{path}:1: not JSON (nested too deeply); expected one document per line. Fix the line, or remove it.",
    )
    assert len(documents) + len(details) == 1
    assert all(detail in reasons for detail in details)
    assert depth < 900 or details


def test_a_line_in_another_encoding_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "docs.jsonl", '{"content": "café"}'.encode("latin-1"), None)
    with pytest.raises(DocumentError) as caught:
        list(read_jsonl(path))
    assert str(caught.value) == (
        f"{path}:1: byte 16 of the line is not UTF-8; expected JSON in UTF-8. "
        "Save the file as UTF-8, or remove the line."
    )


def test_broken_lines_can_be_counted_and_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "docs.jsonl", b'nonsense\n{"content": "a"}\n{"x": 1}\n{"content": "b"}', None)
    documents, details = separate(read_jsonl(path, "drop"))
    assert [document.text for document in documents] == ["a", "b"]
    assert len(details) == 2
    assert details[0].startswith(f"{path}:1: not JSON")


@pytest.mark.parametrize(("suffix", "codec"), [(".gz", "gzip"), (".zst", "zstd")])
@pytest.mark.parametrize("keep", [0.99, 0.5, 0.02])
def test_a_compressed_file_that_is_cut_short_is_refused(tmp_path: Path, suffix: str, codec: str, keep: float) -> None:
    data = "".join(json.dumps(line) + "\n" for line in LINES).encode()
    path = write(tmp_path / f"docs.jsonl{suffix}", data, codec)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(DocumentError) as caught:
        list(read_jsonl(path))
    assert str(caught.value) == (
        f"{path}: the {codec} data is truncated or corrupt; expected a complete file. Copy or write the file again."
    )


def test_a_plain_file_named_gz_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "docs.jsonl.gz", b'{"content": "a"}\n', None)
    with pytest.raises(DocumentError, match="the gzip data is truncated or corrupt"):
        list(read_jsonl(path))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "no.jsonl"
    with pytest.raises(DocumentError) as caught:
        list(read_jsonl(path))
    assert str(caught.value) == (
        f"{path}: cannot be read (No such file or directory); expected a file of JSON lines. "
        "Fix the path or its permissions."
    )
