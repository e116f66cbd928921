"""Tar files in WebDataset's manner."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from calumma.documents.document import Document, Image, Text
from calumma.documents.webdataset import read_tar
from calumma.errors import DocumentError
from tests.documents.dropped import separate
from tests.documents.image_files import BLUE, RED


def tar(path: Path, members: dict[str, bytes]) -> Path:
    """Write a tar file with these members, in order."""
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def test_members_of_one_stem_are_one_document(tmp_path: Path) -> None:
    record = {"caption": "blue", "license": "MIT", "width": 4, "more": [1]}
    path = tar(
        tmp_path / "a.tar",
        {
            "0001.png": RED,
            "0001.txt": b"red\n",
            "b/0002.JPG": BLUE,
            "b/0002.json": json.dumps(record).encode(),
        },
    )
    assert list(read_tar(path)) == [
        Document(id="0001", content=(Image(data=RED), Text("red"))),
        Document(
            id="b/0002",
            license="MIT",
            content=(Image(data=BLUE), Text("blue")),
            attributes={"width": "4"},
        ),
    ]


def test_json_parts_name_the_images_of_the_sample(tmp_path: Path) -> None:
    record = {
        "content": [
            {"type": "image", "path": "7.b.png"},
            {"type": "text", "text": "then"},
            {"type": "image", "path": "a.png"},
        ]
    }
    members = {"x/7.a.png": RED, "x/7.b.png": BLUE, "x/7.json": json.dumps(record).encode()}
    (document,) = read_tar(tar(tmp_path / "a.tar", members))
    assert document == Document(id="x/7", content=(Image(data=BLUE), Text("then"), Image(data=RED)))


def test_an_image_that_the_archive_does_not_hold_is_refused(tmp_path: Path) -> None:
    record = {"content": [{"type": "image", "path": "c.png"}]}
    path = tar(tmp_path / "a.tar", {"7.json": json.dumps(record).encode()})
    with pytest.raises(DocumentError) as caught:
        list(read_tar(path))
    assert str(caught.value) == (
        f"{path}, 7, part 0: image path 'c.png' has no folder to start from; expected bytes or "
        "base64. Put the image itself into the part."
    )


def test_a_group_with_neither_text_nor_image_is_refused(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", {"7.wav": b"..."})
    with pytest.raises(DocumentError) as caught:
        list(read_tar(path))
    assert str(caught.value) == (
        f"{path}, 7: neither image nor text; expected a member that ends in .txt, .json or one of "
        ".png .jpg .jpeg .webp .gif .bmp .tif .tiff. Rename the members, or drop the document."
    )


def test_broken_members_are_named_and_their_documents_can_be_left_out(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", {"1.json": b"{", "2.txt": b"\xff", "3.txt": b"three"})
    documents, details = separate(read_tar(path, "drop"))
    assert [document.text for document in documents] == ["three"]
    assert details == [
        f"{path}, 1.json: not JSON (Expecting property name enclosed in double quotes, line 1); "
        "expected an object. Fix it, or drop the document.",
        f"{path}, 2.txt: byte 0 is not UTF-8; expected text in UTF-8. "
        "Save it as UTF-8, or drop the document.",
    ]


def test_an_archive_cut_short_is_refused(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", {"1.txt": b"one" * 1000, "2.txt": b"two" * 1000})
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DocumentError) as caught:
        list(read_tar(path))
    assert str(caught.value) == (
        f"{path}: a truncated or corrupt tar archive (unexpected end of data); expected a "
        "WebDataset .tar, not compressed. Copy or write the file again."
    )


def test_a_missing_archive_is_named(tmp_path: Path) -> None:
    path = tmp_path / "no.tar"
    with pytest.raises(DocumentError) as caught:
        list(read_tar(path))
    assert str(caught.value) == (
        f"{path}: cannot be read (No such file or directory); expected a WebDataset .tar. "
        "Fix the path or its permissions."
    )
