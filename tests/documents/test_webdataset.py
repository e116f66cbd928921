"""Tar files in WebDataset's manner."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from calumma.documents.document import Document, Image, Text, Turn
from calumma.documents.error_policy import OnError
from calumma.documents.file_splits import read_split, split_files
from calumma.documents.readers import read_documents
from calumma.documents.webdataset import read_tar, tar_offsets
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
        {"0001.png": RED, "0001.txt": b"red\n", "b/0002.JPG": BLUE, "b/0002.json": json.dumps(record).encode()},
    )
    assert list(read_tar(path)) == [
        Document(id="0001", content=(Image(data=RED), Text("red"))),
        Document(id="b/0002", license="MIT", content=(Image(data=BLUE), Text("blue")), attributes={"width": "4"}),
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
        ".png .jpg .jpeg .webp .gif .bmp .tif .tiff .avif .jp2. Rename the members, or drop the document."
    )


def test_broken_members_are_named_and_their_documents_can_be_left_out(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", {"1.json": b"{", "2.txt": b"\xff", "3.txt": b"three"})
    documents, details = separate(read_tar(path, "drop"))
    assert [document.text for document in documents] == ["three"]
    assert details == [
        f"{path}, 1.json: not JSON (Expecting property name enclosed in double quotes at column 2); "
        "expected an object. Fix it, or drop the document.",
        f"{path}, 2.txt: byte 0 is not UTF-8; expected text in UTF-8. Save it as UTF-8, or drop the document.",
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


def write_members(path: Path, members: list[tuple[str, bytes]]) -> Path:
    """Write a tar file whose members may repeat."""
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("on_error", ["raise", "drop"])
def test_members_that_are_apart_are_refused(tmp_path: Path, on_error: OnError) -> None:
    members = {"1.png": RED, "2.png": BLUE, "1.txt": b"red", "2.txt": b"blue"}
    path = tar(tmp_path / "a.tar", members)
    message = (
        f"{path}: 1.txt is apart from the other members of 1; expected the members of one document "
        "next to each other. Write the archive again, sorted by name (tar --sort=name)."
    )
    if on_error == "drop":
        documents, details = separate(read_documents([path], "drop"))
        assert (documents, details) == ([], [message])
        [split] = split_files([path], 1)
        assert separate(read_split(split, "drop")) == ([], [message])
    else:
        with pytest.raises(DocumentError) as caught:
            list(read_tar(path))
        assert str(caught.value) == message


def test_files_that_macos_adds_are_skipped(tmp_path: Path) -> None:
    junk = b"\0\5\x16\7" + bytes(80)
    members = {
        "__MACOSX/._1.png": junk,
        "./._1.png": junk,
        "./1.png": RED,
        "./._1.txt": junk,
        "./1.txt": "\ufeffred".encode(),
        ".DS_Store": junk,
    }
    path = tar(tmp_path / "a.tar", members)
    [document] = read_tar(path)
    assert document.content == (Image(data=RED), Text("red"))
    assert len(tar_offsets(path)) == 1


def test_a_member_that_comes_twice_is_refused(tmp_path: Path) -> None:
    path = write_members(tmp_path / "a.tar", [("1.png", RED), ("1.png", BLUE), ("2.txt", b"two")])
    documents, details = separate(read_tar(path, "drop"))
    assert [document.text for document in documents] == ["two"]
    assert details == [
        f"{path}, 1.png: the archive has two members of this name; expected one. Rename one of "
        "them, or drop the document."
    ]


def test_several_captions_and_images_are_all_read(tmp_path: Path) -> None:
    members = {
        "1.png": RED,
        "1.caption1.txt": b"one",
        "1.caption2.txt": b"two",
        "a/v1.5/cat.0.png": RED,
        "a/v1.5/cat.0.txt": b"cat zero",
        "a/v1.5/cat.1.png": BLUE,
        "a/v1.5/cat.1.txt": b"cat one",
    }
    first, second = read_tar(tar(tmp_path / "a.tar", members))
    assert first.content == (Image(data=RED), Text("one"), Text("two"))
    assert second.content == (*(Image(data=RED), Text("cat zero")), *(Image(data=BLUE), Text("cat one")))


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [{"role": "user", "content": "<image>What?"}]},
        {"messages": [{"role": "user", "content": [{"type": "image"}, "What?"]}]},
        {"image": "coco/1.png", "conversations": [{"from": "human", "value": "<image>\nWhat?"}]},
    ],
)
def test_images_of_a_sample_have_places_in_the_turns_of_its_json(tmp_path: Path, record: dict[str, Any]) -> None:
    members = {"1.png": RED, "1.json": json.dumps(record).encode()}
    [document] = read_tar(tar(tmp_path / "a.tar", members))
    assert document.messages == (Turn("user", (Image(data=RED), Text("What?"))),)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            {"1.png": RED, "1.json": b'{"content": "a"}'},
            ": 1 images for 0 slots (<image> marks and image parts without an image); "
            "expected as many slots as images. Fix the row, or drop the document.",
        ),
        (
            {"1.png": RED, "1.json": b'["a", "b"]'},
            ".json: found list; expected an object. Fix it, or drop the document.",
        ),
    ],
)
def test_a_sample_of_which_something_would_be_lost_is_refused(
    tmp_path: Path, members: dict[str, bytes], message: str
) -> None:
    path = tar(tmp_path / "a.tar", members)
    with pytest.raises(DocumentError) as caught:
        list(read_tar(path))
    assert str(caught.value) == f"{path}, 1{message}"


def test_a_text_that_the_json_does_not_hold_is_left_over(tmp_path: Path) -> None:
    members = {"1.txt": b"lost", "1.json": b'{"content": "a"}', "2.txt": b"a", "2.json": b'{"content": "a"}'}
    first, second = read_tar(tar(tmp_path / "a.tar", members))
    assert first.account.to_json() == {"left over": {"txt (text)": 1}, "text": {"content": 1}}
    assert second.account.to_json() == {"text": {"content": 1, "txt": 1}}


def test_words_in_an_image_column_of_the_json_are_refused(tmp_path: Path) -> None:
    record = {"image_1": "words, not a name"}
    path = tar(tmp_path / "a.tar", {"1.png": RED, "1.json": json.dumps(record).encode()})
    with pytest.raises(DocumentError) as caught:
        list(read_tar(path))
    assert str(caught.value) == (
        f"{path}, 1, part 1: image path 'words, not a name' has no folder to start from; expected bytes or base64. "
        "Put the image itself into the part."
    )


def test_a_missing_archive_is_named(tmp_path: Path) -> None:
    path = tmp_path / "no.tar"
    with pytest.raises(DocumentError) as caught:
        list(read_tar(path))
    assert str(caught.value) == (
        f"{path}: cannot be read (No such file or directory); expected a WebDataset .tar. "
        "Fix the path or its permissions."
    )
